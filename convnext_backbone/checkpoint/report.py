"""The report on every tensor of a checkpoint and of a model."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from mmengine.logging import print_log
from torch import Tensor

from .formats import FORMATS
from .names import listed


@dataclass
class LoadReport:
    """What was loaded from a checkpoint and what was not.

    Attributes:
        model: Class of the model.
        source: Path or address of the checkpoint, or ``'a state dict'``.
        container: What the tensors were stored in, such as ``"torch file, key 'model'"``.
        format: Key of the recognised format: ``'hf'``, ``'meta'``, ``'fcmae'``, ``'timm'``,
            ``'timm_features'``, ``'torchvision'``, ``'mmpretrain'``, ``'hf_dinov3'``, and those of
            timm's overlapping stems.
        prefix: Key prefix of the ConvNeXt's names in the checkpoint.
        matched: Names of the model's tensors that were loaded, without a classifier's
            ``convnext.``.
        missing: Names of the model's tensors that the checkpoint does not have. They can only be
            norms of feature maps, which few checkpoints have. They keep their values: 1 and 0 in a
            new model.
        unexpected: Unknown names in the checkpoint; they were not loaded.
        ignored: Names in the checkpoint that were ignored on purpose, and the reason: heads,
            decoders, projectors, norms that the model does not have, deeper stages, the rest of a
            whole model.
        reshaped: Names in ``matched`` whose tensors had another layout of the same values.
        adapted: Names in ``matched`` whose tensors were adapted to another number of image
            channels or to smaller patches.
        non_finite: Those of ``matched`` with infinite or NaN values.
        unclear: A sentence on a norm whose meaning the names do not tell; empty if there is none.
    """

    model: str
    source: str
    container: str
    format: str
    prefix: str
    matched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    ignored: dict[str, str] = field(default_factory=dict)
    reshaped: list[str] = field(default_factory=list)
    adapted: list[str] = field(default_factory=list)
    non_finite: list[str] = field(default_factory=list)
    unclear: str = ''

    def __str__(self) -> str:
        """Returns a few lines for the log."""
        changes = [
            f'{len(names)} {what}'
            for names, what in ((self.reshaped, 'reshaped'), (self.adapted, 'adapted'))
            if names
        ]
        under = f' under {self.prefix!r}' if self.prefix else ''
        lines = [
            f'{self.model}: loaded {len(self.matched)} tensors'
            f'{" (" + ", ".join(changes) + ")" if changes else ""} from {self.source} '
            f'({self.container}): names of {FORMATS[self.format].title}{under}'
        ]
        if self.adapted:
            lines.append(f'  adapted to the images: {", ".join(self.adapted)}')
        if self.missing:
            modules = dict.fromkeys(name.rpartition('.')[0] for name in self.missing)
            lines.append(f'  fresh norms of feature maps, as expected: {", ".join(modules)}')
        if self.ignored:
            counts = Counter(self.ignored.values())
            reasons = ', '.join(f'{reason} ({count})' for reason, count in counts.items())
            lines.append(f'  ignored on purpose: {reasons}')
        if self.unclear:
            lines.append(f'  unclear: {self.unclear}')
        if self.non_finite:
            lines.append(f'  with infinite or NaN values: {listed(self.non_finite)}')
        if self.unexpected:
            lines.append(f'  unexpected, not loaded: {listed(self.unexpected)}')
        return '\n'.join(lines)

    def log(self) -> None:
        """Logs the report, as a warning if anything in it is suspicious."""
        is_suspicious = self.unexpected or self.non_finite or self.unclear
        level = logging.WARNING if is_suspicious else logging.INFO
        print_log(str(self), logger='current', level=level)


def non_finite(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """Returns the names of tensors with infinite or NaN values, once in the dtypes of ``own``."""
    return [
        name
        for name, tensor in tensors.items()
        if not tensor.is_meta and not tensor.to(own[name].dtype).isfinite().all()
    ]
