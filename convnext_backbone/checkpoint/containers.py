"""Finds the state dict in the content of a checkpoint file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from .formats import AVERAGED_WORDS, CONTAINERS
from .names import words_of


class CheckpointError(ValueError, RuntimeError):
    """A checkpoint cannot be used. Also a RuntimeError, like torch's own errors."""


@dataclass
class Checkpoint:
    """Tensors by name, and where they come from.

    Attributes:
        tensors: The plain state dict.
        source: Its path or address, or ``'a state dict'``.
        container: What it is stored in, such as ``"torch file, key 'model'"`` or ``'safetensors'``.
        use_ema: Whether averaged weights are read if the tensors have both. Default: True.
        key: The key that it is stored under, if any. Default: empty.
        config: The ``config.json`` beside the weights of a model folder. Default: empty.
    """

    tensors: dict[str, Tensor]
    source: str
    container: str
    use_ema: bool = True
    key: str = ''
    config: dict = field(default_factory=dict)


def unwrap(
    content: object,
    source: str = 'a state dict',
    container: str = 'dict',
    use_ema: bool = True,
    key: str = '',
) -> Checkpoint:
    """Finds the state dict in a loaded object.

    Args:
        content: A state dict, or nested dicts with a state dict under one of the known keys.
        source: Where the content comes from.
        container: What it was stored in.
        use_ema: Whether averaged weights are read if there are any. Default: True.
        key: The key that the content was stored under, if any. Default: empty.

    Raises:
        CheckpointError: If the content holds no state dict, or an empty one.
    """
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f'{source} holds a {type(content).__name__}, not a state dict: '
            'save model.state_dict(), directly or under a key such as state_dict or model'
        )
    averaged, others = _containers(content)
    order = [*averaged, *others] if use_ema else [*others, *averaged]
    keys = [k for k in order if isinstance(content[k], Mapping) and _holds_tensors(content[k])]
    if keys:
        rest = f' (other keys: {", ".join(keys[1:])})' if len(keys) > 1 else ''
        inside = f'{container}, key {keys[0]!r}{rest}'
        return unwrap(content[keys[0]], source, inside, use_ema, keys[0])
    tensors = {
        name: tensor.detach()
        for name, tensor in content.items()
        if isinstance(name, str) and isinstance(tensor, Tensor)
    }
    if not tensors:
        found = f'only {", ".join(map(repr, list(content)[:5]))}' if content else 'it is empty'
        raise CheckpointError(
            f'{source} ({container}) holds no tensors, {found}: a state dict must be '
            f'at the top level or under one of the keys {", ".join(sorted(CONTAINERS))}, or one '
            f'with the word {" or ".join(AVERAGED_WORDS)}'
        )
    return Checkpoint(tensors, source, container, use_ema, key)


def _containers(content: Mapping) -> tuple[list[str], list[str]]:
    """Returns the keys that may hold averaged weights, and those that may hold others."""
    ema = content.get('ema_state_dict')
    # mmengine's EMAHook saves the averages as state_dict, and the trained weights in the place of
    # the averaged model, which also counts its steps.
    if isinstance(ema, Mapping) and 'steps' in ema and 'state_dict' in content:
        return ['state_dict'], ['ema_state_dict']
    keys = [key for key in content if isinstance(key, str)]
    # Not teacher_head or ema_optimizer.
    known = set(AVERAGED_WORDS).union(*map(words_of, CONTAINERS))
    weights = [key for key in keys if words_of(key) <= known]
    averaged = [key for word in AVERAGED_WORDS for key in weights if word in words_of(key)]
    return list(dict.fromkeys(averaged)), [key for key in CONTAINERS if key in content]


def _holds_tensors(content: object) -> bool:
    """Whether a value is a state dict, or dicts around one."""
    return isinstance(content, Tensor) or (
        isinstance(content, Mapping) and any(map(_holds_tensors, content.values()))
    )
