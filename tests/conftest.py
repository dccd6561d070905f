"""Fixtures of all test modules, and what is not tested without mmdet."""

from importlib.util import find_spec

import pytest
import torch

if find_spec('mmdet') is None:
    collect_ignore = [
        *('test_checkpoint_entry_points.py', 'test_classification_training.py'),
        *('test_complexity.py', 'test_configs.py', 'test_detection_configs.py'),
        *('test_distributed.py', 'test_image_folder.py', 'test_resuming.py'),
        *('test_segmentation_configs.py', 'test_segmentation_training.py'),
        *('test_shapes_dataset.py', 'test_training.py'),
    ]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
