"""Marks functions that a compiler calls while it traces, instead of looking into them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Function = TypeVar('Function', bound=Callable)


def constant_while_traced(function: Function) -> Function:
    """Does what ``torch.compiler.assume_constant_result`` does.

    That decorator would import torch's whole compiler together with this package.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
