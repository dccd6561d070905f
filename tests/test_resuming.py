"""Interrupted runs: they resume exactly, from a good checkpoint of their own folder."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from convnext_backbone.engine import find_resumable, resume_from

CASES = 3


@pytest.fixture(scope='module')
def output(tmp_path_factory):
    script = Path(__file__).with_name('interrupted_runs.py')
    result = subprocess.run(
        [sys.executable, str(script), str(tmp_path_factory.mktemp('runs'))],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def test_killed_and_resumed_runs_end_as_uninterrupted_ones(output):
    assert output.count(': equal True, trained True') == CASES, output


def test_runs_that_cannot_continue_exactly_say_so(output):
    assert 'other processes: {0} True' in output, output
    for line in ('other seed', 'other epochs', 'as before'):
        assert f'{line}: True' in output, output


def test_a_copied_run_with_a_damaged_checkpoint_resumes_from_the_previous_one(output):
    assert 'copied: {0} True' in output, output
    assert 'direct: {0} True' in output, output
    for line in ('resumed from', 'new best', 'original untouched'):
        assert f'{line}: True' in output, output


@pytest.mark.parametrize(
    ('name', 'reason'),
    [
        ('empty.pth', 'empty.pth is truncated or damaged (0 bytes)'),
        ('missing.pth', 'no such checkpoint: missing.pth'),
    ],
)
def test_a_given_checkpoint_that_cannot_be_read_is_refused_in_one_line(output, name, reason):
    (line,) = [line for line in output.splitlines() if line.startswith(f'given {name}')]
    assert line.startswith(f'given {name} {{2}} train.py: error: ')
    assert line.endswith(reason)


WEIGHT = torch.full((100,), 1.5)


def save(path: Path, iteration: int, **more) -> Path:
    """A checkpoint with what mmengine needs to resume."""
    meta = dict(iter=iteration, epoch=0, seed=5)
    path.parent.mkdir(exist_ok=True)
    content = dict(meta=meta, state_dict=dict(weight=WEIGHT), optimizer={}, message_hub={})
    torch.save(content | more, path)
    return path


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


@pytest.fixture
def run(tmp_path):
    """A run with three checkpoints, the last of which is noted; names do not sort by number."""
    for iteration in (8, 9, 10):
        path = save(tmp_path / f'run/iter_{iteration}.pth', iteration)
    (tmp_path / 'run/last_checkpoint').write_text(str(path))
    save(tmp_path / 'run/best_iter_12.pth', 12)
    return tmp_path / 'run'


@pytest.fixture
def warned(monkeypatch):
    """The messages of the module, as a list."""
    messages = []
    monkeypatch.setattr('convnext_backbone.engine.resuming._warn', messages.append)
    return messages


def test_the_noted_checkpoint_is_taken_without_a_warning(run, warned):
    assert find_resumable(run) == str(run / 'iter_10.pth')
    save(run / 'iter_11.pth', 11)
    assert find_resumable(run) == str(run / 'iter_10.pth')
    assert warned == []


FAULTS = ('truncated', 'a byte', 'empty', 'missing', 'weights only', 'unnoted')


@pytest.mark.parametrize('fault', FAULTS)
def test_the_previous_good_checkpoint_is_taken_with_a_warning(run, warned, fault):
    last = run / 'iter_10.pth'
    if fault == 'truncated':
        truncate(last)
    elif fault == 'a byte':  # which torch does not see
        content = last.read_bytes()
        last.write_bytes(content.replace(WEIGHT.numpy().tobytes(), (WEIGHT + 1).numpy().tobytes()))
    elif fault == 'empty':
        last.write_bytes(b'')
    elif fault == 'missing':
        last.unlink()
    elif fault == 'weights only':
        torch.save(dict(state_dict={}), last)
    else:
        (run / 'last_checkpoint').unlink()
    expected = run / ('iter_10.pth' if fault == 'unnoted' else 'iter_9.pth')
    assert find_resumable(run) == str(expected)
    (message,) = warned
    assert f'resumes from {expected}' in message
    assert ('last_checkpoint is missing' if fault == 'unnoted' else str(last)) in message


def test_all_damaged_is_an_error_that_lists_them(run, warned):
    for path in run.glob('iter_*.pth'):
        truncate(path)
    with pytest.raises(ValueError, match=r'no checkpoint in .* is good') as caught:
        find_resumable(run)
    assert all(f'iter_{i}.pth is truncated' in str(caught.value) for i in (8, 9, 10))


def test_a_moved_run_stays_in_its_folder(run, warned, tmp_path):
    moved = run.rename(tmp_path / 'moved')
    save(run / 'iter_10.pth', 10)
    assert find_resumable(moved) == str(moved / 'iter_10.pth')
    (message,) = warned
    assert f'names {run}/iter_10.pth, in another folder' in message


def test_checkpoints_in_another_out_dir_are_found(run, warned, tmp_path):
    out = tmp_path / 'out/run'
    path = save(save(tmp_path / 'out/none.pth', 0).parent / 'run/iter_10.pth', 10)
    (run / 'last_checkpoint').write_text(str(path))
    assert find_resumable(run, tmp_path / 'out') == str(out / 'iter_10.pth')
    assert warned == []


def test_an_empty_folder_starts_anew_with_the_weights_of_the_config(tmp_path):
    assert find_resumable(tmp_path / 'none') is None
    cfg = Config(dict(work_dir=str(tmp_path), load_from='weights.pth', resume=True))
    resume_from(cfg)
    assert (cfg.resume, cfg.load_from) == (False, 'weights.pth')


@pytest.mark.parametrize(('given', 'used'), [(None, 5), (7, 7)])
def test_the_data_is_shuffled_as_before(run, given, used):
    cfg = Config(dict(work_dir=str(run), load_from='weights.pth', randomness=dict(seed=given)))
    resume_from(cfg)
    assert (cfg.resume, cfg.load_from) == (True, str(run / 'iter_10.pth'))
    assert cfg.randomness.seed == used
