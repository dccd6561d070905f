"""Checks the image folder, transforms, batch mixing and accuracy with closed forms."""

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import run_tool
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS, METRICS, MODELS
from mmengine.structures import BaseDataElement

from convnext_backbone.data import (
    Accuracy,
    ImageFolder,
    MixingDataPreprocessor,
    PackInputs,
    RandomErasing,
    RandomResizedCrop,
)

PIPELINE = [dict(type='LoadImageFromFile'), dict(type='ConvNextPackInputs')]


@pytest.fixture
def folder(tmp_path):
    """Four images of three classes, each with its own shade."""
    names = ('cat/b.jpg', 'cat/a.JPEG', 'Dog/x.png', 'ant/1.jpg', 'ant/notes.txt', '.cache/y.png')
    for shade, name in enumerate(names):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if path.suffix == '.txt':
            path.write_text('no image')
        else:
            cv2.imwrite(str(path), np.full((6, 8, 3), 40 * shade, np.uint8))
    return tmp_path


def listing(dataset):
    paths = [dataset.get_data_info(i) for i in range(len(dataset))]
    return [(info['img_path'].rsplit('/', 2)[1:], info['gt_label']) for info in paths]


def test_classes_are_the_sorted_folders(folder):
    dataset = DATASETS.build(
        dict(type='ConvNextImageFolder', data_root=str(folder), pipeline=PIPELINE)
    )
    assert dataset.metainfo['classes'] == ('Dog', 'ant', 'cat')
    assert listing(dataset) == [
        (['Dog', 'x.png'], 0),
        (['ant', '1.jpg'], 1),
        (['cat', 'a.JPEG'], 2),
        (['cat', 'b.jpg'], 2),
    ]
    data = dataset[2]
    assert data['inputs'].shape == (3, 6, 8)
    assert data['inputs'].dtype == torch.uint8
    assert data['inputs'].float().mean() == pytest.approx(40, abs=1)
    sample = data['data_samples']
    assert sample.gt_label == 2
    assert sample.img_path.endswith('cat/a.JPEG')
    assert sample.ori_shape == sample.img_shape == (6, 8)
    assert sample.sample_idx == 2
    assert dataset.get_cat_ids(2) == [2]


def test_metainfo_gives_the_classes_and_their_order(folder):
    dataset = ImageFolder(str(folder), metainfo=dict(classes=['cat', 'ant']), indices=2)
    assert listing(dataset) == [(['cat', 'a.JPEG'], 0), (['cat', 'b.jpg'], 0)]
    with pytest.raises(FileNotFoundError, match="class 'cow' has no folder"):
        ImageFolder(str(folder), metainfo=dict(classes=['cat', 'cow']))


def test_folders_without_images_are_reported(folder, tmp_path):
    (folder / 'empty').mkdir()
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    try:
        dataset = ImageFolder(str(folder))
    finally:
        logger.removeHandler(handler)
    assert dataset.metainfo['classes'] == ('Dog', 'ant', 'cat', 'empty')
    assert ['class folders empty of' in r.getMessage() for r in records] == [True]
    with pytest.raises(FileNotFoundError, match='is not a folder'):
        ImageFolder(str(folder / 'missing'))
    with pytest.raises(FileNotFoundError, match='no class folders'):
        ImageFolder(str(folder / 'empty'))
    with pytest.raises(FileNotFoundError, match=r'no images.*\.jpeg'):
        ImageFolder(str(folder), metainfo=dict(classes=['empty']))


def ramp(height, width):
    """An image whose pixels contain their position: row, column, 0."""
    rows, columns = np.indices((height, width))
    return np.stack([rows, columns, np.zeros_like(rows)], axis=-1).astype(np.uint8)


def test_crops_keep_to_area_and_ratio():
    np.random.seed(0)
    areas, centres = [], []
    crop = RandomResizedCrop(32, area=(0.2, 0.5), ratio=(0.5, 2.0))
    for _ in range(300):
        result = crop.transform(dict(img=ramp(200, 100)))
        image = result['img'].astype(float)
        assert image.shape == (32, 32, 3)
        assert result['img_shape'] == (32, 32)
        assert not image[..., 2].any()
        # The size of the crop in the original image.
        height = (image[-2, 0, 0] - image[1, 0, 0]) * 32 / 29
        width = (image[0, -2, 1] - image[0, 1, 1]) * 32 / 29
        areas.append(height * width / 20000)
        assert 0.4 < width / height < 2.4
        centres.append(image[16, 16, :2])
    assert 0.16 < min(areas) < 0.24 and 0.45 < max(areas) < 0.55
    assert np.mean(areas) == pytest.approx(0.35, abs=0.02)
    assert np.mean(centres, axis=0) == pytest.approx([100, 50], abs=4)


