"""Downloads checkpoints to the cache folders of torch and Hugging Face."""

from __future__ import annotations

import hashlib
import logging
import re
from pathlib import Path, PurePosixPath
from urllib.parse import urlparse

import torch
from mmengine.dist import barrier, is_main_process
from mmengine.logging import print_log

from .archives import first_line
from .hf_config import is_weight_file

_HUB_ADDRESS = re.compile(r'hf://([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.+))?')


def download(url: str) -> Path:
    """Downloads a file to torch's cache folder, unless it is there already.

    Its name there begins with a hash of the address: many models have files of the same name.
    mmengine's own loader would look at the name alone, and unpickle without ``weights_only``.

    Raises:
        ValueError: If the address has no file name.
        OSError: If the download fails.
    """
    name = Path(urlparse(url).path).name
    if not name:
        raise ValueError(f'{url} has no file name: pass the address of a file')
    key = hashlib.sha256(url.encode()).hexdigest()[:8]
    path = Path(torch.hub.get_dir(), 'checkpoints', f'{key}-{name}')
    # The main process downloads first. The others find its file, or download to their own disk.
    for is_turn in (is_main_process(), True):
        if is_turn and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                torch.hub.download_url_to_file(url, str(path), progress=is_main_process())
            except OSError as error:
                raise OSError(f'cannot download {url}: {error}') from error
        barrier()
    return path


def parse_hub_address(address: str) -> tuple[str, str | None, str | None]:
    """Returns the repository, the revision and the file of ``hf://owner/name[@revision][/file]``.

    Raises:
        ValueError: If the address has another form.
    """
    match = _HUB_ADDRESS.fullmatch(address)
    if match is None:
        raise ValueError(f'{address} is not of the form hf://owner/name[@revision][/file]')
    repo, revision, file = match.groups()
    return repo, revision, file


def fetch_from_hub(address: str) -> Path:
    """Downloads a file or the weights of a repository of Hugging Face, unless they are there.

    Args:
        address: ``hf://owner/name[@revision][/file]``.

    Raises:
        ValueError: If the address has another form.
        ImportError: If huggingface_hub is not installed.
        OSError: If the download fails.
    """
    repo, revision, file = parse_hub_address(address)
    try:
        from huggingface_hub import hf_hub_download, snapshot_download
        from huggingface_hub.errors import EntryNotFoundError
    except ImportError as error:
        raise ImportError(
            f'{address} needs the library huggingface_hub: pip install huggingface_hub'
        ) from error
    try:
        if file:
            path = Path(hf_hub_download(repo, file, revision=revision))
            if is_weight_file(path.name):
                _fetch_config(address, repo, file, revision)
            return path
        folder = snapshot_download(
            repo, revision=revision, allow_patterns=['*.json', '*.safetensors']
        )
        if not any(Path(folder).glob('*.safetensors')):
            folder = snapshot_download(
                repo, revision=revision, allow_patterns=['*.json', '*.bin', '*.pth', '*.pt']
            )
        return Path(folder)
    except (OSError, EntryNotFoundError) as error:
        raise OSError(f'cannot download {address}: {first_line(error)}') from error


def _fetch_config(address: str, repo: str, file: str, revision: str | None) -> None:
    """Downloads the ``config.json`` beside a file, if the repository has one."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        hf_hub_download(repo, str(PurePosixPath(file).with_name('config.json')), revision=revision)
    except LocalEntryNotFoundError:
        print_log(
            f'{address}: its config.json cannot be downloaded, so arguments such as hidden_act are '
            'not compared with it',
            logger='current',
            level=logging.WARNING,
        )
    except EntryNotFoundError:
        pass  # the repository has none
