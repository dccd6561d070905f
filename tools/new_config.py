"""Writes a config for your own data, after a look at them.

python tools/new_config.py --train ANN.json IMAGES --val ANN.json IMAGES --head mask-rcnn OUT.py
python tools/new_config.py --task segmentation --train IMAGES MASKS --val IMAGES MASKS \\
    --head upernet OUT.py

Detectors need annotations in COCO format, segmentors folders of images and of masks with the same
names, whose pixels are numbers of classes. It prints what the data hold, with warnings, draws
annotated images beside OUT.py, and writes a short config that changes a shipped one. Training then
is: python tools/train.py OUT.py
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

import check_environment  # noqa: F401
import torch
from mmengine.config import Config
from own_data import detection, segmentation
from own_data.detection_data import check_splits, find_doubts, read_split
from own_data.recipes import describe_weights
from own_data.report import console, draw_masks, draw_objects, print_tables
from own_data.segmentation_data import (
    check_mask_splits,
    count_classes,
    find_mask_doubts,
    read_mask_split,
)

from convnext_backbone.arch import ARCHS
from convnext_backbone.command_line import check_file, shorten, usage_errors, whole_file
from convnext_backbone.engine import check_datasets

HEADS = {'detection': detection.HEADS, 'segmentation': segmentation.HEADS}


def check_arguments(args: argparse.Namespace) -> None:
    """Checks what argparse does not.

    Raises:
        ValueError: If the head is one of the other task, a number is too small, or the output is
            no ``.py`` file.
        FileExistsError: If the output exists, without ``--force``.
        OSError: If it cannot be written.
    """
    if args.head not in HEADS[args.task]:
        raise ValueError(
            f'--head {args.head} is not for {args.task}: choose one of '
            f'{", ".join(HEADS[args.task])}'
        )
    if args.gpus < 0 or (args.batch is not None and args.batch < 1):
        raise ValueError(
            f'--gpus must be at least 0 and --batch at least 1, got {args.gpus} and {args.batch}'
        )
    if args.out.suffix != '.py':
        raise ValueError(f'the config must end in .py, got {args.out}')
    for path in (args.out, args.out.with_suffix('.png')):
        if path.exists() and not args.force:
            raise FileExistsError(f'{path} exists: choose another name, or pass --force')
        check_file(path)


def write(text: str, draw, split, out: Path) -> tuple[Config, list[str]]:
    """Writes the config and the picture, both or none; returns the config and its warnings."""
    with whole_file(out) as part, whole_file(out.with_suffix('.png')) as picture:
        part.write_text(text)
        cfg = Config.fromfile(part)
        warnings = check_datasets(cfg, ('train', 'val'))
        draw(split, picture)
    return cfg, warnings


def new_config(args: argparse.Namespace) -> None:
    """Reads the data, prints what they hold and writes the outputs."""
    options = (args.head, args.arch, args.weights)
    if args.task == 'detection':
        train, val = read_split('train', *args.train), read_split('val', *args.val)
        print_tables(train, val, list(dict.fromkeys(train.classes + val.classes)), 'objects of')
        doubts = find_doubts(train, val)
        needs_masks = args.head in detection.MASK_HEADS
        check, draw = check_splits, draw_objects
        arguments = (train, val, needs_masks, detection.BOX_HEADS)
        write_config = detection.write_detection_config
    else:
        train, val = read_mask_split('train', *args.train), read_mask_split('val', *args.val)
        print_tables(train, val, range(count_classes(train, val)), 'masks with class')
        doubts = find_mask_doubts(train, val)
        check, draw, arguments = check_mask_splits, draw_masks, (train, val)
        write_config = segmentation.write_segmentation_config
    for doubt in doubts:
        console.print(f'warning: {doubt}', style='yellow')
    check(*arguments)
    text = write_config(*options, train, val, args.gpus, args.batch, args.out)
    cfg, warnings = write(text, draw, train, args.out)
    for warning in warnings:
        console.print(f'warning: {warning}', style='yellow')
    weights = (cfg.model.backbone.init_cfg or {}).get('checkpoint')
    if weights and (description := describe_weights(weights)):
        console.print(f'weights: {weights}\n  {description}')
    if args.gpus and not torch.cuda.is_available():
        console.print(
            f'warning: the config is for a GPU (--gpus {args.gpus}), and this machine has none: to '
            'train here, write it again with --gpus 0 --force',
            style='yellow',
        )
    tools = shorten(Path(__file__).parent)
    start = f'python {tools}/train.py {shlex.quote(str(args.out))}'
    if args.gpus > 1:
        start = f'{tools}/dist_train.sh {shlex.quote(str(args.out))} {args.gpus}'
    console.print(
        f'{args.out} is the config, {args.out.with_suffix(".png")} shows annotated images: look at '
        f'both, then\n  {start}'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('out', type=Path, metavar='OUT.py', help='config to write')
    for split in ('train', 'val'):
        parser.add_argument(
            f'--{split}',
            nargs=2,
            type=Path,
            required=True,
            metavar=('ANN.json', 'IMAGES'),
            help='annotations and images; for segmentation, images and masks',
        )
    parser.add_argument('--task', choices=HEADS, default='detection', help='(default: %(default)s)')
    heads = [name for names in HEADS.values() for name in names]
    parser.add_argument('--head', choices=heads, required=True, help='detector or segmentor')
    parser.add_argument(
        '--arch', choices=ARCHS, default='tiny', metavar='ARCH', help='(default: %(default)s)'
    )
    parser.add_argument(
        '--weights',
        help='pre-trained weights: file, URL or hf://OWNER/NAME, or none (default: those of the '
        'recipe, or published ones of the architecture)',
    )
    parser.add_argument('--gpus', type=int, default=1, help='0 for the CPU (default: %(default)s)')
    parser.add_argument('--batch', type=int, help='images per GPU (default: as in the recipe)')
    parser.add_argument('--force', action='store_true', help='overwrite an existing OUT.py')
    args = parser.parse_args()
    with usage_errors(parser):
        check_arguments(args)
        new_config(args)


if __name__ == '__main__':
    main()
