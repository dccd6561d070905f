"""The package refuses libraries that are older than it needs, when it is imported."""

import configparser
import subprocess
import sys

import pytest
from helpers import REPO

from convnext_backbone.versions import OLDEST, check_version


@pytest.mark.parametrize(
    ('library', 'found'),
    [
        ('torch', '2.6.0'),
        ('torch', '2.13.0+cpu'),
        ('torch', '2.7.0.dev20250101'),
        ('torch', '2.6.0a0+df5bbc09d1.nv24.11'),
        ('mmengine', '0.10.6'),
        ('mmengine', '0.10.12'),
        ('mmengine', '1.0.0rc1'),
    ],
)
def test_newer_versions_are_accepted(library, found):
    check_version(library, found)


@pytest.mark.parametrize(
    ('library', 'found'),
    [('torch', '2.5.1+cu124'), ('torch', '1.13.1'), ('mmengine', '0.10.5'), ('mmengine', '0.9.1')],
)
def test_older_versions_are_refused(library, found):
    with pytest.raises(ImportError) as caught:
        check_version(library, found)
    oldest = OLDEST[library]
    assert str(caught.value) == (
        f'convnext_backbone needs {library} {oldest} or newer, found {library} {found}: '
        f"upgrade it, with pip install --upgrade '{library}>={oldest}'"
    )


def test_the_import_checks_both():
    script = (
        'import mmengine, torch\n'
        'for library, old in ((torch, "2.5.1"), (mmengine, "0.10.5")):\n'
        '    library.__version__, version = old, library.__version__\n'
        '    try:\n'
        '        import convnext_backbone\n'
        '    except ImportError as error:\n'
        '        print(error)\n'
        '    library.__version__ = version\n'
    )
    result = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    assert [line.split(':')[0] for line in result.stdout.splitlines()] == [
        'convnext_backbone needs torch 2.6.0 or newer, found torch 2.5.1',
        'convnext_backbone needs mmengine 0.10.6 or newer, found mmengine 0.10.5',
    ], result.stderr


def test_the_packaging_says_the_same():
    setup = configparser.ConfigParser()
    setup.read(REPO / 'setup.cfg')
    assert 'torch>=2.6' in setup['options']['install_requires'].split()
    assert f'mmengine>={OLDEST["mmengine"]},<1' in setup['options.extras_require']['openmmlab']
    pinned = (REPO / 'requirements/oldest.txt').read_text().splitlines()
    assert {f'{library}=={oldest}' for library, oldest in OLDEST.items()} <= set(pinned)
