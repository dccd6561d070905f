"""The figures of the demos show classes by colour and leave the objects as they are."""

import cv2
import matplotlib
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData

matplotlib.use('Agg')
from figures import draw_instances, separate_labels
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb

META = dict(classes=('circle', 'square'), palette=[(213, 94, 0), (0, 114, 178)])


@pytest.fixture
def drawn(tmp_path):
    """An image with two objects, and a drawing: the first is found, the second with a low score."""
    image = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)
    cv2.imwrite(str(tmp_path / 'image.png'), image[..., ::-1])
    masks = np.zeros((2, 64, 80), np.uint8)
    masks[0, 20:30, 5:25] = 1
    masks[1, 2:40, 50:70] = 1
    boxes = torch.tensor([[5.0, 20, 25, 30], [50, 2, 70, 40]])
    labels = torch.tensor([1, 0])
    sample = DetDataSample(metainfo=dict(img_path=str(tmp_path / 'image.png')))
    found = dict(bboxes=boxes, labels=labels)
    sample.gt_instances = InstanceData(**found, masks=BitmapMasks(masks, 64, 80))
    found.update(masks=torch.from_numpy(masks).bool(), scores=torch.tensor([0.9, 0.4]))
    sample.pred_instances = InstanceData(**found)
    figure, axis = plt.subplots()
    draw_instances(axis, sample, META)
    yield axis, image
    plt.close(figure)


def test_a_class_has_one_colour_in_truth_and_prediction(drawn):
    axis, _ = drawn
    colors = np.array(META['palette']) / 255
    labels = {text.get_text(): text for text in axis.texts}
    assert list(labels) == ['square', 'circle', 'square 0.90']
    expected = [colors[1], colors[0], colors[1]]
    outlines = [line for line in axis.lines if len(line.get_xdata()) > 2]
    for found in (
        [to_rgb(line.get_color()) for line in outlines],
        [to_rgb(patch.get_edgecolor()) for patch in axis.patches],
        [to_rgb(text.get_bbox_patch().get_facecolor()) for text in axis.texts],
    ):
        np.testing.assert_allclose(found, expected)
    # The prediction is drawn on the second copy of the image.
    assert min(outlines[2].get_xdata()) == 80 + 5


def test_objects_keep_their_colours(drawn):
    axis, image = drawn
    (shown,) = axis.images
    np.testing.assert_array_equal(shown.get_array(), np.hstack([image, image]))
    assert not any(patch.get_fill() for patch in axis.patches)


def test_labels_are_inside_of_the_picture(drawn):
    axis, _ = drawn
    axis.figure.canvas.draw()
    inside = axis.get_window_extent()
    for text in axis.texts:
        box = text.get_window_extent()
        assert inside.y0 <= box.y0 < box.y1 <= inside.y1
        assert inside.x0 <= box.x0 < box.x1 <= inside.x1
        assert text.get_fontsize() >= 9


def test_no_label_covers_another(tmp_path):
    cv2.imwrite(str(tmp_path / 'image.png'), np.zeros((64, 80, 3), np.uint8))
    # Three objects at one place near the top, and two near the bottom.
    boxes = torch.tensor([[30.0, 12, 60, 30], [31, 12, 60, 30], [30, 13, 61, 31]])
    boxes = torch.cat([boxes, torch.tensor([[20.0, 60, 40, 63], [21, 59, 40, 63]])])
    masks = np.zeros((5, 64, 80), np.uint8)
    sample = DetDataSample(metainfo=dict(img_path=str(tmp_path / 'image.png')))
    found = dict(bboxes=boxes, labels=torch.tensor([0, 1, 0, 1, 0]))
    sample.gt_instances = InstanceData(**found, masks=BitmapMasks(masks, 64, 80))
    found.update(masks=torch.from_numpy(masks).bool(), scores=torch.full((5,), 0.9))
    sample.pred_instances = InstanceData(**found)
    figure, axis = plt.subplots(figsize=(7, 3), layout='constrained')
    draw_instances(axis, sample, META)
    separate_labels(axis)
    figure.canvas.draw()
    inside = axis.get_window_extent()
    labels = [text.get_bbox_patch().get_window_extent() for text in axis.texts]
    assert len(labels) == 10
    for i, box in enumerate(labels):
        assert not any(box.overlaps(other) for other in labels[:i])
        assert inside.y0 <= box.y0 < box.y1 <= inside.y1
    plt.close(figure)
