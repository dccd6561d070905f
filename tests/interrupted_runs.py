"""Kills runs of tools/train.py, resumes them, and compares them with runs that nothing stopped.

python tests/interrupted_runs.py FOLDER

Every run is a fork of this process, which has imported what all of them need.
"""

from __future__ import annotations

import os
import runpy
import shutil
import signal
import sys
from pathlib import Path

import cv2
import matplotlib.pyplot
import numpy as np
import torch
import torch._dynamo
from helpers import REPO, load_whole, same_tensors
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

import convnext_backbone.data

# Imported here, once for all forks.
assert convnext_backbone.data and torch._dynamo and matplotlib.pyplot

sys.path.insert(0, str(REPO / 'tools'))

CONFIG = """
custom_imports = dict(imports=['convnext_backbone.data'])
model = dict(
    type='ConvNextForImageClassification',
    arch=dict(depths=[1, 2], hidden_sizes=[8, 16]),
    num_labels=2,
    problem_type='single_label_classification',
    drop_path_rate=0.5,
    layer_scale_init_value=1.0,
    data_preprocessor=dict(
        type='MixingDataPreprocessor',
        num_labels=2,
        mixup_alpha=0.8,
        mean=[120.0] * 3,
        std=[60.0] * 3,
    ),
)
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ConvNextRandomResizedCrop', scale=16),
    dict(type='RandomFlip', prob=0.5),
    dict(type='ConvNextPackInputs'),
]
dataset = dict(type='ConvNextImageFolder', data_root='images', pipeline=pipeline)
train_dataloader = dict(
    batch_size=4,
    num_workers={workers},
    persistent_workers={workers} > 0,
    sampler=dict(type={sampler!r}, shuffle=True),
    dataset=dataset,
)
# Its random crops must not change the training.
val_dataloader = dict(
    batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True), dataset=dataset
)
val_evaluator = dict(type='ConvNextAccuracy', topk=(1,))
train_cfg = {train_cfg}
val_cfg = dict()
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-2), clip_grad=dict(max_norm=1)
)
param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=10)]
default_hooks = dict(
    resume=dict(type='ConvNextResumeHook'),
    checkpoint=dict(type='CheckpointHook', by_epoch={by_epoch}, interval={interval}),
)
custom_hooks = [dict(type='EMAHook', momentum=0.1)]
"""
EPOCHS = dict(
    sampler='DefaultSampler',
    train_cfg=dict(by_epoch=True, max_epochs=2, val_interval=1),
    by_epoch=True,
    interval=1,
)
ITERATIONS = dict(
    sampler='InfiniteSampler',
    train_cfg=dict(by_epoch=False, max_iters=9, val_interval=4),
    by_epoch=False,
    interval=3,
)
# Name: settings, number of processes, number of iterations when the run resumes. An epoch has four
# iterations with one process, two with two.
CASES = {
    'epochs, main process': (EPOCHS | dict(workers=0), 1, 4),
    'epochs, two ranks with persistent workers': (EPOCHS | dict(workers=1), 2, 2),
    'iterations, main process': (ITERATIONS | dict(workers=0), 1, 6),
}


