"""What the scripts in ``tools/`` share: errors in one sentence, and files that are never half
written.

Only what is wrong with an argument, a config or its data is told in one sentence. An error of the
work itself keeps its traceback.
"""

from __future__ import annotations

import argparse
import errno
import inspect
import os
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from mmengine.config import Config
from mmengine.config.utils import ConfigParsingError

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
EXPECTED = (ValueError, TypeError, KeyError, OSError, ImportError)

# What mmengine raises for a config in Python that it cannot parse, or whose base it cannot find.
UNREADABLE = (SyntaxError, OSError, UnicodeError, AssertionError, ConfigParsingError)

# mmengine imports pkg_resources for every base of another package; setuptools is pinned for it.
warnings.filterwarnings('ignore', 'pkg_resources is deprecated', UserWarning)

# What constructors raise for values that they do not take.
REFUSALS = (ValueError, TypeError, KeyError, AssertionError)

# What these packages and the script raise themselves is about what they were given.
CHECKERS = ('convnext_backbone', 'mmengine', '__main__')


@contextmanager
def usage_errors(parser: argparse.ArgumentParser, of_checkers: bool = False) -> Iterator[None]:
    """Turns the errors of a block into one sentence on stderr and exit status 2, as argparse does.

    Args:
        parser: The parser whose program is named.
        of_checkers: Only errors that ``CHECKERS`` raise themselves. This is for blocks that also
            run other code, such as building a model: an error from its depth needs a traceback.
            Default: False, all ``EXPECTED`` errors.

    Raises:
        SystemExit: With status 2, instead of an ``EXPECTED`` error.
    """
    try:
        yield
    except EXPECTED as error:
        if of_checkers and _raising_package(error) not in CHECKERS:
            raise
        parser.exit(2, f'{parser.prog}: error: {_sentence(error)}\n')


@contextmanager
def refused_values(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Turns the error of a part of a config that cannot be built into one sentence, as above.

    Only if the constructor of the part itself refuses its values: whatever a runner does between
    and after the constructors keeps its traceback.

    Args:
        parser: The parser whose program is named.

    Raises:
        SystemExit: With status 2, instead of an error in ``REFUSALS`` that a constructor raises.
    """
    try:
        yield
    except REFUSALS as error:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        starts = [i for i, frame in enumerate(frames, 1) if _is_builder(frame)]
        constructors = frames[starts[-1] :] if starts else frames
        if not starts or any(frame.f_code.co_name != '__init__' for frame in constructors):
            raise
        what = f'cannot build {_call(constructors[0])}: ' if constructors else ''
        parser.exit(2, f'{parser.prog}: error: {what}{_sentence(error)}\n')


def read_config(path: str | Path) -> Config:
    """Reads a config.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a config that mmengine can parse. An error in the code of a config
            keeps its type.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'no such config: {path}')
    try:
        return Config.fromfile(path)
    # Parsers of YAML and JSON have errors of their own.
    except Exception as error:
        if Path(path).suffix == '.py' and not isinstance(error, UNREADABLE):
            raise
        raise ValueError(f'cannot read the config {path}: {error}') from error


def check_folder(path: str | Path) -> None:
    """Checks that files can be written to a folder, which need not exist yet.

    Raises:
        NotADirectoryError: If the path, or one above it, is a file.
        OSError: If nothing can be written there.
    """
    folder = Path(path).absolute()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(f'{path} cannot be a folder, {folder} is a file: choose another')
    try:
        # Permissions do not tell all: a file system can be full or read-only, also for root.
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
            file.flush()
    except OSError as error:
        raise OSError(f'cannot write to {path} ({error.strerror}): choose another') from error


def check_file(path: str | Path) -> None:
    """Checks that a file can be written; its folder need not exist yet.

    Raises:
        IsADirectoryError: If the path is a folder.
        OSError: As in :func:`check_folder`.
    """
    if Path(path).is_dir():
        raise IsADirectoryError(f'{path} is a folder: give the name of a file')
    check_folder(Path(path).parent)


def shorten(path: str | Path) -> Path:
    """Makes a path relative to the current folder, if it is below."""
    path = Path(path)
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Gives a temporary path beside a file, and renames it when the block has succeeded.

    Whatever interrupts the block, the file is either the old one or complete. Missing folders are
    created. The temporary path has the same suffix.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'.{path.stem}.{os.getpid()}{path.suffix}')
    try:
        yield part
        part.replace(path)
    except OSError as error:
        # A full or broken disk names no file, and nobody knows the temporary one.
        if error.filename == str(part) or (error.filename is None and error.errno in DISK_ERRORS):
            error.filename = str(path)
        raise
    finally:
        part.unlink(missing_ok=True)


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f'{error.filename}: {error.strerror}'
    # The text of a KeyError is quoted.
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return ' '.join(text.split()) or type(error).__name__


def _raising_package(error: BaseException) -> str:
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return _package(frame)


def _package(frame: FrameType) -> str:
    return frame.f_globals.get('__name__', '').partition('.')[0]


def _is_builder(frame: FrameType) -> bool:
    """Whether a frame is one of mmengine's functions that build a part of a config."""
    return _package(frame) == 'mmengine' and frame.f_code.co_name.lstrip('_').startswith('build')


def _call(constructor: FrameType) -> str:
    """The class of a constructor, and the plain values that it was given and are no defaults."""
    (me, *names), _, keywords, values = inspect.getargvalues(constructor)
    kind = type(values[me])
    given = {name: values.get(name) for name in names} | values.get(keywords or '', {})
    plain = {name: v for name, v in given.items() if isinstance(v, (str, int, float))}
    parameters = inspect.signature(kind).parameters
    shown = [
        f'{name}={value!r}'
        for name, value in plain.items()
        if name not in parameters or value != parameters[name].default
    ]
    return f'{kind.__name__}{" with " if shown else ""}{", ".join(shown)}'
