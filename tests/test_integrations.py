"""The backbone in other frameworks, against their contracts."""

import sys
from itertools import pairwise
from types import ModuleType
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from helpers import SMALL, small_backbone
from torch import nn

from convnext_backbone.arch import resolve_arch

MAPS = ('stage1', 'stage2', 'stage3', 'stage4')


class Registry(dict):
    """Registers builders by name, as fvcore's Registry does."""

    def register(self):
        def add(builder):
            assert builder.__name__ not in self
            self[builder.__name__] = builder
            return builder

        return add


class Node(dict):
    """Nested settings with attributes, as fvcore's CfgNode; other types of values are an error."""

    def __init__(self, values=()):
        super().__init__()
        for key, value in dict(values).items():
            setattr(self, key, Node(value) if type(value) is dict else value)

    def __getattr__(self, name):
        return self[name]

    def __setattr__(self, name, value):
        assert isinstance(value, (Node, str, bool, int, float, list, tuple)), (name, value)
        self[name] = value


class ShapeSpec(NamedTuple):
    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None


class Backbone(nn.Module):
    """detectron2's base class, with its defaults."""

    @property
    def size_divisibility(self) -> int:
        return 0

    def output_shape(self):
        return {
            name: ShapeSpec(channels=self._out_feature_channels[name])
            for name in self._out_features
        }


class LastLevelMaxPool(nn.Module):
    num_levels, in_feature = 1, 'p5'


class FPN(Backbone):
    """What detectron2's FPN reads from its bottom-up network, and a pyramid of 1x1 convolutions."""

    def __init__(
        self, bottom_up, in_features, out_channels, norm='', top_block=None, fuse_type='sum'
    ):
        super().__init__()
        assert isinstance(bottom_up, Backbone) and fuse_type in ('sum', 'avg') and norm == ''
        assert isinstance(top_block, LastLevelMaxPool)
        shapes = bottom_up.output_shape()
        strides = [shapes[name].stride for name in in_features]
        assert all(fine * 2 == coarse for fine, coarse in pairwise(strides))
        self.bottom_up, self.in_features = bottom_up, in_features
        self.laterals = nn.ModuleList(
            nn.Conv2d(shapes[name].channels, out_channels, 1) for name in in_features
        )

    def forward(self, images):
        maps = self.bottom_up(images)
        pairs = zip(self.in_features, self.laterals, strict=True)
        return {f'p{i}': conv(maps[name]) for i, (name, conv) in enumerate(pairs, 2)}


@pytest.fixture
def detectron2(monkeypatch):
    """The parts of detectron2 that our module uses; the package is on no index."""
    parts = {
        'detectron2': {},
        'detectron2.config': dict(CfgNode=Node),
        'detectron2.layers': dict(ShapeSpec=ShapeSpec),
        'detectron2.modeling': dict(BACKBONE_REGISTRY=Registry(), Backbone=Backbone),
        'detectron2.modeling.backbone': {},
        'detectron2.modeling.backbone.fpn': dict(FPN=FPN, LastLevelMaxPool=LastLevelMaxPool),
    }
    for name, content in parts.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    ours = 'convnext_backbone.integrations.detectron2'
    monkeypatch.delitem(sys.modules, ours, raising=False)
    __import__(ours)
    yield sys.modules[ours]
    del sys.modules[ours]


def config(detectron2):
    cfg = Node(
        dict(MODEL=dict(FPN=dict(IN_FEATURES=list(MAPS), OUT_CHANNELS=8, NORM='', FUSE_TYPE='sum')))
    )
    detectron2.add_convnext_config(cfg)
    return cfg


