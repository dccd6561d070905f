"""Reports what the Triton kernels need and the time that a card's data sheet implies.

    python tools/kernel_report.py [--card h100] [--measured FILE]

No card is needed. The first table has a line for every operator and width of ConvNeXt-T in a train
step at 2x3x800x1216 in bfloat16, the second one the launches and the time of its blocks and of the
whole step. The time is the larger one of memory traffic over bandwidth and arithmetic over its
rate: no kernel can be faster, and a good one is not much slower.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import check_environment  # noqa: F401
import torch
from analysis_tools.ahead_of_time import RECORD, Resources, compile_for, title
from kernel_plans import BRAIN, Plan, Types, block_plans, plan
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from convnext_backbone.ops import BlockParameters, BlockSettings, block, fused_block, linear

BATCH, HEIGHT, WIDTH = 2, 800, 1216
TYPES = Types(BRAIN, BRAIN, BRAIN)

# Channels and depths of the stages of ConvNeXt-T.
STAGES = ((96, 3), (192, 3), (384, 9), (768, 3))

# Estimated operations on an element of the first argument: a multiply-add is two, the exponential
# and the error function are about fifteen each.
OPERATIONS = {
    'depthwise_norm': 108,
    'depthwise_input_grad': 99,
    'depthwise_weight_grad': 98,
    'norm': 9,
    'norm_backward_': 20,
    'gelu_backward_': 42,
    'add_branch_': 3,
    'branch_grad': 2,
    'row_products': 2,
    'column_products': 2,
}


class Card(NamedTuple):
    """Figures of a data sheet.

    Attributes:
        title: The card.
        arch: Its architecture: 90 for sm_90.
        bandwidth: Bytes a second.
        rate: Operations a second in float32.
        product_rate: Operations a second of dense matrix products in bfloat16 that sum in float32.
    """

    title: str
    arch: int
    bandwidth: float
    rate: float
    product_rate: float


# NVIDIA's data sheets of these cards, and its white papers on the GeForce architectures.
CARDS = {
    'a100': Card('A100 SXM 80 GB', 80, 2.039e12, 19.5e12, 312e12),
    '3090': Card('GeForce RTX 3090', 86, 0.936e12, 35.6e12, 71e12),
    '4090': Card('GeForce RTX 4090', 89, 1.008e12, 82.6e12, 165e12),
    'h100': Card('H100 SXM', 90, 3.35e12, 67e12, 989e12),
    'h200': Card('H200 SXM', 90, 4.8e12, 67e12, 989e12),
    'b200': Card('B200', 100, 8e12, 75e12, 2250e12),
}


class Work(NamedTuple):
    """The work of an operator.

    Attributes:
        name: The operator.
        launches: Number of kernels that it launches.
        moved: Bytes that it reads and writes, without those that caches save: every tensor once a
            launch. The borders of tiles come from the caches.
        least: Bytes of its arguments and results.
        operations: Arithmetic.
        is_product: Whether it is a matrix product.
    """

    name: str
    launches: int
    moved: int
    least: int
    operations: int
    is_product: bool = False

    def seconds(self, card: Card) -> float:
        """Returns the least time that a card needs."""
        rate = card.product_rate if self.is_product else card.rate
        return max(self.moved / card.bandwidth, self.operations / rate)


def work_of(call: Plan) -> Work:
    """Counts the work of a planned call."""
    # The names of operators that replace their first argument end so; add_branch_ only writes it.
    replaced = []
    if call.name in ('norm_backward_', 'gelu_backward_'):
        replaced = [call.arguments[0]]
    least = _bytes(call.arguments, call.outputs) + _bytes(replaced)
    launches = call.launches
    moved = sum(_bytes(launch.arguments) for launch in launches) + _bytes(replaced)
    operations = OPERATIONS[call.name] * call.arguments[0].numel()
    return Work(call.name, len(launches), moved, least, operations)


def _bytes(*tree: object) -> int:
    tensors = {id(leaf): leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)}
    return sum(tensor.nbytes for tensor in tensors.values())


class Recorder(TorchDispatchMode):
    """Collects the work of torch's own operators, and of the Triton operators by their names."""

    def __init__(self) -> None:
        super().__init__()
        self.works: list[Work] = []
        self.planning = False

    def __getattr__(self, name: str) -> Callable:
        def run(*arguments: object) -> object:
            self.planning = True
            call = plan(name, *arguments)
            self.planning = False
            self.works.append(work_of(call))
            return call.outputs

        if name not in OPERATIONS:
            raise AttributeError(name)
        return run

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(output)):
            return output
        views = [r.alias_info for r in func._schema.returns if r.alias_info is not None]
        is_view = any(not alias.is_write for alias in views) or 'view' in func.__name__
        if self.planning or is_view or 'empty' in func.__name__:
            return output
        flops = flop_registry.get(func.overloadpacket)
        operations = flops(*args, **(kwargs or {}), out_val=output) if flops else 0
        moved = _bytes(args, output)
        name = func.overloadpacket.__name__
        self.works.append(Work(name, 1, moved, moved, operations, flops is not None))
        return output


