"""Says in one sentence what to do if a script runs where its libraries are not installed.

Scripts import this first. The other folders of scripts have links to this file.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType

# Packages whose module has another name.
PACKAGES = {
    'PIL': 'pillow',
    'cv2': 'opencv-python',
    'mmseg': 'mmsegmentation',
    'pkg_resources': '"setuptools<81"',
}


def say_what_is_missing(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """Replaces the traceback of a missing library.

    Raises:
        SystemExit: With status 2, for a library that cannot be found.
    """
    name = getattr(error, 'name', None)
    if kind is not ModuleNotFoundError or not name:
        sys.__excepthook__(kind, error, traceback)
        return
    module = name.partition('.')[0]
    print(
        f'{Path(sys.argv[0]).name}: error: {name} is not installed here: activate the '
        'environment that make demo creates, with source .venv/bin/activate (on a GPU: '
        f'.venv-cuda), or pip install {PACKAGES.get(module, module)} in this one',
        file=sys.stderr,
    )
    raise SystemExit(2)


sys.excepthook = say_what_is_missing
