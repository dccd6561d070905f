"""The whole way from nothing to a detector that has learned, on generated shapes.

    python tools/demo.py [--work-dir work_dirs/demo]

Generates the data, trains the demo's Mask R-CNN, evaluates its checkpoint with COCO's metrics and
draws its predictions. Exits with 1 when the detector has not learned.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from figures import draw_curve, draw_predictions
from make_shapes_dataset import make_shapes_dataset
from mmengine.config import Config
from mmengine.runner import Runner, find_latest_checkpoint
from rich.console import Console
from rich.table import Table

CONFIG = Path(__file__).parents[1] / 'configs/demo/mask-rcnn_convnext-atto_fpn_shapes.py'
# What the detector must reach on the validation images.
BARS = {'coco/bbox_mAP': 0.55, 'coco/segm_mAP': 0.70}


def print_results(metrics: dict[str, float], seconds: float) -> None:
    """Prints the metrics, their bars and the training time in one table."""
    table = Table(title='Mask R-CNN, ConvNeXt-atto, generated shapes')
    for column in ('', 'reached', 'at least'):
        table.add_column(column)
    for name, key in (
        ('box mAP', 'coco/bbox_mAP'),
        ('box AP50', 'coco/bbox_mAP_50'),
        ('mask mAP', 'coco/segm_mAP'),
        ('mask AP50', 'coco/segm_mAP_50'),
    ):
        table.add_row(name, f'{metrics[key]:.3f}', f'{BARS[key]:.2f}' if key in BARS else '')
    table.add_row('training', f'{int(seconds) // 60} min {int(seconds) % 60:02d} s', '')
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--work-dir', default='work_dirs/demo', help='(default: %(default)s)')
    args = parser.parse_args()

    cfg = Config.fromfile(CONFIG)
    cfg.work_dir = args.work_dir
    print(f'Generating the shapes in {cfg.data_root}')
    make_shapes_dataset(Path(cfg.data_root), train=200, val=40, size=128, seed=0)

    print('Training: about 3 minutes on 2 cores')
    runner = Runner.from_cfg(cfg)
    started = time.perf_counter()
    runner.train()
    seconds = time.perf_counter() - started

    # From the file, not from memory: what was saved is what others will use.
    runner.load_checkpoint(find_latest_checkpoint(args.work_dir))
    metrics = runner.test()
    predictions, curve = Path(args.work_dir) / 'predictions.png', Path(args.work_dir) / 'curve.png'
    draw_predictions(runner, predictions)
    scalars = Path(runner.log_dir) / 'vis_data/scalars.json'
    draw_curve(scalars, len(runner.train_dataloader), curve)

    print_results(metrics, seconds)
    print(f'{predictions}\n{curve}')
    missed = [key for key, bar in BARS.items() if metrics[key] < bar]
    if missed:
        sys.exit(f'The detector has not learned: {", ".join(missed)} below the bar.')


if __name__ == '__main__':
    main()
