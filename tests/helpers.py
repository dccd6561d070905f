"""Helpers shared by the test modules."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from convnext_backbone import ConvNextBackbone
from convnext_backbone.checkpoint import MMENGINE_CLASSES, allowed

REPO = Path(__file__).resolve().parents[1]

# A four-stage architecture small enough for float64 and for every subset of its maps.
SMALL = dict(depths=[2, 1, 3, 1], hidden_sizes=[8, 16, 24, 32])
STAGES = ('stage1', 'stage2', 'stage3', 'stage4')
ALL_FEATURES = ('stem', *STAGES)


def small_backbone(**args) -> ConvNextBackbone:
    """A ``SMALL`` backbone in evaluation mode, by default with the maps of all stages."""
    if 'out_indices' not in args:
        args = dict(out_features=STAGES) | args
    return ConvNextBackbone(SMALL, **args).eval()


def randomize(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Gives every parameter random values: initial norms and scales would hide errors."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            values = torch.randn(parameter.shape, generator=generator, device='cpu')
            parameter.copy_(values * 0.3)
    return module


def same_tensors(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts have the same names, dtypes and values."""
    return one.keys() == other.keys() and all(
        one[k].dtype == other[k].dtype and torch.equal(one[k], other[k]) for k in one
    )


def run_tool(name: str, *args: object, cwd: Path, launcher: tuple = (sys.executable,)) -> str:
    """Runs a script of ``tools/`` as a user would and returns its output."""
    command = [*launcher, REPO / 'tools' / name, *args]
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def make_shapes(folder: Path, train: int, val: int, *args: object) -> None:
    """Generates so many images of shapes in ``data/shapes`` of a folder."""
    counts = ('--train', train, '--val', val)
    run_tool('dataset_converters/make_shapes_dataset.py', 'data/shapes', *counts, *args, cwd=folder)


def load_whole(path: Path) -> object:
    """Loads a whole mmengine checkpoint, independent of earlier loads in this process."""
    with allowed(MMENGINE_CLASSES):
        return torch.load(path, map_location='cpu', weights_only=True)
