"""Finds image files for the scripts."""

from __future__ import annotations

import glob
from pathlib import Path

SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp', '.tif', '.tiff', '.bmp')


def find_images(patterns: list[str], out: Path | None = None) -> dict[str, Path]:
    """Finds image files.

    Args:
        patterns: Files, folders (searched with all their subfolders) and glob patterns.
        out: The output folder, whose pictures are left out of folders. Default: None.

    Returns:
        The paths by name. The name of an image in a folder is its path from there.

    Raises:
        FileNotFoundError: If a pattern finds nothing.
        ValueError: If two images have the same name.
    """
    found: dict[str, Path] = {}
    for pattern in patterns:
        root = Path(pattern)
        if root.is_dir():
            files = sorted(p for p in root.rglob('*') if p.suffix.lower() in SUFFIXES)
            if out is not None:
                files = [p for p in files if out.resolve() not in p.resolve().parents]
            named = [(p.relative_to(root).as_posix(), p) for p in files]
        elif root.is_file():
            named = [(root.name, root)]
        else:
            files = [Path(p) for p in sorted(glob.glob(pattern, recursive=True))]
            named = [(p.name, p) for p in files if p.suffix.lower() in SUFFIXES]
        if not named:
            raise FileNotFoundError(f'no images found: {pattern} (of {", ".join(SUFFIXES)})')
        for name, path in named:
            other = found.setdefault(name, path)
            if other.resolve() != path.resolve():
                raise ValueError(
                    f'{other} and {path} would have the same name in the output: give their '
                    'common folder instead'
                )
    return found
