"""Run lengths of masks, against pycocotools."""

import numpy as np
import pytest

from convnext_backbone.engine.run_lengths import pixels_of

coco_masks = pytest.importorskip('pycocotools.mask')


@pytest.mark.parametrize('share', [0, 0.01, 0.3, 0.99, 1])
def test_the_sum_of_all_run_lengths_is_the_image(share):
    rng = np.random.default_rng(0)
    for height, width in ((1, 1), (7, 5), (64, 33), (480, 640)):
        mask = np.asfortranarray(rng.random((height, width)) < share, np.uint8)
        text = coco_masks.encode(mask)['counts'].decode()
        assert pixels_of(text) == height * width
        # One more run, of at least one pixel.
        assert pixels_of(text + '1') > height * width


def test_long_runs_and_differences_below_zero():
    polygons = [[10.0, 10.0, 3000.0, 12.0, 2500.0, 3900.0]]
    text = coco_masks.frPyObjects(polygons, 4000, 4000)[0]['counts'].decode()
    assert pixels_of(text) == 4000 * 4000
    assert pixels_of([1, 2, 3]) == 6
    assert pixels_of([10**30]) == 10**30


@pytest.mark.parametrize('text', ['abc\x01', 'P', 'o' * 20, 'é', '\ud800', 'O'])
def test_damaged_text_has_no_sum(text):
    assert pixels_of(text) is None
