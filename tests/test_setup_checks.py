"""Models whose parts do not fit, which train or fail without saying why, are stopped."""

import copy
import logging
import os
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from helpers import REPO, SMALL, make_shapes
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.model import BaseModel, ExponentialMovingAverage, revert_sync_batchnorm
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from convnext_backbone import ConvNextBackbone, ConvNextSetupHook
from convnext_backbone.engine import check_model
from convnext_backbone.engine.model_checks import check_channels, check_classes
from convnext_backbone.engine.setup_hook import check_datasets_once
from convnext_backbone.engine.stride_checks import check_strides, find_maps

CONFIGS = {
    'mask-rcnn': 'demo/mask-rcnn_convnext-atto_fpn_shapes.py',
    'upernet': 'demo/upernet_convnext-atto_shapes.py',
    'cascade': 'detection/cascade-mask-rcnn_convnext-t_fpn_amp-ms-crop-3x_coco.py',
    'fcos': 'detection/fcos_convnext-t_fpn_gn-head-center-normbbox-centeronreg-giou_amp-1x_coco.py',
    'retinanet': 'detection/retinanet_convnext-t_fpn_amp-1x_coco.py',
    'rtmdet': 'detection/rtmdet_l_convnext-b_4xb32-100e_coco.py',
    'mask2former': 'detection/mask2former_convnext-t_8xb2-lsj-50e_coco.py',
    'panoptic': 'detection/mask2former_convnext-t_8xb2-lsj-50e_coco-panoptic.py',
    'fpn': 'segmentation/convnext-t_fpn_amp-160k_ade20k-512x512.py',
}
SMALLER = dict(depths=[1, 1, 1, 1], hidden_sizes=[32, 64, 96, 128])
LAST_THREE = ('stage2', 'stage3', 'stage4')
FIRST_THREE = ('stage1', 'stage2', 'stage3')


@cache
def read(name: str) -> Config:
    return Config.fromfile(REPO / 'configs' / CONFIGS[name])


def changed(name: str, **changes) -> Config:
    """A config with a smaller backbone and other settings; a double underscore is a dot."""
    cfg = copy.deepcopy(read(name))
    cfg.model.backbone.arch = SMALLER
    options = {key.replace('__', '.'): value for key, value in changes.items()}
    cfg.merge_from_dict({f'model.{key}': value for key, value in options.items()})
    return cfg


def build(cfg: Config, device: str = 'meta') -> torch.nn.Module:
    with (
        MODELS.switch_scope_and_registry(cfg.default_scope) as registry,
        torch.device(device),
    ):
        return registry.build(cfg.model)


MAPS_OF_THREE = dict(backbone__out_features=LAST_THREE, neck__in_channels=[64, 96, 128])
FITTING = dict(neck__in_channels=[32, 64, 96, 128])
SEG_FITTING = dict(decode_head__in_channels=[32, 64, 96, 128])


