"""Measurements for benchmark.py: cases, contenders, rounds and the lower limit."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnext_backbone.arch import resolve_arch
from convnext_backbone.ops.linear import linear

LAYOUTS = {'nchw': torch.contiguous_format, 'nhwc': torch.channels_last}
WARM_UP = 2  # rounds


@dataclass
class Case:
    """One setting: an architecture on random images."""

    arch: str
    size: tuple[int, int]
    batch: int
    device: str
    dtype: str
    mode: str

    def autocast(self) -> contextlib.AbstractContextManager:
        """Autocast to bfloat16, or a null context for fp32."""
        if self.dtype == 'fp32':
            return contextlib.nullcontext()
        return torch.autocast(self.device, torch.bfloat16)

    def images(self, layout: str) -> Tensor:
        """Random images, ``(N, 3, H, W)``."""
        torch.manual_seed(0)
        images = torch.randn(self.batch, 3, *self.size, device=self.device)
        return images.contiguous(memory_format=LAYOUTS[layout])


@dataclass
class Contender:
    """A model in one layout, with its measurements.

    Attributes:
        times: In milliseconds, one per round.
        memory: MiB of activations saved for the backward pass (CUDA: peak memory allocated).
    """

    name: str
    layout: str
    step: Callable[[], None]
    memory: float
    times: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.times)


def make_step(model: nn.Module, images: Tensor, case: Case) -> Callable[[], None]:
    """Returns a function that runs one inference, or one forward and backward pass."""
    model.train(case.mode == 'train')

    def infer() -> None:
        with torch.no_grad(), case.autocast():
            model(images)

    def train() -> None:
        model.zero_grad()
        with case.autocast():
            maps = model(images)
        torch.autograd.backward(maps, [torch.ones_like(m) for m in maps])

    return train if case.mode == 'train' else infer


def saved_activations(model: nn.Module, images: Tensor, case: Case) -> float:
    """MiB that a forward pass saves for the backward pass, without parameters."""
    storages: dict[int, int] = {}
    kept = []  # a freed address could be reused and hide a tensor

    def pack(tensor: Tensor) -> None:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        kept.append(tensor)

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda nothing: nothing), case.autocast():
        model(images)
    kept.clear()  # breaks the reference cycle graph, pack, kept
    for parameter in model.parameters():
        storages.pop(parameter.untyped_storage().data_ptr(), None)
    return sum(storages.values()) / 2**20


def most_allocated(step: Callable[[], None]) -> float:
    """Peak GPU memory of a step in MiB."""
    step()
    torch.cuda.reset_peak_memory_stats()
    step()
    return torch.cuda.max_memory_allocated() / 2**20


def run_once(step: Callable[[], None], device: str) -> float:
    """Duration of a step in milliseconds."""
    if device == 'cuda':
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device == 'cuda':
        torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1e3


def make_contender(
    name: str, layout: str, model: nn.Module, case: Case, compiled: bool = False
) -> Contender:
    """Moves a model to its device and layout, compiles it on demand and measures its memory."""
    others = torch.cuda.memory_allocated() / 2**20 if case.device == 'cuda' else 0.0
    model = model.to(case.device, memory_format=LAYOUTS[layout])
    if compiled:
        name, model = f'{name}, compiled', torch.compile(model)
    images = case.images(layout)
    step = make_step(model, images, case)
    memory = 0.0
    if case.device == 'cuda':
        memory = most_allocated(step) - others
    elif case.mode == 'train':
        memory = saved_activations(model, images, case)
    return Contender(name, layout, step, memory)


def measure(contenders: list[Contender], repeats: int, device: str) -> None:
    """Runs all contenders in turn, ``repeats`` rounds after the warm-up.

    There is no progress bar, because its thread would disturb the measurement.
    """
    for round_ in range(WARM_UP + repeats):
        for contender in contenders:
            elapsed = run_once(contender.step, device)
            if round_ >= WARM_UP:
                contender.times.append(elapsed)


@torch.no_grad()
def product_limit(case: Case, repeats: int) -> float:
    """Duration of the blocks' matrix products alone, in milliseconds."""
    dtype = torch.float32 if case.dtype == 'fp32' else torch.bfloat16
    arch = resolve_arch(case.arch)
    total = 0.0
    for i, (depth, width) in enumerate(zip(arch.depths, arch.hidden_sizes, strict=True)):
        rows = case.batch * (case.size[0] // 2 ** (i + 2)) * (case.size[1] // 2 ** (i + 2))
        narrow = torch.randn(rows, width, device=case.device, dtype=dtype)
        wide = torch.randn(rows, 4 * width, device=case.device, dtype=dtype)
        weight = torch.randn(4 * width, width, device=case.device, dtype=dtype)
        products = [(narrow, weight), (wide, weight.t())]
        if case.mode == 'train':  # gradients with respect to rows, then weights
            products = products * 2 + [(wide.t(), narrow.t()), (narrow.t(), wide.t())]
        total += depth * sum(_product_time(*factors, case.device, repeats) for factors in products)
    return total


def _product_time(rows: Tensor, weight: Tensor, device: str, repeats: int) -> float:
    """Median time of the faster product, torch's or oneDNN's."""
    times = {
        way: [run_once(lambda way=way: way(rows, weight), device) for _ in range(WARM_UP + repeats)]
        for way in (F.linear, linear)
    }
    return min(statistics.median(t[WARM_UP:]) for t in times.values())
