"""Reads from Hugging Face's ``config.json`` what the tensors beside it do not tell."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

from ..arch import Arch
from .containers import Checkpoint, CheckpointError

# The files of a model folder that contain its weights, beside its config.json. The first one that
# exists is read.
WEIGHT_FILES = (
    'model.safetensors',
    'model.safetensors.index.json',
    'pytorch_model.bin',
    'pytorch_model.bin.index.json',
)

# What a model computes where its config.json does not say it. V1 and V2 use layer_norm_eps for the
# norm of the pooled features alone; their other norms have a fixed eps.
_V1_AND_V2 = dict(
    num_channels=3, patch_size=4, hidden_act='gelu', norm_eps=1e-6, layer_norm_eps=1e-12
)
_DEFAULTS = {
    'convnext': _V1_AND_V2,
    'convnextv2': _V1_AND_V2,
    'dinov3_convnext': _V1_AND_V2 | dict(layer_norm_eps=1e-6),
}

# The activations of this package, by all names that Hugging Face has for them.
ACTIVATION_NAMES = {
    'gelu': 'gelu',
    'gelu_new': 'gelu_new',
    'relu': 'relu',
    'silu': 'silu',
    'gelu_python': 'gelu',
    'gelu_fast': 'gelu_new',
    'gelu_pytorch_tanh': 'gelu_new',
    'gelu_python_tanh': 'gelu_new',
    'swish': 'silu',
}


def is_weight_file(name: str) -> bool:
    """Whether a file has a name of Hugging Face's: also shards and variants in other dtypes."""
    variant = r'(\.\w+|-\d+-of-\d+)?'
    suffix = r'\.(safetensors|bin)(\.index\.json)?'
    return re.fullmatch(rf'(model|pytorch_model){variant}{suffix}', name) is not None


def read_config(folder: Path) -> dict:
    """Reads the ``config.json`` of a folder.

    Returns:
        Its content; empty if there is no such file.

    Raises:
        ValueError: If the file is not a JSON object.
    """
    path = folder / 'config.json'
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(
            f'{path} is damaged, it is not JSON ({error}): download it again, or pass the path of '
            'the weights in another folder'
        ) from error
    if not isinstance(config, dict):
        raise ValueError(
            f'{path} is damaged, it holds a {type(config).__name__}, not an object: download it '
            'again, or pass the path of the weights in another folder'
        )
    return config


def read_settings(config: Mapping) -> dict:
    """Returns what a ``config.json`` says about the model, as arguments of this package.

    Args:
        config: The config of a model, or of a larger one with a ``backbone_config`` or a
            ``vision_config``.

    Returns:
        ``num_channels``, ``patch_size``, ``hidden_act``, ``norm_eps`` and ``layer_norm_eps`` of
        the model; empty if it is no ConvNeXt.
    """
    for key in ('backbone_config', 'vision_config'):
        inner = config.get(key)
        config = inner if isinstance(inner, dict) else config
    kind = config.get('model_type') or _kind_of_class(config)
    if kind not in list(_DEFAULTS):
        return {}
    defaults = _DEFAULTS[kind]
    settings = {key: config.get(key, value) for key, value in defaults.items()}
    is_fixed = kind != 'dinov3_convnext'
    settings['norm_eps'] = defaults['norm_eps'] if is_fixed else settings['layer_norm_eps']
    side = settings['patch_size']
    if isinstance(side, list) and len(side) == 2 and side[0] == side[1]:
        settings['patch_size'] = side[0]
    act = settings['hidden_act']
    settings['hidden_act'] = ACTIVATION_NAMES[act] if act in list(ACTIVATION_NAMES) else act
    return settings


def _kind_of_class(config: Mapping) -> str:
    """Returns the kind of model by the name of its class: ``ConvNextV2Model`` is a convnextv2."""
    classes = config.get('architectures') or ['']
    name = str(classes[0]).lower().replace('dinov3', 'dinov3_')
    return next((kind for kind in sorted(_DEFAULTS, reverse=True) if name.startswith(kind)), '')


def contradictions(config: Mapping, settings: Mapping) -> dict[str, tuple]:
    """Finds the settings of a model that contradict a ``config.json``.

    Args:
        config: The content of the file.
        settings: The model's own settings; only these are compared.

    Returns:
        The value in the config and that of the model, by argument.

    Raises:
        CheckpointError: If an eps in the config is not a positive number.
    """
    theirs = read_settings(config)
    for key in ('norm_eps', 'layer_norm_eps'):
        eps = theirs.get(key, 1.0)
        if key in settings and (type(eps) not in (int, float) or not 0 < eps < math.inf):
            raise CheckpointError(
                f'the config.json is damaged: layer_norm_eps is {eps!r}, not a positive number'
            )
    return {
        key: (theirs[key], own)
        for key, own in settings.items()
        if key in theirs and theirs[key] != own
    }


def other_arguments(config: Mapping, arch: Arch) -> dict:
    """Returns the arguments that a ``config.json`` sets to other values than the defaults.

    Args:
        config: The content of the file.
        arch: The architecture, which has defaults of its own.

    Raises:
        CheckpointError: As :func:`contradictions`.
    """
    defaults = dict(
        num_channels=3,
        patch_size=4,
        hidden_act='gelu',
        norm_eps=arch.norm_eps,
        layer_norm_eps=arch.final_norm_eps,
    )
    return {key: theirs for key, (theirs, _) in contradictions(config, defaults).items()}


def check_config(checkpoint: Checkpoint, model: str, settings: Mapping, adapt_stem: bool) -> None:
    """Refuses a checkpoint whose ``config.json`` contradicts a model.

    Args:
        checkpoint: The checkpoint.
        model: The name of the model, for the message.
        settings: The model's own settings; only these are compared.
        adapt_stem: Whether the number of image channels and the patch size may differ.

    Raises:
        CheckpointError: If a setting differs.
    """
    differences = contradictions(checkpoint.config, settings)
    if adapt_stem:
        differences.pop('num_channels', None)
        differences.pop('patch_size', None)
    if differences:
        sides = [f'{key} {theirs!r}, not {own!r}' for key, (theirs, own) in differences.items()]
        arguments = [f'{key}={theirs!r}' for key, (theirs, _) in differences.items()]
        advice = f'Build the model with {", ".join(arguments)} to fit the file'
        act, _ = differences.get('hidden_act', ('gelu', None))
        side, _ = differences.get('patch_size', (4, None))
        if act not in list(ACTIVATION_NAMES):
            advice = f'ConvNextBackbone has no activation {act!r}, so it cannot run this model'
        elif not isinstance(side, int):
            advice = f'ConvNextBackbone has square patches, not {side!r}: it cannot run this model'
        raise CheckpointError(
            f'{checkpoint.source} was not loaded, {model} keeps its weights: by its config.json it '
            f'is a model with {"; ".join(sides)}. {advice}'
        )
