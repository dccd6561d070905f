"""The backbone for detectron2: importing this module registers both builders.

``MODEL.BACKBONE.NAME: build_convnext_fpn_backbone`` gives feature pyramids p2 to p6, and
``build_convnext_backbone`` the maps of the stages.
"""

from __future__ import annotations

from collections.abc import Callable

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool
from torch import Tensor, nn

from ..checkpoint import load_checkpoint
from ..engine.lr_decay import layer_id, resolve_num_layers
from ..models import ConvNextBackbone


def add_convnext_config(cfg: CfgNode) -> None:
    """Adds the keys ``MODEL.CONVNEXT`` to a config of detectron2, with their defaults.

    They are arguments of :class:`ConvNextBackbone` in capitals; ``ARCH`` is a name. ``WEIGHTS`` is
    a checkpoint of the backbone alone, in any supported format; ``MODEL.WEIGHTS`` still loads a
    whole detector, and is read after it.
    """
    cfg.MODEL.CONVNEXT = CfgNode(
        dict(
            ARCH='tiny',
            OUT_FEATURES=['stage1', 'stage2', 'stage3', 'stage4'],
            FROZEN_STAGES=-1,
            DROP_PATH_RATE=0.0,
            LAYER_SCALE_INIT_VALUE=1e-6,
            WITH_CP=False,
            WEIGHTS='',
        )
    )


class ConvNextDetectron2Backbone(Backbone):
    """detectron2's contract around a :class:`ConvNextBackbone`.

    Args:
        body: The backbone.

    Attributes:
        body: The backbone.
    """

    def __init__(self, body: ConvNextBackbone) -> None:
        super().__init__()
        self.body = body

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Returns the feature maps ``(N, C, H, W)`` by name, for images ``(N, 3, H, W)``."""
        return dict(zip(self.body.out_features, self.body(images), strict=True))

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Returns the channels and the stride of each map, by name."""
        specs = zip(self.body.out_features, self.body.channels, self.body.strides, strict=True)
        return {name: ShapeSpec(channels=c, stride=s) for name, c, s in specs}

    @property
    def size_divisibility(self) -> int:
        """Images are padded to a multiple of this: the largest stride."""
        return self.body.strides[-1]


@BACKBONE_REGISTRY.register()
def build_convnext_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ConvNextDetectron2Backbone:
    """Builds the backbone from ``cfg.MODEL.CONVNEXT``.

    Raises:
        ValueError, TypeError: As :class:`ConvNextBackbone`.
        ValueError, FileNotFoundError: As :func:`convnext_backbone.load_checkpoint`, for
            ``WEIGHTS``.
    """
    keys = cfg.MODEL.CONVNEXT
    body = ConvNextBackbone(
        keys.ARCH,
        num_channels=input_shape.channels,
        out_features=keys.OUT_FEATURES,
        frozen_stages=keys.FROZEN_STAGES,
        drop_path_rate=keys.DROP_PATH_RATE,
        layer_scale_init_value=keys.LAYER_SCALE_INIT_VALUE,
        with_cp=keys.WITH_CP,
    )
    if keys.WEIGHTS:
        load_checkpoint(body, keys.WEIGHTS)
    return ConvNextDetectron2Backbone(body)


@BACKBONE_REGISTRY.register()
def build_convnext_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Builds a feature pyramid on the maps ``cfg.MODEL.FPN.IN_FEATURES`` of the backbone."""
    return FPN(
        bottom_up=build_convnext_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


def lr_factor_func(
    model: nn.Module,
    decay_rate: float,
    decay_type: str = 'layer_wise',
    num_layers: int | None = None,
) -> Callable[[str], float]:
    """Returns the decay of the learning rate for detectron2's ``get_default_optimizer_params``.

    Args:
        model: The detector, with one :class:`ConvNextBackbone`.
        decay_rate: In (0, 1]; the papers use 0.95 for Mask R-CNN with ConvNeXt-T.
        decay_type: ``'layer_wise'`` (default) or ``'stage_wise'``.
        num_layers: 6, 12, or None (default), which follows the depth of the third stage.

    Returns:
        A function that returns the factor for the name of a parameter. It is 1 outside of the
        backbone.

    Raises:
        ValueError: If the model does not have exactly one backbone, or as
            :func:`convnext_backbone.engine.lr_decay.resolve_num_layers`.

    Example:
        >>> params = get_default_optimizer_params(
        ...     model, base_lr=1e-4, weight_decay_norm=0, lr_factor_func=lr_factor_func(model, 0.95)
        ... )
    """
    found = [(n, m) for n, m in model.named_modules() if isinstance(m, ConvNextBackbone)]
    if len(found) != 1:
        raise ValueError(f'{type(model).__name__} must have one ConvNextBackbone, got {len(found)}')
    ((path, backbone),) = found
    layers = resolve_num_layers(backbone, decay_type, num_layers)
    prefix = f'{path}.' if path else ''

    def factor(name: str) -> float:
        if not name.startswith(prefix):
            return 1.0
        layer = layer_id(name.removeprefix(prefix), decay_type, layers)
        return decay_rate ** (layers + 1 - layer)

    return factor
