"""Values in configs that only the classes that get them can judge: one sentence, status 2."""

import pytest
from helpers import REPO, make_shapes

from convnext_backbone.engine import setup_hook

CONFIG = REPO / 'configs/demo/mask-rcnn_convnext-atto_fpn_shapes.py'
IN_CHANNELS = 'model.neck.in_channels'


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('generated')
    make_shapes(folder, 4, 2, '--size', 32)
    return folder


@pytest.fixture
def error_of(data, run_script, monkeypatch):
    """Runs the script with settings; returns the last line that it prints."""
    monkeypatch.chdir(data)
    # Scripts change these.
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.setattr(setup_hook, '_checked', set())

    def run(*args):
        code, _, errors = run_script(REPO / 'tools/train.py', CONFIG, '--work-dir', 'run', *args)
        assert code == 2
        return errors.splitlines()[-1]

    return run


@pytest.mark.parametrize(
    ('setting', 'message'),
    [
        (
            'train_cfg.max_epochs=abc',
            "cannot build EpochBasedTrainLoop with max_epochs='abc': invalid literal",
        ),
        ('train_cfg.foo=3', 'EpochBasedTrainLoop.__init__() got an unexpected keyword argument'),
        ('train_dataloader.batch_size=0', 'cannot build DataLoader with batch_size=0'),
        ('optim_wrapper.optimizer.lr=abc', "cannot build AdamW with lr='abc', weight_decay=0.05: "),
        (
            'optim_wrapper.optimizer.type=Foo',
            "optim_wrapper.optimizer.type is 'Foo', which is no registered optimizer: choose",
        ),
        (
            'param_scheduler.0.end=abc',
            'cannot build LinearLR with start_factor=0.01, by_epoch=False, begin=0',
        ),
        (
            f'{IN_CHANNELS}=3',
            f'{IN_CHANNELS} is [3], but the backbone returns stage1, stage2, stage3, stage4 with '
            f'[40, 80, 160, 320] channels: set {IN_CHANNELS}=[40, 80, 160, 320]',
        ),
        (f'{IN_CHANNELS}=None', f'{IN_CHANNELS} is [None], but the backbone'),
        ('model.neck.num_outs=abc', "cannot build FPN with out_channels=64, num_outs='abc': "),
        ('val_evaluator.metric=foo', "metric='foo': metric should be one of 'bbox', 'segm'"),
    ],
)
def test_bad_values_are_told_with_their_part(setting, message, error_of):
    assert message in error_of('--cfg-options', setting)


@pytest.mark.parametrize('flag', [('--resume',), ('--cfg-options', 'load_from=')])
def test_folders_are_no_checkpoints(flag, error_of, data):
    (data / 'empty').mkdir(exist_ok=True)
    given = (*flag, 'empty') if flag[-1][-1] != '=' else (flag[0], f'{flag[1]}empty')
    assert 'empty is a folder, and only runner_type' in error_of(*given)


def test_errors_of_the_training_keep_their_traceback(error_of, monkeypatch):
    """Also if they are of the same kind as those of bad values."""
    from mmdet.models import RPNHead

    def fail(*args, **kwargs):
        raise ValueError('a bug')

    monkeypatch.setattr(RPNHead, 'loss', fail)
    monkeypatch.setattr(RPNHead, 'loss_and_predict', fail)
    with pytest.raises(ValueError, match='a bug'):
        error_of(
            '--cfg-options',
            'train_dataloader.num_workers=0',
            'train_dataloader.persistent_workers=False',
        )
