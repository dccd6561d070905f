"""Detectors and segmentors of OpenMMLab, for the features of their backbone or after their neck."""

from __future__ import annotations

from pathlib import Path

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from ..checkpoint import load_checkpoint, read_mmengine_checkpoint
from ..command_line import read_config
from ..models import ConvNextBackbone

Channels = tuple[float, float, float]

# What to do if a model lacks this part.
WITHOUT = {
    'backbone': "give the architecture's name instead of the config",
    'neck': 'leave --neck out',
}


def load_backbone(
    config: str | Path, checkpoint: str | Path
) -> tuple[ConvNextBackbone, Channels, Channels]:
    """Builds the backbone of a config alone and loads its weights.

    Args:
        config: Config file.
        checkpoint: Checkpoint of the whole model or of a backbone, in any format of
            :func:`convnext_backbone.load_checkpoint`.

    Returns:
        The backbone, and the mean and standard deviation as :func:`load_detector`.

    Raises:
        FileNotFoundError: If one of the files does not exist.
        ValueError: If the config has no model with a backbone of this package, or if the checkpoint
            does not fit.
    """
    cfg, mean, std = _read(config, 'backbone')
    cfg.model.backbone.init_cfg = None
    backbone = MODELS.build(cfg.model.backbone)
    if not isinstance(backbone, ConvNextBackbone):
        raise ValueError(
            f'the backbone of {config} is a {type(backbone).__name__}: choose a config with a '
            'ConvNextBackbone'
        )
    load_checkpoint(backbone, checkpoint)
    return backbone, mean, std


def load_detector(
    config: str | Path, checkpoint: str | Path
) -> tuple[nn.Module, Channels, Channels]:
    """Builds a model from its config and loads its weights.

    Args:
        config: Config file.
        checkpoint: Checkpoint of the whole model.

    Returns:
        A module that returns the maps of the neck, and the mean and standard deviation of its RGB
        images, for values from 0 to 1.

    Raises:
        FileNotFoundError: If one of the files does not exist.
        ValueError: If the config has no model with a neck, or if the checkpoint is damaged or
            does not fit.
    """
    cfg, mean, std = _read(config, 'neck')
    content = read_mmengine_checkpoint(str(checkpoint))
    cfg.model.backbone.init_cfg = None  # the checkpoint has all weights
    model = MODELS.build(cfg.model)
    try:
        model.load_state_dict(content.get('state_dict', content))
    except RuntimeError as error:
        raise ValueError(f'{checkpoint} does not fit the model of {config}: {error}') from error
    return _UpToNeck(model), mean, std


class _UpToNeck(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.model.extract_feat(images)  # type: ignore[operator]


def _read(config: str | Path, part: str) -> tuple[Config, Channels, Channels]:
    """Reads a config whose model has a backbone or a neck, and how it normalises images."""
    cfg = read_config(config)
    model = cfg.get('model') or {}
    if model.get(part) is None:
        raise ValueError(f'{config} has no model with a {part}: {WITHOUT[part]}')
    preprocessor = model.get('data_preprocessor') or {}
    mean, std = preprocessor.get('mean'), preprocessor.get('std')
    if not (mean and std and len(mean) == len(std) == 3 and preprocessor.get('bgr_to_rgb')):
        raise ValueError(
            f'the data_preprocessor of {config} must have mean and std of three channels and '
            'bgr_to_rgb=True'
        )
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    return cfg, _scaled(mean), _scaled(std)


def _scaled(values: list[float]) -> Channels:
    red, green, blue = (value / 255 for value in values)
    return red, green, blue
