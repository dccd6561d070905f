"""A whole block, forward and backward, in the Triton kernels, against its modules.

A card runs compiled kernels, and without one Triton's interpreter runs them.
"""

import pytest
import torch
from helpers import randomize

from convnext_backbone.models.blocks import ConvNextLayer
from convnext_backbone.ops import block

pytest.importorskip('triton', minversion='3.7')

from convnext_backbone.ops import triton_kernels


@pytest.mark.parametrize('grn', [False, True])
def test_block_equals_its_modules(grn, triton_device, monkeypatch):
    layer = randomize(ConvNextLayer(40, use_grn=grn, drop_path=0.5, fused=True)).train()
    images = torch.randn(2, 40, 5, 6, requires_grad=True)
    grad = torch.randn(2, 40, 5, 6)
    results = []
    for run in (layer, layer.run_modules):
        torch.manual_seed(0)  # the same paths are dropped
        # cuDNN would round to TF32.
        with monkeypatch.context() as patch, torch.backends.cudnn.flags(enabled=False):
            patch.setattr(block, 'pick_kernels', lambda *args: triton_kernels)
            output = run(images)
            inputs = [images, *layer.parameters()]
            results.append([output, *torch.autograd.grad(output, inputs, grad)])
    for value, truth in zip(*results, strict=True):
        torch.testing.assert_close(value, truth, rtol=1e-4, atol=1e-4)
