"""The suggested recipes build, freeze what they say, and read four channels."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import REPO
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.optim import build_optim_wrapper

RECIPES = sorted((REPO / 'configs/recipes').glob('*.py'))


@pytest.fixture(autouse=True, scope='module')
def _mmdet_scope():
    register_all_modules()


@pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.stem)
def test_recipe_builds_in_full_and_trains_what_it_says(path: Path):
    cfg = Config.fromfile(path)
    assert 'suggestion' in path.read_text().partition('_base_')[0]
    with torch.device('meta'):
        model = MODELS.build({**cfg.model, 'data_preprocessor': None})
    reader = cfg.model.neck if 'neck' in cfg.model else cfg.model.panoptic_head
    assert list(reader.in_channels) == model.backbone.channels
    wrapper = build_optim_wrapper(model, {**cfg.optim_wrapper, 'type': 'OptimWrapper'})
    optimised = {p for group in wrapper.param_groups for p in group['params']}
    names = {name for name, p in model.backbone.named_parameters() if p in optimised}
    everything = {name for name, _ in model.backbone.named_parameters()}
    norms = {name for name in everything if name.startswith('hidden_states_norms.')}
    assert names == (norms if 'frozen' in path.stem else everything)
    # The table of the configs names it.
    assert f'({path.relative_to(REPO / "configs")})' in (REPO / 'configs/README.md').read_text()


def test_four_channels_reach_the_stem(tmp_path):
    cfg = Config.fromfile(REPO / 'configs/recipes/faster-rcnn_convnext-t_fpn_4-channel.py')
    normalize = cfg.train_pipeline[-2]
    pixels = np.broadcast_to(np.rint(normalize.mean), (96, 128, 4)).astype(np.uint8)
    cv2.imwrite(str(tmp_path / 'image.png'), pixels)
    for pipeline in (cfg.train_dataloader.dataset.pipeline, cfg.test_dataloader.dataset.pipeline):
        assert pipeline[-1].type == 'PackDetInputs'
        steps = [step for step in pipeline if 'Annotations' not in step.type]
        data = Compose(steps)(dict(img_path=str(tmp_path / 'image.png'), img_id=0))
        batch = MODELS.build(cfg.model.data_preprocessor)(
            dict(inputs=[data['inputs']], data_samples=[data['data_samples']])
        )
        assert batch['inputs'].shape[:2] == (1, 4)
        # Every channel has its own mean; the padding is 0.
        assert batch['inputs'].abs().max() < 0.01
    backbone = {**cfg.model.backbone, 'arch': dict(depths=[1] * 4, hidden_sizes=[8] * 4)}
    model = MODELS.build({**backbone, 'init_cfg': None})
    rgb = MODELS.build({**backbone, 'num_channels': 3, 'adapt_stem': False, 'init_cfg': None})
    model.load_state_dict(rgb.state_dict())
    assert model.embeddings.patch_embeddings.weight.shape == (8, 4, 4, 4)
    assert len(model(batch['inputs'][..., :64, :64])) == 4
