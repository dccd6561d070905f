"""Several processes: the launch scripts, and FSDP with our blocks as units."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import REPO, make_shapes, run_tool

from convnext_backbone import ConvNextStage, convnext_auto_wrap_policy

CONFIG = REPO / 'configs/demo/mask-rcnn_convnext-atto_fpn_shapes.py'


def test_two_processes_train_a_truncated_backbone(tmp_path, monkeypatch):
    """DDP fails if a parameter gets no gradient."""
    make_shapes(tmp_path, 16, 2)
    options = [
        'train_cfg.max_epochs=1',
        "model.backbone.out_features=('stage1','stage3')",
        'model.neck.in_channels=[40,160]',
        'model.neck.num_outs=2',
        'model.rpn_head.anchor_generator.strides=[4,16]',
        'model.roi_head.bbox_roi_extractor.featmap_strides=[4,16]',
        'model.roi_head.mask_roi_extractor.featmap_strides=[4,16]',
    ]
    monkeypatch.setenv('PYTHON', sys.executable)
    monkeypatch.setenv('PORT', '29751')
    output = run_tool(
        *('dist_train.sh', CONFIG, 2, '--work-dir', 'run', '--cfg-options', *options),
        cwd=tmp_path,
        launcher=('bash',),
    )
    assert 'Distributed training: True' in output
    assert 'GPU number: 2' in output
    assert 'Saving checkpoint at 1 epochs' in output


@pytest.mark.parametrize('script', ['dist_train.sh', 'slurm_train.sh'])
def test_launchers_without_arguments_print_their_usage(script):
    result = subprocess.run(
        ['bash', str(REPO / 'tools' / script)], stderr=subprocess.PIPE, text=True
    )
    assert result.returncode == 2
    assert f'tools/{script}' in result.stderr


def test_fsdp_wraps_blocks_and_only_them():
    stage = ConvNextStage(4, 8, depth=2)
    wrapped = [m for m in stage.modules() if convnext_auto_wrap_policy(m, False, 0)]
    assert wrapped == list(stage.layers)
    assert convnext_auto_wrap_policy(stage, True, 0)


def run_on_two_processes(script: str, port: int) -> str:
    """Runs a script of the tests under torchrun and returns its output."""
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', '2']
    result = subprocess.run(
        [*torchrun, '--master_port', str(port), str(Path(__file__).with_name(script))],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def test_one_step_under_fsdp_equals_the_step_without_it():
    output = run_on_two_processes('fsdp_step.py', 29752)
    for line in ('units: 8, blocks: 7', 'same settings: True', 'same parameters: True'):
        assert output.count(line) == 2, output


def test_ten_steps_of_two_processes_equal_those_of_one():
    """Every choice of maps, frozen stages, recomputation, V2, accumulation."""
    output = run_on_two_processes('ddp_steps.py', 29754)
    assert 'DIFFERENT' not in output
    assert output.count('equal ') == 43, output


def test_all_processes_of_a_job_choose_the_same_kernels(tmp_path):
    """Whoever asks first decides, whatever the others measured. Deterministic mode asks nobody."""
    script = Path(__file__).with_name('choice_ranks.py')
    result = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    modules = 'they are faster on Card'
    assert sorted(result.stdout.splitlines()) == [
        *['deterministic: triton, None'] * 2,
        'rank 0 alone: triton, None',
        *['rank 0 first: triton, None'] * 2,
        f'rank 1 alone: torch, {modules}',
        *[f'rank 1 first: torch, {modules}'] * 2,
    ]
