"""One ConvNeXt block as a single function of its input and parameters.

A chain of modules keeps what each of them takes for the backward pass: the block's input (C
channels), the convolution (C), the norm (C), the pre-activation (4C), the hidden (4C) and the
branch (C, for the layer scale). This keeps the input and the pre-activation, or the input alone,
and computes the rest again. The layer scale's gradient comes from the product that is the second
weight's: with ``D = grad.T @ hidden``, it is the rows' sum of ``weight2 * D`` plus ``bias2`` times
the sum of ``grad``, divided by the scale.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .mlp import Mlp
from .native import pick_kernels
from .parameters import BlockParameters, BlockSettings, RunningSum, wide

# Stands for a layer scale of zero in the backward pass, which divides by it.
TINY = 1e-20


def fused_block(
    map: Tensor, keep: Tensor | None, settings: BlockSettings, parameters: BlockParameters
) -> Tensor:
    """Runs a block and, where a gradient can be asked for, keeps what that needs.

    Args:
        map: Of shape ``(N, H, W, C)``, contiguous.
        keep: Factors ``(N,)`` by which drop path multiplies the branch, or None.
        settings: How the block is run.
        parameters: As the layer has them.

    Returns:
        The block's output, of the shape of ``map``. It can be differentiated once.
    """
    tensors = (map, *(t for t in parameters if t is not None))
    with torch.autocast(map.device.type, enabled=False):
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            return _FusedBlock.apply(map, keep, settings, *parameters)
        block = _Block(map, keep, settings, _prepare(settings, parameters))
        return block.output(save=False)[0]


class _FusedBlock(torch.autograd.Function):
    @staticmethod
    def forward(ctx, map, keep, settings, *parameters):
        p = _prepare(settings, BlockParameters(*parameters))
        block = _Block(map, keep, settings, p)
        output, saved = block.output(save=not settings.lean)
        ctx.settings = settings
        ctx.save_for_backward(map, keep, parameters[0], *p[1:], *saved)
        return output

    @staticmethod
    def backward(ctx, grad_output):
        if torch.is_grad_enabled():
            raise RuntimeError(
                'a fused ConvNeXt block can be differentiated once, but create_graph=True asks for '
                'more. Run the blocks module by module, before the forward pass: for every '
                'ConvNextLayer, layer.forward = layer.run_modules'
            )
        map, keep, *tensors = ctx.saved_tensors
        count = len(BlockParameters._fields)
        parameters, saved = BlockParameters(*tensors[:count]), tensors[count:]
        needs_map, _, _, *needs = ctx.needs_input_grad
        with torch.autocast(map.device.type, enabled=False):
            block = _Block(map, keep, ctx.settings, _prepare(ctx.settings, parameters))
            grad_map, grads = block.gradients(
                grad_output.contiguous(), saved, needs_map, BlockParameters(*needs)
            )
        return grad_map, None, None, *grads


class _Block:
    """The two passes over one block."""

    def __init__(
        self, map: Tensor, keep: Tensor | None, settings: BlockSettings, p: BlockParameters
    ) -> None:
        self.map, self.settings, self.p = map, settings, p
        self.rows = map.view(-1, map.shape[-1])
        self.keep = keep
        if keep is not None:
            self.keep = keep.to(p.norm_weight.dtype).repeat_interleave(len(self.rows) // len(map))
        self.kernels = pick_kernels(map, settings.dtype)

    def depthwise_norm(self, keep_convolved: bool) -> tuple[Tensor, Tensor]:
        """The rows behind the norm, and the convolution if it is to be kept."""
        normed, convolved = self.kernels.depthwise_norm(
            self.map,
            self.p.depthwise_weight,
            self.p.depthwise_bias,
            self.p.norm_weight,
            self.p.norm_bias,
            self.settings.norm_eps,
            self.settings.dtype,
            keep_convolved,
        )
        return normed.view_as(self.rows), convolved

    def output(self, save: bool) -> tuple[Tensor, list[Tensor]]:
        """The block's output, and the pre-activations if they are to be saved."""
        p, settings = self.p, self.settings
        normed, _ = self.depthwise_norm(keep_convolved=False)
        output = torch.empty_like(self.map, dtype=settings.output_dtype)
        output_rows = output.view_as(self.rows)

        def finish(part: slice, branch: Tensor) -> None:
            keep = None if self.keep is None else self.keep[part]
            self.kernels.add_branch_(
                output_rows[part], self.rows[part], branch, p.layer_scale, keep
            )

        mlp = Mlp(self.kernels, settings, p, normed, len(self.map))
        return output, mlp.forward(save, finish)

    def gradients(
        self,
        grad_output: Tensor,
        saved: list[Tensor],
        needs_map: bool,
        needs: BlockParameters,
    ) -> tuple[Tensor | None, BlockParameters]:
        """The gradients by the map and by the parameters."""
        kernels, p, settings = self.kernels, self.p, self.settings
        normed, convolved = self.depthwise_norm(keep_convolved=True)
        scale = p.layer_scale
        if scale is not None:
            scale = torch.where(scale.abs() < TINY, TINY, scale)
        grad, grad_bias2 = kernels.branch_grad(
            grad_output.view_as(self.rows), scale, self.keep, settings.dtype
        )
        # From here on the convolution's rows turn into the gradients by them.
        rows, norm = convolved.view_as(self.rows), RunningSum()

        def receive(part: slice, grad_normed: Tensor) -> None:
            norm.add(
                kernels.norm_backward_(rows[part], grad_normed, p.norm_weight, settings.norm_eps)
            )

        mlp = Mlp(kernels, settings, p, normed, len(self.map))
        grads = mlp.backward(grad, saved, needs, receive)
        if p.grn_weight is not None:
            for name in ('grn_weight', 'grn_bias'):
                grads[name] = grads[name].view_as(p.grn_weight)
        grads['bias2'] = grad_bias2
        if needs.layer_scale:
            products = kernels.row_products(p.weight2, grads['weight2'])
            grads['layer_scale'] = (products + p.bias2 * grad_bias2) / scale
        grads['norm_weight'], grads['norm_bias'], grads['depthwise_bias'] = norm.value
        if needs.depthwise_weight:
            taps = kernels.depthwise_weight_grad(self.map, convolved)
            grads['depthwise_weight'] = taps.t().reshape(-1, 1, 7, 7)
        grad_map = None
        if needs_map:
            grad_map = kernels.depthwise_input_grad(convolved, p.depthwise_weight, grad_output)
        return grad_map, BlockParameters(**(dict.fromkeys(BlockParameters._fields) | grads))


def _prepare(settings: BlockSettings, parameters: BlockParameters) -> BlockParameters:
    """The parameters in the types and shapes of the operators."""
    dtypes = dict.fromkeys(('weight1', 'bias1', 'weight2', 'bias2'), settings.dtype)
    others = wide(settings.dtype)
    p = BlockParameters(
        *(
            t if t is None else t.to(dtypes.get(name, others)).contiguous()
            for name, t in zip(BlockParameters._fields, parameters, strict=True)
        )
    )
    return p._replace(depthwise_weight=p.depthwise_weight.flatten(1).t().contiguous())
