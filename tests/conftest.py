"""Fixtures of all test modules, and what is not tested where a library is missing."""

import logging
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch
from mmengine.logging import MMLogger

NEEDS = {
    'mmdet': (
        *('test_checkpoint_entry_points.py', 'test_classification_training.py'),
        *('test_classify.py', 'test_complexity.py', 'test_configs.py', 'test_figures.py'),
        *('test_dataset_checks.py', 'test_detection_configs.py', 'test_distributed.py'),
        *('test_image_folder.py', 'test_packaging.py', 'test_resuming.py'),
        'test_segmentation_configs.py',
        *('test_segmentation_training.py', 'test_shapes_dataset.py', 'test_training.py'),
    ),
    'transformers': (
        *('test_benchmark.py', 'test_checkpoint_audit.py', 'test_checkpoint_formats.py'),
        *('test_checkpoint_sources.py', 'test_checkpoint_tool.py', 'test_checkpoint_variants.py'),
        *('test_classifier.py', 'test_classify.py', 'test_corruptions.py'),
        *('test_hf_config.py', 'test_ops.py', 'test_parity.py'),
    ),
}
collect_ignore = [
    module for library, modules in NEEDS.items() if find_spec(library) is None for module in modules
]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


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
