"""Compiles the kernels: run ``python -m convnext_backbone.ops.build`` once after installing.

Compiling needs a C++ compiler, ninja and setuptools, and takes half a minute. Without the kernels,
everything works, but slower.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from ..command_line import usage_errors
from .native import SOURCES, checksum, checksum_path, compiler_flags, is_intact, library_path


def main() -> None:
    """Compiles the kernels for this processor, unless an intact library exists.

    The library and its checksum are written to :func:`native.cache_folder`.

    Raises:
        ImportError: If setuptools is not installed.
        RuntimeError: If ninja is not installed, or if compiling fails; the message contains the
            whole output.
        OSError: If the cache folder cannot be written to.
    """
    library = library_path()
    if not is_intact(library):
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix='.build-', dir=library.parent) as folder:
            built = _compile(library.stem, Path(folder))
            checksum_path(built).write_text(checksum(built))
            # Move the library last: without its checksum, it would count as damaged.
            checksum_path(built).replace(checksum_path(library))
            built.replace(library)
    print(f'The compiled kernels are in {library}')


def _compile(name: str, folder: Path) -> Path:
    """Compiles the sources into a library ``name`` in a folder."""
    from torch.utils.cpp_extension import load

    # Find ninja next to python, even if the environment is not activated.
    path = os.environ.get('PATH', os.defpath)
    os.environ['PATH'] = f'{Path(sys.executable).parent}{os.pathsep}{path}'
    # OpenMP is not linked: its functions come from the library that torch has loaded. A second
    # library would start its own threads.
    load(
        name,
        [str(source) for source in sorted(SOURCES.glob('*.cpp'))],
        extra_cflags=compiler_flags(),
        build_directory=str(folder),
        is_python_module=False,
    )
    return folder / f'{name}.so'


if __name__ == '__main__':
    parser = argparse.ArgumentParser(
        prog='python -m convnext_backbone.ops.build', description='Compiles the kernels.'
    )
    parser.parse_args()
    with usage_errors(parser):
        main()
