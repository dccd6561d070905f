"""One ConvNeXt block as a single function of its input and its parameters.

A chain of modules keeps the input of every module for the backward pass: the block's input (C
channels), the outputs of the convolution (C) and the norm (C), the pre-activation (4C), the hidden
activation (4C) and the branch (C, for the layer scale). This function keeps the block's input and
the pre-activation, or only the input, and recomputes the rest.

Let ``grad`` be the gradient with respect to the branch after its layer scale. The gradient with
respect to the second weight is ``layer_scale * D`` with ``D = grad.T @ hidden``, and that with
respect to the layer scale is ``(weight2 * D).sum(1) + bias2 * grad.sum(0)``. So the branch is not
needed, and scales of zero are no special case. :mod:`scaling` says how they are computed in half
precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import torch
from torch import Tensor

from .choice import pick_kernels
from .mlp import Mlp
from .parameters import BlockParameters, BlockSettings
from .plain import backward_is_plain, plain_block, plain_gradients
from .scaling import choose_scaling, undone
from .sums import RunningSum, wide

# Hidden activations are computed in parts of about this size, which fit into a CPU's caches.
PART_BYTES = 2**22

# Parameters of the MLP that are converted to the dtype of the products where they are used.
ROUNDED_LATER = ('bias1', 'weight2', 'bias2')


def fused_block(
    features: Tensor, keep: Tensor | None, settings: BlockSettings, parameters: BlockParameters
) -> Tensor:
    """Computes a block and, if gradients may be needed, keeps tensors for the backward pass.

    Args:
        features: Feature maps of shape ``(N, H, W, C)``, contiguous.
        keep: Factors ``(N,)`` that drop path multiplies the branch by, or None.
        settings: How the block is computed.
        parameters: The parameters of the block.

    Returns:
        The output, with the shape of ``features``. Its backward pass runs :func:`plain_block` again
        if it is differentiated or transformed itself.
    """
    tensors = (features, *(t for t in parameters if t is not None))
    with torch.autocast(features.device.type, enabled=False):
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            return _FusedBlock.apply(features, keep, settings, *parameters)
        return Block(features, keep, settings, parameters).output(save=False)[0]


class _FusedBlock(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, keep, settings, *parameters):
        block = Block(features, keep, settings, BlockParameters(*parameters))
        output, inner = block.output(save=not settings.lean)
        ctx.settings = settings
        ctx.save_for_backward(features, keep, inner, *parameters)
        return output

    @staticmethod
    def backward(ctx, grad_output):
        features, keep, inner, *parameters = ctx.saved_tensors
        needs_features, _, _, *needs_parameters = ctx.needs_input_grad
        names = zip(BlockParameters._fields, needs_parameters, strict=True)
        needs = {name for name, is_needed in names if is_needed}
        with torch.autocast(features.device.type, enabled=False):
            if backward_is_plain(grad_output):

                def run(features, *parameters):
                    return plain_block(features, keep, ctx.settings, BlockParameters(*parameters))

                inputs, are_needed = (features, *parameters), (needs_features, *needs_parameters)
                grad_features, *plain = plain_gradients(run, inputs, are_needed, grad_output)
                return grad_features, None, None, *plain
            block = Block(features, keep, ctx.settings, BlockParameters(*parameters))
            grad_features, grads = block.gradients(
                grad_output.resolve_neg().contiguous(), inner, needs_features, needs
            )
        return grad_features, None, None, *(grads.get(name) for name in BlockParameters._fields)


class Block:
    """The forward and the backward pass of one block, without autograd.

    Args:
        features: As in :func:`fused_block`.
        keep: As there.
        settings: As there.
        parameters: As there.
        kernels: The operators to use. Default: None, those of :func:`pick_kernels`.
    """

    def __init__(
        self,
        features: Tensor,
        keep: Tensor | None,
        settings: BlockSettings,
        parameters: BlockParameters,
        kernels: ModuleType | None = None,
    ) -> None:
        self.features, self.settings = features, settings
        self.p = p = _prepare(settings, parameters)
        self.rows = features.view(-1, features.shape[-1])
        self.sample_rows = len(self.rows) // len(features)
        self.keep = keep
        if keep is not None:
            self.keep = keep.to(p.norm_weight.dtype).repeat_interleave(self.sample_rows)
        self.kernels = kernels or pick_kernels(features, settings.dtype)

    def output(self, save: bool) -> tuple[Tensor, Tensor | None]:
        """Returns the block's output and, with ``save``, the pre-activations ``(rows, 4C)``."""
        kernels, p = self.kernels, self.p
        normed, _ = self.depthwise_norm(keep_convolved=False)
        output = torch.empty_like(self.features, dtype=self.settings.output_dtype)
        output_rows = output.view_as(self.rows)
        mlp = Mlp(kernels, self.settings, p, self.sample_rows)
        inner = mlp.inner(normed) if save else None
        for part in self.parts():
            branch = mlp.branch(normed[part], None if inner is None else inner[part])
            keep = None if self.keep is None else self.keep[part]
            kernels.add_branch_(output_rows[part], self.rows[part], branch, p.layer_scale, keep)
        return output, inner

    def gradients(
        self,
        grad_output: Tensor,
        inner: Tensor | None,
        needs_features: bool,
        needs: set[str],
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Returns the gradients with respect to the feature maps and, by name, the parameters.

        Args:
            grad_output: The gradient with respect to the block's output, ``(N, H, W, C)``.
            inner: The pre-activations that :meth:`output` saved, or None to recompute them.
            needs_features: Whether the feature maps need a gradient.
            needs: Names of the parameters that need a gradient.
        """
        kernels, p, settings = self.kernels, self.p, self.settings
        normed, convolved = self.depthwise_norm(keep_convolved=True)
        keep = None if self.keep is None else self.keep[:: self.sample_rows]
        scaling = choose_scaling(grad_output, keep, p, settings.dtype)
        grad_branch, grad_sum = kernels.branch_grad(
            grad_output.view_as(self.rows), self.keep, settings.dtype, scaling.grad
        )
        # The loop replaces the rows of the convolution's output by the gradient with respect to it.
        rows, norm_sums = convolved.view_as(self.rows), RunningSum()
        mlp = Mlp(kernels, settings, p, self.sample_rows)
        for part in self.parts():
            part_inner = mlp.inner(normed[part]) if inner is None else inner[part]
            grad_normed = mlp.backward(grad_branch[part], normed[part], part_inner, scaling, needs)
            norm_sums.add(
                kernels.norm_backward_(rows[part], grad_normed, p.norm_weight, settings.norm_eps)
            )
        grads = {name: s.value for name, s in mlp.sums.items() if s.value is not None}
        grads['bias2'] = undone(grad_sum, scaling.grad_power)
        if p.grn_weight is not None:
            for name in ('grn_weight', 'grn_bias'):
                grads[name] = grads[name].view_as(p.grn_weight)
        if scaling.power is not None:
            if 'layer_scale' in needs:
                products = kernels.row_products(p.weight2, grads['weight2'])
                products = products + p.bias2 * grads['bias2']
                grads['layer_scale'] = undone(products, scaling.mantissa)
            if 'weight2' in needs:
                grads['weight2'] = grads['weight2'] * scaling.power[:, None]
            grads['bias2'] = grads['bias2'] * scaling.power
        grads['norm_weight'], grads['norm_bias'], grads['depthwise_bias'] = norm_sums.total()
        if 'depthwise_weight' in needs:
            taps = kernels.depthwise_weight_grad(self.features, convolved)
            grads['depthwise_weight'] = taps.t().reshape(-1, 1, 7, 7)
        grad_features = None
        if needs_features:
            grad_features = kernels.depthwise_input_grad(convolved, p.depthwise_weight, grad_output)
        return grad_features, grads

    def depthwise_norm(self, keep_convolved: bool) -> tuple[Tensor, Tensor]:
        """Returns the normalised rows and, with ``keep_convolved``, the input of the norm."""
        normed, convolved = self.kernels.depthwise_norm(
            self.features,
            self.p.depthwise_weight,
            self.p.depthwise_bias,
            self.p.norm_weight,
            self.p.norm_bias,
            self.settings.norm_eps,
            self.settings.dtype,
            keep_convolved,
        )
        return normed.view_as(self.rows), convolved

    def parts(self) -> Iterator[slice]:
        """Returns the rows of each part. With GRN, a part consists of whole samples."""
        unit = 1 if self.p.grn_weight is None else self.sample_rows
        return split_rows(self.rows, self.settings.dtype, unit)


def split_rows(rows: Tensor, dtype: torch.dtype, unit: int) -> Iterator[slice]:
    """Yields the rows of each part, so that its hidden activations fit into a CPU's caches.

    Args:
        rows: ``(rows, C)``.
        dtype: Dtype of the hidden activations, ``(rows, 4C)``.
        unit: A part has a multiple of this number of rows.
    """
    count, parts = len(rows), 1
    if rows.device.type == 'cpu':
        parts = -(-4 * rows.numel() * dtype.itemsize // PART_BYTES)
    step = -(-count // (parts * unit)) * unit
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def _prepare(settings: BlockSettings, parameters: BlockParameters) -> BlockParameters:
    """Converts the parameters to the shapes and, but for three, to the dtypes that operators need.

    The second weight and the biases of the MLP stay as they are, or become wide: the forward pass
    rounds them where it multiplies, and the backward pass needs no rounded copy. The gradient of
    the layer scale is more accurate with what was not rounded.

    The backward pass converts again what it needs. The first weight and a rounded second one would
    take as much memory as a third of all that a step in half precision keeps.
    """
    dtype, others = settings.dtype, wide(settings.dtype)

    def convert(name: str, tensor: Tensor) -> Tensor:
        if name == 'weight1' or (name in ROUNDED_LATER and tensor.dtype == dtype):
            return tensor.to(dtype)
        return tensor.to(others)

    p = BlockParameters._make(
        t if t is None else convert(name, t).contiguous()
        for name, t in zip(BlockParameters._fields, parameters, strict=True)
    )
    return p._replace(depthwise_weight=p.depthwise_weight.flatten(1).t().contiguous())
