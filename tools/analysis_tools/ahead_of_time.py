"""Compiles planned launches of Triton kernels for a GPU that is not there.

Triton's own binder makes the signature, so what is compiled is what a launch would compile. The
module must be imported without ``TRITON_INTERPRET``: interpreted kernels cannot be compiled.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Hashable
from typing import NamedTuple

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from convnext_backbone.ops.triton_kernels.launch import Launch

# The architectures, and the shared memory in bytes that a program may have there.
SHARED_MEMORY = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448}


class Resources(NamedTuple):
    """What a compiled kernel needs.

    Attributes:
        registers: Registers of a thread.
        spills: Bytes of registers that a thread spills to memory and loads from it.
        shared: Shared memory of a program in bytes.
    """

    registers: int
    spills: int
    shared: int


class _Bound(NamedTuple):
    signature: dict
    constants: dict
    attributes: dict
    options: object


def _bind(launch: Launch, arch: int) -> _Bound:
    kernel, backend = launch.kernel, make_backend(GPUTarget('cuda', arch, 32))
    options = dict(num_warps=launch.num_warps)
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, _ = bind(**launch.arguments, **launch.constants, **options)
    options, *rest = kernel._pack_args(backend, options, bound, specialization, options)
    return _Bound(*rest, options)


def compile_key(launch: Launch) -> Hashable:
    """Returns a key that two launches share if and only if Triton compiles them once."""
    bound = _bind(launch, 80)
    return launch.kernel, launch.num_warps, *(str(part) for part in bound[:3])


def compile_for(launch: Launch, arch: int) -> Resources:
    """Compiles the kernel of a launch for an architecture, such as 90 for sm_90."""
    bound = _bind(launch, arch)
    log = io.StringIO()
    with knobs.nvidia.scope(), knobs.compilation.scope(), contextlib.redirect_stdout(log):
        knobs.nvidia.dump_ptxas_log = True
        knobs.compilation.always_compile = True
        source = ASTSource(launch.kernel, bound.signature, bound.constants, bound.attributes)
        compiled = triton.compile(
            source, target=GPUTarget('cuda', arch, 32), options=vars(bound.options)
        )
    return Resources(*read_log(log.getvalue()), compiled.metadata.shared)


def read_log(log: str) -> tuple[int, int]:
    """Returns the registers and the spilled bytes that ptxas reports."""
    registers = re.findall(r'Used (\d+) registers', log)
    spills = re.findall(r'(\d+) bytes spill (?:stores|loads)', log)
    if len(registers) != 1 or len(spills) != 2:
        raise ValueError(f'ptxas does not report the resources of one kernel: {log!r}')
    return int(registers[0]), sum(map(int, spills))
