"""Exports a backbone, or the backbone and neck of a config, to ONNX or torch.export.

python tools/model_converters/export.py onnx|torchexport CONFIG_OR_ARCH CHECKPOINT OUT
    [--dynamic] [--dtype fp32|fp16] [--neck] [--int8 dynamic|static]

The exported model is compared with that of PyTorch on random images before OUT is written. Its
input is named images: normalised RGB images (N, 3, H, W). Its outputs are named after the stages,
stage1 to stage4, or with --neck after their strides, as detectors do: p2 has stride 4, p3 stride 8.
"""

from __future__ import annotations

import argparse
import copy
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import check_environment  # noqa: F401
import torch
from torch import Tensor, nn

from convnext_backbone import ConvNextBackbone, FeatureExtractor
from convnext_backbone.arch import ARCHS
from convnext_backbone.command_line import check_file, usage_errors, whole_file
from convnext_backbone.extraction.image_files import find_images

SUFFIXES = {'onnx': '.onnx', 'torchexport': '.pt2'}
DTYPES = {'fp32': torch.float32, 'fp16': torch.float16}

# The largest difference from PyTorch in float32, relative to the largest value of each map.
LIMITS = {'fp32': 1e-4, 'fp16': 1e-2}

# What the file format of ONNX can hold.
MOST_BYTES = 2**31

Run = Callable[[Tensor], Sequence[Tensor]]
Shape = tuple[int, int, int, int]


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('form', choices=[*SUFFIXES], help='what OUT is: .onnx, or .pt2')
    parser.add_argument('model', metavar='CONFIG_OR_ARCH', help='config, or architecture by name')
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='weights in any supported format')
    parser.add_argument('out', metavar='OUT', type=Path, help='file for the exported model')
    parser.add_argument(
        '--out-features', nargs='+', metavar='STAGE', help='feature maps (default: all stages)'
    )
    parser.add_argument(
        '--neck',
        action='store_true',
        help="backbone and neck of a config; the outputs are named after the maps' strides: p2 has "
        'stride 4, p3 stride 8 (level1, level2, ... where strides repeat)',
    )
    parser.add_argument(
        '--dynamic',
        action='store_true',
        help='images of any number and size, from twice the largest stride (default: one image '
        'of --size)',
    )
    parser.add_argument(
        '--size',
        type=int,
        nargs=2,
        default=(512, 512),
        metavar=('H', 'W'),
        help='height and width of the images (default: 512 512)',
    )
    parser.add_argument(
        '--dtype',
        choices=[*DTYPES],
        default='fp32',
        help='of weights, images and maps (default: fp32)',
    )
    parser.add_argument(
        '--int8',
        choices=['dynamic', 'static'],
        help='quantise with ONNX Runtime, and measure error and speed: dynamic for the matrix '
        'products, static for these and the convolutions',
    )
    parser.add_argument(
        '--calibration',
        nargs='+',
        metavar='IMAGE',
        help='images, folders or glob patterns for --int8: one in four measures the error '
        '(default: noise), static takes the ranges of values from the others',
    )
    parser.add_argument('--force', action='store_true', help='overwrite OUT')
    return parser


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the program if arguments do not fit together."""
    is_arch = args.model in ARCHS
    if not is_arch and not Path(args.model).is_file():
        parser.error(
            f'{args.model} is neither a config file nor an architecture ({", ".join(ARCHS)})'
        )
    if args.neck and is_arch:
        parser.error(f'--neck needs a config, {args.model} is an architecture without a neck')
    if args.out_features and not is_arch:
        parser.error('--out-features is decided by the config: leave it out')
    if args.int8 and (args.form != 'onnx' or args.dtype != 'fp32'):
        parser.error('--int8 is for onnx in fp32')
    if args.int8 == 'static' and not args.calibration:
        parser.error('--int8 static needs images that it takes the ranges from: --calibration')
    if args.calibration and not args.int8:
        parser.error('--calibration is for --int8')


def check_output(args: argparse.Namespace) -> None:
    """Checks the output, and that the libraries that write it are installed.

    Raises:
        ValueError: If ``out`` has another suffix than its form.
        FileExistsError: If it exists and ``force`` is not set.
        ImportError: If a library is missing or too old.
        OSError: If it cannot be written.
    """
    check_file(args.out)
    if args.out.suffix != SUFFIXES[args.form]:
        raise ValueError(f'{args.out} must end in {SUFFIXES[args.form]} for {args.form}')
    if args.out.exists() and not args.force:
        raise FileExistsError(
            f'{args.out} exists: choose another output, or overwrite it with --force'
        )
    if not hasattr(torch.compiler, 'is_exporting'):
        raise ImportError(f'torch {torch.__version__} is too old to export: 2.13 is tested')
    needed = ['onnx', 'onnxscript'] if args.form == 'onnx' else []
    needed += ['onnxruntime'] if args.int8 else []
    if missing := [name for name in needed if find_spec(name) is None]:
        raise ImportError(
            f'{", ".join(missing)} not installed: pip install "convnext-backbone[onnx]"'
        )


def load(args: argparse.Namespace) -> FeatureExtractor:
    """Builds the model, with how its images are prepared.

    Raises:
        ValueError: If ``--size`` is too small, if the weights are too large for ONNX, if the images
            of ``--calibration`` do not fit, or as :class:`FeatureExtractor`.
        FileNotFoundError, TypeError, ImportError, OSError: As :class:`FeatureExtractor`.
    """
    size = tuple(args.size)
    if args.model in ARCHS:
        extractor = FeatureExtractor(
            args.model, args.checkpoint, out_features=args.out_features, size=size
        )
    else:
        extractor = FeatureExtractor.from_config(
            args.model, args.checkpoint, neck=args.neck, size=size
        )
    least = smallest_side(extractor, args.dynamic)
    if min(size) < least:
        raise ValueError(
            f'--size must be at least {least} {least} for these maps, got {size[0]} {size[1]}'
        )
    weights = sum(tensor.nbytes for tensor in extractor.model.state_dict().values())
    if args.form == 'onnx' and args.dtype == 'fp32' and weights >= MOST_BYTES:
        raise ValueError('the weights are too large for one file of ONNX: use --dtype fp16')
    if args.calibration and num_channels(extractor.model) != 3:
        raise ValueError('--calibration needs a model of RGB images: leave it out')
    return extractor


def num_channels(model: nn.Module) -> int:
    """The channels of a model's images; those of a whole detector are RGB."""
    return model.embeddings.num_channels if isinstance(model, ConvNextBackbone) else 3


