"""Compiles the kernels: ``python -m convnext_backbone.ops.build``, once after installing.

They need a C++ compiler, ninja and setuptools, and take half a minute. Without them all works, but
slower.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from .native import SOURCES, compiler_flags, library_path


def main() -> None:
    """Compiles the kernels for this kind of processor, unless they stand already.

    They come to lie beside this file. This process cannot use them: compiling loads them, too.

    Raises:
        ImportError: If there is no setuptools.
        RuntimeError: If there is no ninja, or compiling fails; the message holds all output.
    """
    from torch.utils.cpp_extension import load

    library = library_path()
    if not library.is_file():
        # An environment that is not activated has its ninja beside its python.
        path = os.environ.get('PATH', os.defpath)
        os.environ['PATH'] = f'{Path(sys.executable).parent}{os.pathsep}{path}'
        with tempfile.TemporaryDirectory(prefix='.build-', dir=library.parent) as folder:
            # Nothing is linked to OpenMP: its functions come from the library that torch has
            # loaded, as a second one would bring threads of its own.
            load(
                library.stem,
                [str(source) for source in sorted(SOURCES.glob('*.cpp'))],
                extra_cflags=compiler_flags(),
                build_directory=folder,
                is_python_module=False,
            )
            (Path(folder) / library.name).replace(library)
    print(f'The compiled kernels stand in {library}')


if __name__ == '__main__':
    main()
