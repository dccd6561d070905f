"""The environment for GPUs: which cards are found, and what make and setup_env.sh do with them.

A stand-in of nvidia-smi gives the answers of machines with other cards.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import REPO

from convnext_backbone.engine import missing_operators

# The real nvidia-smi may lie in the same folder as these, so the path must not hold the folder.
PROGRAMS = ('bash', 'dirname', 'grep', 'make', 'paste', 'sed', 'sort')

SETUP = 'requirements/setup_env.sh'


@pytest.fixture
def path(tmp_path) -> Path:
    """A folder of programs without nvidia-smi."""
    folder = tmp_path / 'bin'
    folder.mkdir()
    for program in PROGRAMS:
        (folder / program).symlink_to(shutil.which(program))
    return folder


def add_program(path: Path, name: str, script: str) -> None:
    (path / name).write_text(f'#!/bin/sh\n{script}\n')
    (path / name).chmod(0o755)


def run(path: Path, *command: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in the repository with a search path and no other environment."""
    return subprocess.run(
        [str(part) for part in command],
        cwd=REPO,
        env=dict(PATH=str(path), **variables),
        capture_output=True,
        text=True,
    )


def make(path: Path, *arguments: str) -> str:
    """What make would run."""
    result = run(path, path / 'make', '-n', '-B', *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize(
    ('answer', 'cards'),
    [
        ('echo 9.0', '9.0'),
        ('echo 9.0; echo 8.6; echo 9.0', '8.6,9.0'),
        ('echo 12.0; echo 8.9', '8.9,12.0'),
    ],
)
def test_cards_are_found(path, answer, cards):
    add_program(path, 'nvidia-smi', answer)
    assert run(path, 'requirements/find_cards.sh').stdout == f'{cards}\n'
    hidden = run(path, 'requirements/find_cards.sh', CUDA_VISIBLE_DEVICES='')
    assert (hidden.returncode, hidden.stdout, hidden.stderr) == (0, '', '')


@pytest.mark.parametrize(
    ('answer', 'reason'),
    [
        ('echo "No devices were found"; exit 6', 'No devices were found'),
        ('echo "Failed to initialize NVML: x"; echo more; exit 18', 'NVML: x\n'),
        ('echo "[N/A]"', '[N/A]'),
        ('exit 0', 'nvidia-smi lists no card'),
    ],
)
def test_driver_that_does_not_work_is_told(path, answer, reason):
    add_program(path, 'nvidia-smi', answer)
    result = run(path, 'requirements/find_cards.sh')
    assert (result.returncode, result.stdout) == (0, '')
    assert result.stderr.startswith('The CPU is used') and reason in result.stderr
    assert result.stderr.count('\n') == 1


def test_machine_without_a_gpu_uses_the_cpu(path):
    lines = make(path, 'demo').splitlines()
    assert f'{SETUP} .venv openmmlab ' in lines
    assert 'CUDA_VISIBLE_DEVICES= .venv/bin/python tools/demo/demo.py' in lines
    assert '-m cuda' not in make(path, 'test')


def test_machine_with_a_gpu_uses_it(path):
    add_program(path, 'nvidia-smi', 'echo 8.6; echo 9.0')
    lines = make(path, 'demo').splitlines()
    assert f'{SETUP} .venv-cuda openmmlab 8.6,9.0' in lines
    assert lines[-1] == '.venv-cuda/bin/python tools/demo/demo.py'
    assert make(path, 'demo-seg').splitlines()[-1] == f'{lines[-1]} segmentation'
    assert f'{SETUP} .venv-onedl-cuda onedl 8.6,9.0\n' in make(path, 'env', 'STACK=onedl')
    # Tests are the same ones as elsewhere, and then those that need the GPU.
    *_, cpu, gpu = make(path, 'test').splitlines()
    assert cpu.startswith('CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 .venv-cuda/bin/python -m pytest')
    assert gpu == '.venv-cuda/bin/python -m pytest -m cuda'


def test_device_is_chosen(path):
    cpu = make(path, 'demo')
    cuda = make(path, 'env', 'DEVICE=cuda', 'CUDA_ARCHS=9.0')
    assert f'{SETUP} .venv-cuda openmmlab 9.0\n' in cuda
    add_program(path, 'nvidia-smi', 'echo 8.6')
    assert make(path, 'demo', 'DEVICE=cpu') == cpu
    assert make(path, 'env', 'DEVICE=cuda', 'CUDA_ARCHS=9.0') == cuda


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['DEVICE=gpu'], 'DEVICE must be cpu or cuda, not gpu'),
        (['DEVICE=cuda'], 'DEVICE=cuda needs an NVIDIA GPU'),
        (['DEVICE=cuda', 'CUDA_ARCHS=8.6 9.0'], 'CUDA_ARCHS=8.6,9.0'),
        (['CUDA_ARCHS=9.0'], 'CUDA_ARCHS=9.0 needs DEVICE=cuda'),
    ],
)
def test_wrong_choice_is_one_sentence(path, arguments, message):
    result = run(path, path / 'make', '-n', 'demo', *arguments)
    assert result.returncode == 2
    assert message in result.stderr and result.stderr.count('\n') == 1


def test_setup_refuses_wrong_archs(path, tmp_path):
    result = run(path, SETUP, tmp_path / 'venv', 'openmmlab', 'hopper', PYTHON=sys.executable)
    assert result.returncode == 1
    assert result.stderr == 'CUDA_ARCHS must be compute capabilities such as 8.6,9.0, not hopper\n'
    assert not (tmp_path / 'venv').exists()


@pytest.mark.skipif(torch.version.cuda is not None, reason='this torch has CUDA')
def test_setup_refuses_torch_without_cuda(path, tmp_path):
    """Where pip prefers a build for CPUs, an hour of compiling would end in CPU operators."""
    python = tmp_path / 'venv/bin'
    python.mkdir(parents=True)
    add_program(python, 'python', f'[ "$2" = pip ] || exec {sys.executable} "$@"')
    result = run(path, SETUP, tmp_path / 'venv', 'openmmlab', '9.0', PYTHON=sys.executable)
    assert result.returncode == 1
    assert result.stderr.startswith('pip installed a torch without CUDA')
    assert result.stderr.endswith('or use DEVICE=cpu\n') and result.stderr.count('\n') == 1


def test_operators_for_the_cpu_only_are_told():
    ops = pytest.importorskip('mmcv.ops')
    assert missing_operators('cpu') is None
    told = missing_operators('cuda')
    if ops.get_compiling_cuda_version() == 'not available':
        assert sys.prefix in told and '`make env DEVICE=cuda`' in told
        assert told.endswith('CUDA_VISIBLE_DEVICES=')
    else:
        assert told is None