def smallest_side(extractor: FeatureExtractor, dynamic: bool) -> int:
    """The least height and width: exporters take a side of one pixel as special, not as dynamic."""
    return max(extractor.strides.values()) * (2 if dynamic else 1)


def output_names(extractor: FeatureExtractor, neck: bool) -> list[str]:
    """The names of the maps, as the help of ``--neck`` says."""
    levels = [f'p{stride.bit_length() - 1}' for stride in extractor.strides.values()]
    return levels if neck and len({*levels}) == len(levels) else list(extractor.strides)


def write(model: nn.Module, images: Tensor, least: int | None, names: list[str], out: Path) -> None:
    """Exports a model and writes it, in the form of the file's suffix.

    Args:
        model: The model, in the dtype of the images.
        images: Images, or an example of them.
        least: The least height and width if number and size of the images are dynamic, else None.
        names: The names of the maps.
        out: The file.
    """
    shapes = None
    if least:
        sides = {i: torch.export.Dim(n, min=least) for i, n in ((2, 'height'), (3, 'width'))}
        shapes = ({0: torch.export.Dim('batch', min=1), **sides},)
    program = torch.export.export(model, (images,), dynamic_shapes=shapes)
    if out.suffix == SUFFIXES['torchexport']:
        torch.export.save(program, out)
        return
    import onnx

    exported = torch.onnx.export(
        program, (), input_names=['images'], output_names=names, dynamo=True, verbose=False
    )
    exported.save(out)
    onnx.checker.check_model(out, full_check=True)


def load_exported(path: Path) -> Run:
    """Loads a file that :func:`write` has written, to run it on a CPU."""
    if path.suffix == SUFFIXES['torchexport']:
        return torch.export.load(path).module()
    from onnx_runtime import OnnxModel

    return OnnxModel(path)


