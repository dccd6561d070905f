"""Finds damage in files of ``torch.save`` that torch itself does not look for."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import BinaryIO

from .names import listed


def check_archive(path: Path) -> None:
    """Refuses zip archives that are damaged or not written by ``torch.save``.

    Raises:
        ValueError: If the archive is truncated, if a checksum differs, or if it holds other files.
    """
    if not zipfile.is_zipfile(path):
        with path.open('rb') as file:
            is_cut = file.read(2) == b'PK'
        if is_cut:
            raise ValueError(
                f'{path} is truncated or damaged ({path.stat().st_size} bytes): download it again'
            )
        return
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            # torch does not compare checksums. Files that it saved without them have zeros instead.
            has_checksums = any(entry.CRC for entry in archive.infolist())
            damaged = archive.testzip() if has_checksums else None
    # Damaged bytes can make the reader raise many exceptions.
    except Exception as error:
        raise ValueError(
            f'{path} is truncated or damaged ({first_line(error)}): download it again'
        ) from error
    # The folder in the archive has the name of the saved file.
    inner = {name.partition('/')[2] for name in names}
    if 'constants.pkl' in inner:
        raise ValueError(
            f'{path} is a TorchScript archive, not a checkpoint: '
            'save the state dict, torch.save(torch.jit.load(file).state_dict(), other_file)'
        )
    if damaged is not None:
        raise ValueError(
            f'{path} is damaged (the checksum of {damaged} differs): download it again'
        )
    if 'data.pkl' not in inner:
        raise ValueError(
            f'{path} is a zip archive of other files, {listed(names)}: '
            'unpack it and pass the path of the checkpoint'
        )


def check_end(file: BinaryIO, path: Path) -> None:
    """Refuses files in the format of torch before 1.6 that go on after what torch has read.

    Args:
        file: The file, where torch has stopped reading.
        path: Its path.

    Raises:
        ValueError: If there are more bytes.
    """
    position = file.tell()
    is_archive = zipfile.is_zipfile(file)
    file.seek(position)
    if not is_archive and file.read(1):
        raise ValueError(f'{path} is damaged (bytes after its end): download it again')


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message; torch's have many."""
    return str(error).partition('\n')[0]
