"""What needs a GPU: `make test` runs these tests after the others, with the GPU in sight."""

import copy

import pytest
import torch
from helpers import randomize, small_backbone
from torch import nn

pytestmark = pytest.mark.cuda
DEVICE = 'cuda'


def run_backbone(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """The maps, and the gradients of their sums of squares."""
    images = images.clone().requires_grad_()
    maps = model(images)
    loss = sum(m.double().square().mean() for m in maps)
    return [*maps, *torch.autograd.grad(loss, [images, *model.parameters()])]


@pytest.mark.parametrize('use_grn', [False, True])
def test_gpu_agrees_with_the_cpu(use_grn):
    """In float64, so that no rounding hides an error."""
    model = randomize(small_backbone(use_grn=use_grn)).double()
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    expected = run_backbone(model, images)
    found = run_backbone(copy.deepcopy(model).to(DEVICE), images.to(DEVICE))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.cpu(), other)


def test_operators_of_mmcv_run_on_the_gpu():
    ops = pytest.importorskip('mmcv.ops')
    maps, boxes = torch.randn(1, 4, 16, 16), torch.tensor([[0.0, 1.0, 2.0, 9.0, 12.0]])
    found = ops.roi_align(maps.to(DEVICE), boxes.to(DEVICE), 3)
    torch.testing.assert_close(found.cpu(), ops.roi_align(maps, boxes, 3))