def losses_of(module, run, steps=8):
    """Trains on one batch."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    losses = []
    for _ in range(steps):
        loss = run()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_detectron2s_contract(detectron2, tmp_path):
    registry = detectron2.BACKBONE_REGISTRY
    assert set(registry) == {'build_convnext_backbone', 'build_convnext_fpn_backbone'}
    cfg = config(detectron2)
    cfg.MODEL.CONVNEXT.ARCH = 'atto'
    cfg.MODEL.CONVNEXT.FROZEN_STAGES = 1
    backbone = registry['build_convnext_backbone'](cfg, ShapeSpec(channels=3))
    assert backbone.size_divisibility == 32
    shapes = {name: (s.channels, s.stride) for name, s in backbone.output_shape().items()}
    assert shapes == dict(stage1=(40, 4), stage2=(80, 8), stage3=(160, 16), stage4=(320, 32))
    images = torch.randn(1, 3, 64, 96)
    maps = backbone(images)
    assert {name: m.shape[1:] for name, m in maps.items()} == {
        name: (channels, 64 // stride, 96 // stride) for name, (channels, stride) in shapes.items()
    }
    trained = {name for name, p in backbone.body.named_parameters() if p.requires_grad}
    assert trained and not any(name.startswith('embeddings') for name in trained)

    torch.save(backbone.body.state_dict(), tmp_path / 'atto.pth')
    cfg.MODEL.CONVNEXT.WEIGHTS = str(tmp_path / 'atto.pth')
    again = registry['build_convnext_backbone'](cfg, ShapeSpec(channels=3))
    assert all(torch.equal(m, maps[name]) for name, m in again(images).items())
    cfg.MODEL.CONVNEXT.ARCH, cfg.MODEL.CONVNEXT.WEIGHTS = 'v2-atto', ''
    v2 = registry['build_convnext_backbone'](cfg, ShapeSpec(channels=3))
    assert v2.body.arch == resolve_arch('v2-atto')


def test_detectron2_trains_with_decay(detectron2):
    cfg = config(detectron2)
    cfg.MODEL.CONVNEXT.ARCH = 'atto'
    cfg.MODEL.FPN.IN_FEATURES = ['stage2', 'stage3', 'stage4']
    fpn = detectron2.BACKBONE_REGISTRY['build_convnext_fpn_backbone'](cfg, ShapeSpec(channels=3))
    factor = detectron2.lr_factor_func(fpn, 0.5)
    # As detectron2's get_default_optimizer_params calls it: with full names.
    factors = {name: factor(name) for name, _ in fpn.named_parameters()}
    body = 'bottom_up.body.'
    assert factors['laterals.0.weight'] == 1
    assert factors[f'{body}embeddings.layernorm.bias'] == 0.5**7
    assert factors[f'{body}encoder.stages.0.layers.0.dwconv.bias'] == 0.5**6
    assert factors[f'{body}encoder.stages.3.layers.0.dwconv.bias'] == 0.5
    assert factors[f'{body}hidden_states_norms.stage4.weight'] == 1
    with pytest.raises(ValueError, match='must have one ConvNextBackbone, got 0'):
        detectron2.lr_factor_func(nn.Linear(2, 2), 0.5)

    images, target = torch.randn(2, 3, 64, 64), torch.randn(2, 8, 8, 8)
    losses = losses_of(fpn, lambda: F.mse_loss(fpn(images)['p2'], target))
    assert losses[-1] < 0.9 * losses[0]


def test_transformers_models_train():
    """MaskFormer on our backbone: the output of its own ConvNeXt, and losses that fall."""
    pytest.importorskip('transformers')
    pytest.importorskip('scipy')  # for the losses of MaskFormer
    from transformers import ConvNextConfig, MaskFormerConfig, MaskFormerForInstanceSegmentation

    from convnext_backbone.integrations.transformers import ConvNextTransformersBackbone

    inner = ConvNextConfig(**SMALL, out_features=list(MAPS), drop_path_rate=0.0)
    decoder = dict(
        model_type='detr',
        d_model=32,
        num_queries=4,
        decoder_layers=1,
        encoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=32,
        dropout=0.0,
    )
    cfg = MaskFormerConfig(
        backbone_config=inner,
        decoder_config=decoder,
        fpn_feature_size=32,
        mask_feature_size=32,
        num_labels=2,
    )
    model = MaskFormerForInstanceSegmentation(cfg)
    images = torch.randn(1, 3, 64, 64)
    theirs = model.model.pixel_level_module.encoder
    ours = ConvNextTransformersBackbone(SMALL, out_features=MAPS)
    ours.load_state_dict(theirs.state_dict())
    assert ours.channels == list(theirs.channels)
    for hidden in (False, True):
        output = ours(images, output_hidden_states=hidden, return_dict=True)
        expected = theirs(images, output_hidden_states=hidden)
        pairs = zip(output.feature_maps, expected.feature_maps, strict=True)
        for actual, wanted in pairs:
            torch.testing.assert_close(actual, wanted, atol=1e-5, rtol=1e-5)
        assert (output.hidden_states is None) == (expected.hidden_states is None)
        for actual, wanted in zip(
            output.hidden_states or (), expected.hidden_states or (), strict=True
        ):
            torch.testing.assert_close(actual, wanted, atol=1e-5, rtol=1e-5)

    model.model.pixel_level_module.encoder = ours
    masks = torch.zeros(2, 64, 64)
    masks[0, :32], masks[1, 32:] = 1, 1
    labels = dict(mask_labels=[masks], class_labels=[torch.tensor([0, 1])])
    losses = losses_of(model, lambda: model(images, **labels).loss)
    assert losses[-1] < 0.9 * losses[0]


def test_torchvisions_contract():
    pytest.importorskip('torchvision', exc_type=(ImportError, RuntimeError))
    from torchvision.models.detection import MaskRCNN

    from convnext_backbone.integrations.torchvision import ConvNextWithFPN

    backbone = ConvNextWithFPN(small_backbone(out_features=MAPS), out_channels=16)
    maps = backbone(torch.randn(1, 3, 64, 96))
    assert list(maps) == ['0', '1', '2', '3', 'pool']
    assert [tuple(m.shape[1:]) for m in maps.values()] == [
        (16, 64 // stride, 96 // stride) for stride in (4, 8, 16, 32)
    ] + [(16, 1, 2)]
    few = dict(box_batch_size_per_image=8, rpn_post_nms_top_n_train=20)
    model = MaskRCNN(backbone, num_classes=3, min_size=64, max_size=96, **few)
    boxes = torch.tensor([[8.0, 8, 40, 40], [50, 10, 90, 60]])
    masks = torch.zeros(2, 64, 96, dtype=torch.uint8)
    masks[0, 8:40, 8:40], masks[1, 10:60, 50:90] = 1, 1
    target = dict(boxes=boxes, labels=torch.tensor([1, 2]), masks=masks)
    image = torch.rand(3, 64, 96)
    losses = losses_of(model, lambda: sum(model([image], [target]).values()))
    assert losses[-1] < 0.9 * losses[0]
