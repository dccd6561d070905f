"""Every detector config trains a step and predicts; published ones match the paper's recipes."""

import copy
from functools import cache
from pathlib import Path

import pytest
import torch
from helpers import REPO
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.config import Config, ConfigDict
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper

from convnext_backbone import ConvNextBackbone
from convnext_backbone.engine import check_model

DEMO = REPO / 'configs/demo/mask-rcnn_convnext-atto_fpn_shapes.py'
CONFIGS = [DEMO, *sorted((REPO / 'configs/detection').glob('*.py'))]
every_config = pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)

# ConvNeXt, appendix A.3, and its repository: arch, pre-training, drop path, rate, decay, layers.
RECIPES = {
    'mask-rcnn_convnext-t': ('tiny', '1k', 0.4, 1e-4, 0.95, 6),
    'cascade-mask-rcnn_convnext-t': ('tiny', '1k', 0.4, 2e-4, 0.7, 6),
    'cascade-mask-rcnn_convnext-s': ('small', '1k', 0.6, 2e-4, 0.7, 12),
    'cascade-mask-rcnn_convnext-b-in1k-pre': ('base', '1k', 0.7, 2e-4, 0.8, 12),
    'cascade-mask-rcnn_convnext-b-in22k-pre': ('base', '22k', 0.6, 1e-4, 0.8, 12),
    'cascade-mask-rcnn_convnext-l': ('large', '22k', 0.7, 1e-4, 0.7, 12),
    'cascade-mask-rcnn_convnext-xl': ('xlarge', '22k', 0.8, 1e-4, 0.7, 12),
}


@pytest.fixture(autouse=True, scope='module')
def _mmdet_scope():
    register_all_modules()


@cache
def read(path: Path) -> Config:
    return Config.fromfile(path)


def load(path: Path) -> Config:
    """Reads a config once and returns a copy."""
    return copy.deepcopy(read(path))


def reader_of_maps(model: ConfigDict) -> ConfigDict:
    """The part of a detector's config that takes the backbone's maps."""
    return model.neck if 'neck' in model else model.panoptic_head


def narrow(model: ConfigDict) -> None:
    """Only reduces the number and size of inputs, and the size of the backbone and box heads."""
    backbone = model.backbone
    backbone.use_grn = backbone.arch.startswith('v2-')
    backbone.arch = dict(depths=[1, 1, 2, 1], hidden_sizes=[16, 64, 64, 64])
    backbone.init_cfg = None
    reader_of_maps(model).in_channels = ConvNextBackbone(**without_type(backbone)).channels
    if model.data_preprocessor.get('batch_augments'):
        model.data_preprocessor.batch_augments[0].size = (128, 160)
    if 'num_queries' in model:
        model.num_queries = 20
    if 'roi_head' in model:
        stages = model.train_cfg.rcnn
        for stage in stages if isinstance(stages, list) else [stages]:
            stage.sampler.num = 8
        model.test_cfg.rpn.max_per_img = 16
        heads = model.roi_head.bbox_head
        for head in heads if isinstance(heads, list) else [heads]:
            head.fc_out_channels = 32


def has_masks(model: ConfigDict) -> bool:
    return 'panoptic_head' in model or 'mask_head' in model.get('roi_head', {})


def without_type(cfg: ConfigDict) -> dict:
    return {key: value for key, value in cfg.items() if key != 'type'}


def demo_inputs(model: ConfigDict) -> dict:
    """Two images with boxes, and with masks and a semantic map if the detector uses them."""
    head = model.get('bbox_head') or model.get('panoptic_head') or model.roi_head.bbox_head
    head = head[0] if isinstance(head, list) else head
    return demo_mm_inputs(
        batch_size=2,
        image_shapes=[(3, 128, 160), (3, 96, 128)],
        num_items=[3, 2],
        num_classes=head.get('num_classes') or head.num_things_classes,
        with_mask=has_masks(model),
        with_semantic=bool(head.get('num_stuff_classes')),
    )


