"""What the scripts share: errors in one sentence, checks of outputs, files that are whole."""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import REPO

from convnext_backbone import ConvNextBackbone
from convnext_backbone.command_line import check_file, check_folder, usage_errors, whole_file


@pytest.mark.parametrize(
    ('error', 'sentence'),
    [
        (ValueError('two\n  lines'), 'two lines'),
        (KeyError('no such key'), 'no such key'),
        (FileNotFoundError(2, 'No such file or directory', 'x.pth'), 'x.pth: No such file'),
        (OSError('the disk is broken'), 'the disk is broken'),
        (TypeError(), 'TypeError'),
    ],
)
def test_expected_errors_are_one_sentence(error, sentence, capsys):
    with (
        pytest.raises(SystemExit) as caught,
        usage_errors(argparse.ArgumentParser(prog='tool.py')),
    ):
        raise error
    assert caught.value.code == 2
    text = capsys.readouterr().err
    assert text.startswith(f'tool.py: error: {sentence}')
    assert text.count('\n') == 1


def test_other_errors_keep_their_traceback():
    parser = argparse.ArgumentParser()
    with pytest.raises(ZeroDivisionError), usage_errors(parser):
        _ = 1 / 0
    # From the depth of other code, also a ValueError.
    with pytest.raises(ValueError), usage_errors(parser, of_checkers=True):
        json.loads('{')
    with pytest.raises(SystemExit), usage_errors(parser, of_checkers=True):
        ConvNextBackbone('tinny')


def test_outputs_are_checked_before_the_work(tmp_path):
    file = tmp_path / 'file'
    file.touch()
    for folder in (file, file / 'a/b'):
        with pytest.raises(NotADirectoryError, match=f'{file} is a file: choose another'):
            check_folder(folder)
    with pytest.raises(IsADirectoryError, match='is a folder: give the name of a file'):
        check_file(tmp_path)
    check_folder(tmp_path / 'a/b')
    check_file(tmp_path / 'a/b.txt')
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.skipif(not Path('/proc/self').is_dir(), reason='nobody can create files in /proc')
def test_outputs_that_cannot_be_written_are_refused():
    with pytest.raises(OSError, match=r'cannot write to /proc/a .*choose another'):
        check_folder('/proc/a')


def test_files_are_whole_or_as_before(tmp_path):
    path = tmp_path / 'new/out.json'
    with whole_file(path) as part:
        part.write_text('old')
        assert part.suffix == '.json'
        assert not path.exists()
    assert path.read_text() == 'old'
    with pytest.raises(KeyboardInterrupt), whole_file(path) as part:
        part.write_text('ne')
        raise KeyboardInterrupt
    assert path.read_text() == 'old'
    with pytest.raises(OSError) as caught, whole_file(path):
        raise OSError(28, 'No space left on device')
    assert caught.value.filename == str(path)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ('script', 'args', 'message'),
    [
        ('dist_train.sh', [], 'dist_train.sh CONFIG GPUS'),
        ('dist_train.sh', ['none.py', '2'], 'dist_train.sh: error: no such config: none.py'),
        ('dist_train.sh', ['empty.py', '0'], "must be a positive number, got '0'"),
        ('slurm_train.sh', ['part'], 'slurm_train.sh PARTITION CONFIG GPUS_PER_NODE'),
        ('slurm_train.sh', ['part', 'none.py', '2'], 'error: no such config: none.py'),
        ('slurm_train.sh', ['part', 'empty.py', 'x'], "must be a positive number, got 'x'"),
    ],
)
def test_launchers_refuse_before_they_start(script, args, message, tmp_path):
    (tmp_path / 'empty.py').touch()
    command = ['bash', str(REPO / 'tools' / script), *args]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2
    assert message in result.stderr


def scripts():
    """The Python scripts of ``tools/``."""
    paths = (REPO / 'tools').rglob('*.py')
    return sorted(path for path in paths if "if __name__ == '__main__'" in path.read_text())


@pytest.mark.parametrize('path', scripts(), ids=lambda path: path.name)
def test_scripts_say_what_to_do_outside_the_environment(path, tmp_path):
    # -S leaves out the libraries of the environment, -E those of PYTHONPATH.
    command = [sys.executable, '-S', '-E', str(path)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert re.match(
        rf'{path.name}: error: \w+ is not installed here: activate the environment ', line
    )
    assert 'environment that make demo creates' in line


@pytest.mark.parametrize(
    ('module', 'package'),
    [
        ('PIL', 'pillow'),
        ('cv2', 'opencv-python'),
        ('mmseg.apis', 'mmsegmentation'),
        ('rich', 'rich'),
    ],
)
def test_missing_libraries_are_named_as_pip_does(module, package, tmp_path):
    (tmp_path / 'check_environment.py').symlink_to(REPO / 'tools/check_environment.py')
    script = tmp_path / 'script.py'
    script.write_text(f'import check_environment\nimport {module}')
    command = [sys.executable, '-S', '-E', str(script)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2
    assert f'or pip install {package} in this one' in result.stderr


def test_other_errors_of_imports_keep_their_traceback(tmp_path):
    script = tmp_path / 'script.py'
    (tmp_path / 'check_environment.py').symlink_to(REPO / 'tools/check_environment.py')
    script.write_text('import check_environment\n1 / 0')
    command = [sys.executable, '-S', '-E', str(script)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.startswith('Traceback')
    assert result.stderr.endswith('ZeroDivisionError: division by zero\n')


def test_scripts_start_without_warnings_of_pkg_resources(tmp_path):
    """mmengine imports it for a base in another package, and setuptools warns of it each time."""
    pytest.importorskip('mmdet')
    (tmp_path / 'config.py').write_text("_base_ = 'mmdet::_base_/default_runtime.py'")
    read = (
        'from convnext_backbone import command_line\n'
        'from mmengine.config import Config\n'
        'Config.fromfile("config.py")'
    )
    command = [sys.executable, '-c', read]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert 'pkg_resources' not in result.stderr


def test_whole_file_blames_the_disk_alone(tmp_path):
    """Errors of the work in the block keep their text."""
    path = tmp_path / 'out.pkl'
    with pytest.raises(FileNotFoundError, match='an image is missing'), whole_file(path):
        raise FileNotFoundError('an image is missing')
    with pytest.raises(OSError, match=r'out\.pkl'), whole_file(path):
        raise OSError(28, 'No space left on device')
    assert list(tmp_path.iterdir()) == []
