"""A kernel with all that it takes to launch it or to compile it ahead of time."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from triton.runtime import KernelInterface

Outputs = TypeVar('Outputs')


class Launch(NamedTuple):
    """One launch of a Triton kernel.

    A launch is planned from shapes and dtypes alone. So the plan that runs on a card is also the
    one that tests compile ahead of time, with tensors on the meta device.

    Attributes:
        kernel: The kernel.
        grid: Number of programs along each axis.
        arguments: Tensors and numbers, by the names of the kernel's parameters.
        constants: Its compile-time constants, by name. They depend on the channels and the dtypes
            and never on the number of images or their size, so that a new size of images compiles
            nothing.
        num_warps: Warps of a program.
        max_registers: The most registers that a thread may have. Default: None, the compiler
            chooses, and may spill some to memory so that more programs run at a time.
    """

    kernel: KernelInterface
    grid: tuple[int, ...]
    arguments: dict[str, Tensor | int | float | None]
    constants: dict[str, object]
    num_warps: int
    max_registers: int | None = None

    def options(self) -> dict[str, int]:
        """Returns the options of Triton's compiler."""
        options = dict(num_warps=self.num_warps)
        return options if self.max_registers is None else options | dict(maxnreg=self.max_registers)

    def run(self) -> None:
        """Launches the kernel, on the device of its tensors."""
        tensor = next(value for value in self.arguments.values() if isinstance(value, Tensor))
        with torch.cuda.device_of(tensor):  # Triton launches on the current device
            self.kernel[self.grid](**self.arguments, **self.constants, **self.options())


def run_plan(plan: tuple[Outputs, list[Launch]]) -> Outputs:
    """Runs the launches of a plan, and returns its outputs."""
    outputs, launches = plan
    for launch in launches:
        launch.run()
    return outputs
