"""The structure of the code: imports run one way, names are unique, files are short."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import REPO
from mmengine.registry import DATASETS, METRICS, MODELS, TRANSFORMS

import convnext_backbone

PACKAGE = REPO / 'convnext_backbone'

# Each folder or module imports only from those before it.
ORDER = (
    *('arch', 'command_line', 'ops', 'checkpoint', 'models', 'engine', 'data'),
    *('extraction', 'integrations'),
)

# The same inside of models.
MODELS_ORDER = (
    *('checks', 'activations', 'fusion', 'drop_path', 'norms', 'embeddings', 'blocks'),
    *('encoder', 'base', 'out_features', 'deployed', 'freezing', 'backbone', 'model'),
    *('losses', 'classifier'),
)

MODULES = sorted(PACKAGE.rglob('*.py'))


def imported_modules(path: Path) -> set[tuple[str, ...]]:
    """The modules of the package that a file imports, as paths from the package's root."""
    folder = path.relative_to(PACKAGE).parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = folder[: len(folder) + 1 - node.level]
            module = tuple(node.module.split('.')) if node.module else ()
            found |= {base + module + (() if module else (alias.name,)) for alias in node.names}
    return found


@pytest.mark.parametrize('path', MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    own = path.relative_to(PACKAGE).with_suffix('').parts
    if len(own) == 1 and own[0] == '__init__':
        return
    for target in imported_modules(path):
        if target[0] != own[0]:
            assert ORDER.index(target[0]) < ORDER.index(own[0]), target
        elif own[0] == 'models' and own[1] != '__init__':
            assert MODELS_ORDER.index(target[1]) < MODELS_ORDER.index(own[1]), target


@pytest.mark.parametrize('path', MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) <= 300


def test_ops_know_nothing_of_modules():
    for path in PACKAGE.glob('ops/*.py'):
        assert 'nn' not in {
            alias.asname or alias.name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for alias in node.names
        }, path


def test_tools_shadow_no_standard_module():
    """Tests put only folders on the path in which no module has the name of a standard one."""
    for folder in (REPO / 'tools').iterdir():
        if folder.is_dir():
            names = {path.stem for path in folder.glob('*.py')}
            assert not names & sys.stdlib_module_names, folder
    # tools/test.py has its name from mmdet and would hide Python's own package of tests.
    assert str(REPO / 'tools') not in sys.path


def test_registry_names_belong_to_this_package():
    """Names such as Accuracy would hide mmpretrain's or mmdet's."""
    pytest.importorskip('mmcv')
    from convnext_backbone.data import ImageFolder

    ours = {
        name
        for registry in (DATASETS, METRICS, MODELS, TRANSFORMS)
        for name, entry in registry.module_dict.items()
        if getattr(entry, '__module__', '').startswith('convnext_backbone.')
    }
    assert ours == {
        *('ConvNextBackbone', 'ConvNextModel', 'ConvNextForImageClassification'),
        *('ConvNextAccuracy', 'ConvNextImageFolder', 'MixingDataPreprocessor'),
        *('ConvNextPackInputs', 'ConvNextRandomErasing', 'ConvNextRandomResizedCrop'),
    }
    assert ImageFolder is DATASETS.get('ConvNextImageFolder')


def test_import_without_mmengine_says_what_to_install():
    script = 'import sys; sys.modules["mmengine"] = None; import convnext_backbone'
    result = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    last = result.stderr.splitlines()[-1]
    assert result.returncode == 1
    assert last.startswith('ModuleNotFoundError: convnext_backbone needs mmengine')
    assert "'convnext-backbone[openmmlab]'" in last
    assert "'convnext-backbone[onedl]'" in last


def test_all_exported_names_are_there():
    for name in convnext_backbone.__all__:
        assert getattr(convnext_backbone, name) is not None