@every_config
def test_config_trains_a_step_and_predicts(path):
    cfg = load(path)
    inputs = demo_inputs(cfg.model)
    narrow(cfg.model)
    model = revert_sync_batchnorm(MODELS.build(copy.deepcopy(cfg.model)))
    assert isinstance(model.backbone, ConvNextBackbone)
    model.init_weights()

    model.train()
    data = model.data_preprocessor(copy.deepcopy(inputs), training=True)
    loss, log = model.parse_losses(model(**data, mode='loss'))
    assert all(torch.isfinite(value).all() for value in log.values())
    loss.backward()
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, p in trainable.items() if p.grad is None] == []
    assert all(torch.isfinite(p.grad).all() for p in trainable.values())
    assert model.backbone.embeddings.patch_embeddings.weight.grad.any()

    results = model.eval().test_step(inputs)
    assert len(results) == 2
    for result in results:
        check_prediction(result, cfg.model)


def check_prediction(result, model: ConfigDict) -> None:
    """Checks that a prediction is complete and has the size of the image."""
    instances = result.pred_instances
    assert instances.bboxes.shape == (len(instances.scores), 4)
    assert ((instances.scores >= 0) & (instances.scores <= 1)).all()
    if has_masks(model):
        assert instances.masks.shape == (len(instances.scores), *result.ori_shape)
    if model.get('panoptic_head', {}).get('num_stuff_classes'):
        assert result.pred_panoptic_seg.sem_seg.shape[-2:] == result.ori_shape


@every_config
def test_config_builds_in_full_with_an_optimizer_that_spares_biases_and_norms(path):
    cfg = load(path)
    with torch.device('meta'):
        model = MODELS.build(copy.deepcopy(cfg.model))
    assert list(reader_of_maps(cfg.model).in_channels) == model.backbone.channels
    check_model(model, cfg)
    assert cfg.default_hooks.setup.type == 'ConvNextSetupHook'
    # Mixed precision needs a GPU. In float32, only the type differs.
    optim_wrapper = {**cfg.optim_wrapper, 'type': 'OptimWrapper'}
    optimizer = build_optim_wrapper(model, optim_wrapper).optimizer
    decays = {p: group['weight_decay'] for group in optimizer.param_groups for p in group['params']}
    # mmdet also excludes queries and level embeddings from weight decay.
    custom_keys = cfg.optim_wrapper.paramwise_cfg.get('custom_keys', {})
    spared = [key for key, mult in custom_keys.items() if mult.get('decay_mult') == 0]
    for name, parameter in model.named_parameters():
        is_small = parameter.ndim <= 1 or name.endswith(('.bias', '.grn.weight'))
        assert (decays[parameter] == 0) == (is_small or any(key in name for key in spared)), name


@pytest.mark.parametrize('name', RECIPES)
def test_recipe_is_the_published_one(name):
    arch, pretraining, drop_path, lr, decay_rate, num_layers = RECIPES[name]
    path = REPO / f'configs/detection/{name}_fpn_amp-ms-crop-3x_coco.py'
    cfg = load(path)
    backbone, optim_wrapper = cfg.model.backbone, cfg.optim_wrapper
    assert backbone.arch == arch
    assert Path(backbone.init_cfg.checkpoint).name == f'convnext_{arch}_{pretraining}_224.pth'
    assert backbone.layer_scale_init_value == 1.0
    assert backbone.drop_path_rate == drop_path
    assert optim_wrapper.type == 'AmpOptimWrapper'
    assert optim_wrapper.optimizer == dict(
        type='AdamW', lr=lr, betas=(0.9, 0.999), weight_decay=0.05
    )
    assert optim_wrapper.paramwise_cfg == dict(
        decay_rate=decay_rate, decay_type='layer_wise', num_layers=num_layers
    )
    assert cfg.train_cfg.max_epochs == cfg.param_scheduler[1].end == 36
    assert cfg.param_scheduler[1].milestones == [27, 33]
    # 8 GPUs.
    assert 8 * cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size == 16
    heads = cfg.model.roi_head.bbox_head
    if name.startswith('cascade'):
        assert [(head.type, head.loss_bbox.type, head.loss_bbox.loss_weight) for head in heads] == [
            ('ConvFCBBoxHead', 'GIoULoss', 10.0)
        ] * 3
        assert not any(head.reg_class_agnostic for head in heads)
        assert all(head.reg_decoded_bbox and head.norm_cfg.type == 'SyncBN' for head in heads)
