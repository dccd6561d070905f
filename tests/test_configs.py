"""The README's config trains, and RoIAlign gets contiguous maps."""

import copy
import re
import warnings
from pathlib import Path

import pytest
import torch
from helpers import REPO, randomize
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.config import Config

from convnext_backbone.engine import check_layout

DEMO = REPO / 'configs/demo/mask-rcnn_convnext-atto_fpn_shapes.py'


@pytest.fixture(autouse=True, scope='module')
def _mmdet_scope():
    register_all_modules()


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
    blocks = re.findall(r'```python\n(.*?)```', (REPO / 'README.md').read_text(), re.DOTALL)
    (block,) = [block for block in blocks if 'mask-rcnn_r50_fpn_1x_coco' in block]
    path.write_text(block)
    model, inputs = build(path)
    assert model.backbone.channels == [96, 192, 384, 768]
    losses = model(**model.data_preprocessor(inputs, training=True), mode='loss')
    assert torch.isfinite(model.parse_losses(losses)[0])


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


def move(module: torch.nn.Module) -> None:
    """Moves a module to channels_last."""
    with warnings.catch_warnings(action='ignore'):
        module.to(memory_format=torch.channels_last)


def test_moving_the_whole_detector_to_channels_last_warns(demo_detector):
    model, _, _ = demo_detector
    with pytest.warns(UserWarning, match='RoIAlign reads those wrongly'):
        model.to(memory_format=torch.channels_last)
    with pytest.warns(UserWarning, match='RoIAlign reads those wrongly'):
        copy.deepcopy(model)


@pytest.mark.parametrize('part', ['all', 'neck', 'neck.fpn_convs.0', 'copy'])
def test_detectors_in_channels_last_are_refused(demo_detector, part):
    model, images, rois = demo_detector
    expected = roi_features(model, images, rois)
    check_layout(model)
    move(model if part in ('all', 'copy') else model.get_submodule(part))
    if part == 'copy':
        model = copy.deepcopy(model)
    # The reason. If this fails, mmcv supports strides: remove the check and the warning.
    assert (roi_features(model, images, rois) - expected).norm() > 0.1 * expected.norm()
    with pytest.raises(ValueError, match=r"mmcv's RoIAlign would read .* as NCHW.*undo it"):
        check_layout(model)
    # What the message advises.
    model.to(memory_format=torch.contiguous_format)
    move(model.backbone)
    check_layout(model)
    actual = roi_features(model, images, rois)
    assert (actual - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize('name', ['retinanet_convnext-t', 'dino-4scale_convnext-t'])
def test_detectors_without_roi_align_may_be_in_channels_last(name):
    """test_config_trains_a_step_and_predicts tests the same detectors in NCHW."""
    (path,) = (REPO / 'configs/detection').glob(f'{name}*.py')
    cfg = Config.fromfile(path)
    cfg.model.backbone.update(arch=dict(depths=[1] * 4, hidden_sizes=[16] * 4), init_cfg=None)
    in_channels = cfg.model.neck.in_channels
    in_channels[:] = [16] * len(in_channels)
    if 'num_queries' in cfg.model:
        cfg.model.num_queries = 20
    model = MODELS.build(cfg.model).eval()
    model.init_weights()  # DINO's level embeddings are uninitialised memory until then
    images = torch.randn(1, 3, 64, 96)
    samples = demo_mm_inputs(batch_size=1, image_shapes=[(3, 64, 96)])['data_samples']
    samples[0].set_metainfo(dict(batch_input_shape=(64, 96), pad_shape=(64, 96)))

    def values() -> list[torch.Tensor]:
        with torch.no_grad():
            (result,) = model.predict(images, samples, rescale=False)
        return [result.pred_instances.scores, result.pred_instances.bboxes]

    expected = values()
    move(model)
    check_layout(model)
    for one, other in zip(values(), expected, strict=True):
        assert one.shape == other.shape
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-3)
