"""Detectors and segmentors of OpenMMLab, for the features after their neck."""

from __future__ import annotations

from pathlib import Path

from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from ..checkpoint import read_mmengine_checkpoint
from ..command_line import read_config

Channels = tuple[float, float, float]


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
    cfg = read_config(config)
    if cfg.get('model', {}).get('neck') is None:
        raise ValueError(f'{config} has no model with a neck: leave --neck out')
    preprocessor = cfg.model.get('data_preprocessor') or {}
    mean, std = preprocessor.get('mean'), preprocessor.get('std')
    if not (mean and std and len(mean) == len(std) == 3 and preprocessor.get('bgr_to_rgb')):
        raise ValueError(
            f'the data_preprocessor of {config} must have mean and std of three channels and '
            'bgr_to_rgb=True'
        )
    content = read_mmengine_checkpoint(str(checkpoint))
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    cfg.model.backbone.init_cfg = None  # the checkpoint has all weights
    model = MODELS.build(cfg.model)
    try:
        model.load_state_dict(content.get('state_dict', content))
    except RuntimeError as error:
        raise ValueError(f'{checkpoint} does not fit the model of {config}: {error}') from error
    return _UpToNeck(model), _scaled(mean), _scaled(std)


class _UpToNeck(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.model.extract_feat(images)  # type: ignore[operator]


def _scaled(values: list[float]) -> Channels:
    red, green, blue = (value / 255 for value in values)
    return red, green, blue
