"""Compiles the kernels: ``python -m convnext_backbone.ops.build``, once after installing.

They need a C++ compiler and ninja, and take half a minute. Without them all works, but slower.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from torch.utils.cpp_extension import load

from .native import SOURCES, cpu_flags, library_path


def build() -> Path:
    """Compiles the kernels for this kind of processor, unless they stand already.

    Returns:
        The library, beside this file.

    Raises:
        RuntimeError: If there is no ninja, or compiling fails; the message holds all output.
    """
    library = library_path()
    if library.is_file():
        return library
    # An environment that is not activated has its ninja beside its python.
    os.environ['PATH'] = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
    with tempfile.TemporaryDirectory() as folder:
        load(
            library.stem,
            [str(source) for source in sorted(SOURCES.glob('*.cpp'))],
            # The functions of OpenMP come from the library that torch has loaded: a second one
            # would bring threads of its own.
            extra_cflags=['-O3', '-fopenmp', *cpu_flags()],
            build_directory=folder,
            is_python_module=False,
        )
        partial = shutil.copy(Path(folder) / library.name, library.with_suffix('.partial'))
        Path(partial).replace(library)
    return library


if __name__ == '__main__':
    print(f'The compiled kernels stand in {build()}')
