"""Plans of every Triton operator with every kind of arguments that the package passes to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from convnext_backbone.ops import triton_kernels
from convnext_backbone.ops.triton_kernels.launch import Launch

FLOAT, BRAIN, HALF = torch.float32, torch.bfloat16, torch.float16


class Types(NamedTuple):
    """The dtypes of one way to run a block.

    Attributes:
        features: The block's input.
        product: The matrix products.
        output: The block's output.
    """

    features: torch.dtype
    product: torch.dtype
    output: torch.dtype

    def title(self) -> str:
        """Returns such as ``bf16``, or ``fp32 bf16 fp32`` under autocast."""
        names = {FLOAT: 'fp32', BRAIN: 'bf16', HALF: 'fp16'}
        unique = self[:1] if len(set(self)) == 1 else self
        return ' '.join(names[dtype] for dtype in unique)


# One dtype throughout, and autocast: with features in float32 or, as the stem's convolution
# returns them, in half precision. The layer scale in float32 makes the output float32.
TYPES = (
    *(Types(dtype, dtype, dtype) for dtype in (FLOAT, BRAIN, HALF)),
    *(Types(FLOAT, dtype, FLOAT) for dtype in (BRAIN, HALF)),
    *(Types(dtype, dtype, FLOAT) for dtype in (BRAIN, HALF)),
)


# A train step of ConvNeXt-T, for which kernels are counted and timed: channels and depths of its
# stages, and its dtypes.
STAGES = ((96, 3), (192, 3), (384, 9), (768, 3))
STEP_TYPES = Types(BRAIN, BRAIN, BRAIN)


class Plan(NamedTuple):
    """The planned launches of one call.

    Attributes:
        name: The operator.
        arguments: What it is called with.
        outputs: What it returns: a tensor, a tuple of tensors or None.
        launches: Its launches.
    """

    name: str
    arguments: tuple
    outputs: Tensor | tuple[Tensor, ...] | None
    launches: list[Launch]


def plan(name: str, *arguments: object) -> Plan:
    """Plans one call of an operator."""
    return Plan(name, arguments, *getattr(triton_kernels, f'plan_{name}')(*arguments))


def block_plans(
    channels: int, types: Types, shape: tuple[int, int, int] = (2, 9, 11)
) -> Iterator[Plan]:
    """Plans every operator of a block and of a norm, on the meta device.

    Args:
        channels: The width of the block.
        types: Its dtypes.
        shape: Images, height and width of the feature map. Default: a small map.
    """

    def empty(*sizes: int, dtype: torch.dtype = FLOAT) -> Tensor:
        return torch.empty(sizes, dtype=dtype, device='meta')

    images, product = shape[0], types.product
    rows = images * shape[1] * shape[2]
    features = empty(*shape, channels, dtype=types.features)
    grad_output = empty(*shape, channels, dtype=types.output)
    branch = empty(rows, channels, dtype=product)
    # Two tensors: what is read twice counts once.
    inner, grad_hidden = (empty(rows, 4 * channels, dtype=product) for _ in range(2))
    weight2 = empty(channels, 4 * channels, dtype=product if len(set(types)) == 1 else FLOAT)
    taps, vector, samples = empty(49, channels), empty(channels), empty(images, 4 * channels)
    keeps = None, empty(rows)

    for keep_convolved in (False, True):
        forward = plan(
            *('depthwise_norm', features, taps, vector, vector, vector),
            *(1e-6, product, keep_convolved),
        )
        yield forward
    convolved = forward.outputs[1]
    yield plan('depthwise_input_grad', convolved, taps, grad_output)
    yield plan('depthwise_weight_grad', features, convolved)
    yield plan('gelu_backward_', grad_hidden, inner, None, None)
    yield plan('gelu_backward_', grad_hidden, inner, samples, samples)
    yield plan('column_products', grad_hidden, inner, images)
    for keep in keeps:
        for scale in (None, vector):
            yield plan('branch_grad', grad_output.view(rows, channels), keep, product, scale)
            # Without a layer scale, the output has the dtype of the features and the products.
            if scale is not None or types.output == torch.promote_types(types.features, product):
                output = grad_output.view(rows, channels)
                yield plan('add_branch_', output, features.view_as(output), branch, scale, keep)
    for channels_first in (False, True):
        yield plan('norm', features, vector, vector, 1e-6, channels_first)
    # The norm of a map has its input copied to float32.
    norm_grad, copied = features.view(rows, channels), empty(rows, channels)
    yield plan('norm_backward_', copied, norm_grad, vector, 1e-6)
    # In float16, products that need no scaling are in float32.
    for dtype in dict.fromkeys((product, FLOAT if product == HALF else product)):
        grad = empty(rows, channels, dtype=dtype)
        yield plan('norm_backward_', convolved.view(rows, channels), grad, vector, 1e-6)
    # Gradients of weights are in float32; those of torch before 2.8 only for float16.
    for dtype in dict.fromkeys((FLOAT if product == HALF else product, FLOAT)):
        yield plan('row_products', weight2, empty(channels, 4 * channels, dtype=dtype))


def stage_shape(index: int, images: int, size: tuple[int, int]) -> tuple[int, int, int]:
    """Returns the images, the height and the width of the feature maps of a stage.

    Args:
        index: The stage, from 0.
        images: Number of images.
        size: Their height and width.
    """
    height, width = size
    return images, height // (4 << index), width // (4 << index)


def stage_calls(index: int, images: int, size: tuple[int, int]) -> dict[str, Plan]:
    """Plans a call of every operator at a stage of ConvNeXt-T in bfloat16, by name.

    The arguments are those of :func:`stage_shape`.
    """
    plans = block_plans(STAGES[index][0], STEP_TYPES, stage_shape(index, images, size))
    # Of several kinds of calls the last one has everything: GRN, drop path, layer scale.
    return {call.name: call for call in plans}
