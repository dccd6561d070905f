"""Checks the package on this machine's GPU in about two minutes: results, times and memory.

    python tools/check_gpu.py [--out FILE.json]

Prints how far each way to run a block is from float64, compared with the plain modules, and what a
step of ConvNeXt-T costs beside the installed peers, and each Triton operator in it. The tables, or
FILE.json, can be pasted into an issue. Exits with status 1 if a result is wrong, and with 2 without
a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import check_environment  # noqa: F401
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

sys.path.append(str(Path(__file__).with_name('analysis_tools')))
from measuring import DTYPES, LAYOUTS, Case, Contender, machine, make_contender, measure, short
from parity import candidates, check_parity, chosen, first_line, print_parity
from peers import PEERS, build_ours

from convnext_backbone.command_line import check_file, usage_errors, whole_file
from convnext_backbone.ops.native import have_triton

MAX_ROUNDS = 20

PACKAGES = ('convnext-backbone', 'torch', 'triton', 'transformers', 'timm', 'torchvision')


@dataclass(frozen=True)
class Scope:
    """What is measured.

    Attributes:
        checked: Height and width of the two images whose results are compared.
        arch: Architecture that is timed, by name.
        size: Height and width of the timed images.
        batch: Images per timed step.
        seconds: Time for the measured rounds of a case; one round always runs.
    """

    checked: tuple[int, int]
    arch: str
    size: tuple[int, int]
    batch: int
    seconds: float


# On a CPU, only the tool itself is tried out.
SCOPES = {
    'cuda': Scope((64, 96), 'tiny', (800, 1216), 2, seconds=8),
    'cpu': Scope((32, 32), 'atto', (32, 32), 1, seconds=0),
}


def time_case(case: Case, models: dict[tuple[str, str], nn.Module], seconds: float) -> list[dict]:
    """Times and memory of all models in one case; one that fails, from memory say, has an error."""
    contenders: list[Contender] = []
    rows = []
    for (name, layout), model in models.items():
        row = dict(name=name, layout=layout, mode=case.mode, dtype=case.dtype)
        try:
            with chosen(name):
                contender = make_contender(name, layout, model, case)
        except Exception as error:
            rows.append(row | dict(error=first_line(error)))
            continue
        contender.step = chosen(name)(contender.step)
        contenders.append(contender)
    measure(contenders, 1, case.device)
    rounds = int(seconds * 1e3 / sum(c.median for c in contenders)) if contenders else 0
    if rounds:
        measure(contenders, min(rounds, MAX_ROUNDS), case.device)
    for c in contenders:
        row = dict(name=c.name, layout=c.layout, mode=case.mode, dtype=case.dtype)
        rows.append(row | dict(ms=c.median, times=c.times, memory=c.memory))
    return rows


def build_models(device: str, arch: str, console: Console) -> dict[tuple[str, str], nn.Module]:
    """Builds all candidates and the installed peers for each layout."""
    builders = dict.fromkeys(candidates(device), build_ours) | PEERS
    models = {}
    for name, build in builders.items():
        try:
            models |= {(name, layout): build(arch) for layout in LAYOUTS}
        except (ImportError, ValueError) as error:
            console.print(f'without {name}: {error}')
    return models


def time_kernels(device: str, scope: Scope) -> dict[str, dict[str, float]]:
    """Milliseconds of each Triton operator, by its name and the number of channels."""
    interpreted = os.environ.get('TRITON_INTERPRET') == '1'
    if not have_triton() or (device == 'cpu' and not interpreted):
        return {}
    import kernel_times  # which imports Triton

    return kernel_times.time_kernels(device, scope.batch, scope.size)


def describe(device: str) -> dict:
    """The machine and the versions of everything that matters."""
    description = dict(machine=machine(device), versions={})
    if device == 'cuda':
        properties = torch.cuda.get_device_properties(0)
        description |= dict(
            card=properties.name,
            capability=f'{properties.major}.{properties.minor}',
            memory_gib=round(properties.total_memory / 2**30, 1),
            driver=driver_version(),
            cuda=torch.version.cuda,
            cudnn=torch.backends.cudnn.version(),
        )
    for package in PACKAGES:
        try:
            description['versions'][package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            description['versions'][package] = None
    return description


def driver_version() -> str:
    """The version of the NVIDIA driver."""
    command = ['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader']
    try:
        return subprocess.check_output(command, text=True).splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return 'unknown'


def print_timings(rows: list[dict], mode: str, scope: Scope, device: str, console: Console) -> None:
    """Prints time and memory of one kind of step, a line per model and layout."""
    images = f'{scope.batch}x3x{scope.size[0]}x{scope.size[1]}'
    memory = 'peak' if device == 'cuda' else 'saved'
    table = Table(title=f'ConvNeXt {scope.arch}, {mode}, {images}: ms and {memory} MiB')
    table.add_column('')
    table.add_column('layout')
    for dtype in DTYPES:
        table.add_column(dtype, justify='right')
        table.add_column('MiB', justify='right')
    lines: dict[tuple[str, str], list[str]] = {}
    for dtype in DTYPES:
        for row in rows:
            if (row['mode'], row['dtype']) == (mode, dtype):
                figures = ['failed', ''] if 'error' in row else [
                    short(row['ms']), f'{row["memory"]:.0f}' if row['memory'] else '',
                ]  # fmt: skip
                lines.setdefault((row['name'], row['layout']), []).extend(figures)
    for names, figures in lines.items():
        table.add_row(*names, *figures)
    console.print(table)
    for row in rows:
        if row['mode'] == mode and 'error' in row:
            console.print(row['name'], row['layout'], row['dtype'], row['error'], markup=False)


def print_kernels(times: dict[str, dict[str, float]], console: Console) -> None:
    """Prints a line for each Triton operator, and a column for each width."""
    table = Table(title='Triton operators in a train step in bf16: ms')
    widths = list(dict.fromkeys(width for row in times.values() for width in row))
    for column in ('operator', *widths):
        table.add_column(column, justify='right' if column in widths else 'left')
    for name, row in times.items():
        table.add_row(name, *(f'{row[w]:.3f}' if w in row else 'failed' for w in widths))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--device',
        choices=SCOPES,
        default='cuda',
        help='cpu only tries out this tool, on small images (default: %(default)s)',
    )
    parser.add_argument('--out', type=Path, metavar='FILE.json', help='file for all results')
    args = parser.parse_args()
    with usage_errors(parser):
        if args.out:
            check_file(args.out)
        if args.device == 'cuda' and not torch.cuda.is_available():
            raise ValueError(
                f'torch {torch.__version__} finds no GPU here: run this on a machine with one, in '
                'the environment of `make env`'
            )

    console = Console()
    scope, started = SCOPES[args.device], time.perf_counter()
    description = describe(args.device)
    console.print_json(data=description)
    parity = check_parity(args.device, scope.checked)
    print_parity(parity, console)
    models = build_models(args.device, scope.arch, console)
    timings: list[dict] = []
    for mode in ('train', 'inference'):
        for dtype in DTYPES:
            case = Case(scope.arch, scope.size, scope.batch, args.device, dtype, mode)
            timings += time_case(case, models, scope.seconds)
        print_timings(timings, mode, scope, args.device, console)
    kernels = time_kernels(args.device, scope)
    if kernels:
        print_kernels(kernels, console)
    seconds = round(time.perf_counter() - started, 1)
    console.print(f'{seconds} s')
    if args.out:
        results = dict(description, scope=vars(scope), seconds=seconds)
        results |= dict(parity=parity, timings=timings, kernels=kernels)
        with whole_file(args.out) as part:
            part.write_text(json.dumps(results, indent=1))
    if not all(row['ok'] for row in parity):
        sys.exit('A result is wrong, or a kernel does not run.')


if __name__ == '__main__':
    main()
