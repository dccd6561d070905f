"""The generated dataset, read with pycocotools and compared with its pixels."""

import colorsys

import cv2
import numpy as np
import pytest
from helpers import run_tool
from pycocotools.coco import COCO

GENERATOR = 'dataset_converters/make_shapes_dataset.py'
ARGS = ('--train', 12, '--val', 5, '--size', 96)
CORNERS = {'square': 4, 'triangle': 3}


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    out = tmp_path_factory.mktemp('shapes')
    run_tool(GENERATOR, out, *ARGS, '--seed', 3, cwd=out)
    return out


@pytest.mark.parametrize(('split', 'count'), [('train', 12), ('val', 5)])
def test_annotations_fit_the_pixels(dataset, split, count):
    coco = COCO(dataset / f'annotations/instances_{split}.json')
    assert len(coco.imgs) == count
    for image_id, info in coco.imgs.items():
        image = cv2.imread(str(dataset / split / info['file_name']))
        assert image.shape == (info['height'], info['width'], 3) == (96, 96, 3)
        annotations = coco.loadAnns(coco.getAnnIds(image_id))
        assert 1 <= len(annotations) <= 3
        masks = [coco.annToMask(annotation).astype(bool) for annotation in annotations]
        assert sum(masks).max() == 1, 'objects overlap'
        for annotation, mask in zip(annotations, masks, strict=True):
            x, y, width, height = annotation['bbox']
            rows, columns = np.nonzero(mask)
            # The tip of a triangle covers less than half of its pixels.
            assert columns.min() == pytest.approx(x, abs=2)
            assert rows.min() == pytest.approx(y, abs=2)
            assert columns.max() + 1 == pytest.approx(x + width, abs=2)
            assert rows.max() + 1 == pytest.approx(y + height, abs=2)
            assert mask.sum() == pytest.approx(annotation['area'], rel=0.1)
            name = coco.cats[annotation['category_id']]['name']
            assert len(annotation['segmentation'][0]) == 2 * CORNERS.get(name, 32)
        ground = image[~np.any(masks, axis=0)].mean(axis=0)
        assert np.ptp(ground) < 12, 'the ground is grey'


def test_colours_do_not_tell_the_class(tmp_path):
    run_tool(GENERATOR, tmp_path, '--train', 80, '--val', 1, '--size', 64, cwd=tmp_path)
    coco = COCO(tmp_path / 'annotations/instances_train.json')
    hues = {category_id: [] for category_id in coco.cats}
    for annotation in coco.anns.values():
        file_name = coco.imgs[annotation['image_id']]['file_name']
        image = cv2.imread(str(tmp_path / 'train' / file_name))
        blue, green, red = image[coco.annToMask(annotation) > 0].mean(axis=0) / 255
        hues[annotation['category_id']].append(colorsys.rgb_to_hsv(red, green, blue)[0])
    for values in hues.values():
        assert len(values) > 30
        # 0 for hues from all sides of the colour circle, 1 for a single hue.
        assert np.abs(np.exp(2j * np.pi * np.array(values)).mean()) < 0.4


@pytest.mark.parametrize('split', ['train', 'val'])
def test_masks_fit_the_polygons(dataset, split):
    coco = COCO(dataset / f'annotations/instances_{split}.json')
    names = sorted(info['file_name'] for info in coco.imgs.values())
    assert sorted(path.name for path in (dataset / 'masks' / split).iterdir()) == names
    seen = set()
    for image_id, info in coco.imgs.items():
        path = dataset / 'masks' / split / info['file_name']
        mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert mask.shape == (info['height'], info['width'])
        assert mask.dtype == np.uint8
        expected = np.zeros_like(mask)
        for annotation in coco.loadAnns(coco.getAnnIds(image_id)):
            expected[coco.annToMask(annotation) > 0] = annotation['category_id']
        assert set(np.unique(mask)) == set(np.unique(expected)), 'labels'
        # OpenCV also paints pixels that the edge only touches, up to two at a sharp tip.
        edge = cv2.morphologyEx(expected, cv2.MORPH_GRADIENT, np.ones((5, 5), np.uint8)) > 0
        assert (mask == expected)[~edge].all()
        assert (mask != expected).mean() < 0.02
        seen |= set(np.unique(mask))
    assert seen == {0, 1, 2, 3}


def test_the_same_arguments_give_the_same_files(dataset, tmp_path):
    for seed in (3, 4):
        run_tool(GENERATOR, seed, *ARGS, '--seed', seed, cwd=tmp_path)
    files = sorted(path.relative_to(dataset) for path in dataset.rglob('*.*'))
    assert len(files) == 2 * (12 + 5) + 2
    for path in files:
        content = (dataset / path).read_bytes()
        assert (tmp_path / '3' / path).read_bytes() == content
        assert (tmp_path / '4' / path).read_bytes() != content


def test_the_splits_differ(dataset):
    train, val = (dataset / split / '000001.png' for split in ('train', 'val'))
    assert train.read_bytes() != val.read_bytes()