@HOOKS.register_module()
class KillHook(Hook):
    """Kills its process inside an epoch, after the forward pass of an iteration."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def after_train_iter(self, runner, **_) -> None:
        """Kills the process as kill -9 does."""
        if runner.iter == self.iteration:
            os.kill(os.getpid(), signal.SIGKILL)


def train(processes: int, *args: str, direct: bool = False) -> set[int]:
    """Runs tools/train.py in forks; returns their exit codes, negative for signals.

    With ``direct``, mmengine's runner resumes without it.
    """
    # Workers of a killed process keep its port for some seconds.
    os.environ['MASTER_PORT'] = str(int(os.environ['MASTER_PORT']) + 1)
    sys.stdout.flush()
    children = []
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)
            with open('output.txt', 'w') as output:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
            sys.argv = ['train.py', *args]
            if processes > 1:
                sys.argv += ['--launcher', 'pytorch']
                os.environ |= dict(RANK=str(rank), LOCAL_RANK=str(rank))
            if direct:
                cfg = Config.fromfile(args[0])
                cfg.work_dir, cfg.resume = args[-1], True
                Runner.from_cfg(cfg).train()
            else:
                runpy.run_path(str(REPO / 'tools/train.py'), run_name='__main__')
            sys.exit()
        children.append(child)
    return {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children}


def last_checkpoint(folder: Path) -> dict:
    return load_whole(Path((folder / 'last_checkpoint').read_text()))


def compare(name: str, settings: dict, processes: int, resumed_at: int) -> None:
    """Prints whether a killed and resumed run ends as one that nothing stopped."""
    Path('config.py').write_text(CONFIG.format(**settings))
    Path('killed.py').write_text(
        "_base_ = './config.py'\n"
        "custom_hooks = [dict(type='EMAHook', momentum=0.1), "
        f"dict(type='KillHook', iteration={resumed_at + 1})]\n"
    )
    folder = Path(name)
    stopped, whole = folder / 'stopped', folder / 'whole'
    assert train(processes, 'killed.py', '--work-dir', str(stopped)) == {-signal.SIGKILL}
    before = last_checkpoint(stopped)
    assert before['meta']['iter'] == resumed_at
    # Neither run has a seed in its config: the first one draws it.
    option = f'randomness.seed={before["meta"]["seed"]}'
    args = ('--work-dir', str(whole), '--cfg-options', option)
    assert train(processes, 'config.py', *args) == {0}
    assert train(processes, 'config.py', '--work-dir', str(stopped), '--resume') == {0}
    shutil.copy('output.txt', 'resumed.txt')
    one, other = last_checkpoint(whole), last_checkpoint(stopped)
    assert one['meta']['iter'] == other['meta']['iter'] > resumed_at
    equal = [same_tensors(one[key], other[key]) for key in ('state_dict', 'ema_state_dict')]
    trained = not same_tensors(one['state_dict'], before['state_dict'])
    print(f'{name}: equal {all(equal)}, trained {trained}', flush=True)


def resume_differently() -> None:
    """Prints the warnings if a run resumes with another seed and another number of processes."""
    settings, processes, _ = CASES['epochs, two ranks with persistent workers']
    Path('config.py').write_text(CONFIG.format(**settings))
    folder = 'epochs, two ranks with persistent workers/stopped'
    options = ('randomness.seed=1', 'train_cfg.max_epochs=3')
    codes = train(1, 'config.py', '--work-dir', folder, '--resume', '--cfg-options', *options)
    output = Path('output.txt').read_text()
    print('other processes:', codes, f'trained by {processes} processes and is resumed' in output)
    print('other seed:', 'shuffled with 1: set randomness=dict(seed=' in output)
    print('other epochs:', 'of iteration 4, but epoch 2 starts at iteration 8' in output)
    print('as before:', 'WARNING - The checkpoint' not in Path('resumed.txt').read_text())


def damage(folder: Path) -> None:
    """Prints what happens in copies of a finished run whose last checkpoint is damaged."""
    original = {path: path.stat().st_mtime_ns for path in folder.rglob('*.pth')}
    copied, better = Path('copied'), ['default_hooks.checkpoint.save_best=auto']
    shutil.copytree(folder, copied)
    last = copied / 'epoch_2.pth'
    last.write_bytes(last.read_bytes()[:-1000])
    # The copied checkpoint says that its best one is in the original folder.
    content = load_whole(copied / 'epoch_1.pth')
    best = Path(folder, 'epoch_1.pth').resolve()
    content['message_hub']['runtime_info'] |= dict(best_score=-1.0, best_ckpt=str(best))
    content['message_hub']['resumed_keys'] |= dict(best_score=True, best_ckpt=True)
    torch.save(content, copied / 'epoch_1.pth')
    args = ('config.py', '--work-dir', str(copied), '--resume', '--cfg-options', *better)
    codes = train(1, *args)
    output = Path('output.txt').read_text()
    print('copied:', codes, 'epoch_2.pth is truncated or damaged' in output)
    print('resumed from:', f'resumes from {copied}/epoch_1.pth, at iteration 4' in output)
    print('new best:', bool(list(copied.glob('best_*.pth'))))
    print('original untouched:', original == {p: p.stat().st_mtime_ns for p in original})
    # The same without our tool.
    shutil.rmtree(copied)
    shutil.copytree(folder, copied)
    last.write_bytes(b'')
    codes = train(1, 'config.py', '--work-dir', str(copied), direct=True)
    output = Path('output.txt').read_text()
    print('direct:', codes, 'copied/epoch_1.pth, at iteration 4' in output)
    for name, content in (('empty.pth', b''), ('missing.pth', None)):
        if content is not None:
            Path(name).write_bytes(content)
        codes = train(1, 'config.py', '--work-dir', 'refused', '--resume', name)
        print('given', name, codes, Path('output.txt').read_text().splitlines()[-1])


def main() -> None:
    os.chdir(sys.argv[1])
    for label in ('one', 'two'):
        Path('images', label).mkdir(parents=True)
        for i in range(8):
            image = np.random.default_rng(i).integers(0, 256, (24, 24, 3), np.uint8)
            cv2.imwrite(f'images/{label}/{i}.png', image)
    os.environ |= dict(MASTER_ADDR='127.0.0.1', MASTER_PORT='29760', WORLD_SIZE='2')
    for name, case in CASES.items():
        compare(name, *case)
    resume_differently()
    damage(Path('epochs, main process/stopped'))


if __name__ == '__main__':
    main()
