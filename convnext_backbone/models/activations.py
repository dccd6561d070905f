"""The activations, by their names in Hugging Face."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from .checks import check_choice

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    'gelu': nn.GELU,
    'gelu_new': lambda: nn.GELU(approximate='tanh'),
    'relu': nn.ReLU,
    'silu': nn.SiLU,
}


def make_activation(hidden_act: str) -> nn.Module:
    """Builds an activation.

    Raises:
        ValueError: If there is none of this name.
    """
    check_choice('hidden_act', hidden_act, ACTIVATIONS)
    return ACTIVATIONS[hidden_act]()
