"""Real runs of the command lines with a segmentor of generated shapes: train and test."""

import json
import pickle
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import REPO, make_shapes, run_tool

CONFIG = REPO / 'configs/demo/upernet_convnext-atto_shapes.py'
EPOCHS = 4


def mean_ious(text: str) -> list[str]:
    return re.findall(r'mIoU: ([\d.]+)', text)


def read_labels(path: Path) -> np.ndarray:
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Four epochs of 40 iterations of the demo, in the folder with its data."""
    folder = tmp_path_factory.mktemp('run')
    make_shapes(folder, 160, 16)
    options = [f'train_cfg.max_epochs={EPOCHS}', f'param_scheduler.1.T_max={EPOCHS}']
    options += [f'train_cfg.val_interval={EPOCHS}', f'default_hooks.checkpoint.interval={EPOCHS}']
    output = run_tool(
        'train.py', CONFIG, '--work-dir', 'run', '--cfg-options', *options, cwd=folder
    )
    return folder, output


def test_loss_falls_and_shapes_are_found(trained):
    folder, output = trained
    path = max((folder / 'run').glob('*/vis_data/scalars.json'))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    losses = [line['loss'] for line in lines if 'loss' in line]
    assert len(losses) == EPOCHS * 4
    assert sum(losses[-3:]) < 0.3 * sum(losses[:3])
    # Only background, which a model learns first, scores less than 25.
    (mean_iou,) = map(float, mean_ious(output))
    assert mean_iou > 30


def test_saved_weights_give_the_same_mean_iou_and_outputs(trained):
    folder, train_output = trained
    output = run_tool(
        *('test.py', CONFIG, f'run/epoch_{EPOCHS}.pth', '--work-dir', 'tested'),
        *('--out', 'predictions.pkl', '--show-dir', 'drawn'),
        cwd=folder,
    )
    assert mean_ious(output) == mean_ious(train_output)
    predictions = pickle.loads((folder / 'predictions.pkl').read_bytes())
    assert len(predictions) == 16
    assert all('seg_logits' not in prediction for prediction in predictions)
    labels = [prediction['pred_sem_seg']['data'][0].numpy() for prediction in predictions]
    masks = [folder / 'data/shapes/masks/val' / Path(p['img_path']).name for p in predictions]
    assert len(set(masks)) == 16
    truth = [read_labels(path) for path in masks]
    ious = [
        sum(((p == k) & (t == k)).sum() for p, t in zip(labels, truth, strict=True))
        / sum(((p == k) | (t == k)).sum() for p, t in zip(labels, truth, strict=True))
        for k in range(4)
    ]
    assert 100 * np.mean(ious) == pytest.approx(float(mean_ious(output)[0]), abs=0.006)
    drawn = sorted((folder / 'drawn').rglob('*'))
    assert [path.name for path in drawn] == [f'{i:06d}.png' for i in range(1, 17)]
    assert cv2.imread(str(drawn[0])).shape == (128, 256, 3)
