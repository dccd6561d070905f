"""Compiles the Triton kernels for GPUs that need not be there, and reads what they need.

    python tools/analysis_tools/ahead_of_time.py [--record]

It checks that tests/kernel_resources.json has every kernel as it is now, for every dtype and width
that the package uses it with and for every architecture. Then it compiles each kernel once, in the
variant that needs the most registers. It fails if anything differs from the file, spills registers
or needs more shared memory than there is. With ``--record``, it first compiles what the file lacks.

Triton's own binder makes the signatures, so what is compiled is what a launch would compile.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

# The interpreter's kernels cannot be compiled.
os.environ.pop('TRITON_INTERPRET', None)

import check_environment  # noqa: F401
import triton
from torch import Tensor

from convnext_backbone.ops.native import MIN_TRITON, TRITON_WIDTHS, have_triton

if not have_triton():
    sys.exit(f'this needs Triton {".".join(map(str, MIN_TRITON))} or newer: pip install -U triton')

from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import sm_arch_from_capability
from triton.compiler import ASTSource, CompiledKernel, make_backend
from triton.runtime import KernelInterface
from triton.runtime.jit import create_function_from_signature

from convnext_backbone.ops.triton_kernels.launch import Launch

sys.path.insert(0, str(Path(__file__).parent))
from kernel_plans import TYPES, block_plans

# Triton writes the same assembly code for all architectures of a group, but for the line that names
# the architecture. Writing it takes most of the time, so it is written for the first one.
GROUPS = ((80, 86, 89), (90,), (100,))

# Shared memory in bytes that a program may have, by architecture (CUDA programming guide,
# "Compute capabilities").
SHARED_MEMORY = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448}

RECORD = Path(__file__).parents[2] / 'tests/kernel_resources.json'
COMMAND = 'python tools/analysis_tools/ahead_of_time.py'

CUOBJDUMP = Path(triton.__file__).parent / 'backends/nvidia/bin/cuobjdump'


class Resources(NamedTuple):
    """What a compiled kernel needs.

    Attributes:
        registers: Registers of a thread.
        spills: Bytes of a thread's stack. The kernels have no arrays, so these are registers that
            were spilled to memory.
        shared: Shared memory of a program in bytes.
    """

    registers: int
    spills: int
    shared: int


class Bound(NamedTuple):
    """The arguments of Triton's compiler.

    Attributes:
        signature: The type of each argument.
        constants: The values of the constants.
        attributes: What the compiler may assume, such as aligned pointers.
        options: Options of the compiler.
    """

    signature: dict
    constants: dict
    attributes: dict
    options: object


def bind(launch: Launch, arch: int, **options: object) -> Bound:
    """Returns what Triton would compile for a launch.

    Args:
        launch: The launch.
        arch: The architecture: 90 for sm_90.
        options: Further options of the compiler.
    """
    kernel, backend = launch.kernel, make_backend(GPUTarget('cuda', arch, 32))
    options = launch.options() | options
    bound, specialization, _ = _binder(kernel, arch)(
        **launch.arguments, **launch.constants, **options
    )
    parsed, *rest = kernel._pack_args(backend, options, bound, specialization, options)
    return Bound(*rest, parsed)


@functools.cache
def _binder(kernel: KernelInterface, arch: int) -> Callable:
    backend = make_backend(GPUTarget('cuda', arch, 32))
    return create_function_from_signature(kernel.signature, kernel.params, backend)


def kernel_name(launch: Launch) -> str:
    """Returns the name of the kernel's function."""
    return launch.kernel.__name__


def compile_key(launch: Launch) -> tuple:
    """Returns what decides what is compiled: launches with equal keys share a kernel."""
    bound = bind(launch, 80)
    return kernel_name(launch), str(launch.options()), *(str(part) for part in bound[:3])


def _compile(launch: Launch, arch: int, **options: object) -> CompiledKernel:
    bound = bind(launch, arch, **options)
    source = ASTSource(launch.kernel, bound.signature, bound.constants, bound.attributes)
    target = GPUTarget('cuda', arch, 32)
    return triton.compile(source, target=target, options=vars(bound.options))


