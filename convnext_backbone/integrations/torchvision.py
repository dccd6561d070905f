"""The backbone with a feature pyramid for torchvision's detectors."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from ..models import ConvNextBackbone


class ConvNextWithFPN(nn.Module):
    """Feature maps for ``torchvision.models.detection``: Mask R-CNN, Faster R-CNN, RetinaNet, FCOS.

    It has what those models ask of a backbone: an ``OrderedDict`` of maps with the same number of
    channels, and ``out_channels``. The maps of the backbone are named ``'0'``, ``'1'``, ... from
    the finest, which are torchvision's default names for RoI pooling; ``'pool'`` is the coarsest,
    subsampled by 2.

    Args:
        backbone: The backbone. Load its weights before or after.
        out_channels: Number of channels of every map. Default: 256, as in torchvision.

    Attributes:
        body: The backbone.
        fpn: The feature pyramid.
        out_channels: Number of channels of every map.

    Shape:
        Input: ``(N, 3, H, W)``; output: a map ``(N, out_channels, H / s, W / s)`` for each stride s
        of the backbone, and one for twice the largest.
    """

    def __init__(self, backbone: ConvNextBackbone, out_channels: int = 256) -> None:
        super().__init__()
        self.body = backbone
        self.fpn = FeaturePyramidNetwork(backbone.channels, out_channels, LastLevelMaxPool())
        self.out_channels = out_channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Returns the maps by name."""
        return self.fpn({str(i): features for i, features in enumerate(self.body(images))})
