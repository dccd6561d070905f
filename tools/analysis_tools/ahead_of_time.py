"""Compiles the Triton kernels for GPUs that need not be there, and reads what they need.

    python tools/analysis_tools/ahead_of_time.py [--archs 80 86 89 90 100] [--json FILE]

It compiles every kernel for every dtype and width that the package uses it with, and fails if one
spills registers or needs more shared memory than there is. Triton keeps what is compiled in its
cache. Triton's own binder makes the signatures, so what is compiled is what a launch would compile.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

# The interpreter's kernels cannot be compiled.
os.environ.pop('TRITON_INTERPRET', None)

import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from convnext_backbone.ops.triton_kernels.launch import Launch

# Shared memory in bytes that a program may have, by architecture (CUDA programming guide,
# "Compute capabilities").
SHARED_MEMORY = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448}

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
    options |= dict(num_warps=launch.num_warps)
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, _ = binder(**launch.arguments, **launch.constants, **options)
    parsed, *rest = kernel._pack_args(backend, options, bound, specialization, options)
    return Bound(*rest, parsed)


def kernel_name(launch: Launch) -> str:
    """Returns the name of the kernel's function."""
    return launch.kernel.__name__


def compile_key(launch: Launch) -> tuple:
    """Returns what decides what is compiled: launches with equal keys share a kernel."""
    bound = bind(launch, 80)
    return kernel_name(launch), launch.num_warps, *(str(part) for part in bound[:3])


def compile_for(launch: Launch, arch: int, **options: object) -> Resources:
    """Compiles the kernel of a launch; the arguments are those of :func:`bind`."""
    bound = bind(launch, arch, **options)
    source = ASTSource(launch.kernel, bound.signature, bound.constants, bound.attributes)
    target = GPUTarget('cuda', arch, 32)
    compiled = triton.compile(source, target=target, options=vars(bound.options))
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        file.write(compiled.asm['cubin'])
        file.flush()
        command = [CUOBJDUMP, '-res-usage', file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {name: int(value) for name, value in re.findall(r'(REG|STACK):(\d+)', usage)}
    return Resources(found['REG'], found['STACK'], compiled.metadata.shared)


def unique_launches() -> dict[tuple, Launch]:
    """Returns one launch of each kernel that must be compiled, over all widths and dtypes."""
    from kernel_plans import TYPES, WIDTHS, block_plans

    seen: dict[tuple, Launch] = {}
    for channels in WIDTHS:
        for types in TYPES:
            for plan in block_plans(channels, types):
                for launch in plan.launches:
                    seen.setdefault(_cheap_key(launch), launch)
    return {compile_key(launch): launch for launch in seen.values()}


def _cheap_key(launch: Launch) -> tuple:
    """Returns a key that is at least as fine as :func:`compile_key` for arguments of one kind."""
    types = tuple(
        argument.dtype if isinstance(argument, Tensor) else type(argument)
        for argument in launch.arguments.values()
    )
    return launch.kernel, types, *launch.constants.items(), launch.num_warps


def describe(launch: Launch) -> dict:
    """Returns the kernel, its dtypes and its constants, as JSON can hold them."""
    dtypes = {
        name: str(argument.dtype).removeprefix('torch.')
        for name, argument in launch.arguments.items()
        if isinstance(argument, Tensor)
    }
    constants = {name: str(value) for name, value in launch.constants.items()}
    return dict(
        kernel=kernel_name(launch), dtypes=dtypes, constants=constants, num_warps=launch.num_warps
    )


def compile_all(jobs: list[tuple[Launch, int]]) -> list[Resources]:
    """Runs :func:`compile_for` on every launch and architecture, in as many processes as cores."""
    global _jobs
    _jobs = jobs
    # Kernels cannot be pickled. A forked process has them already.
    context = multiprocessing.get_context('fork')
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        return list(pool.map(_compile_job, range(len(jobs)), chunksize=4))


_jobs: list[tuple[Launch, int]] = []


def _compile_job(index: int) -> Resources:
    return compile_for(*_jobs[index])


def main() -> None:
    """Compiles all kernels and reports those that do not fit."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument(
        '--archs',
        nargs='+',
        type=int,
        choices=SHARED_MEMORY,
        default=list(SHARED_MEMORY),
        help='architectures, such as 90 for sm_90 (default: all)',
    )
    parser.add_argument('--json', type=Path, help='file for what every kernel needs')
    args = parser.parse_args()
    jobs = [(launch, arch) for launch in unique_launches().values() for arch in args.archs]
    results = [
        dict(**describe(launch), arch=arch, **resources._asdict())
        for (launch, arch), resources in zip(jobs, compile_all(jobs), strict=True)
    ]
    if args.json:
        args.json.write_text(json.dumps(results, indent=0))
    unfit = [r for r in results if r['spills'] or r['shared'] > SHARED_MEMORY[r['arch']]]
    print(*(f'does not fit: {result}' for result in unfit), sep='\n')
    kernels = len({result['kernel'] for result in results})
    print(f'{len(results)} compilations of {kernels} kernels, {len(unfit)} do not fit')
    sys.exit(bool(unfit))


if __name__ == '__main__':
    main()
