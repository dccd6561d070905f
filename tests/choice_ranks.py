"""Prints what two processes of a job choose whose times contradict each other.

python tests/choice_ranks.py FOLDER
"""

import multiprocessing
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from convnext_backbone.ops import choice, timings

CARD, DTYPE = torch.device('cuda'), torch.float32

# Milliseconds that each process measured, before the job.
TIMES = (
    {'modules': 3.0, 'torch': 2.0, 'triton': 1.0},
    {'modules': 1.0, 'torch': 2.0, 'triton': 3.0},
)


def say(title: str, channels: int) -> None:
    fused = choice.fused_kernels(CARD, channels, DTYPE)
    modules = choice.modules_are_better(CARD, channels, DTYPE, True, 'speed')
    print(f'{title}: {fused}, {modules}\n', end='', flush=True)


def run(rank: int, folder: Path) -> None:
    # Stand in for a card.
    torch.cuda.get_device_name = lambda device: 'Card'
    choice.have_triton_kernels = lambda *_: True
    os.environ['TORCH_EXTENSIONS_DIR'] = str(folder / str(rank))
    for channels in (8, 16, 24):
        key = f'Card, {channels} channels, {DTYPE}'
        timings.save(timings.file(), key, dict.fromkeys(timings.MODES, TIMES[rank]))
    say(f'rank {rank} alone', 8)
    choice._known.clear()
    store, timeout = f'file://{folder}/store', timedelta(seconds=60)
    dist.init_process_group('gloo', store, timeout, world_size=2, rank=rank)
    for channels, first in ((8, 0), (16, 1)):
        if rank == first:
            say(f'rank {first} first', channels)  # and waits for nobody
        dist.barrier()
        if rank != first:
            say(f'rank {first} first', channels)
    torch.use_deterministic_algorithms(True)
    say('deterministic', 24)


def main() -> None:
    # Forked, they need not import everything again.
    context = multiprocessing.get_context('fork')
    ranks = [context.Process(target=run, args=(rank, Path(sys.argv[1]))) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    sys.exit(any(process.exitcode for process in ranks))


if __name__ == '__main__':
    main()
