"""ConvNeXt of other libraries as feature extractors, for comparison with this package.

Only the requested libraries are imported: transformers, timm and torchvision are optional
(``pip install 'convnext-backbone[peers]'``).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from convnext_backbone import ConvNextBackbone
from convnext_backbone.arch import resolve_arch

STAGES = ('stage1', 'stage2', 'stage3', 'stage4')


class FeatureMaps(nn.Module):
    """Converts every library's output to a tuple of maps."""

    def __init__(self, model: nn.Module, maps: Callable) -> None:
        super().__init__()
        self.model = model
        self.maps = maps

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.maps(self.model(images)))


def build_ours(arch: str, with_cp: bool = False) -> nn.Module:
    """This package's backbone; its maps are normalised and contiguous."""
    return ConvNextBackbone(arch, out_features=STAGES, with_cp=with_cp)


def build_hf(arch: str) -> nn.Module:
    """The backbone of transformers; its maps are normalised."""
    _import_torchvision()  # transformers imports torchvision if it is installed
    from transformers import (
        ConvNextBackbone,
        ConvNextConfig,
        ConvNextV2Backbone,
        ConvNextV2Config,
    )

    resolved = resolve_arch(arch)
    config, model = (
        (ConvNextV2Config, ConvNextV2Backbone)
        if resolved.use_grn
        else (ConvNextConfig, ConvNextBackbone)
    )
    settings = config(
        depths=list(resolved.depths),
        hidden_sizes=list(resolved.hidden_sizes),
        out_features=list(STAGES),
    )
    return FeatureMaps(model(settings), lambda output: output.feature_maps)


def build_timm(arch: str) -> nn.Module:
    """timm's model with ``features_only``; its maps are not normalised."""
    _import_torchvision()
    import timm

    version, size = ('v2', arch[3:]) if arch.startswith('v2-') else ('', arch)
    return FeatureMaps(timm.create_model(f'convnext{version}_{size}', features_only=True), tuple)


def build_torchvision(arch: str) -> nn.Module:
    """torchvision's classifier with an output per stage; its maps are not normalised.

    Raises:
        ValueError: If torchvision does not have this model.
    """
    _import_torchvision()
    from torchvision import models
    from torchvision.models.feature_extraction import create_feature_extractor

    if arch not in ('tiny', 'small', 'base', 'large'):
        raise ValueError(f'torchvision does not have ConvNeXt {arch}')
    stages = {f'features.{2 * i + 1}': stage for i, stage in enumerate(STAGES)}
    model = create_feature_extractor(models.get_model(f'convnext_{arch}'), stages)
    return FeatureMaps(model, lambda output: output.values())


PEERS = {'hf': build_hf, 'timm': build_timm, 'torchvision': build_torchvision}


def _import_torchvision() -> None:
    """Imports torchvision even if its compiled part does not match torch.

    A torchvision for CUDA has no operators with a torch for CPUs. ConvNeXt does not need them: if
    their names are defined, the Python part works.
    """
    if find_spec('torchvision') is None or 'torchvision' in sys.modules:
        return
    try:
        import_module('torchvision')
    except RuntimeError:
        for name in [name for name in sys.modules if name.split('.')[0] == 'torchvision']:
            del sys.modules[name]
        source = Path(find_spec('torchvision').origin).with_name('_meta_registrations.py')
        names = re.findall(r'(?:register_meta\("|torchvision::)(\w+)', source.read_text())
        library = torch.library.Library('torchvision', 'FRAGMENT')
        for name in sorted(set(names)):
            library.define(f'{name}() -> ()')
        _kept.append(library)  # its definitions are deleted with it
        import_module('torchvision')


_kept: list[torch.library.Library] = []
