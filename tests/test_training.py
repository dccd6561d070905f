"""Real runs of the command lines on generated shapes: train, test, resume."""

import json
import pickle
import re
import warnings
from pathlib import Path

import cv2
import pytest
import torch
from helpers import REPO, make_shapes, run_tool
from mmengine.config import Config
from mmengine.runner import Runner

CONFIG = REPO / 'configs/demo/mask-rcnn_convnext-atto_fpn_shapes.py'


def scalars(work_dir: Path) -> list[dict]:
    """The log of the latest run in ``work_dir``, one dict per line."""
    path = max(work_dir.glob('*/vis_data/scalars.json'))
    return [json.loads(line) for line in path.read_text().splitlines()]


def average_precisions(text: str) -> list[str]:
    return re.findall(r'coco/(?:bbox|segm)_mAP: ([-\d.]+)', text)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Three epochs of 30 iterations of the demo, in the folder with its data."""
    folder = tmp_path_factory.mktemp('run')
    make_shapes(folder, 120, 16)
    options = ['train_cfg.max_epochs=3', 'train_cfg.val_interval=3', 'param_scheduler.1.T_max=3']
    options += ['default_hooks.checkpoint.interval=1']
    output = run_tool(
        'train.py', CONFIG, '--work-dir', 'run', '--cfg-options', *options, cwd=folder
    )
    return folder, output


def test_loss_falls_and_ap_rises(trained):
    folder, _ = trained
    lines = scalars(folder / 'run')
    losses = [line['loss'] for line in lines if 'loss' in line]
    assert len(losses) == 9
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3])
    (metrics,) = [line for line in lines if 'coco/bbox_mAP' in line]
    assert metrics['coco/bbox_mAP'] > 0.1
    assert metrics['coco/segm_mAP'] > 0.2


def test_saved_weights_give_the_same_metrics_and_outputs(trained):
    folder, train_output = trained
    output = run_tool(
        *('test.py', CONFIG, 'run/epoch_3.pth', '--work-dir', 'tested'),
        *('--out', 'predictions.pkl', '--show-dir', 'drawn'),
        cwd=folder,
    )
    assert average_precisions(output) == average_precisions(train_output)
    assert len(average_precisions(output)) == 2
    predictions = pickle.loads((folder / 'predictions.pkl').read_bytes())
    assert len(predictions) == 16
    assert all(p['pred_instances']['bboxes'].shape[1] == 4 for p in predictions)
    drawn = sorted((folder / 'drawn').rglob('*'))
    assert [path.name for path in drawn] == [f'{i:06d}.png' for i in range(1, 17)]
    assert cv2.imread(str(drawn[0])).shape == (128, 256, 3)


def test_training_resumes_where_it_stopped(trained):
    folder, _ = trained
    options = ['train_cfg.max_epochs=4', 'train_cfg.val_interval=10']
    output = run_tool(
        *('train.py', CONFIG, '--work-dir', 'run', '--resume', '--cfg-options', *options),
        cwd=folder,
    )
    assert 'resumed epoch: 3, iter: 90' in output
    steps = [line['step'] for line in scalars(folder / 'run') if 'loss' in line]
    assert steps == [100, 110, 120]
    output = run_tool(
        *('train.py', CONFIG, '--work-dir', 'other', '--resume', 'run/epoch_4.pth'),
        *('--cfg-options', 'train_cfg.max_epochs=4'),
        cwd=folder,
    )
    assert 'resumed epoch: 4, iter: 120' in output


@pytest.mark.parametrize('part', [None, 'neck'])
def test_a_detector_in_channels_last_is_stopped_before_the_first_iteration(
    trained, part, monkeypatch
):
    """RoIAlign would read its maps in the wrong order: losses fall, but AP stays 0."""
    folder, _ = trained
    monkeypatch.chdir(folder)
    cfg = Config.fromfile(CONFIG)
    cfg.work_dir = 'stopped'
    runner = Runner.from_cfg(cfg)
    model = runner.model if part is None else runner.model.get_submodule(part)
    with warnings.catch_warnings(action='ignore'):
        model.to(memory_format=torch.channels_last)
    for run in (runner.train, runner.val, runner.test):
        with pytest.raises(ValueError, match=r"channels_last.*mmcv's RoIAlign"):
            run()
    assert runner.iter == 0
    assert not list((folder / 'stopped').glob('*.pth'))