@torch.no_grad()
def largest_difference(
    run: Run, model: nn.Module, shapes: list[Shape], dtype: torch.dtype
) -> float:
    """The largest difference of an exported model's maps from those of a model in float32.

    Args:
        run: The exported model.
        model: The model in float32.
        shapes: Shapes of the random images.
        dtype: Dtype of the exported model.

    Returns:
        The difference relative to the largest value of each map. NaN if a map has NaN.
    """
    differences = []
    for shape in shapes:
        images = torch.randn(shape)
        for found, expected in zip(run(images.to(dtype)), model(images), strict=True):
            differences.append((found.float() - expected).abs().max() / expected.abs().max())
    return torch.stack(differences).max().item()


def check(model: nn.Module, shapes: list[Shape], args: argparse.Namespace, path: Path) -> None:
    """Compares the written model with that of PyTorch.

    Raises:
        SystemExit: If they differ.
    """
    if path.suffix == '.onnx' and find_spec('onnxruntime') is None:
        print('not compared with PyTorch: onnxruntime is not installed', file=sys.stderr)
        return
    found = largest_difference(load_exported(path), model, shapes, DTYPES[args.dtype])
    sizes = ', '.join('x'.join(map(str, shape)) for shape in shapes)
    difference = f'{found:.1e} of the largest value, for images {sizes}'
    # Also false for NaN.
    if not found <= LIMITS[args.dtype]:
        hint = ': some values may be too large for float16' if args.dtype == 'fp16' else ''
        sys.exit(
            f'{args.out} is not written: the exported model differs from PyTorch by {difference}; '
            f'{LIMITS[args.dtype]:.0e} is allowed{hint}'
        )
    print(f'largest difference from PyTorch in float32: {difference}')


def export(
    extractor: FeatureExtractor, calibration: list[Tensor], args: argparse.Namespace
) -> None:
    """Exports, checks and, if asked, quantises.

    Args:
        extractor: The model.
        calibration: Prepared images, each ``(3, H, W)``.
        args: The command line.
    """
    names = output_names(extractor, args.neck)
    shapes: list[Shape] = [(1, num_channels(extractor.model), *args.size)]
    least = smallest_side(extractor, True) if args.dynamic else None
    if least:
        channels = shapes[0][1]
        shapes += [(2, channels, least, 2 * least), (1, channels, least + 13, least + 6)]
    # Exporters take one image as special, not as dynamic.
    images = torch.randn(2 if least else 1, *shapes[0][1:], dtype=DTYPES[args.dtype])
    model = copy.deepcopy(extractor.model).to(images.dtype)
    with whole_file(args.out) as part, TemporaryDirectory() as folder:
        exported = Path(folder, 'float32.onnx') if args.int8 else part
        write(model, images, least, names, exported)
        check(extractor.model, shapes, args, exported)
        if args.int8:
            from onnx_runtime import measure, quantize

            held_out, rest = calibration[::4], [x for i, x in enumerate(calibration) if i % 4]
            quantize(exported, part, args.int8, rest)
            measure(exported, part, names, held_out or [*torch.randn(2, *shapes[0][1:])])
    height, width = args.size
    taken = f'one image of {height}x{width}'
    if least:
        taken = f'any number of images, from {least}x{least}'
    print(f'{args.out} takes {taken} pixels and gives {", ".join(names)}')


def prepare_images(patterns: list[str], extractor: FeatureExtractor) -> list[Tensor]:
    """Reads the images of ``--calibration``.

    Raises:
        FileNotFoundError: If there are none.
        ValueError: If one cannot be read, or if there are fewer than four.
    """
    paths = find_images(patterns).values()
    if 0 < len(paths) < 4:
        raise ValueError(f'--calibration needs at least 4 images, got {len(paths)}')
    return [extractor.preprocessing.prepare(path)[0] for path in paths]


def main() -> None:
    parser = make_parser()
    args = parser.parse_args()
    check_arguments(parser, args)
    with usage_errors(parser, of_checkers=True):
        check_output(args)
        extractor = load(args)
        images = prepare_images(args.calibration or [], extractor)
    # The exporters warn of their own code, and of libraries that no backbone needs.
    warnings.simplefilter('ignore')
    logging.getLogger('torch.onnx').setLevel(logging.ERROR)
    export(extractor, images, args)


if __name__ == '__main__':
    main()
