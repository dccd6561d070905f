"""Times one block, fused with each set of operators and as its modules would run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType

import torch
from mmengine.logging import print_log
from torch import Tensor

from .block import Block
from .parameters import BlockParameters, BlockSettings
from .plain import plain_block
from .sums import wide
from .timings import Times, measure

# Numbers in the timed feature maps: enough to fill a card, little memory, and nothing to choose.
ELEMENTS = 2**22


@torch.inference_mode(False)  # training steps are measured even if an inference comes first
def time_block(
    device: torch.device,
    channels: int,
    dtype: torch.dtype,
    candidates: Mapping[str, ModuleType],
) -> Times:
    """Measures steps of a block of ConvNeXt V1.

    Args:
        device: Device to run on.
        channels: Number of channels.
        dtype: Dtype of the matrix products and the feature maps.
        candidates: The operators of fused blocks, by name. The modules are added to them.
    """
    # Random numbers of its own: those of the training must not depend on a measurement.
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, generator=generator).mul_(0.1)

    c, side = channels, max(int((ELEMENTS / channels / 2) ** 0.5), 1)
    features = random(2, side, side, c).to(dtype)
    shapes = (c, 1, 7, 7), (c,), (c,), (c,), (4 * c, c), (4 * c,), (c, 4 * c), (c,), (c,)
    tensors = [random(*shape).to(wide(dtype)) for shape in shapes]
    parameters = BlockParameters._make([*tensors, None, None])
    settings = BlockSettings(dtype, dtype, 1e-6, 0.0, lean=False)
    arguments = features, settings, parameters
    train: dict[str, Callable] = {'modules': partial(_train_modules, *arguments)}
    infer: dict[str, Callable] = {'modules': partial(plain_block, features, None, *arguments[1:])}
    for name, operators in candidates.items():
        train[name] = partial(_train_fused, *arguments, operators)
        infer[name] = partial(_infer_fused, *arguments, operators)
    with torch.autocast(device.type, enabled=False), torch.no_grad():
        for name in [name for name in candidates if not _runs(name, train[name])]:
            del train[name], infer[name]
        return {'train': measure(train, device), 'inference': measure(infer, device)}


def _runs(name: str, step: Callable[[], object]) -> bool:
    """Whether a candidate runs on this card at all; that it does not is logged."""
    try:
        step()
    except torch.OutOfMemoryError:
        raise  # this says nothing about the candidate
    except Exception as error:  # whatever a compiler of kernels raises
        print_log(f'{name} kernels do not run on this card: {error!r}', logger='current')
        return False
    return True


def _infer_fused(
    features: Tensor, settings: BlockSettings, p: BlockParameters, operators: ModuleType
) -> None:
    Block(features, None, settings, p, operators).output(save=False)


def _train_fused(
    features: Tensor, settings: BlockSettings, p: BlockParameters, operators: ModuleType
) -> None:
    output, inner = Block(features, None, settings, p, operators).output(save=True)
    Block(features, None, settings, p, operators).gradients(output, inner, True, set(p._fields))


def _train_modules(features: Tensor, settings: BlockSettings, p: BlockParameters) -> None:
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in (features, *p) if t is not None]
        parameters = BlockParameters._make([*leaves[1:], None, None])
        output = plain_block(leaves[0], None, settings, parameters)
        torch.autograd.grad(output, leaves, output.detach())
