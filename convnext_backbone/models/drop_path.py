"""Stochastic depth: dropping the residual branch of whole samples (Huang et al. 2016)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .checks import check_flag, check_rate


def drop_path(hidden_states: Tensor, drop_prob: float = 0.0, training: bool = False) -> Tensor:
    """Sets random samples of a residual branch to zero.

    Args:
        hidden_states: Tensor of shape ``(N, ...)``, with at least one dimension.
        drop_prob: Probability p of dropping a sample, in [0, 1). Default: 0.
        training: Whether samples are dropped at all. Default: False.

    Returns:
        A tensor of the same shape. Samples that are kept are scaled by 1 / (1 - p). If
        ``training`` is False or p is 0, ``hidden_states`` itself.

    Raises:
        ValueError: If ``drop_prob`` is outside [0, 1).
        TypeError: If ``drop_prob`` is not a number, or ``training`` is not True or False.
    """
    check_flag('training', training)
    factors = _keep_factors(hidden_states, drop_prob, training)
    if factors is None:
        return hidden_states
    shape = (-1, *(1,) * (hidden_states.ndim - 1))
    return hidden_states * factors.to(hidden_states.dtype).view(shape)


class ConvNextDropPath(nn.Module):
    """:func:`drop_path` as a module that follows its own ``training`` flag.

    Args:
        drop_prob: Probability of dropping a sample, in [0, 1). Default: 0.

    Raises:
        ValueError: If ``drop_prob`` is outside [0, 1).
        TypeError: If ``drop_prob`` is not a number.
    """

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()
        check_rate('drop_prob', drop_prob)
        self.drop_prob = drop_prob

    def forward(self, hidden_states: Tensor) -> Tensor:
        return drop_path(hidden_states, self.drop_prob, self.training)

    def factors(self, hidden_states: Tensor) -> Tensor | None:
        """Returns the factors ``(N,)`` for the samples, or None if no sample can be dropped."""
        return _keep_factors(hidden_states, self.drop_prob, self.training)

    def extra_repr(self) -> str:
        return f'drop_prob={self.drop_prob}'


def _keep_factors(hidden_states: Tensor, drop_prob: float, training: bool) -> Tensor | None:
    check_rate('drop_prob', drop_prob)
    if not training or drop_prob == 0.0:
        return None
    # Sampled in float32: half precision would round the probability.
    keep_prob = 1.0 - drop_prob
    factors = torch.empty(len(hidden_states), device=hidden_states.device)
    return factors.bernoulli_(keep_prob).div_(keep_prob)
