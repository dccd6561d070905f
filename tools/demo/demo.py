"""Trains a model from scratch on generated shapes and checks that it has learned.

    python tools/demo/demo.py [detection|segmentation] [--work-dir DIR]

Generates the data, trains the demo's Mask R-CNN or UPerNet, evaluates its checkpoint with COCO's
metrics or mIoU and draws its predictions. Trains on a GPU if there is one. Exits with status 1 if
the model has not learned.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import check_environment  # noqa: F401
import torch
from figures import draw_curve, draw_instances, draw_predictions, draw_segments
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import Runner, find_latest_checkpoint
from rich.console import Console
from rich.table import Table

from convnext_backbone.command_line import check_folder, shorten, usage_errors
from convnext_backbone.engine import missing_operators

REPO = Path(__file__).resolve().parents[2]
CONFIGS = REPO / 'configs/demo'
GENERATOR = REPO / 'tools/dataset_converters/make_shapes_dataset.py'


@dataclass(frozen=True)
class Task:
    """One demo.

    Attributes:
        config: Name of the config file.
        model: Description of the model.
        minutes: Approximate training time on 2 cores.
        work_dir: Default output folder.
        metrics: Names and keys of the metrics to print.
        minimum: Scores that the validation images must reach, between 0 and 1.
        perfect: The framework's value for a perfect score.
        curves: Names of the metrics in the training figure.
        draw: Draws one prediction.
        own_data: Arguments of ``tools/new_config.py`` for the user's own data.
    """

    config: str
    model: str
    minutes: int
    work_dir: str
    metrics: dict[str, str]
    minimum: dict[str, float]
    perfect: float
    curves: tuple[str, ...]
    draw: Callable
    own_data: str


TASKS = {
    'detection': Task(
        config='mask-rcnn_convnext-atto_fpn_shapes.py',
        model='Mask R-CNN, ConvNeXt-atto',
        minutes=4,
        work_dir='work_dirs/demo',
        metrics={
            'box mAP': 'coco/bbox_mAP',
            'box AP50': 'coco/bbox_mAP_50',
            'mask mAP': 'coco/segm_mAP',
            'mask AP50': 'coco/segm_mAP_50',
        },
        minimum={'box mAP': 0.55, 'mask mAP': 0.70},
        perfect=1,
        curves=('box mAP', 'mask mAP'),
        draw=draw_instances,
        own_data='--train ANN.json IMAGES --val ANN.json IMAGES --arch tiny --head mask-rcnn',
    ),
    'segmentation': Task(
        config='upernet_convnext-atto_shapes.py',
        model='UPerNet, ConvNeXt-atto',
        minutes=2,
        work_dir='work_dirs/demo-seg',
        metrics={'mIoU': 'mIoU', 'mean accuracy': 'mAcc', 'pixel accuracy': 'aAcc'},
        minimum={'mIoU': 0.80},
        perfect=100,
        curves=('mIoU',),
        draw=draw_segments,
        own_data='--task segmentation --train IMAGES MASKS --val IMAGES MASKS --head upernet',
    ),
}


def generate(folder: str) -> None:
    """Generates the data with its script, as a user would."""
    options = '--train 400 --val 40 --size 128 --seed 0'
    print(f'Generating the shapes: {GENERATOR.name} {folder} {options}', flush=True)
    subprocess.run([sys.executable, GENERATOR, folder, *options.split()], check=True)


def print_results(task: Task, scores: dict[str, float], seconds: float) -> None:
    """Prints the scores, their minimums and the training time in one table."""
    table = Table(title=f'{task.model}, generated shapes')
    for column in ('', 'reached', 'at least'):
        table.add_column(column)
    for name, score in scores.items():
        minimum = f'{task.minimum[name]:.2f}' if name in task.minimum else ''
        table.add_row(name, f'{score:.3f}', minimum)
    table.add_row('training', f'{int(seconds) // 60} min {int(seconds) % 60:02d} s', '')
    Console().print(table)


def print_next_steps(task: Task, checkpoint: str, work_dir: str, device: str) -> None:
    """Prints the commands that a user needs next."""
    python, tools = shorten(sys.executable), shorten(REPO / 'tools')
    config = shorten(CONFIGS / task.config)
    own_data = task.own_data if device == 'cuda' else f'{task.own_data} --gpus 0'
    print(
        'Next:\n'
        '  # evaluate a checkpoint and draw its predictions\n'
        f'  {python} {tools}/test.py {config} {shorten(checkpoint)} --show-dir {work_dir}/test\n'
        '  # write a config for your own data\n'
        f'  {python} {tools}/new_config.py {own_data} my_config.py\n'
        '  # train it\n'
        f'  {python} {tools}/train.py my_config.py'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        'task', nargs='?', choices=TASKS, default='detection', help='(default: %(default)s)'
    )
    parser.add_argument(
        '--work-dir',
        help='output folder (default: work_dirs/demo, or work_dirs/demo-seg for segmentation)',
    )
    args = parser.parse_args()
    task = TASKS[args.task]

    cfg = Config.fromfile(CONFIGS / task.config)
    cfg.work_dir = args.work_dir or task.work_dir
    device = get_device()
    with usage_errors(parser):
        if missing := missing_operators(device):
            raise ValueError(missing)
        check_folder(cfg.work_dir)
        check_folder(cfg.data_root)
    generate(cfg.data_root)

    if device == 'cuda':
        print(f'Training on {torch.cuda.get_device_name()}')
    else:
        print(f'Training: about {task.minutes} min on 2 cores')
    runner = Runner.from_cfg(cfg)
    started = time.perf_counter()
    runner.train()
    seconds = time.perf_counter() - started

    # Tests the saved checkpoint instead of the model in memory: users load the checkpoint.
    checkpoint = find_latest_checkpoint(cfg.work_dir)
    runner.load_checkpoint(checkpoint)
    metrics = runner.test()
    scores = {name: metrics[key] / task.perfect for name, key in task.metrics.items()}
    predictions, curve = (Path(cfg.work_dir) / name for name in ('predictions.png', 'curve.png'))
    pictures = predictions.with_suffix('')
    draw_predictions(runner, task.draw, pictures, predictions)
    draw_curve(
        Path(runner.log_dir) / 'vis_data/scalars.json',
        len(runner.train_dataloader),
        {name: task.metrics[name] for name in task.curves},
        task.perfect,
        curve,
    )

    print_results(task, scores, seconds)
    print(f'{predictions}\n{pictures}/\n{curve}')
    missed = [name for name, minimum in task.minimum.items() if scores[name] < minimum]
    if missed:
        sys.exit(f'The model has not learned: {", ".join(missed)} below the minimum.')
    print_next_steps(task, checkpoint, cfg.work_dir, device)


if __name__ == '__main__':
    main()
