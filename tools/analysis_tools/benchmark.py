"""Compares the backbone with other libraries: time, memory and distance to the lower limit.

All contenders run in turn, once per round, so that other load affects all of them equally.
Ratios are to the best peer in its better memory layout, without conversion of its maps: to the
best eager one, and with --compile or --runtimes also to the best one under torch.compile.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import check_environment  # noqa: F401
import matplotlib
import numpy as np
import torch
from measuring import (
    DTYPES,
    LAYOUTS,
    Case,
    Contender,
    best_peer,
    machine,
    make_contender,
    measure,
    product_limit,
    short,
)
from peers import PEERS, build_ours
from rich.console import Console
from rich.table import Table
from runtimes import make_runtimes

from convnext_backbone.arch import ARCHS
from convnext_backbone.command_line import check_file, usage_errors, whole_file

matplotlib.use('Agg')
from matplotlib import pyplot as plt
from matplotlib.backend_bases import FigureCanvasBase

SWEEP_ARCHS = ('atto', 'femto', 'pico', 'nano', 'tiny', 'small', 'base')
SWEEP_SIZES = (256, 384, 512, 768, 1024)

# One pixel of the last stage's map.
SMALLEST_SIDE = 32


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('--arch', default='tiny', help='architecture by name')
    parser.add_argument(
        '--size', type=int, nargs=2, default=(512, 512), metavar=('H', 'W'), help='image size'
    )
    parser.add_argument('--batch', type=int, default=1, help='images per step')
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu', help='device to run on')
    parser.add_argument(
        '--dtype', choices=[*DTYPES], default='fp32', help='bf16, fp16: autocast to it'
    )
    parser.add_argument(
        '--mode', choices=['inference', 'train'], default='inference', help='kind of step'
    )
    parser.add_argument(
        '--peers', default=','.join(PEERS), help='libraries to compare with, separated by commas'
    )
    parser.add_argument(
        '--layout',
        choices=[*LAYOUTS, 'both'],
        default='both',
        help='memory layout of models and images',
    )
    parser.add_argument(
        '--compile', action='store_true', help='measure all of them under torch.compile, too'
    )
    parser.add_argument(
        '--runtimes',
        action='store_true',
        help='measure deploy(), peers frozen by torch.compile, ONNX Runtime and OpenVINO, too',
    )
    parser.add_argument('--repeats', type=int, default=7, help='measured rounds')
    parser.add_argument('--json', type=Path, metavar='OUT', help='file for all results')
    parser.add_argument('--plot', type=Path, metavar='OUT.png', help='file for a plot')
    parser.add_argument(
        '--sweep',
        action='store_true',
        help=f'measure only this backbone, {SWEEP_ARCHS[0]} to {SWEEP_ARCHS[-1]} on images of '
        f'{SWEEP_SIZES[0]} to {SWEEP_SIZES[-1]} pixels per side',
    )
    args = parser.parse_args()
    unknown = set(filter(None, args.peers.split(','))) - set(PEERS)
    if unknown:
        parser.error(f'--peers takes {", ".join(PEERS)}, not {", ".join(sorted(unknown))}')
    if args.runtimes and (args.device, args.mode) != ('cpu', 'inference'):
        parser.error('--runtimes is for inference on a CPU')
    fixed = ('arch', 'size', 'peers', 'layout', 'compile', 'runtimes')
    if args.sweep and any(getattr(args, name) != parser.get_default(name) for name in fixed):
        parser.error(f'--sweep cannot be combined with --{", --".join(fixed)}')
    if args.arch not in ARCHS:
        parser.error(f'--arch takes {", ".join(ARCHS)}, not {args.arch}')
    if min(args.size) < SMALLEST_SIDE:
        parser.error(f'--size must be at least {SMALLEST_SIDE} {SMALLEST_SIDE}, got {args.size}')
    if min(args.batch, args.repeats) < 1:
        parser.error('--batch and --repeats must be at least 1')
    with usage_errors(parser):
        for out in filter(None, (args.json, args.plot)):
            check_file(out)
        if args.plot and args.plot.suffix[1:] not in FigureCanvasBase.get_supported_filetypes():
            raise ValueError(f'--plot must end in .png, .svg or .pdf, got {args.plot}')
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error('--device cuda: torch finds no GPU')
    return args


def make_contenders(args: argparse.Namespace, case: Case, console: Console) -> list[Contender]:
    """Builds all models in all layouts and prints the skipped peers."""
    layouts = list(LAYOUTS) if args.layout == 'both' else [args.layout]
    builders = {'ours': build_ours}
    if case.mode == 'train':
        builders['ours, with_cp'] = lambda arch: build_ours(arch, with_cp=True)
    builders |= {name: PEERS[name] for name in PEERS if name in args.peers.split(',')}
    contenders = []
    for name, build in builders.items():
        try:
            contenders += [
                make_contender(name, layout, build(case.arch), case, compiled)
                for compiled in (False, True)[: 1 + args.compile]
                for layout in layouts
            ]
        except (ImportError, RuntimeError, ValueError) as error:
            if name.startswith('ours'):
                raise
            console.print(f'skipped {name}: {error}')
    peers = [name for name in builders if name in PEERS]
    for name, build in make_runtimes(peers).items() if args.runtimes else ():
        try:
            contenders.append(Contender(name, 'nchw', build(case), memory=0.0, compiled=True))
        except (ImportError, RuntimeError, ValueError) as error:
            console.print(f'skipped {name}: {error}')
    return contenders


def compare(args: argparse.Namespace, console: Console) -> dict:
    """Measures one case, prints a table and returns the results."""
    case = Case(args.arch, tuple(args.size), args.batch, args.device, args.dtype, args.mode)
    contenders = make_contenders(args, case, console)
    console.print(f'measuring {len(contenders)} contenders in {args.repeats} rounds')
    measure(contenders, args.repeats, case.device)
    limit = product_limit(case, args.repeats)
    table = Table(title=f'ConvNeXt {case.arch}, {case.mode}, {case.dtype}, {case.batch}x3x'
                  f'{case.size[0]}x{case.size[1]}; {machine(case.device)}')  # fmt: skip
    best = [best_peer(contenders, compiled=False), best_peer(contenders, compiled=True)]
    shown = 2 if args.compile or args.runtimes else 1
    ratios = ['to best peer', 'to best compiled'][:shown]
    memory = 'peak MiB' if case.device == 'cuda' else 'saved MiB'
    for column in ('', 'layout', 'median ms', 'min-max', *ratios, memory, *ratios, 'limit'):
        table.add_column(column, justify='left' if column in ('', 'layout') else 'right')
    rows = []
    for c in contenders:
        times = [c.median / time if time else None for time, _ in best]
        memories = [c.memory / least if least and c.memory else None for _, least in best]
        row = dict(
            name=c.name, layout=c.layout, median=c.median, times=c.times, memory=c.memory,
            ratio=times[0], compiled_ratio=times[1],
            memory_ratio=memories[0], compiled_memory_ratio=memories[1],
            limit_fraction=limit / c.median,
        )  # fmt: skip
        rows.append(row)
        table.add_row(
            c.name, c.layout, short(c.median), f'{short(min(c.times))}-{short(max(c.times))}',
            *(f'{ratio:.2f}' if ratio else '' for ratio in times[:shown]),
            f'{c.memory:.0f}' if c.memory else '',
            *(f'{ratio:.2f}' if ratio else '' for ratio in memories[:shown]),
            f'{row["limit_fraction"]:.0%}',
        )  # fmt: skip
    console.print(table)
    console.print(f'limit: the matrix products alone take {short(limit)} ms')
    if args.plot:
        plot_comparison(rows, limit, table.title, args.plot)
    return dict(case=asdict(case), machine=machine(case.device), limit=limit, contenders=rows)


def sweep(args: argparse.Namespace, console: Console) -> dict:
    """Measures this backbone over architectures and sizes and prints how its cost grows."""
    curves = {}
    for arch in SWEEP_ARCHS:
        console.print(f'measuring {arch}')
        curve = dict(time=[], memory=[])
        for side in SWEEP_SIZES:
            case = Case(arch, (side, side), args.batch, args.device, args.dtype, args.mode)
            contender = make_contender('ours', 'nchw', build_ours(arch), case)
            measure([contender], args.repeats, args.device)
            curve['time'].append(contender.median)
            curve['memory'].append(contender.memory)
        curves[arch] = curve
    pixels = np.square(SWEEP_SIZES)
    table = Table(title=f'{args.mode}, {args.dtype}; {machine(args.device)}')
    for column in ('', *(f'{s}² ms' for s in SWEEP_SIZES), 'growth', 'memory growth'):
        table.add_column(column, justify='right')
    for arch, curve in curves.items():
        growths = [growth(pixels, curve[key]) for key in ('time', 'memory')]
        table.add_row(arch, *map(short, curve['time']), *growths)
    console.print(table)
    console.print('growth: exponent of the number of pixels, 1 is linear')
    if args.plot:
        plot_sweep(curves, table.title, args.plot)
    return dict(sizes=SWEEP_SIZES, machine=machine(args.device), curves=curves)


def growth(pixels: np.ndarray, values: list[float]) -> str:
    """The exponent k of values ~ pixels**k."""
    return f'{np.polyfit(np.log(pixels), np.log(values), 1)[0]:.2f}' if all(values) else ''


def plot_comparison(rows: list[dict], limit: float, title: str, path: Path) -> None:
    """Draws medians with their ranges, and the limit."""
    figure, axis = plt.subplots(figsize=(9, 0.5 * len(rows) + 1.5), layout='constrained')
    names = [f'{row["name"]}, {row["layout"]}' for row in rows]
    medians = np.array([row['median'] for row in rows])
    ranges = np.array([[min(row['times']), max(row['times'])] for row in rows]).T
    colours = ['tab:blue' if row['name'].startswith('ours') else 'tab:grey' for row in rows]
    axis.barh(names, medians, xerr=abs(ranges - medians), color=colours, capsize=3)
    axis.axvline(limit, color='tab:red', linestyle='--', label='matrix products alone')
    axis.invert_yaxis()
    axis.set_xlabel('ms per step: median, fastest and slowest')
    axis.set_title(title, fontsize='medium', wrap=True)
    axis.legend()
    with whole_file(path) as part:
        figure.savefig(part, dpi=120)


def plot_sweep(curves: dict[str, dict], title: str, path: Path) -> None:
    """Draws time and memory against pixels."""
    keys = ['time'] + ['memory'] * all(all(curve['memory']) for curve in curves.values())
    figure, axes = plt.subplots(
        1, len(keys), figsize=(6 * len(keys), 5), layout='constrained', squeeze=False
    )
    units = {'time': 'ms per step', 'memory': 'MiB saved for the backward pass'}
    for axis, key in zip(axes.flat, keys, strict=True):
        for arch, curve in curves.items():
            axis.plot(np.square(SWEEP_SIZES) / 1e6, curve[key], marker='o', label=arch)
        axis.set(xlabel='megapixels', ylabel=units[key], xlim=0, ylim=0)
        axis.legend()
    figure.suptitle(title, fontsize='medium')
    with whole_file(path) as part:
        figure.savefig(part, dpi=120)


def main() -> None:
    args = parse_args()
    console = Console()
    figures = sweep(args, console) if args.sweep else compare(args, console)
    if args.json:
        with whole_file(args.json) as part:
            part.write_text(json.dumps(figures, indent=2))


if __name__ == '__main__':
    main()
