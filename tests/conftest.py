"""Fixtures of all test modules, and what is not tested where a library is missing."""

import logging
import os
import runpy
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch

# Triton reads this when kernels are defined: without a card, its interpreter runs them.
if not torch.cuda.is_available():
    os.environ.setdefault('TRITON_INTERPRET', '1')

import pytest
from mmengine.logging import MMLogger

from convnext_backbone.ops import native, timings

NEEDS = {
    'mmdet': (
        *('test_checkpoint_entry_points.py', 'test_classification_training.py'),
        *('test_classify.py', 'test_complexity.py', 'test_configs.py', 'test_figures.py'),
        *(
            'test_bad_settings.py',
            'test_dataset_checks.py',
            'test_detection_configs.py',
            'test_distributed.py',
        ),
        *('test_docs.py', 'test_generated_docs.py', 'test_image_folder.py'),
        *('test_new_config.py', 'test_notebook.py', 'test_packaging.py', 'test_recipes.py'),
        *('test_resuming.py', 'test_segmentation_configs.py', 'test_setup_checks.py'),
        *('test_segmentation_training.py', 'test_shapes_dataset.py', 'test_training.py'),
    ),
    'transformers': (
        *('test_benchmark.py', 'test_check_gpu.py'),
        *('test_checkpoint_audit.py', 'test_checkpoint_formats.py'),
        *('test_checkpoint_sources.py', 'test_checkpoint_tool.py'),
        *('test_classifier.py', 'test_classify.py', 'test_corruptions.py'),
        *('test_extraction.py', 'test_hf_config.py', 'test_ops.py', 'test_parity.py'),
    ),
}
collect_ignore = [
    module for library, modules in NEEDS.items() if find_spec(library) is None for module in modules
]


# The first files of a run: with several processes, none of these is left alone at its end.
SLOWEST = (
    'test_training.py',
    'test_classification_training.py',
    'test_complexity.py',
    'test_detection_configs.py',
    'test_distributed.py',
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    names = [item.path.name for item in items]
    order = {name: i for i, name in enumerate(dict.fromkeys([*SLOWEST, *names]))}
    items.sort(key=lambda item: order[item.path.name])


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker('cuda') and not torch.cuda.is_available():
        pytest.skip('needs a GPU')


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_times(request, monkeypatch, tmp_path) -> None:
    """On a card, blocks are timed: the user's file must not get the times of tests."""
    if request.node.get_closest_marker('cuda'):
        monkeypatch.setattr(timings, 'file', lambda: tmp_path / 'times.json')


@pytest.fixture(params=['cpu', pytest.param('cuda', marks=pytest.mark.cuda)])
def triton_device(request) -> Iterator[str]:
    """The device of all new tensors: on a card, Triton compiles; on the CPU, it interprets."""
    if request.param == 'cpu' and os.environ.get('TRITON_INTERPRET') != '1':
        pytest.skip('the kernels are compiled, for a card')
    with torch.device(request.param):
        yield request.param


@pytest.fixture(params=['compiled', 'torch'])
def kernels(request, monkeypatch):
    """Runs a test with compiled kernels and without."""
    if request.param == 'torch':
        monkeypatch.setattr(native, 'load_kernels', lambda: False)
    elif not native.load_kernels():
        pytest.skip('the kernels are not built: python -m convnext_backbone.ops.build')
    return request.param


@pytest.fixture
def run_script(monkeypatch, capsys):
    """Runs a script in this process; returns its exit status, its output and its errors."""

    def run(script: Path, *args: object) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, 'argv', [str(script), *map(str, args)])
        monkeypatch.syspath_prepend(str(script.parent))
        code: object = 0
        try:
            runpy.run_path(str(script), run_name='__main__')
        except SystemExit as ended:
            code = ended.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def capture_log() -> Iterator[list[str]]:
    """The messages that mmengine's logger gets during the test."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)