def test_a_crop_that_does_not_fit_is_clipped():
    crop = RandomResizedCrop(8, area=(1.0, 1.0), ratio=(1.0, 1.0))
    image = crop.transform(dict(img=ramp(200, 10)))['img']
    # Ten columns, so ten of the 200 rows.
    assert np.ptp(image[..., 1]) <= 9 and np.ptp(image[..., 0]) <= 9
    assert np.ptp(image[..., 1]) >= 7


def test_erasing_replaces_one_rectangle_by_noise():
    np.random.seed(0)
    blank = np.zeros((60, 80, 3), np.uint8)
    erase = RandomErasing(prob=0.5, area=(0.1, 0.2), mean=(100.0, 150, 200), std=(5.0, 5, 5))
    shares = []
    for _ in range(200):
        image = erase.transform(dict(img=blank))['img']
        rows, columns = np.nonzero(image.any(axis=-1))
        if rows.size:
            height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
            assert rows.size == height * width
            assert 0.25 < width / height < 4
            shares.append(rows.size / blank[..., 0].size)
            assert image[rows, columns].mean(axis=0) == pytest.approx([100, 150, 200], abs=2)
            assert image[rows, columns].std() > 2
    assert not blank.any()
    assert 70 < len(shares) < 130
    assert min(shares) > 0.08
    assert max(shares) < 0.22


def batch(count=4, height=24, width=36):
    """Images with one constant value per image, and their labels."""
    inputs = [torch.full((3, height, width), i * 10, dtype=torch.uint8) for i in range(count)]
    samples = [BaseDataElement(gt_label=torch.tensor(i % 3)) for i in range(count)]
    return dict(inputs=inputs, data_samples=samples)


def preprocessor(**args):
    return MODELS.build(
        dict(type='MixingDataPreprocessor', num_labels=3, mean=[5.0], std=[2.0], **args)
    )


def test_mixup_blends_images_as_it_blends_labels():
    mix = preprocessor(mixup_alpha=0.8)
    shares = []
    for _ in range(100):
        data = mix(batch(), training=True)
        scores = [sample.gt_score.tolist() for sample in data['data_samples']]
        # Images 0 and 3 have class 0; the scores of images 1 and 2 give the mixing ratio.
        lam = scores[1][1]
        shares.append(lam)
        expected = [[1, 0, 0], [0, lam, 1 - lam], [0, 1 - lam, lam], [1, 0, 0]]
        assert np.allclose(scores, expected, atol=1e-6)
        values = torch.tensor([0, 10, 20, 30.0])
        blended = (lam * values + (1 - lam) * values.flip(0) - 5) / 2
        assert torch.allclose(
            data['inputs'], blended[:, None, None, None].expand(4, 3, 24, 36), atol=1e-4
        )
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1)).
    assert np.mean(shares) == pytest.approx(0.5, abs=0.1)
    assert np.var(shares) == pytest.approx(1 / (4 * 2.6), abs=0.03)


