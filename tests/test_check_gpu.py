"""The check of a GPU, tried out on the CPU."""

import json
import runpy
import sys

import pytest
import torch
from helpers import REPO, run_tool
from parity import compare

from convnext_backbone.ops.native import have_triton

TOOL = 'check_gpu.py'
DTYPES = ('fp32', 'bf16', 'fp16')


def check_results(results: dict) -> None:
    """Every candidate is compared and timed in every dtype."""
    compared = {(row['candidate'], row['dtype']) for row in results['parity']}
    assert {('modules', d) for d in DTYPES} | {('torch', d) for d in DTYPES} <= compared
    for row in results['parity']:
        assert row['errors'].keys() == {'maps', 'image grads', 'weight grads'}
        # float32 has 24 bits, bfloat16 has 8: no other errors would be those of these dtypes.
        low, high = {'fp32': (1e-9, 2e-3), 'bf16': (1e-4, 5e-2), 'fp16': (1e-5, 5e-3)}[row['dtype']]
        assert all(low < error < high for error in row['errors'].values()), row
        assert row['ok'] == (row['ratio'] <= 2)
    timed = {(row['name'], row['layout'], row['mode'], row['dtype']) for row in results['timings']}
    for mode in ('train', 'inference'):
        for name in ('modules', 'torch', 'hf'):
            for layout in ('nchw', 'nhwc'):
                assert {(name, layout, mode, dtype) for dtype in DTYPES} <= timed
    assert all(row['ms'] > 0 for row in results['timings'])
    assert torch.__version__.startswith(results['versions']['torch'])
    if have_triton():
        check_kernels(results['kernels'])


def check_kernels(kernels: dict) -> None:
    """Every operator is timed at every width of ConvNeXt-T."""
    from convnext_backbone.ops import triton_kernels

    operators = {n.removeprefix('plan_') for n in triton_kernels.__all__ if n.startswith('plan_')}
    assert kernels.keys() == operators
    for times in kernels.values():
        assert times.keys() == {'96', '192', '384', '768'}
        assert min(times.values()) > 0


def test_trial_on_the_cpu(tmp_path):
    output = run_tool(TOOL, '--device', 'cpu', '--out', 'check.json', cwd=tmp_path)
    results = json.loads((tmp_path / 'check.json').read_text())
    check_results(results)
    assert all(row['ok'] for row in results['parity'])
    # The modules ran as modules, and the fused block as such.
    saved = {
        row['name']: row['memory']
        for row in results['timings']
        if (row['mode'], row['dtype'], row['layout']) == ('train', 'fp32', 'nchw')
    }
    assert saved['torch'] < 0.7 * saved['modules']
    assert 'WRONG' not in output and 'failed' not in output
    if have_triton():
        report = run_tool('kernel_report.py', '--measured', 'check.json', cwd=tmp_path)
        printed = {(n, w): t for n, w, *_, t in map(str.split, table_of(report))}
        assert printed == {
            (name, width): f'{time:.3f}'
            for name, times in results['kernels'].items()
            for width, time in times.items()
        }


def table_of(report: str) -> list[str]:
    """The lines of the first table of kernel_report.py, without its heading."""
    return report.split('\n\n')[1].splitlines()[1:]


def test_verdict():
    """NaN is never right, and errors below the rounding of float32 are not compared."""
    modules = {'maps': 1e-3, 'image grads': 1e-3, 'weight grads': 1e-9}
    assert compare(modules, modules)['ok']
    assert compare(modules | {'weight grads': 1e-6}, modules) == dict(ratio=1.0, ok=True)
    for wrong in ({'maps': 3e-3}, {'image grads': float('nan')}, {'weight grads': 1e-5}):
        assert not compare(modules | wrong, modules)['ok'], wrong


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_machine_without_a_gpu_is_told(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', [TOOL])
    monkeypatch.setattr(sys, 'path', sys.path.copy())
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(REPO / 'tools' / TOOL), run_name='__main__')
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f'{TOOL}: error: torch ') and 'finds no GPU' in error
    assert error.count('\n') == 1


@pytest.mark.cuda
def test_whole_check_on_the_gpu(tmp_path):
    run_tool(TOOL, '--out', 'check.json', cwd=tmp_path)
    results = json.loads((tmp_path / 'check.json').read_text())
    check_results(results)
    assert results['card'] == torch.cuda.get_device_name()
    assert all(row['memory'] > 0 for row in results['timings'])