@contextmanager
def recording() -> Iterator[Recorder]:
    """Records the work of blocks, which compute nothing meanwhile, as on a GPU."""
    recorder = Recorder()
    with (
        FakeTensorMode(),
        patch.object(linear, '_onednn_takes', lambda rows: False),
        patch.object(linear, 'computed_in', lambda dtype, device: dtype),
        patch.object(block, 'pick_kernels', lambda *args: recorder),
        patch.object(block, 'PART_BYTES', 2**62),  # a GPU computes a block in one part
        recorder,
    ):
        yield recorder


def block_works(
    channels: int, shape: tuple[int, int, int], grn: bool = False
) -> tuple[list[Work], list[Work]]:
    """Returns the works of the forward and of the backward pass of a block.

    Args:
        channels: Its width.
        shape: Images, height and width of the feature map.
        grn: Whether it has GRN, and no layer scale. Default: False.
    """
    hidden = (1, 1, 1, 4 * channels) if grn else None
    shapes = BlockParameters(
        *((channels, 1, 7, 7), channels, channels, channels),
        *((4 * channels, channels), 4 * channels, (channels, 4 * channels), channels),
        *(None if grn else channels, hidden, hidden),
    )
    settings = BlockSettings(TYPES.product, TYPES.output, 1e-6, 1e-6, False)
    with recording() as recorder:

        def empty(shape, dtype=torch.float32, grad=True):
            return torch.empty(shape, dtype=dtype, requires_grad=grad)

        parameters = BlockParameters._make(s if s is None else empty(s) for s in shapes)
        features = empty((*shape, channels), TYPES.features)
        keep = empty(shape[0], grad=False)
        output = fused_block(features, keep, settings, parameters)
        forward, recorder.works = recorder.works, []
        inputs = [features, *(p for p in parameters if p is not None)]
        torch.autograd.grad(output, inputs, torch.empty_like(output))
    return forward, recorder.works


def stage_shape(index: int) -> tuple[int, int, int]:
    """Returns the images, the height and the width of a stage's feature maps."""
    return BATCH, HEIGHT // (4 << index), WIDTH // (4 << index)


def join_works() -> list[Work]:
    """Returns the works of the stem and the downsampling: their convolutions, three times."""
    works, before = [], 3
    for index, (channels, _) in enumerate(STAGES):
        images, height, width = stage_shape(index)
        factor, pixels = (4 if index == 0 else 2) ** 2, images * height * width
        moved = 3 * 2 * pixels * (before * factor + channels)
        operations = 3 * 2 * pixels * before * factor * channels
        works.append(Work('convolution', 3, moved, moved, operations, True))
        before = channels
    return works


def needs_of(call: Plan, arch: int) -> Resources:
    """Returns the most that a launch of a call needs, from the record or by compiling it."""
    known = json.loads(RECORD.read_text())
    found = []
    for launch in call.launches:
        needs = known.get(title(launch))
        found.append(Resources(*needs[str(arch)]) if needs else compile_for(launch, arch))
    return Resources(*map(max, *found, found[0]))


def print_kernels(card: Card, measured: dict) -> None:
    """Prints a line for every operator and width."""
    print(
        f'{"operator":22}{"width":>6}{"launches":>9}{"registers":>10}{"spills":>7}{"shared":>8}',
        end='',
    )
    print(f'{"MB":>8}{"least":>8}{"GFLOP":>7}{"ms":>7}{"measured":>9}')
    for index, (channels, _) in enumerate(STAGES):
        # Of several kinds of calls the last one has everything: GRN, drop path, layer scale.
        calls = {call.name: call for call in block_plans(channels, TYPES, stage_shape(index))}
        for name in OPERATIONS:
            work, needs = work_of(calls[name]), needs_of(calls[name], card.arch)
            time = measured.get(name, {}).get(str(channels))
            print(
                f'{name:22}{channels:6}{work.launches:9}{needs.registers:10}{needs.spills:7}'
                f'{needs.shared:8}{work.moved / 1e6:8.1f}{work.least / 1e6:8.1f}'
                f'{work.operations / 1e9:7.2f}{1e3 * work.seconds(card):7.3f}'
                f'{"-" if time is None else f"{time:.3f}":>9}'
            )


def print_step(card: Card) -> None:
    """Prints the launches and the time of the blocks and of the whole step."""
    print(f'{"part":30}{"launches":>9}{"Triton":>8}{"GB":>7}{"TFLOP":>7}{"ms":>8}')
    step = join_works()
    for index, (channels, depth) in enumerate(STAGES):
        passes = block_works(channels, stage_shape(index))
        for name, works in zip(('forward', 'backward'), passes, strict=True):
            print_part(f'block of {channels} channels, {name}', works, card)
            step += works * depth
    for name, works in zip(
        ('forward', 'backward'), block_works(96, stage_shape(0), True), strict=True
    ):
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
        '--measured', type=Path, help='JSON with milliseconds in kernels, by operator and width'
    )
    args = parser.parse_args()
    card = CARDS[args.card]
    measured = json.loads(args.measured.read_text())['kernels'] if args.measured else {}
    print(f'ConvNeXt-T, train step, {BATCH}x3x{HEIGHT}x{WIDTH}, {TYPES.title()}, {card.title}')
    print(f'{card.bandwidth / 1e12} TB/s, {card.rate / 1e12} TFLOP/s in fp32, ', end='')
    print(f'{card.product_rate / 1e12} in bf16 products; sm_{card.arch}\n')
    print_kernels(card, measured)
    print()
    print_step(card)


if __name__ == '__main__':
    main()