def test_cutmix_pastes_the_area_that_its_labels_tell():
    mix = preprocessor(cutmix_alpha=1.0)
    shares = []
    for _ in range(100):
        data = mix(batch(), training=True)
        image, score = data['inputs'][1], data['data_samples'][1].gt_score
        pasted = image[0] == (20 - 5) / 2
        assert torch.equal(image[0] == (10 - 5) / 2, ~pasted)
        assert pasted.float().mean().item() == pytest.approx(score[2].item(), abs=1e-6)
        rows, columns = pasted.nonzero(as_tuple=True)
        if len(rows):
            assert len(rows) == (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
        shares.append(score[2].item())
    assert min(shares) < 0.1 and max(shares) > 0.5


def test_both_mixings_are_drawn_but_not_in_evaluation():
    mix = preprocessor(mixup_alpha=0.8, cutmix_alpha=1.0)
    kinds = {len(mix(batch(), training=True)['inputs'][1].unique()) for _ in range(40)}
    assert kinds == {1, 2}
    data = mix(batch(), training=False)
    assert data['inputs'][:, 0, 0, 0].tolist() == [-2.5, 2.5, 7.5, 12.5]
    assert not any('gt_score' in sample for sample in data['data_samples'])


def test_bad_mixing_is_refused():
    for args in (dict(), dict(mixup_alpha=-0.1, cutmix_alpha=1.0)):
        with pytest.raises(ValueError, match='one must be positive'):
            MixingDataPreprocessor(num_labels=3, **args)
    mix = MixingDataPreprocessor(num_labels=2, mixup_alpha=1.0)
    with pytest.raises(ValueError, match=r'between 0 and 1 .*got 2'):
        mix(batch(), training=True)
    data = batch()
    for sample in data['data_samples']:
        sample.gt_label = sample.gt_label.float()
    with pytest.raises(TypeError, match=r'class indices.*float32'):
        mix(data, training=True)


def evaluate(metric, scores, labels):
    for score, label in zip(scores, labels, strict=True):
        metric.process({}, [dict(pred_score=torch.tensor(score), gt_label=torch.tensor(label))])
    return metric.evaluate(size=len(labels))


def test_accuracy_counts_labels_among_the_top():
    metric = METRICS.build(dict(type='ConvNextAccuracy', topk=(1, 2, 3)))
    scores = [[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.6, 0.1, 0.3]]
    # Ranks of the labels: 1, 2, 3, 3.
    metrics = evaluate(metric, scores, [1, 1, 0, 1])
    assert metrics == {'accuracy/top1': 25, 'accuracy/top2': 50, 'accuracy/top3': 100}
    assert evaluate(Accuracy(topk=[1]), scores, [[1], [0], [2], [0]]) == {'accuracy/top1': 100}


def test_bad_accuracy_is_refused():
    for topk in ((), (0, 1)):
        with pytest.raises(ValueError, match='topk must be'):
            Accuracy(topk=topk)
    with pytest.raises(ValueError, match='as many classes, got 3: lower topk'):
        evaluate(Accuracy(), [[0.2, 0.3, 0.5]], [1])
    with pytest.raises(ValueError, match='one class between 0 and 2, got 3'):
        evaluate(Accuracy(topk=(1,)), [[0.2, 0.3, 0.5]], [3])
    with pytest.raises(ValueError, match='gt_label in every data sample'):
        Accuracy(topk=(1,)).process({}, [dict(pred_score=torch.zeros(3))])


def test_images_without_labels_are_packed_too():
    data = PackInputs().transform(dict(img=ramp(4, 5), img_path='a.png'))
    assert data['inputs'].shape == (3, 4, 5)
    assert data['inputs'][1, 0].tolist() == [0, 1, 2, 3, 4]
    assert 'gt_label' not in data['data_samples']


def test_generated_folder_has_one_shape_per_image(tmp_path):
    args = ('--train', 20, '--val', 6, '--size', 192, '--seed', 5)
    for out in ('one', 'two'):
        run_tool('dataset_converters/make_shapes_folder.py', out, *args, cwd=tmp_path)
    # The second moment of each shape for an area of 1.
    moments = {'circle': 1 / (2 * np.pi), 'square': 1 / 6, 'triangle': 1 / 27**0.5}
    for split, count in (('train', 20), ('val', 6)):
        dataset = ImageFolder(
            str(tmp_path / 'one' / split),
            metainfo=dict(classes=list(moments)),
            serialize_data=False,
        )
        assert len(dataset) == count
        for info in dataset.data_list:
            path = info['img_path']
            twin = path.replace('/one/', '/two/')
            assert Path(path).read_bytes() == Path(twin).read_bytes()
            image = cv2.imread(path).astype(float)
            assert image.shape == (192, 192, 3)
            ground = np.median(image, axis=(0, 1))
            difference = np.abs(cv2.blur(image, (5, 5)) - ground).max(axis=-1)
            shape = (difference > difference.max() / 2).astype(np.uint8)
            assert cv2.connectedComponents(shape)[0] == 2
            found = cv2.moments(shape, binaryImage=True)
            nearest = np.abs(np.array([*moments.values()]) - found['nu20'] - found['nu02']).argmin()
            assert nearest == info['gt_label']