@pytest.mark.parametrize(
    ('name', 'changes', 'message'),
    [
        (
            'mask-rcnn',
            {},
            r'model\.neck\.in_channels is \[40, 80, 160, 320\], but the backbone returns stage1, '
            r'.* with \[32, 64, 96, 128\] channels: '
            r'set model\.neck\.in_channels=\[32, 64, 96, 128\]',
        ),
        ('mask-rcnn', dict(neck__in_channels=[32, 64]), r'in_channels is \[32, 64\], but'),
        (
            'mask-rcnn',
            MAPS_OF_THREE,
            r'model\.rpn_head\.anchor_generator\.strides is \[4, 8, 16, 32, 64\], but the maps '
            r'have the strides \[8, 16, 32, 64, 128\]: set model\.rpn_head\.anchor.*=\[8, 16, 32',
        ),
        (
            'mask-rcnn',
            MAPS_OF_THREE | dict(rpn_head__anchor_generator__strides=[8, 16, 32, 64, 128]),
            r'model\.roi_head\.bbox_roi_extractor\.featmap_strides is \[4, 8, 16, 32\], .*: set '
            r'model\.roi_head\.bbox_roi_extractor\.featmap_strides=\[8, 16, 32, 64\]',
        ),
        (
            'mask-rcnn',
            FITTING | dict(roi_head__mask_roi_extractor__featmap_strides=[8, 16]),
            r'mask_roi_extractor\.featmap_strides is \[8, 16\], .* set .*=\[4, 8\]',
        ),
        ('mask-rcnn', FITTING | dict(neck__num_outs=4), r'rpn_head.* set .*=\[4, 8, 16, 32\]'),
        (
            'cascade',
            MAPS_OF_THREE | dict(rpn_head__anchor_generator__strides=[8, 16, 32, 64, 128]),
            r'bbox_roi_extractor\.featmap_strides is \[4, 8, 16, 32\]',
        ),
        (
            'retinanet',
            dict(backbone__out_features=FIRST_THREE, neck__in_channels=[32, 64, 96]),
            r'model\.bbox_head\.anchor_generator\.strides is \[8, .* set .*=\[4, 8, 16, 32, 64\]',
        ),
        (
            'fcos',
            dict(backbone__out_features=FIRST_THREE, neck__in_channels=[32, 64, 96]),
            r'model\.bbox_head\.strides is \[8, 16, .* set model\.bbox_head\.strides=\[4, 8, 16',
        ),
        (
            'rtmdet',
            dict(
                neck__in_channels=[64, 96, 128],
                neck__norm_cfg__num_groups=8,
                bbox_head__anchor_generator__strides=[4, 8, 16],
            ),
            r'model\.bbox_head\.anchor_generator\.strides is \[4, 8, 16\].*=\[8, 16, 32\]',
        ),
        ('mask2former', {}, r'model\.panoptic_head\.in_channels=\[32, 64, 96, 128\]'),
        (
            'upernet',
            {},
            r'model\.decode_head\.in_channels is .* set model\.decode_head\.in_channels=\[32, 64',
        ),
        (
            'upernet',
            dict(backbone__out_features=LAST_THREE),
            r'model\.decode_head\.in_index is .* there are 3 maps: set indices below 3',
        ),
        (
            'fpn',
            FITTING | dict(decode_head__feature_strides=[4, 8, 16, 16]),
            r'model\.decode_head\.feature_strides is .* set .*=\[4, 8, 16, 32\]',
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(name, changes, message):
    cfg = changed(name, **changes)
    with pytest.raises(ValueError, match=message):
        check_model(build(cfg), cfg)


@pytest.mark.parametrize(
    ('name', 'changes', 'strides'),
    [
        ('mask-rcnn', FITTING, [4, 8, 16, 32, 64]),
        ('retinanet', MAPS_OF_THREE, [8, 16, 32, 64, 128]),
        ('retinanet', FITTING | dict(backbone__out_features=LAST_THREE), None),
        ('fpn', FITTING | dict(decode_head__feature_strides=[8, 16, 32, 64]), [4, 8, 16, 32]),
        ('upernet', SEG_FITTING, [4, 8, 16, 32]),
        # All four maps, but the pyramid starts with the second.
        (
            'retinanet',
            FITTING
            | dict(
                backbone__out_features=('stage1', *LAST_THREE),
                neck__start_level=1,
            ),
            [8, 16, 32, 64, 128],
        ),
    ],
)
def test_strides_are_those_that_the_neck_returns(name, changes, strides):
    cfg = changed(name, **changes)
    model = build(cfg)
    if strides is None:  # a neck that fails is no answer
        assert find_maps(model) is None
        with pytest.raises(ValueError, match='in_channels'):
            check_model(model, cfg)
    else:
        assert find_maps(model)[1] == strides
        check_model(model, cfg)


def test_wrong_strides_train_without_an_error():
    """The reason. If this fails, mmdet compares strides itself: remove the check."""
    strides = dict(rpn_head__anchor_generator__strides=[4, 8, 16, 32, 64])
    model = revert_sync_batchnorm(build(changed('mask-rcnn', **MAPS_OF_THREE, **strides), 'cpu'))
    inputs = demo_mm_inputs(
        batch_size=1, image_shapes=[(3, 64, 64)], num_items=[2], num_classes=3, with_mask=True
    )
    losses = model(**model.data_preprocessor(inputs, training=True), mode='loss')
    assert torch.isfinite(model.parse_losses(losses)[0])
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with pytest.raises(ValueError, match=r'model\.rpn_head\.anchor_generator\.strides'):
        check_strides(model)
    # The pass through the neck changes nothing.
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())
    assert all(module.training for module in model.modules())
    for wrapped in (ExponentialMovingAverage(model), in_ddp(model)):
        with pytest.raises(ValueError, match=r'^model\.rpn_head\.anchor_generator\.strides'):
            check_strides(wrapped)
    dist.destroy_process_group()


def in_ddp(model: torch.nn.Module) -> DistributedDataParallel:
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    return DistributedDataParallel(model)


def test_other_models_are_not_checked():
    cfg = Config.fromfile(REPO / 'configs' / CONFIGS['retinanet'])
    cfg.model.backbone = dict(type='mmdet.ResNet', depth=18, out_indices=(1, 2, 3))
    cfg.model.neck.in_channels = [1, 2, 3]
    check_model(build(cfg), cfg)
    check_channels(dict(backbone=dict(type='ResNet'), neck=dict(in_channels=[1])))
    check_channels(dict(detector=dict(backbone=None)))


def test_numbers_of_classes_of_all_kinds_of_heads():
    panoptic = read('panoptic').model
    check_classes(panoptic, 133)
    with pytest.raises(ValueError, match=r'num_things_classes=80 and num_stuff_classes=53.*134'):
        check_classes(panoptic, 134)
    cascade = read('cascade').model
    check_classes(cascade, 80)
    with pytest.raises(ValueError, match=r'set model\.roi_head\.bbox_head\[0\]\.num_classes=3'):
        check_classes(cascade, 3)


class Toy(BaseModel):
    """A backbone that learns nothing in particular."""

    def __init__(self, **args) -> None:
        super().__init__()
        self.backbone = ConvNextBackbone(SMALL, **args)

    def forward(self, inputs, mode='tensor'):
        return dict(loss=self.backbone(inputs)[-1].square().mean())


def warnings_of_run(model: torch.nn.Module, folder: Path, from_scratch=False, **args) -> list[str]:
    """Trains for an iteration; returns what is logged about random weights."""
    runner = Runner(
        model,
        str(folder),
        train_dataloader=DataLoader([dict(inputs=torch.zeros(3, 32, 32))]),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        custom_hooks=[ConvNextSetupHook(from_scratch)],
        default_hooks=dict(checkpoint=None),
        experiment_name=f'random_weights_{id(model)}',
        **args,
    )
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    runner.logger.addHandler(handler)
    runner.train()
    assert runner.iter == 1
    return [message for message in messages if 'random weights' in message]


def test_random_weights_are_told_once(tmp_path):
    (warning,) = warnings_of_run(Toy(), tmp_path)
    assert 'set init_cfg' in warning
    assert 'or ignore this with default_hooks.setup.from_scratch=True' in warning
    weights = tmp_path / 'weights.pth'
    torch.save(Toy().state_dict(), weights)
    init_cfg = dict(type='Pretrained', checkpoint=str(weights), prefix='backbone.')
    assert warnings_of_run(Toy(), tmp_path, from_scratch=True) == []
    assert warnings_of_run(Toy(init_cfg=init_cfg), tmp_path) == []
    assert warnings_of_run(Toy(), tmp_path, load_from=str(weights)) == []
    other = Toy()
    other.backbone = torch.nn.Conv2d(3, 8, 3)
    assert warnings_of_run(other, tmp_path) == []


def test_a_wrong_run_stops_before_its_first_iteration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_shapes(tmp_path, 4, 2, '--size', 32)
    for options, message in (
        ({'train_dataloader.dataset.metainfo.classes': ('disc', 'square')}, 'no category disc'),
        ({'model.roi_head.bbox_head.num_classes': 80}, r'set model\.roi_head\.bbox_head\.num'),
        ({'model.neck.in_channels': [40, 80, 160]}, r'set model\.neck\.in_channels'),
    ):
        cfg = copy.deepcopy(read('mask-rcnn'))
        cfg.merge_from_dict({'work_dir': 'run', 'train_dataloader.num_workers': 0, **options})
        cfg.train_dataloader.persistent_workers = False
        cfg.experiment_name = message
        runner = Runner.from_cfg(cfg)
        for _ in range(2):  # also if somebody tries again
            with pytest.raises(ValueError, match=message):
                runner.train()
        assert runner.iter == 0


def test_data_are_checked_once_per_process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_shapes(tmp_path, 4, 2, '--size', 32)
    cfg = copy.deepcopy(read('mask-rcnn'))
    cfg.train_dataloader.dataset.data_root = f'{tmp_path}/data/shapes'
    check_datasets_once(cfg, ('train', 'val'))
    os.remove('data/shapes/annotations/instances_train.json')
    check_datasets_once(cfg, ('train', 'val'))
    with pytest.raises(FileNotFoundError, match=r'instances_train\.json'):
        check_datasets_once(cfg, ('train',))
