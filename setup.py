"""Lets mmengine find the configs of an editable installation; all other settings: setup.cfg."""

from pathlib import Path

from setuptools import setup
from setuptools.command.editable_wheel import editable_wheel

PACKAGE = 'convnext_backbone'


class EditableWheel(editable_wheel):
    """mmengine looks for a package below site-packages, at the first line of ``top_level.txt``.

    An editable installation has no files there. An absolute path leads to them.
    """

    def _ensure_dist_info(self) -> None:
        super()._ensure_dist_info()
        names = Path(self.dist_info_dir, 'top_level.txt')
        names.write_text(f'{Path(PACKAGE).resolve()}\n{PACKAGE}\n')


setup(cmdclass=dict(editable_wheel=EditableWheel))
