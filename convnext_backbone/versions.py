"""The oldest versions of torch and mmengine that the package works with."""

from __future__ import annotations

from mmengine.utils import digit_version

# setup.cfg and requirements/oldest.txt say the same.
OLDEST = {'torch': '2.6.0', 'mmengine': '0.10.6'}


def check_version(library: str, found: str) -> None:
    """Refuses a library that is older than in ``OLDEST``.

    Args:
        library: ``'torch'`` or ``'mmengine'``; the forks of mmengine have the same name.
        found: Its version, such as ``'2.13.0+cpu'``.

    Raises:
        ImportError: If it is older; the message says what is needed.
    """
    oldest = OLDEST[library]
    # Builds before a release, such as 2.6.0a0+nv24.11, count as the release.
    if digit_version(found)[:3] < digit_version(oldest)[:3]:
        raise ImportError(
            f'convnext_backbone needs {library} {oldest} or newer, found {library} {found}: '
            f"upgrade it, with pip install --upgrade '{library}>={oldest}'",
            name=library,
        )
