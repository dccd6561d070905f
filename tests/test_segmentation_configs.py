"""Every segmentor config trains a step and predicts; the recipes match the paper."""

import re

import pytest
import torch
from helpers import REPO
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from mmengine.structures import PixelData
from torch import nn

from convnext_backbone import ConvNextBackbone
from convnext_backbone.engine import check_model

FOLDER = REPO / 'configs/segmentation'
DEMO = REPO / 'configs/demo/upernet_convnext-atto_shapes.py'
CONFIGS = [DEMO, *sorted(FOLDER.glob('*.py'))]
# ConvNeXt, ADE20K: crop, drop path, learning rate, num_layers of its decay, pre-trained weights.
PAPER = {
    't': (512, 0.4, 1e-4, 6, 'tiny_1k_224'),
    's': (512, 0.3, 1e-4, 12, 'small_1k_224'),
    'b-in1k-pre': (512, 0.4, 1e-4, 12, 'base_1k_224'),
    'b-in22k-pre': (640, 0.4, 1e-4, 12, 'base_22k_224'),
    'l': (640, 0.4, 1e-4, 12, 'large_22k_224'),
    'xl': (640, 0.4, 8e-5, 12, 'xlarge_22k_224'),
}


@pytest.fixture(autouse=True, scope='module')
def _mmseg_scope():
    from mmseg.utils import register_all_modules

    register_all_modules()


def load_paper(name: str) -> Config:
    crop = PAPER[name][0]
    return Config.fromfile(FOLDER / f'convnext-{name}_upernet_amp-160k_ade20k-{crop}x{crop}.py')


def build_on_meta(cfg: Config) -> nn.Module:
    """The whole model on the meta device, without memory for its weights."""
    with torch.device('meta'):
        return MODELS.build({**cfg.model, 'data_preprocessor': None})


def narrow(cfg: Config) -> Config:
    """Only reduces widths, depths and crop: the large models need gigabytes."""
    model, widths = cfg.model, [8, 16, 24, 32]
    model.data_preprocessor.size = (64, 64)
    model.backbone.arch = dict(depths=[1, 1, 3, 1], hidden_sizes=widths)
    if 'neck' in model:
        model.neck.update(in_channels=widths, out_channels=16)
        model.decode_head.update(in_channels=[16] * 4)
    else:
        model.decode_head.in_channels = widths
    model.decode_head.channels = 16
    if model.get('auxiliary_head'):
        assert model.auxiliary_head.in_index == 2, 'the auxiliary head is on stage 3'
        model.auxiliary_head.update(in_channels=widths[2], channels=16)
    if model.test_cfg.mode == 'slide':
        model.test_cfg.update(crop_size=(64, 64), stride=(42, 42))
    return cfg


def make_inputs(num_classes: int, *shapes: tuple[int, int], ignored_rows: int = 0) -> dict:
    """A batch of random images and labels; the first ``ignored_rows`` rows are ignored."""
    from mmseg.structures import SegDataSample

    inputs = dict(inputs=[], data_samples=[])
    for shape in shapes:
        sample = SegDataSample(metainfo=dict(img_shape=shape, ori_shape=shape))
        labels = torch.randint(num_classes, (1, *shape))
        labels[:, :ignored_rows] = 255
        sample.gt_sem_seg = PixelData(data=labels)
        inputs['inputs'].append(torch.randint(256, (3, *shape), dtype=torch.uint8))
        inputs['data_samples'].append(sample)
    return inputs


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_config_trains_a_step_and_predicts(path):
    cfg = narrow(Config.fromfile(path))
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    assert isinstance(model.backbone, ConvNextBackbone)
    num_classes = model.decode_head.num_classes
    assert num_classes == (4 if path == DEMO else 150)
    # The shapes have no ignored pixels, and mmseg's class weights do not support them.
    if path == DEMO:
        inputs = make_inputs(num_classes, (64, 64), (64, 64))
    else:
        inputs = make_inputs(num_classes, (64, 64), (56, 64), ignored_rows=5)
    data = model.train().data_preprocessor(inputs, training=True)
    assert data['inputs'].shape == (2, 3, 64, 64)
    losses, log = model.parse_losses(model(**data, mode='loss'))
    assert all(torch.isfinite(value).all() for value in log.values())
    assert ('aux.loss_ce' in log) == ('upernet' in path.stem and path != DEMO)
    losses.backward()
    assert all(p.requires_grad for p in model.parameters())
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert model.backbone.embeddings.patch_embeddings.weight.grad.any()

    (result,) = model.eval().test_step(make_inputs(num_classes, (96, 128)))
    assert result.seg_logits.data.shape == (num_classes, 96, 128)
    assert torch.equal(result.pred_sem_seg.data, result.seg_logits.data.argmax(0, keepdim=True))


