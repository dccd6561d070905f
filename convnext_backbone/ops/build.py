"""Compiles the kernels: ``python -m convnext_backbone.ops.build``, once after installing.

They need a C++ compiler and ninja, and cost half a minute. Without them all works, but slower.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from torch.utils.cpp_extension import load

from .native import CPU_FLAGS, SOURCES, library_path


def build() -> Path:
    """Compiles the kernels for this machine and puts them beside this file.

    Returns:
        The library. If it stands already, nothing is compiled.

    Raises:
        RuntimeError: If there is no compiler or no ninja, or compiling fails.
    """
    import torch

    library = library_path()
    if library.is_file():
        return library
    capability = torch.backends.cpu.get_cpu_capability()
    with tempfile.TemporaryDirectory() as folder:
        load(
            library.stem,
            [str(source) for source in sorted(SOURCES.glob('*.cpp'))],
            # OpenMP's functions come from the library that torch has loaded: a second one would
            # bring threads of its own.
            extra_cflags=['-O3', '-fopenmp', *CPU_FLAGS.get(capability, [])],
            build_directory=folder,
            is_python_module=False,
        )
        shutil.copy(Path(folder) / library.name, library)
    return library


if __name__ == '__main__':
    print(f'The compiled kernels stand in {build()}')
