"""Reports what the Triton kernels need and the time that a card's data sheet implies.

    python tools/kernel_report.py [--card h100] [--measured FILE]

No card is needed. The first table has a line for every operator and width of ConvNeXt-T in a train
step at 2x3x800x1216 in bfloat16, the second one the launches and the time of its blocks and of the
whole step. The time is the larger one of memory traffic over bandwidth and arithmetic over its
rate: no kernel can be faster, and a good one is not much slower. With --measured, the times of the
operators on a card stand beside it, from a file that check_gpu.py --out has written.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import check_environment  # noqa: F401
from analysis_tools.ahead_of_time import RECORD, Resources, compile_for, title
from cards import CARDS, Card
from kernel_plans import STAGES, STEP_TYPES, Plan, stage_calls, stage_shape
from kernel_times import Times, read_times
from kernel_works import OPERATIONS, Work, block_works, join_works, work_of

from convnext_backbone.command_line import usage_errors

# The images of the step.
IMAGES, SIZE = 2, (800, 1216)


def needs_of(call: Plan, arch: int) -> Resources:
    """Returns the most that a launch of a call needs, from the record or by compiling it."""
    known = json.loads(RECORD.read_text())
    found = []
    for launch in call.launches:
        needs = known.get(title(launch))
        found.append(Resources(*needs[str(arch)]) if needs else compile_for(launch, arch))
    return Resources(*map(max, *found, found[0]))


def print_kernels(card: Card, measured: Times) -> None:
    """Prints a line for every operator and width."""
    print(
        f'{"operator":22}{"width":>6}{"launches":>9}{"registers":>10}{"spills":>7}{"shared":>8}',
        end='',
    )
    print(f'{"MB":>8}{"least":>8}{"GFLOP":>7}{"ms":>7}{"measured":>12}')
    for index, (channels, _) in enumerate(STAGES):
        calls = stage_calls(index, IMAGES, SIZE)
        for name in OPERATIONS:
            work, needs = work_of(calls[name]), needs_of(calls[name], card.arch)
            time = measured.get(name, {}).get(str(channels))
            print(
                f'{name:22}{channels:6}{work.launches:9}{needs.registers:10}{needs.spills:7}'
                f'{needs.shared:8}{work.moved / 1e6:8.1f}{work.least / 1e6:8.1f}'
                f'{work.operations / 1e9:7.2f}{1e3 * work.seconds(card):7.3f}'
                f'{"-" if time is None else f"{time:.3f}":>12}'
            )


def print_step(card: Card) -> None:
    """Prints the launches and the time of the blocks and of the whole step."""
    print(f'{"part":30}{"launches":>9}{"Triton":>8}{"GB":>7}{"TFLOP":>7}{"ms":>8}')
    step = join_works(IMAGES, SIZE)
    for index, (channels, depth) in enumerate(STAGES):
        passes = block_works(channels, stage_shape(index, IMAGES, SIZE))
        for name, works in zip(('forward', 'backward'), passes, strict=True):
            print_part(f'block of {channels} channels, {name}', works, card)
            step += works * depth
    passes = block_works(96, stage_shape(0, IMAGES, SIZE), True)
    for name, works in zip(('forward', 'backward'), passes, strict=True):
        print_part(f'same with GRN, {name}', works, card)
    print_part('products of the step', [work for work in step if work.is_product], card)
    print_part('whole step', step, card)


def print_part(name: str, works: list[Work], card: Card) -> None:
    """Prints the sums of some works."""
    launches = sum(work.launches for work in works)
    ours = sum(work.launches for work in works if work.name in OPERATIONS)
    moved, operations = (sum(getattr(w, key) for w in works) for key in ('moved', 'operations'))
    time = sum(work.seconds(card) for work in works)
    print(
        f'{name:30}{launches:9}{ours:8}{moved / 1e9:7.2f}{operations / 1e12:7.3f}{1e3 * time:8.3f}'
    )


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--card', choices=CARDS, default='h100', help='the card (default: h100)')
    parser.add_argument(
        '--measured', type=Path, metavar='FILE', help='what check_gpu.py --out has written'
    )
    args = parser.parse_args()
    card = CARDS[args.card]
    with usage_errors(parser):
        measured = read_times(args.measured) if args.measured else {}
    images = f'{IMAGES}x3x{SIZE[0]}x{SIZE[1]}'
    print(f'ConvNeXt-T, train step, {images}, {STEP_TYPES.title()}, {card.title}')
    print(f'{card.bandwidth / 1e12} TB/s, {card.rate / 1e12} TFLOP/s in fp32, ', end='')
    print(f'{card.product_rate / 1e12} in bf16 products; sm_{card.arch}\n')
    print_kernels(card, measured)
    print()
    print_step(card)


if __name__ == '__main__':
    main()
