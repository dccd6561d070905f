"""Counts what the operators of a block do: launches, memory traffic and arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple
from unittest.mock import patch

import torch
from cards import Card
from kernel_plans import STAGES, STEP_TYPES, Plan, plan, stage_shape
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from convnext_backbone.ops import BlockParameters, BlockSettings, block, fused_block, linear

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
    settings = BlockSettings(STEP_TYPES.product, STEP_TYPES.output, 1e-6, 1e-6, False)
    with recording() as recorder:

        def empty(shape, dtype=torch.float32, grad=True):
            return torch.empty(shape, dtype=dtype, requires_grad=grad)

        parameters = BlockParameters._make(s if s is None else empty(s) for s in shapes)
        features = empty((*shape, channels), STEP_TYPES.features)
        keep = empty(shape[0], grad=False)
        output = fused_block(features, keep, settings, parameters)
        forward, recorder.works = recorder.works, []
        inputs = [features, *(p for p in parameters if p is not None)]
        torch.autograd.grad(output, inputs, torch.empty_like(output))
    return forward, recorder.works


def join_works(images: int, size: tuple[int, int]) -> list[Work]:
    """Returns the works of the stem and the downsampling: their convolutions, three times.

    Args:
        images: Number of images.
        size: Their height and width.
    """
    works, before = [], 3
    for index, (channels, _) in enumerate(STAGES):
        _, height, width = stage_shape(index, images, size)
        factor, pixels = (4 if index == 0 else 2) ** 2, images * height * width
        moved = 3 * 2 * pixels * (before * factor + channels)
        operations = 3 * 2 * pixels * before * factor * channels
        works.append(Work('convolution', 3, moved, moved, operations, True))
        before = channels
    return works
