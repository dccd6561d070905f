"""mmengine's checkpoints load with ``weights_only=True``, dangerous content does not."""

import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from helpers import load_whole
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, load_checkpoint

from convnext_backbone.checkpoint import read_mmengine_checkpoint


def load_with(content, path):
    """Saves ``content`` together with weights and loads it."""
    torch.save({'state_dict': {'weight': torch.ones(2)}, 'extra': content}, path)
    return load_whole(path)['extra']


class Call:
    """Pickles as a call of ``function`` with ``args``."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def test_history_buffers_come_back_whole(tmp_path):
    buffer = HistoryBuffer([1.0, 2.0, 6.0], [1, 1, 2])
    loaded = load_with(buffer, tmp_path / 'file.pth')
    assert loaded.data[0].tolist() == [1.0, 2.0, 6.0]
    assert loaded.mean() == buffer.mean() == 2.25
    assert loaded.statistics('max') == 6.0
    loaded.update(3)
    assert loaded.current() == 3


@pytest.mark.parametrize('dtype', ['float64', 'float32', 'int64', 'int32', 'bool'])
def test_numpy_arrays_and_scalars_come_back(dtype, tmp_path):
    array = np.array([0, 1, 2]).astype(dtype)
    loaded = load_with([array, array[1]], tmp_path / 'file.pth')
    assert loaded[0].dtype == array.dtype
    assert loaded[0].tolist() == array.tolist()
    assert loaded[1] == array[1]


def test_arrays_written_by_numpy_1_come_back(tmp_path):
    path = tmp_path / 'file.pth'
    # The old file format of torch is a plain pickle, in which numpy's name can be replaced.
    torch.save({'a': np.arange(3)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b'cnumpy._core.', b'cnumpy.core.'))
    assert load_whole(path)['a'].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ('content', 'name'),
    [
        (Call(print, 'code has run'), 'print'),
        (Call(eval, '1 + 1'), 'eval'),
    ],
)
def test_code_is_not_run(content, name, tmp_path, capsys):
    with pytest.raises(pickle.UnpicklingError, match=name):
        load_with(content, tmp_path / 'bad.pth')
    assert 'code has run' not in capsys.readouterr().out


LOAD = """
import sys, torch
from mmengine.runner import CheckpointLoader
before = set(torch.serialization.get_safe_globals())
import convnext_backbone
assert set(torch.serialization.get_safe_globals()) == before
print(CheckpointLoader.load_checkpoint(sys.argv[1], logger=None).current())
assert set(torch.serialization.get_safe_globals()) == before
torch.load(sys.argv[1], weights_only=True)
"""


def test_mmengine_reads_its_files_and_other_code_sees_no_difference(tmp_path):
    buffer = HistoryBuffer([1.0], [1])
    torch.save(buffer, tmp_path / 'file.pth')
    command = [sys.executable, '-c', LOAD, str(tmp_path / 'file.pth')]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == '1.0'
    # The last line of the script fails: what this package allows is not allowed there.
    assert 'Unsupported global' in result.stderr


@pytest.mark.parametrize('is_zip', [True, False])
def test_damage_that_torch_does_not_see_is_refused(tmp_path, is_zip):
    path = tmp_path / 'file.pth'
    weights = {'state_dict': {'weight': torch.full((1000,), 1.5)}}
    torch.save(weights, path, _use_new_zipfile_serialization=is_zip)
    content = bytearray(path.read_bytes())
    if is_zip:
        content[content.index(weights['state_dict']['weight'].numpy().tobytes()) + 3] ^= 1
    else:
        content += b'more'
    path.write_bytes(content)
    torch.load(path)
    message = 'checksum of .* differs' if is_zip else 'bytes after its end'
    with pytest.raises(ValueError, match=f'{path} is damaged .*{message}'):
        load_checkpoint(torch.nn.Linear(2, 2), str(path))


def test_truncated_files_are_told(tmp_path):
    path = tmp_path / 'file.pth'
    torch.save(dict(state_dict={str(i): torch.ones(100) for i in range(300)}), path)
    whole = path.read_bytes()
    for size in (0, 100, 1000, 5000, 100_000, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r'file\.pth is (truncated or )?damaged'):
            read_mmengine_checkpoint(str(path))
    path.write_bytes(whole[:5000])
    with pytest.raises(ValueError, match=r'is truncated or damaged \(5000 bytes\)'):
        CheckpointLoader.load_checkpoint(str(path), map_location='cpu', logger=None)


def test_an_entry_of_another_library_does_not_get_in_the_way(tmp_path):
    def other(*args):
        raise AssertionError('the other library must not be called')

    torch.save(HistoryBuffer([1.0], [1]), tmp_path / 'file.pth')
    entry = (other, 'builtins.getattr')
    with torch.serialization.safe_globals([entry]):
        assert load_whole(tmp_path / 'file.pth').current() == 1
        assert entry in torch.serialization.get_safe_globals()


def test_threads_read_one_after_another(tmp_path):
    torch.save([HistoryBuffer([1.0], [1]) for _ in range(50)], tmp_path / 'file.pth')
    before = set(torch.serialization.get_safe_globals())
    with ThreadPoolExecutor(8) as threads:
        loaded = list(threads.map(load_whole, [tmp_path / 'file.pth'] * 40))
    assert all(buffer.current() == 1 for buffers in loaded for buffer in buffers)
    assert set(torch.serialization.get_safe_globals()) == before


def test_what_the_user_allowed_stays_allowed(tmp_path):
    torch.save(HistoryBuffer([1.0], [1]), tmp_path / 'file.pth')
    before = set(torch.serialization.get_safe_globals())
    with torch.serialization.safe_globals([HistoryBuffer]):
        load_whole(tmp_path / 'file.pth')
        assert HistoryBuffer in torch.serialization.get_safe_globals()
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize('owner', [HistoryBuffer, np.ndarray])
@pytest.mark.parametrize('attribute', ['__init__', 'tofile', '__class__', 'update'])
def test_getattr_reaches_nothing_but_statistics(owner, attribute, tmp_path):
    with pytest.raises(pickle.UnpicklingError, match='only the statistics'):
        load_with(Call(getattr, owner, attribute), tmp_path / 'bad.pth')
