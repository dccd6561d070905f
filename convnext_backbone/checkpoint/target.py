"""The description of a model for the loading of checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ..arch import Arch
from .formats import NATIVE
from .names import parse_name


@dataclass
class Target:
    """The description of a model for the loading of checkpoints.

    Attributes:
        name: The class of the model.
        arch: The architecture.
        tensors: The state dict, by native name.
        adapt_stem: Whether the stem's weight may be adapted to another number of image channels or
            to smaller patches.
        key_prefix: Key prefix of native names in the model's own state dict, except for the head.
        settings: What the tensors do not tell about the model, by constructor argument.
    """

    name: str
    arch: Arch
    tensors: dict[str, Tensor]
    adapt_stem: bool = False
    key_prefix: str = ''
    settings: dict = field(default_factory=dict)

    @property
    def own_tensors(self) -> dict[str, Tensor]:
        """The state dict, by the model's own names."""
        return {self.own_name(name): tensor for name, tensor in self.tensors.items()}

    def own_name(self, native: str) -> str:
        """Returns the model's own name of a tensor."""
        name = parse_name(native, NATIVE)
        is_head = name is not None and name.part == 'head'
        return native if is_head else self.key_prefix + native
