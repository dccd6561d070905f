"""Finds the checkpoint from which a run resumes."""

from __future__ import annotations

import logging
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log

from ..checkpoint import MMENGINE_CLASSES, allowed
from ..checkpoint.archives import check_archive

_PERIODIC = re.compile(r'(?:epoch|iter)_\d+\.pth')
_NEEDED = ('meta', 'state_dict', 'optimizer', 'message_hub')


def resume_from(cfg: Config, checkpoint: str | None = None) -> None:
    """Makes a config resume from a checkpoint, or from the latest good one of its run.

    Without a checkpoint in the folder of the run, it starts from the beginning, with ``load_from``
    of the config. If the config has no seed, it gets that of the checkpoint: mmengine shuffles the
    data before it reads the checkpoint.

    Args:
        cfg: The config, with ``work_dir``; it is changed in place.
        checkpoint: A file, or an address. Default: None, which uses :func:`find_resumable`.

    Raises:
        FileNotFoundError: If the given checkpoint does not exist.
        ValueError: If the given checkpoint, or each one of the run, is damaged.
    """
    if checkpoint is None:
        out_dir = cfg.get('default_hooks', {}).get('checkpoint', {}).get('out_dir')
        checkpoint = find_resumable(cfg.work_dir, out_dir)
        if checkpoint is None:
            cfg.resume = False
            _say(f'{cfg.work_dir} holds no checkpoint to resume from: the run starts anew.')
            return
    cfg.resume, cfg.load_from = True, checkpoint
    if '://' in checkpoint or os.path.isdir(checkpoint):
        return
    seed = read_resumable(checkpoint)['meta'].get('seed')
    randomness = cfg.setdefault('randomness', ConfigDict())
    if seed is not None and randomness.get('seed') is None:
        randomness.seed = seed


def find_resumable(
    work_dir: str | os.PathLike, out_dir: str | os.PathLike | None = None
) -> str | None:
    """Returns the latest good checkpoint of a run, or None if there is no checkpoint.

    mmengine's file ``last_checkpoint`` names it by an absolute path. Only the name is used: in a
    copied folder, the path leads to the original. If that checkpoint is missing or damaged (the
    process was stopped while it was written), the good ``epoch_*.pth`` or ``iter_*.pth`` with the
    most iterations is returned. A warning says so in both cases.

    Args:
        work_dir: The folder of the run.
        out_dir: As in mmengine's ``CheckpointHook``. Default: None.

    Raises:
        ValueError: If there are checkpoints, but all are damaged.
    """
    folder = Path(checkpoint_folder(work_dir, out_dir))
    note = Path(work_dir, 'last_checkpoint')
    damaged: list[str] = []
    if note.is_file() and (noted := note.read_text().strip()):
        last = folder / Path(noted).name
        if os.path.realpath(noted) != os.path.realpath(last):
            _warn(f'{note} names {noted}, in another folder: only {last} is looked for.')
        try:
            read_resumable(last)
        except (FileNotFoundError, ValueError) as error:
            damaged.append(str(error))
        else:
            return str(last)
    good = {}
    for path in folder.glob('*.pth'):
        if _PERIODIC.fullmatch(path.name):
            try:
                good[path] = read_resumable(path)['meta']['iter']
            except ValueError as error:
                damaged.append(str(error))
    if good:
        latest = max(good, key=lambda path: good[path])
        reasons = '; '.join(dict.fromkeys(damaged)) or f'{note} is missing or empty'
        _warn(f'{reasons}: the run resumes from {latest}, at iteration {good[latest]}.')
        return str(latest)
    if damaged:
        raise ValueError(
            f'no checkpoint in {folder} is good: {"; ".join(dict.fromkeys(damaged))}. To start '
            'anew, use another work dir'
        )
    return None


def read_resumable(path: str | os.PathLike) -> dict[str, Any]:
    """Reads a checkpoint of mmengine from which a run can resume, without loading its tensors.

    A folder, as DeepSpeed and sharded FSDP write it, is not looked into.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or holds no more than weights.
    """
    if os.path.isdir(path):
        return dict(meta=dict(iter=-1))
    if not os.path.isfile(path):
        raise FileNotFoundError(f'no such checkpoint: {path}')
    try:
        check_archive(Path(path))
        # A zip archive that can be opened has its end.
        with allowed(MMENGINE_CLASSES):
            content = torch.load(
                path, map_location='cpu', weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    # Damaged bytes can make the unpickler raise any exception.
    except Exception as error:
        size = os.path.getsize(path)
        raise ValueError(f'{path} is truncated or damaged ({size} bytes)') from error
    missing = [key for key in _NEEDED if not isinstance(content, dict) or key not in content]
    if missing or 'iter' not in content['meta']:
        raise ValueError(
            f'{path} is no checkpoint of a run, as it has no {missing or "meta.iter"}: use '
            'load_from for weights'
        )
    return content


def checkpoint_folder(work_dir: str | os.PathLike, out_dir: str | os.PathLike | None) -> str:
    """Returns the folder where mmengine's ``CheckpointHook`` puts its files."""
    if out_dir is None:
        return os.fspath(work_dir)
    return os.path.join(out_dir, os.path.basename(os.path.normpath(work_dir)))


def _say(message: str) -> None:
    print_log(message, logger='current')


def _warn(message: str) -> None:
    print_log(message, logger='current', level=logging.WARNING)
