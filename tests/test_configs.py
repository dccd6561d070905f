"""The README's examples run, and RoIAlign gets contiguous maps."""

import re
from pathlib import Path

import pytest
import torch
from helpers import REPO, randomize
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.config import Config

DEMO = REPO / 'configs/demo/mask-rcnn_convnext-atto_fpn_shapes.py'


@pytest.fixture(autouse=True, scope='module')
def _mmdet_scope():
    register_all_modules()


def readme_block(marker: str) -> str:
    """The README's Python example that contains ``marker``."""
    blocks = re.findall(r'```python\n(.*?)```', (REPO / 'README.md').read_text(), re.DOTALL)
    (block,) = [block for block in blocks if marker in block]
    return block


def build(path: Path) -> tuple[torch.nn.Module, dict]:
    """Builds a config's detector and a batch of two images with boxes and masks for it."""
    cfg = Config.fromfile(path)
    model = MODELS.build(cfg.model)
    num_classes = model.roi_head.bbox_head.num_classes
    inputs = demo_mm_inputs(
        batch_size=2,
        image_shapes=[(3, 128, 160), (3, 96, 128)],
        num_items=[3, 2],
        num_classes=num_classes,
        with_mask=True,
    )
    return model, inputs


def test_config_of_the_readme_builds(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(readme_block('custom_imports'))
    model, inputs = build(path)
    assert model.backbone.channels == [96, 192, 384, 768]
    losses = model(**model.data_preprocessor(inputs, training=True), mode='loss')
    assert torch.isfinite(model.parse_losses(losses)[0])


def test_plain_pytorch_of_the_readme_gives_what_it_says():
    block = readme_block('import torch')
    code, shapes, attributes = block[: block.index('[tuple')], *re.findall(r'  # (.*)', block)
    names = {}
    exec(code, names)
    assert [tuple(m.shape) for m in names['maps']] == eval(shapes)
    assert (names['backbone'].channels, names['backbone'].strides) == eval(attributes)


def roi_features(model, images, rois):
    """The input of the box head: RoIAlign on the FPN's maps."""
    return model.roi_head.bbox_roi_extractor(model.extract_feat(images)[:4], rois)


@pytest.fixture
def demo_detector():
    model, _ = build(DEMO)
    randomize(model)
    images = torch.randn(2, 3, 128, 160)
    boxes = torch.tensor([[10.0, 20, 60, 90], [70, 5, 150, 110], [0, 0, 30, 30]])
    rois = torch.cat([torch.tensor([[0.0], [1.0], [1.0]]), boxes], dim=1)
    return model.eval(), images, rois


def test_roi_align_agrees_on_a_channels_last_backbone(demo_detector):
    model, images, rois = demo_detector
    expected = roi_features(model, images, rois)
    with pytest.warns(UserWarning, match='moved alone'):
        model.backbone.to(memory_format=torch.channels_last)
    actual = roi_features(model, images.contiguous(memory_format=torch.channels_last), rois)
    assert (actual - expected).norm() < 1e-4 * expected.norm()


def test_moving_the_whole_detector_to_channels_last_warns(demo_detector):
    model, images, rois = demo_detector
    expected = roi_features(model, images, rois)
    with pytest.warns(UserWarning, match='RoIAlign reads those wrongly'):
        model.to(memory_format=torch.channels_last)
    # The reason for the warning. If this fails, mmcv supports strides: remove the warning.
    assert (roi_features(model, images, rois) - expected).norm() > 0.1 * expected.norm()
