"""Random numbers that belong to an iteration, so that a resumed run draws them again."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import CheckpointHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import Tensor
from torch.utils.data import Dataset

from .resuming import checkpoint_folder, find_resumable

# What random numbers are for; the last number of their key.
_DATA, _STEP = 0, 1


@HOOKS.register_module()
class ConvNextResumeHook(Hook):
    """Makes a resumed run equal to one that was never interrupted.

    mmengine does not keep the states of the random generators: after a resume, drop path and
    augmentations draw other numbers. With this hook, the generators of Python, NumPy, PyTorch and
    CUDA start anew at every iteration, from ``randomness.seed``, the rank and the number of the
    iteration. Whatever was drawn before has no influence: not an interruption, and not a
    validation. So the states need not be in the checkpoint, and nothing has to be collected from
    the other ranks when it is saved. In epoch-based loops, every batch is loaded with random
    numbers from ``randomness.seed``, the epoch and the indices of its samples, in worker processes,
    persistent or not, as well as in the main process. Iteration-based loops load all earlier
    batches again when they resume (mmengine does this), so their workers are where they stopped.

    On the CPU, the final weights are equal bit by bit. The hook also

    - warns if the resumed run cannot be equal: another seed than that of the checkpoint, another
      number of processes, or a checkpoint from the middle of an epoch of an epoch-based loop, which
      then repeats the epoch from its start;
    - resumes with ``resume=True`` from the latest good checkpoint in the folder of the run, by
      :func:`~convnext_backbone.engine.find_resumable`;
    - deletes no checkpoint of another folder: mmengine knows the best one by its absolute path,
      and deletes it when there is a better one, also after a resume from a copied folder.

    Not covered: transforms that keep earlier images (``CachedMosaic``, ``CachedMixUp``) and
    generators of a dataset's own.

    In a config: ``default_hooks = dict(resume=dict(type='ConvNextResumeHook'))``, which is merged
    with the other hooks.
    """

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self._meta: dict[str, Any] = {}
        self._seed_before: int | None = None
        # In shared memory: worker processes read it.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def before_run(self, runner: Runner) -> None:
        """Chooses the checkpoint if a runner shall resume from its latest one.

        Raises:
            ValueError: As :func:`~convnext_backbone.engine.find_resumable`.
        """
        if runner._resume is True and runner._load_from is None:
            out_dirs = [h.out_dir for h in runner.hooks if isinstance(h, CheckpointHook)]
            runner._load_from = find_resumable(runner.work_dir, *out_dirs[:1])

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Notes the number of processes."""
        checkpoint['meta']['world_size'] = get_world_size()

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Remembers how the checkpoint was made; weights of other sources have no ``meta``."""
        self._meta = checkpoint.get('meta') or {}
        # The runner takes over that of the checkpoint, after its data loader was built.
        self._seed_before = runner.seed

    def before_train(self, runner: Runner) -> None:
        """Prepares the loading of data; after a resume, checks what it continues."""
        if runner.iter > 0:
            self._warn_of_differences(runner)
            _stay_in_own_folder(runner)
        loop = runner.train_loop
        if isinstance(loop, IterBasedTrainLoop):
            batches = _seeded_batches(loop.dataloader_iterator, runner.seed)
            loop.dataloader_iterator = batches
        else:
            dataset = loop.dataloader.dataset
            dataset.__getitems__ = SeededFetch(dataset, runner.seed, self._epoch)

    def before_train_epoch(self, runner: Runner) -> None:
        """Tells the workers the epoch; they fetch its first batch after this."""
        self._epoch.fill_(runner.epoch)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | tuple | list | None = None
    ) -> None:
        """Starts the random generators of the iteration."""
        start_generators(runner.seed, get_rank(), runner.iter, _STEP)

    def _warn_of_differences(self, runner: Runner) -> None:
        seed, processes = self._meta.get('seed'), self._meta.get('world_size')
        if seed is not None and seed != self._seed_before:
            runner.logger.warning(
                f'The checkpoint was trained with seed {seed}, but the data was shuffled with '
                f'{self._seed_before}: set randomness=dict(seed={seed}) to continue in its order.'
            )
        if processes is not None and processes != get_world_size():
            runner.logger.warning(
                f'The checkpoint was trained by {processes} processes and is resumed by '
                f'{get_world_size()}: batches and random numbers will be others.'
            )
        loop = runner.train_loop
        if isinstance(loop, IterBasedTrainLoop) or runner.iter == runner.epoch * len(
            loop.dataloader
        ):
            return
        runner.logger.warning(
            f'The checkpoint is of iteration {runner.iter}, but epoch {runner.epoch} starts at '
            f'iteration {runner.epoch * len(loop.dataloader)}, as it was saved inside an epoch or '
            'with other batches: the epoch is trained from its start.'
        )


class SeededFetch:
    """Loads the samples of a batch, with random numbers that belong to it.

    An instance becomes a dataset's ``__getitems__``, by which PyTorch's loaders fetch batches.

    Args:
        dataset: The dataset.
        seed: That of the run.
        epoch: The current epoch, a scalar in shared memory.
    """

    def __init__(self, dataset: Dataset, seed: int, epoch: Tensor) -> None:
        self.dataset, self.seed, self.epoch = dataset, seed, epoch

    def __call__(self, indices: Sequence[int]) -> list:
        start_generators(self.seed, int(self.epoch), *indices, _DATA)
        fetch = getattr(type(self.dataset), '__getitems__', None)
        if fetch is not None:
            return fetch(self.dataset, indices)
        return [self.dataset[index] for index in indices]


def start_generators(*key: int) -> None:
    """Starts the generators of Python, NumPy, PyTorch and CUDA from numbers of at least 0."""
    words = np.random.SeedSequence(key).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    torch.manual_seed(int(words[2]) << 32 | int(words[3]))


def _seeded_batches(batches: Iterator, seed: int) -> Iterator:
    for iteration in itertools.count():
        start_generators(seed, get_rank(), iteration, _DATA)
        yield next(batches)


def _stay_in_own_folder(runner: Runner) -> None:
    """Looks for the best checkpoint of a resumed run in the folder of this run."""
    for hook in runner.hooks:
        if isinstance(hook, CheckpointHook):
            folder = checkpoint_folder(runner.work_dir, hook.out_dir)
            for key, path in runner.message_hub.runtime_info.items():
                if key.startswith('best_ckpt') and path:
                    own = os.path.join(folder, os.path.basename(path))
                    runner.message_hub.update_info(key, own)
