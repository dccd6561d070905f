"""Measurements for benchmark.py and check_gpu.py: cases, contenders, rounds, the lower limit."""

from __future__ import annotations

import contextlib
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnext_backbone.arch import resolve_arch
from convnext_backbone.ops.linear import linear

LAYOUTS = {'nchw': torch.contiguous_format, 'nhwc': torch.channels_last}
DTYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}
WARM_UP = 2  # rounds
PRODUCTS = 10  # of a GPU per measurement: a single one is not longer than its launch


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
        """Autocast to ``dtype``, or a null context for fp32."""
        if self.dtype == 'fp32':
            return contextlib.nullcontext()
        return torch.autocast(self.device, DTYPES[self.dtype])

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
        compiled: Whether the model runs under ``torch.compile``.
    """

    name: str
    layout: str
    step: Callable[[], None]
    memory: float
    compiled: bool = False
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


def most_allocated(step: Callable[[], None], model: nn.Module, images: Tensor) -> float:
    """Peak GPU memory of a step in MiB, with the model and its images, without anything else."""
    step()  # libraries allocate their workspaces, which are shared
    model.zero_grad()
    kept = [images, *model.parameters(), *model.buffers()]
    others = torch.cuda.memory_allocated() - sum(tensor.nbytes for tensor in kept)
    torch.cuda.reset_peak_memory_stats()
    step()
    return (torch.cuda.max_memory_allocated() - others) / 2**20


def run_once(step: Callable[[], None], device: str) -> float:
    """Duration of a step in milliseconds."""
    if device == 'cuda':
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        step()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)
    started = time.perf_counter()
    step()
    return (time.perf_counter() - started) * 1e3


def make_contender(
    name: str, layout: str, model: nn.Module, case: Case, compiled: bool = False
) -> Contender:
    """Moves a model to its device and layout and measures its memory.

    On a CPU, what a compiled model saves is not measured.
    """
    model = model.to(case.device, memory_format=LAYOUTS[layout])
    if compiled:
        name, model = f'{name}, compiled', torch.compile(model)
    images = case.images(layout)
    step = make_step(model, images, case)
    memory = 0.0
    if case.device == 'cuda':
        memory = most_allocated(step, model, images)
    elif case.mode == 'train' and not compiled:
        memory = saved_activations(model, images, case)
    return Contender(name, layout, step, memory, compiled)


def measure(contenders: list[Contender], repeats: int, device: str) -> None:
    """Runs all contenders in turn, ``repeats`` rounds after the warm-up.

    There is no progress bar, because its thread would disturb the measurement.
    """
    for round_ in range(WARM_UP + repeats):
        for contender in contenders:
            elapsed = run_once(contender.step, device)
            if round_ >= WARM_UP:
                contender.times.append(elapsed)


def best_peer(contenders: list[Contender], compiled: bool) -> tuple[float | None, float | None]:
    """The least time and the least memory of other libraries, None where none was measured."""
    peers = [c for c in contenders if not c.name.startswith('ours') and c.compiled == compiled]
    time = min((c.median for c in peers), default=None)
    return time, min((c.memory for c in peers if c.memory), default=None)


def short(milliseconds: float) -> str:
    """A time in three digits, or whole milliseconds."""
    return f'{milliseconds:.0f}' if milliseconds >= 100 else f'{milliseconds:.3g}'


def machine(device: str) -> str:
    """Describes the processor, the threads and the torch version."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path('/proc/cpuinfo')
    if device == 'cuda':
        name = torch.cuda.get_device_name()
    elif cpuinfo.is_file():
        models = [line for line in cpuinfo.read_text().splitlines() if 'model name' in line]
        name = models[0].split(':')[1].strip() if models else name
    return f'{name}, {torch.get_num_threads()} threads, torch {torch.__version__}'


@torch.no_grad()
def product_limit(case: Case, repeats: int) -> float:
    """Duration of the blocks' matrix products alone, in milliseconds."""
    dtype = DTYPES[case.dtype]
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
    count = PRODUCTS if device == 'cuda' else 1

    def run(way: Callable[[Tensor, Tensor], Tensor]) -> None:
        for _ in range(count):
            way(rows, weight)

    times = {
        way: [run_once(partial(run, way), device) / count for _ in range(WARM_UP + repeats)]
        for way in (F.linear, linear)
    }
    return min(statistics.median(t[WARM_UP:]) for t in times.values())