def test_config_of_the_docs_trains(tmp_path):
    page = (REPO / 'docs/segmentation.md').read_text()
    (block,) = re.findall(r'```python\n(.*?)```', page, re.DOTALL)
    path = tmp_path / 'config.py'
    path.write_text(block)
    model = revert_sync_batchnorm(MODELS.build(narrow(Config.fromfile(path)).model))
    data = model.data_preprocessor(make_inputs(4, (64, 64), (64, 64)), training=True)
    loss, _ = model.parse_losses(model(**data, mode='loss'))
    assert loss.isfinite()
    assert model.decode_head.num_classes == model.auxiliary_head.num_classes == 4


@pytest.mark.parametrize('path', sorted(FOLDER.glob('*.py')), ids=lambda path: path.stem)
def test_learning_rates_fall_stage_by_stage(path):
    cfg = Config.fromfile(path)
    model = build_on_meta(cfg)
    check_model(model, cfg)
    assert cfg.default_hooks.setup.type == 'ConvNextSetupHook'
    # Mixed precision needs a GPU. In float32, only the type differs.
    optim_wrapper = {**cfg.optim_wrapper, 'type': 'OptimWrapper'}
    optimizer = build_optim_wrapper(model, optim_wrapper).optimizer
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.defaults['betas'] == (0.9, 0.999)
    groups = {p: group for group in optimizer.param_groups for p in group['params']}
    top = cfg.optim_wrapper.paramwise_cfg.num_layers + 1
    for name, parameter in model.named_parameters():
        if name.startswith('backbone.embeddings') or '.downsampling_layer.' in name:
            layer = 0
        elif name.startswith('backbone.encoder.stages.'):
            layer = int(name.split('.')[3]) + 1
        else:
            layer = top
        rate = cfg.optim_wrapper.optimizer.lr * 0.9 ** (top - layer)
        assert groups[parameter]['lr'] == pytest.approx(rate), name
        assert groups[parameter]['weight_decay'] == (0.05 if parameter.ndim > 1 else 0), name


@pytest.mark.parametrize('name', PAPER)
def test_recipes_are_the_papers(name):
    crop, drop_path_rate, rate, num_layers, weights = PAPER[name]
    cfg = load_paper(name)
    assert cfg.default_scope == 'mmseg'
    assert cfg.custom_imports.imports == ['convnext_backbone']
    backbone = cfg.model.backbone
    assert (backbone.drop_path_rate, backbone.layer_scale_init_value) == (drop_path_rate, 1.0)
    url = f'https://dl.fbaipublicfiles.com/convnext/convnext_{weights}.pth'
    assert backbone.init_cfg == dict(type='Pretrained', checkpoint=url)
    assert weights.startswith(backbone.arch if 'arch' in backbone else 'tiny')

    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    assert cfg.optim_wrapper.optimizer.lr == rate
    decay = dict(decay_rate=0.9, decay_type='stage_wise', num_layers=num_layers)
    assert cfg.optim_wrapper.paramwise_cfg == decay
    assert cfg.train_cfg.max_iters == 160_000
    warm_up, decrease = cfg.param_scheduler
    assert (warm_up.start_factor, warm_up.end) == (1e-6, 1500)
    assert (decrease.power, decrease.begin, decrease.end) == (1.0, 1500, 160_000)
    assert not warm_up.by_epoch and not decrease.by_epoch

    assert cfg.train_dataloader.batch_size == 2
    assert cfg.train_dataloader.dataset.pipeline[2].scale == (4 * crop, crop)
    for dataloader in (cfg.val_dataloader, cfg.test_dataloader):
        assert dataloader.dataset.pipeline[1].scale == (4 * crop, crop)
    random_crop = cfg.train_dataloader.dataset.pipeline[3]
    assert random_crop.type == 'RandomCrop'
    assert cfg.model.data_preprocessor.size == random_crop.crop_size == (crop, crop)
    stride = {512: 341, 640: 426}[crop]
    assert cfg.model.test_cfg == dict(mode='slide', crop_size=(crop,) * 2, stride=(stride,) * 2)
