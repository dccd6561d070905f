"""Reads checkpoints from files, folders, addresses and memory, without running their code."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch

from .archives import check_archive, check_end, first_line
from .containers import Checkpoint, unwrap
from .downloads import download, fetch_from_hub
from .hf_config import WEIGHT_FILES, is_weight_file, read_config
from .mmengine_files import MMENGINE_CLASSES, allowed

Source = str | os.PathLike | Mapping

_SUFFIXES = ('.safetensors', '.pth', '.pt', '.bin')


def read_checkpoint(source: Source, use_ema: bool = True) -> Checkpoint:
    """Reads a checkpoint to the CPU.

    Args:
        source: As in :func:`convnext_backbone.load_checkpoint`.
        use_ema: As in :func:`convnext_backbone.load_checkpoint`. Default: True.

    Raises:
        ValueError, FileNotFoundError, TypeError, ImportError, OSError: As ``load_checkpoint``.
    """
    if isinstance(source, Mapping):
        return unwrap(source, use_ema=use_ema)
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(
            'a checkpoint must be a path, an http(s):// or hf:// address, or a state dict, '
            f'got {type(source).__name__}'
        )
    address = os.fspath(source)
    scheme = address.partition('://')[0] if '://' in address else None
    if scheme in ('http', 'https'):
        path = download(address)
    elif scheme == 'hf':
        path = fetch_from_hub(address)
    elif scheme is not None:
        raise ValueError(
            f'{address} is neither a path nor an http(s):// or hf:// address: '
            'download it and pass its path'
        )
    else:
        try:
            path = Path(address).expanduser()
        except RuntimeError as error:  # there is no such user
            raise FileNotFoundError(f'no such checkpoint: {address}') from error
    is_folder = path.is_dir()
    if is_folder:
        path = _find_weights(path)
    if not path.is_file():
        raise FileNotFoundError(f'no such checkpoint: {path}')
    if path.name.endswith('.index.json'):
        checkpoint = _read_shards(path, address, use_ema)
    else:
        content, kind = _read_file(path)
        checkpoint = unwrap(content, address, kind, use_ema)
    # Beside other files there may be a config.json of anything.
    if is_folder or is_weight_file(path.name):
        checkpoint.config = read_config(path.parent)
    return checkpoint


def _read_file(path: Path) -> tuple[object, str]:
    """Loads one file according to its first bytes; returns its content and its kind."""
    with path.open('rb') as file:
        head = file.read(64)
    if not head:
        raise ValueError(f'{path} is an empty file: download it again')
    if head.startswith(b'version https://git-lfs'):
        raise ValueError(
            f'{path} is a Git LFS pointer, not the weights: run git lfs pull in its repository'
        )
    if head[8:9] == b'{':
        return _read_safetensors(path), 'safetensors'
    # A zip archive, or a pickle in the format of torch before 1.6.
    if head.startswith((b'PK', b'\x80')):
        check_archive(path)
        return _read_torch(path), 'torch file'
    raise ValueError(
        f'{path} is neither a torch nor a safetensors file: it begins with {head[:24]!r}. '
        'If it is a text or HTML file, the download failed: download it again'
    )


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(
            f'{path} needs the library safetensors: pip install safetensors'
        ) from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f'{path} is truncated or damaged ({error}): download it again') from error


def _read_torch(path: Path) -> object:
    with path.open('rb') as file:
        content = _unpickle(file, path)
        check_end(file, path)
    return content


def _unpickle(file: BinaryIO, path: Path) -> object:
    try:
        # Training scripts save their arguments with the weights. A Namespace runs no code.
        with allowed([*MMENGINE_CLASSES, argparse.Namespace]):
            return torch.load(file, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        culprit = re.search(r'GLOBAL (\S+)', str(error))
        if culprit is None:
            raise ValueError(
                f'{path} was not loaded: it is damaged, or its pickle holds more than tensors. '
                'Download it again, or save only its state dict'
            ) from error
        raise ValueError(
            f'{path} was not loaded: unpickling it would build or run {culprit[1]}, which could '
            'run any code. If you trust the file, load it with torch.load(..., weights_only=False) '
            'and save only its state dict'
        ) from error
    # Damaged bytes can make the unpickler raise any exception.
    except Exception as error:
        raise ValueError(
            f'{path} is truncated or damaged ({first_line(error)}): download it again'
        ) from error


def _find_weights(folder: Path) -> Path:
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    files = (path for path in folder.iterdir() if path.is_file())
    others = sorted(path for path in files if path.suffix in _SUFFIXES)
    if len(others) == 1:
        return others[0]
    if others:
        names = ', '.join(path.name for path in others)
        raise ValueError(f'{folder} holds several checkpoints, {names}: pass the path of one')
    raise FileNotFoundError(
        f'{folder} holds no weights: it needs one of {", ".join(WEIGHT_FILES)}, or exactly one '
        f'file with a suffix of {", ".join(_SUFFIXES)}'
    )


def _read_shards(index: Path, address: str, use_ema: bool) -> Checkpoint:
    try:
        shard_of = json.loads(index.read_text())['weight_map']
        names = sorted(set(shard_of.values()))
        if not names:
            raise ValueError('no tensors')
        lost = [name for name in names if not (index.parent / name).is_file()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f'{index} is not the index of a sharded checkpoint: it needs a weight_map with the '
            'file of every tensor'
        ) from error
    if lost:
        raise FileNotFoundError(
            f'{index} needs {", ".join(lost)}, not found in its folder: download the missing files'
        )
    tensors: dict[str, torch.Tensor] = {}
    for name in names:
        content, kind = _read_file(index.parent / name)
        found = unwrap(content, str(index.parent / name), kind).tensors
        # A shard may hold an old copy of a tensor that the index places in another one.
        tensors |= {key: tensor for key, tensor in found.items() if shard_of.get(key, name) == name}
    absent = sorted(shard_of.keys() - tensors.keys())
    if absent:
        raise ValueError(
            f'the shards of {index} lack {len(absent)} tensors, such as {absent[0]}: '
            'download them again'
        )
    return Checkpoint(tensors, address, f'{kind} in {len(names)} shards', use_ema)
