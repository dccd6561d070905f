"""Stops detectors whose operators would read their maps in the wrong order."""

from __future__ import annotations

from torch import nn

from ..models.backbone import is_channels_last
from ..models.base import ConvNextBase

# Operators of mmcv that get no maps, but sequences of pixels.
_INDEPENDENT = {'MultiScaleDeformableAttention'}


def check_layout(model: nn.Module) -> None:
    """Refuses a model with mmcv's operators and convolutions in channels_last.

    mmcv's RoIAlign and deformable convolutions read the memory of every map as NCHW, without an
    error. A convolution whose weights are in channels_last returns such maps: losses fall, but AP
    stays 0. The models of this package may be in channels_last, as their maps are always
    contiguous, and so may models without these operators.

    Args:
        model: A detector or any other model, wrapped or not.

    Raises:
        ValueError: If such a model has parameters in channels_last outside of its ConvNeXts.
    """
    kinds = {type(m) for m in model.modules() if type(m).__module__.startswith('mmcv.ops.')}
    operators = {kind.__name__ for kind in kinds} - _INDEPENDENT
    if not operators:
        return
    ours = {p for m in model.modules() if isinstance(m, ConvNextBase) for p in m.parameters()}
    wrong = [n for n, p in model.named_parameters() if p not in ours and is_channels_last(p)]
    if wrong:
        raise ValueError(
            f'{len(wrong)} parameters outside of the backbone are in channels_last, such as '
            f"{wrong[0]}, but mmcv's {', '.join(sorted(operators))} would read the maps as NCHW, "
            'with wrong results: move only the backbone, '
            'model.backbone.to(memory_format=torch.channels_last), or undo it with '
            'model.to(memory_format=torch.contiguous_format)'
        )
