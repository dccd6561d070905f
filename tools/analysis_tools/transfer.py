"""Measures how much a pre-trained classifier improves a detector after a short training.

    python tools/dataset_converters/make_shapes_dataset.py data/shapes
    python tools/analysis_tools/transfer.py CHECKPOINT [--seeds 3] [--epochs 2] [--work-dir DIR]

Trains the demo's Mask R-CNN twice per random seed: from random weights, and with the classifier's
weights in its backbone and everything else unchanged. Prints the validation mAP and the means.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import mean

import check_environment  # noqa: F401
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import Runner
from rich.console import Console
from rich.table import Table

from convnext_backbone import load_checkpoint
from convnext_backbone.command_line import check_folder, usage_errors
from convnext_backbone.engine.dataset_checks import check_datasets

CONFIG = Path(__file__).parents[2] / 'configs/demo/mask-rcnn_convnext-atto_fpn_shapes.py'
METRICS = {'box mAP': 'coco/bbox_mAP', 'mask mAP': 'coco/segm_mAP'}


def train(work_dir: Path, seed: int, epochs: int, init_cfg: dict | None) -> dict[str, float]:
    """Trains one detector.

    Args:
        work_dir: Folder for the log.
        seed: Random seed of weights, image order and augmentation.
        epochs: Number of epochs. The learning rate schedule is scaled to it.
        init_cfg: The backbone's ``init_cfg``.

    Returns:
        The validation metrics after training.
    """
    cfg = Config.fromfile(CONFIG)
    cfg.work_dir = str(work_dir)
    cfg.randomness.seed = seed
    cfg.train_cfg.update(max_epochs=epochs, val_interval=epochs)
    cfg.param_scheduler[1].T_max = epochs
    cfg.default_hooks.checkpoint.interval = -1
    cfg.model.backbone.init_cfg = init_cfg
    runner = Runner.from_cfg(cfg)
    runner.train()
    return {key: runner.message_hub.get_scalar(f'val/{key}').current() for key in METRICS.values()}


def print_results(results: dict[str, list[dict[str, float]]]) -> None:
    """Prints the metrics of both starts, one column per random seed."""
    table = Table(title='Mask R-CNN, ConvNeXt-atto, generated shapes')
    seeds = range(len(next(iter(results.values()))))
    for column in ('', 'backbone', *(f'seed {seed}' for seed in seeds), 'mean'):
        table.add_column(column)
    for name, key in METRICS.items():
        for start, runs in results.items():
            values = [run[key] for run in runs]
            table.add_row(name, start, *(f'{value:.3f}' for value in (*values, mean(values))))
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('checkpoint', help='checkpoint of a classifier on ConvNeXt-atto')
    parser.add_argument('--seeds', type=int, default=3, help='number of random seeds (default: 3)')
    parser.add_argument('--epochs', type=int, default=2, help='100 iterations each (default: 2)')
    parser.add_argument(
        '--work-dir', type=Path, default='work_dirs/transfer', help='(default: %(default)s)'
    )
    args = parser.parse_args()
    if min(args.seeds, args.epochs) < 1:
        parser.error(f'--seeds and --epochs must be at least 1, got {args.seeds}, {args.epochs}')
    with usage_errors(parser):
        check_folder(args.work_dir)
        cfg = Config.fromfile(CONFIG)
        load_checkpoint(MODELS.build(cfg.model.backbone), args.checkpoint)
        for warning in check_datasets(cfg):
            print(f'warning: {warning}', file=sys.stderr)
    starts = {
        'random': None,
        'pre-trained': dict(type='Pretrained', checkpoint=args.checkpoint),
    }
    results = {
        start: [
            train(args.work_dir / f'{start}-{seed}', seed, args.epochs, init_cfg)
            for seed in range(args.seeds)
        ]
        for start, init_cfg in starts.items()
    }
    print_results(results)


if __name__ == '__main__':
    main()
