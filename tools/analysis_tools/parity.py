"""How far each way to run a block is from float64, compared with the plain modules."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from measuring import DTYPES, Case
from peers import STAGES
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from convnext_backbone import ConvNextBackbone
from convnext_backbone.ops.native import have_triton

# The ways to run a block, by the environment variables that choose them; the modules come first.
CANDIDATES = {
    'modules': {'CONVNEXT_FUSED': '0'},
    'torch': {'CONVNEXT_KERNELS': 'torch'},
    'triton': {'CONVNEXT_KERNELS': 'triton'},
}

# Layer scale with V1, GRN with V2. Float64 is slow on most cards, so these are small.
PARITY_ARCHS = ('atto', 'v2-atto')

# How far a candidate may be from float64, relative to the modules in the same dtype. What is closer
# than float32 can promise is not compared.
TOLERANCE = 2.0
ROUNDING = 1e-6


def candidates(device: str) -> list[str]:
    """The candidates that can run here; Triton's kernels need a GPU."""
    return [n for n in CANDIDATES if n != 'triton' or (device == 'cuda' and have_triton())]


@contextmanager
def chosen(name: str) -> Iterator[None]:
    """Chooses a candidate for the blocks that run meanwhile. Peers need no choice."""
    settings = CANDIDATES.get(name, {})
    before = {variable: os.environ.get(variable) for variable in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for variable, value in before.items():
            if value is None:
                del os.environ[variable]
            else:
                os.environ[variable] = value


def relative_error(tensors: list[Tensor], references: list[Tensor]) -> float:
    """Root mean square of the tensors' relative errors: each counts, whatever its size."""
    errors = [
        (tensor.double() - reference).norm() / reference.norm()
        for tensor, reference in zip(tensors, references, strict=True)
    ]
    return torch.stack(errors).square().mean().sqrt().item()


def run_backbone(model: nn.Module, images: Tensor, case: Case) -> dict[str, list[Tensor]]:
    """Runs forward and backward and returns the maps and the gradients."""
    images = images.clone().requires_grad_()
    with case.autocast():
        maps = model(images)
    generator = torch.Generator().manual_seed(1)
    grads = [torch.randn(m.shape, generator=generator).to(m) for m in maps]
    wanted = [images, *model.parameters()]
    image_grad, *parameter_grads = torch.autograd.grad(maps, wanted, grads)
    return {'maps': list(maps), 'image grads': [image_grad], 'weight grads': parameter_grads}


def check_parity(device: str, size: tuple[int, int]) -> list[dict]:
    """Distances of all candidates from the modules in float64, one row each."""
    rows = []
    for arch in PARITY_ARCHS:
        torch.manual_seed(0)
        model = ConvNextBackbone(arch, out_features=STAGES, drop_path_rate=0.0)
        with torch.no_grad():
            for parameter in model.parameters():  # initial scales hide the branches
                if parameter.ndim == 1:
                    parameter.add_(torch.randn_like(parameter), alpha=0.3)
        model, images = model.to(device), torch.randn(2, 3, *size).to(device)
        for dtype in DTYPES:
            case = Case(arch, size, 2, device, dtype, 'train')
            exact = Case(**(vars(case) | dict(dtype='fp32')))
            with chosen('modules'):
                references = run_backbone(copy.deepcopy(model).double(), images.double(), exact)
            modules: dict[str, float] = {}
            for candidate in candidates(device):
                row = dict(arch=arch, dtype=dtype, candidate=candidate, ok=False)
                rows.append(row)
                try:
                    with chosen(candidate):
                        found = run_backbone(model, images, case)
                except Exception as error:  # the report must not end where a kernel does
                    if candidate == 'modules':
                        raise
                    row['error'] = first_line(error)
                    continue
                errors = {key: relative_error(found[key], references[key]) for key in found}
                modules = modules or errors
                row |= dict(errors=errors, **compare(errors, modules))
    return rows


def compare(errors: dict[str, float], modules: dict[str, float]) -> dict:
    """The greatest ratio of a candidate's errors to the modules', and whether all are allowed."""
    ratios = [errors[key] / max(modules[key], ROUNDING) for key in errors]
    return dict(ratio=max(ratios), ok=all(ratio <= TOLERANCE for ratio in ratios))


def first_line(error: Exception) -> str:
    """An error in one line."""
    return f'{type(error).__name__}: {error}'.strip().splitlines()[0]


def print_parity(rows: list[dict], console: Console) -> None:
    """Prints the distances from float64."""
    table = Table(title='Distance from float64, forward and backward')
    kinds = ('maps', 'image grads', 'weight grads')
    for column in ('arch', 'dtype', 'kernels', *kinds, 'to modules', 'verdict'):
        table.add_column(column)
    for row in rows:
        names = (row['arch'], row['dtype'], row['candidate'])
        figures = ['', '', '', '']
        if 'error' not in row:
            figures = [f'{row["errors"][kind]:.1e}' for kind in kinds] + [f'{row["ratio"]:.2f}']
        table.add_row(*names, *figures, 'ok' if row['ok'] else row.get('error', 'WRONG'))
    console.print(table)
