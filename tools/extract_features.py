"""Writes the feature maps, or one pooled vector, of image files.

python tools/extract_features.py IMAGE|FOLDER|GLOB... --arch tiny --checkpoint FILE
    --out-features stage2 stage4 --out DIR

A second run continues an interrupted one: it skips images whose features, and with --visualize also
whose pictures, are complete. Images that cannot be read are reported and skipped, and the exit
status is then 1.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import check_environment  # noqa: F401
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from convnext_backbone import FeatureExtractor
from convnext_backbone.command_line import check_folder, usage_errors
from convnext_backbone.extraction.image_files import find_images
from convnext_backbone.extraction.pictures import draw_features
from convnext_backbone.extraction.preprocessing import Preprocessing, read_image
from convnext_backbone.extraction.storage import (
    WRITERS,
    FileStore,
    MemmapStore,
    Store,
    check_settings,
    claim_folder,
)


class Images(Dataset):
    """Reads and prepares images in worker processes; gives the error for a bad one."""

    def __init__(self, images: list[tuple[str, Path]], preprocessing: Preprocessing) -> None:
        self.images, self.preprocessing = images, preprocessing

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        name, path = self.images[index]
        try:
            return name, self.preprocessing.prepare(path)
        except (ValueError, OSError) as error:
            return name, str(error)


def build(args: argparse.Namespace) -> FeatureExtractor:
    """Builds the extractor."""
    size = None if args.keep_size else tuple(args.size) if len(args.size) == 2 else args.size[0]
    common = dict(size=size, device=args.device, amp=args.amp)
    if args.neck:
        return FeatureExtractor.from_config(args.config, args.checkpoint, **common)
    return FeatureExtractor(
        args.arch,
        args.checkpoint,
        out_features=args.out_features,
        pool=args.pool,
        normalization=args.normalization,
        **common,
    )


def settings_of(args: argparse.Namespace, extractor: FeatureExtractor) -> dict:
    """Returns what determines the features."""
    preprocessing = extractor.preprocessing._asdict()
    weights = hashlib.sha256()
    for tensor in extractor.model.state_dict().values():
        weights.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return dict(
        weights=weights.hexdigest(),
        device=extractor.device.type,
        config=args.config,
        strides=extractor.strides,
        preprocessing=preprocessing,
        amp=args.amp,
        format=args.format,
    )


def picture(args: argparse.Namespace, name: str) -> Path:
    """The picture of an image's features."""
    return args.out / 'pictures' / f'{name}.png'


def extract(
    images: dict[str, Path],
    extractor: FeatureExtractor,
    store: Store,
    settings: dict,
    args: argparse.Namespace,
) -> dict[str, str]:
    """Extracts the features of all images that the store lacks, or that lack their picture.

    The folder gets its settings with the first features: without good images, it is as before.

    Returns:
        The errors of bad images, by name.
    """

    def is_done(name: str) -> bool:
        return store.has(name) and (not args.visualize or picture(args, name).is_file())

    todo = [(name, path) for name, path in images.items() if not is_done(name)]
    if len(todo) < len(images):
        print(f'{len(images) - len(todo)} of {len(images)} images are done already')
    errors: dict[str, str] = {}
    bar = tqdm(total=len(todo), unit='image', disable=None)

    def good() -> Iterator:
        dataset = Images(todo, extractor.preprocessing)
        loader = DataLoader(dataset, batch_size=None, num_workers=args.workers)
        for name, prepared in loader:
            if isinstance(prepared, str):
                errors[name] = prepared
                bar.update()
            else:
                yield name, prepared

    for name, features in extractor.extract(good(), args.batch_size):
        if not store.has(name):
            claim_folder(args.out, settings)
            store.add(name, features)
        if args.visualize:
            draw_features(read_image(images[name]), features, picture(args, name))
        bar.update()
    bar.close()
    return errors


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('images', nargs='+', metavar='IMAGE', help='image, folder or glob pattern')
    parser.add_argument('--checkpoint', required=True, help='weights in any supported format')
    parser.add_argument('--out', type=Path, required=True, help='folder for the features')
    parser.add_argument('--arch', help='architecture (default: that of the checkpoint)')
    parser.add_argument(
        '--out-features', nargs='+', metavar='STAGE', help='feature maps (default: all stages)'
    )
    parser.add_argument('--pool', action='store_true', help='one vector per image instead of maps')
    parser.add_argument('--config', help='config of a detector or segmentor, with --neck')
    parser.add_argument('--neck', action='store_true', help="the maps of the config's neck")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument(
        '--size',
        nargs='+',
        type=int,
        default=[800],
        help='pixels of the shorter side, or height and width (default: 800)',
    )
    sizes.add_argument('--keep-size', action='store_true', help='do not resize')
    parser.add_argument(
        '--normalization',
        choices=['imagenet', 'clip'],
        help="default: CLIP's for checkpoints of CLIP, else ImageNet's",
    )
    parser.add_argument('--batch-size', type=int, default=8, help='default: 8')
    parser.add_argument('--workers', type=int, default=2, help='decoding processes (default: 2)')
    parser.add_argument('--device', default='cpu', help='default: cpu')
    parser.add_argument('--amp', action='store_true', help='compute in half precision')
    parser.add_argument(
        '--format',
        choices=[*WRITERS, 'memmap'],
        default='npz',
        help='one file per image, or memmap: one array per map (default: npz)',
    )
    parser.add_argument('--visualize', action='store_true', help='also draw a picture per image')
    return parser


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the program if arguments do not fit together."""
    if args.neck != (args.config is not None):
        parser.error('--neck and --config belong together')
    for name in ('arch', 'out_features', 'pool', 'normalization'):
        if args.neck and getattr(args, name):
            parser.error(f'--{name.replace("_", "-")} is decided by the config: leave it out')
    if len(args.size) > 2:
        parser.error('--size takes one or two numbers')
    if args.format == 'memmap' and (args.keep_size or len(args.size) == 1) and not args.pool:
        parser.error('--format memmap needs one size for all images, such as --size 800 800')
    if args.visualize and args.pool:
        parser.error('--visualize draws maps, and --pool gives none')
    if args.batch_size < 1 or args.workers < 0:
        parser.error('--batch-size must be at least 1 and --workers at least 0')


def main() -> None:
    parser = make_parser()
    args = parser.parse_args()
    check_arguments(parser, args)
    with usage_errors(parser, of_checkers=True):
        images = find_images(args.images, args.out)
        check_folder(args.out)
        extractor = build(args)
        settings = settings_of(args, extractor)
        check_settings(args.out, settings)
        if args.format == 'memmap':
            store: Store = MemmapStore(args.out, list(images))
        else:
            store = FileStore(args.out, args.format, extractor.preprocessing)
    kind = extractor.preprocessing
    print(f'{len(images)} images, {kind.name} normalisation (mean {kind.mean}, std {kind.std})')
    print('maps:', ', '.join(f'{name} (stride {s})' for name, s in extractor.strides.items()))
    errors = extract(images, extractor, store, settings, args)
    for name, error in errors.items():
        print(f'skipped {name}: {error}', file=sys.stderr)
    print(f'{len(images) - len(errors)} images are in {args.out}, {len(errors)} were skipped')
    if errors:
        sys.exit(1)


if __name__ == '__main__':
    main()
