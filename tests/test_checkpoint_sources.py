"""Invalid, dangerous and damaged checkpoint files, each with its own error."""

import argparse
import json
import os
import pickle
import sys
import zipfile

import pytest
import torch
from checkpoint_files import make_reference, meta
from helpers import small_backbone
from safetensors.torch import save_file

from convnext_backbone import load_checkpoint


class Command:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def weights() -> dict[str, torch.Tensor]:
    return meta(make_reference().state_dict())


def assert_refused(source, error, match) -> None:
    model = small_backbone()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(error, match=match) as info:
        load_checkpoint(model, source)
    assert '\n' not in str(info.value)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize('kind', ['torch', 'legacy', 'pickle'])
def test_code_in_a_pickle_is_not_run(tmp_path, kind):
    path, trace = tmp_path / 'evil.pth', tmp_path / 'trace'
    content = dict(model=weights(), extra=Command(f'touch {trace}'))
    if kind == 'pickle':
        path.write_bytes(pickle.dumps(content['extra'], protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == 'torch')
    assert_refused(path, ValueError, r'evil\.pth was not loaded: .*posix\.system.*run any code')
    assert not trace.exists()


@pytest.mark.parametrize('kind', ['torch', 'legacy', 'safetensors'])
@pytest.mark.parametrize('kept', [0.001, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_reported_as_truncated(tmp_path, kind, kept):
    path = tmp_path / 'weights'
    if kind == 'safetensors':
        save_file(weights(), path)
    else:
        torch.save(weights(), path, _use_new_zipfile_serialization=kind == 'torch')
    content = path.read_bytes()
    path.write_bytes(content[: max(int(kept * len(content)), 16)])
    assert_refused(path, ValueError, 'truncated or damaged.*download it again')


LFS = 'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n'


@pytest.mark.parametrize(
    ('content', 'match'),
    [
        (b'', 'is an empty file'),
        (b'a text\n', "neither a torch nor a safetensors file: it begins with b'a text"),
        (b'<!DOCTYPE html><html>', 'HTML file, the download failed: download it again'),
        (LFS.encode(), 'Git LFS pointer.*git lfs pull'),
        (b'\x80\x02garbage', 'is damaged, or its pickle holds more than tensors'),
    ],
)
def test_files_that_are_no_checkpoints_are_told_apart(tmp_path, content, match):
    for name in ('model.pth', 'model.safetensors'):
        (tmp_path / name).write_bytes(content)
        assert_refused(tmp_path / name, ValueError, match)


@pytest.mark.parametrize(
    ('content', 'match'),
    [
        ({}, 'holds no tensors, it is empty'),
        ({'model': {}}, "holds no tensors, only 'model'"),
        ({'epoch': 3, 'name': 'x'}, "holds no tensors, only 'epoch', 'name'"),
        ([torch.zeros(2)], 'holds a list, not a state dict'),
        (torch.zeros(2), 'holds a Tensor, not a state dict'),
    ],
)
def test_files_without_a_state_dict_are_told_apart(tmp_path, content, match):
    torch.save(content, tmp_path / 'model.pth')
    assert_refused(tmp_path / 'model.pth', ValueError, match)


def test_other_archives_are_told_apart(tmp_path):
    traced = torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2))
    traced.save(tmp_path / 'traced.pt')
    assert_refused(tmp_path / 'traced.pt', ValueError, 'TorchScript archive.*save the state dict')
    torch.save(weights(), tmp_path / 'model.pth')
    with zipfile.ZipFile(tmp_path / 'packed.pth', 'w') as archive:
        archive.write(tmp_path / 'model.pth', 'model.pth')
    assert_refused(tmp_path / 'packed.pth', ValueError, 'zip archive of other files.*unpack it')


def test_missing_files_and_folders_without_weights_are_told_apart(tmp_path):
    assert_refused(tmp_path / 'none.pth', FileNotFoundError, r'no such checkpoint: .*none\.pth')
    (tmp_path / 'config.json').write_text('{}')
    assert_refused(tmp_path, FileNotFoundError, r'holds no weights: .*model\.safetensors')
    for name in ('a.pth', 'b.safetensors'):
        (tmp_path / name).write_bytes(b'x')
    assert_refused(tmp_path, ValueError, r'several checkpoints, a\.pth, b\.safetensors')
    assert_refused('s3://bucket/a.pth', ValueError, 'neither a path nor an http')
    assert_refused('~nobody-has-this-name/x.pth', FileNotFoundError, 'no such checkpoint: ~nobody')
    (tmp_path / 'folder' / 'model.safetensors').mkdir(parents=True)
    assert_refused(tmp_path / 'folder', FileNotFoundError, 'holds no weights')
    (tmp_path / 'model.safetensors.index.json').write_text('{"weight_map": {}}')
    assert_refused(tmp_path / 'model.safetensors.index.json', ValueError, 'is not the index of')


def test_a_sharded_checkpoint_needs_all_its_shards(tmp_path):
    make_reference().save_pretrained(tmp_path, max_shard_size='20KB')
    index = json.loads((tmp_path / 'model.safetensors.index.json').read_text())
    shard = sorted(set(index['weight_map'].values()))[1]
    (tmp_path / shard).rename(tmp_path / 'away')
    assert_refused(tmp_path, FileNotFoundError, f'needs {shard}, not found in its folder')

    (tmp_path / 'away').rename(tmp_path / shard)
    index['weight_map']['encoder.ghost'] = shard
    (tmp_path / 'model.safetensors.index.json').write_text(json.dumps(index))
    assert_refused(tmp_path, ValueError, r'lack 1 tensors, such as encoder\.ghost')
    (tmp_path / 'model.safetensors.index.json').write_text('[]')
    assert_refused(tmp_path, ValueError, 'is not the index of a sharded checkpoint')


def test_arguments_and_an_optimiser_next_to_the_weights_are_ignored(tmp_path):
    content = dict(
        model=weights(),
        args=argparse.Namespace(lr=1e-3, data='x'),
        optimizer=dict(state={0: dict(step=torch.tensor(1.0))}),
        epoch=3,
    )
    for name, new in (('new.pth', True), ('old.pth', False)):
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=new)
        model = small_backbone()
        report = load_checkpoint(model, tmp_path / name)
        assert report.container == "torch file, key 'model'"
        assert torch.equal(
            model.embeddings.layernorm.bias, content['model']['downsample_layers.0.1.bias']
        )


def test_a_folder_with_one_file_of_any_name_is_read(tmp_path):
    save_file(weights(), tmp_path / 'open_clip_model.safetensors')
    (tmp_path / 'README.md').write_text('x')
    assert load_checkpoint(small_backbone(), tmp_path).container == 'safetensors'


@pytest.mark.parametrize(
    ('library', 'source'),
    [('safetensors', 'x.safetensors'), ('huggingface_hub', 'hf://someone/convnext')],
)
def test_a_library_that_is_not_installed_is_named(tmp_path, monkeypatch, library, source):
    save_file(weights(), tmp_path / 'x.safetensors')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, library, None)
    assert_refused(source, ImportError, f'pip install {library}')