def read_resources(cubin: bytes, shared: int) -> Resources:
    """Reads what machine code needs; ``shared`` is its shared memory in bytes."""
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        file.write(cubin)
        file.flush()
        command = [CUOBJDUMP, '-res-usage', file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {name: int(value) for name, value in re.findall(r'(REG|STACK):(\d+)', usage)}
    return Resources(found['REG'], found['STACK'], shared)


def compile_for(launch: Launch, arch: int, **options: object) -> Resources:
    """Compiles the kernel of a launch; the arguments are those of :func:`bind`."""
    compiled = _compile(launch, arch, **options)
    return read_resources(compiled.asm['cubin'], compiled.metadata.shared)


def compile_group(launch: Launch, group: tuple[int, ...]) -> list[Resources]:
    """Compiles the kernel of a launch for the architectures of a group."""
    compiled = _compile(launch, group[0])
    found = []
    for arch in group:
        name = sm_arch_from_capability(arch)
        code = re.sub(r'\.target sm_\w+', f'.target {name}', compiled.asm['ptx'])
        backend, options = make_backend(GPUTarget('cuda', arch, 32)), bind(launch, arch).options
        cubin = backend.make_cubin(code, {}, options, arch)
        found.append(read_resources(cubin, compiled.metadata.shared))
    return found


def unique_launches() -> dict[str, Launch]:
    """Returns one launch of each kernel that must be compiled, over all widths and dtypes."""
    return {
        title(launch): launch
        for channels in TRITON_WIDTHS
        for types in TYPES
        for plan in block_plans(channels, types)
        for launch in plan.launches
    }


def title(launch: Launch) -> str:
    """Returns the kernel, the dtypes of its tensors and its constants in one line."""
    dtypes = (
        f'{name}: {str(argument.dtype).removeprefix("torch.")}'
        for name, argument in launch.arguments.items()
        if isinstance(argument, Tensor)
    )
    constants = (f'{name}={value}' for name, value in launch.constants.items())
    parts = [', '.join(dtypes), ', '.join(constants), f'{launch.num_warps} warps']
    if launch.max_registers is not None:
        parts.append(f'at most {launch.max_registers} registers')
    return f'{kernel_name(launch)}({"; ".join(parts)})'


def source_hash(launch: Launch) -> str:
    """Returns a hash of the kernel's source and of all functions that it calls."""
    module = inspect.getmodule(launch.kernel.fn)
    for value in vars(module).values():
        if isinstance(value, triton.JITFunction):
            value.starting_line_number = 0  # where a kernel is in its file changes nothing
    return launch.kernel.cache_key[:12]


def compile_all(jobs: list[tuple[Launch, tuple[int, ...]]]) -> Iterator[list[Resources]]:
    """Runs :func:`compile_group` on every launch and group, in as many processes as cores."""
    global _jobs
    _jobs = jobs
    # Kernels cannot be pickled. A forked process has them already.
    context = multiprocessing.get_context('fork')
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        yield from pool.map(_compile_job, range(len(jobs)))


_jobs: list[tuple[Launch, tuple[int, ...]]] = []


def _compile_job(index: int) -> list[Resources]:
    return compile_group(*_jobs[index])


def record(launches: dict[str, Launch], known: dict) -> dict:
    """Compiles what is not known, writes the file after each kernel, and returns all of it."""
    found = {name: known[name] for name, launch in launches.items() if _is_known(launch, known)}
    # Kernels that compile fast come first: the others take most of an hour.
    new = sorted(launches.keys() - found.keys(), key=lambda name: ('depthwise' in name, name))
    jobs = [(launches[name], group) for name in new for group in GROUPS]
    results = compile_all(jobs)
    for name in new:
        needs = {
            str(arch): list(resources)
            for group in GROUPS
            for arch, resources in zip(group, next(results), strict=True)
        }
        found[name] = dict(source=source_hash(launches[name]), **needs)
        lines = (f'{json.dumps(name)}: {json.dumps(found[name])}' for name in sorted(found))
        RECORD.write_text('{\n' + ',\n'.join(lines) + '\n}\n')
    return found


def _is_known(launch: Launch, known: dict) -> bool:
    return known.get(title(launch), {}).get('source') == source_hash(launch)


def find_faults(launches: dict[str, Launch], known: dict) -> list[str]:
    """Returns what is wrong with the file or with the kernels, in sentences."""
    faults = [
        f'{name} is not in {RECORD.name}, or has changed: run {COMMAND} --record'
        for name, launch in launches.items()
        if not _is_known(launch, known)
    ]
    tightest: dict[str, tuple[int, str, int]] = {}
    for name in sorted(known.keys() & launches.keys()):
        for arch in SHARED_MEMORY:
            needs = Resources(*known[name][str(arch)])
            faults += misfits(name, arch, needs)
            kernel = kernel_name(launches[name])
            tightest[kernel] = max(tightest.get(kernel, (0, '', 0)), (needs.registers, name, arch))
    for _, name, arch in tightest.values():
        needs = compile_for(launches[name], arch)
        faults += misfits(name, arch, needs)
        recorded = Resources(*known[name][str(arch)])
        if needs != recorded:
            faults.append(f'{name} on sm_{arch} needs {needs}, but the file says {recorded}')
    return faults


def misfits(name: str, arch: int, needs: Resources) -> list[str]:
    """Returns in sentences what a kernel has too much of."""
    faults = []
    if needs.spills:
        faults.append(f'{name} on sm_{arch} spills {needs.spills} bytes of registers')
    if needs.shared > SHARED_MEMORY[arch]:
        faults.append(f'{name} on sm_{arch} needs {needs.shared} bytes of shared memory')
    return faults


def main() -> None:
    """Records or checks what the kernels need."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--record', action='store_true', help='compile what the file lacks')
    args = parser.parse_args()
    launches, known = unique_launches(), json.loads(RECORD.read_text())
    if args.record:
        known = record(launches, known)
    faults = find_faults(launches, known)
    print(*faults, f'{len(launches)} kernels, {len(faults)} faults', sep='\n')
    sys.exit(bool(faults))


if __name__ == '__main__':
    main()
