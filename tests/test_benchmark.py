"""The benchmark's command line, and what it counts."""

import json
import weakref
from argparse import Namespace

import benchmark
import measuring
import numpy as np
import peers
import pytest
import runtimes
import torch
from helpers import run_tool
from rich.console import Console
from torch import nn


def test_saved_activations_of_known_layers():
    """A linear layer saves its input, a ReLU its output; parameters are not counted."""
    case = measuring.Case('atto', (64, 64), 1, 'cpu', 'fp32', 'train')
    rows = torch.randn(2**10, 2**8)
    model = nn.Sequential(nn.Linear(2**8, 2**10), nn.ReLU())
    assert measuring.saved_activations(model, rows, case) == 1 + 4
    reference = weakref.ref(rows)
    del rows
    assert reference() is None


def test_product_limit_counts_the_products_of_a_step(monkeypatch):
    monkeypatch.setattr(measuring, 'run_once', lambda step, device: 1.0)
    for mode, products in (('inference', 2), ('train', 6)):
        case = measuring.Case('atto', (64, 64), 1, 'cpu', 'fp32', mode)
        assert measuring.product_limit(case, 1) == products * (2 + 2 + 6 + 2)


def test_eager_and_compiled_peers_are_compared_apart():
    figures = [
        ('ours', 1.0, 1.0, False),
        ('hf', 3.0, 0.0, False),
        ('timm', 4.0, 8.0, False),
        ('hf, compiled', 2.0, 9.0, True),
    ]
    contenders = [
        measuring.Contender(name, 'nchw', print, memory, compiled, [time])
        for name, time, memory, compiled in figures
    ]
    assert measuring.best_peer(contenders, compiled=False) == (3.0, 8.0)
    assert measuring.best_peer(contenders, compiled=True) == (2.0, 9.0)
    assert measuring.best_peer(contenders[:3], compiled=True) == (None, None)


@pytest.mark.cuda
def test_peak_memory_of_a_known_step():
    """Weight, input and output, and nothing that other tests or models hold."""
    other = torch.ones(2**25, device='cuda')
    model = nn.Linear(2**10, 2**10, bias=False, device='cuda')
    rows = torch.randn(2**11, 2**10, device='cuda')
    with torch.no_grad():
        peak = measuring.most_allocated(lambda: model(rows), model, rows)
    assert peak == pytest.approx(4 + 8 + 8, abs=0.1)
    assert measuring.run_once(lambda: model(rows), 'cuda') > 0
    assert other.nbytes == 2**27


@pytest.mark.parametrize(('mode', 'dtype'), [('inference', 'fp16'), ('train', 'bf16')])
def test_command_line(tmp_path, mode, dtype):
    output = run_tool(
        'analysis_tools/benchmark.py', '--arch', 'atto', '--size', 64, 96, '--dtype', dtype,
        '--mode', mode, '--repeats', 2, '--json', 'figures.json', '--plot', 'figure.png',
        cwd=tmp_path,
    )  # fmt: skip
    figures = json.loads((tmp_path / 'figures.json').read_text())
    assert figures['case']['size'] == [64, 96]
    rows = {(row['name'], row['layout']): row for row in figures['contenders']}
    names = {name for name, _ in rows}
    assert {'ours', 'hf'} <= names and ('ours, with_cp' in names) == (mode == 'train')
    best = min(row['median'] for name, row in rows.items() if not name[0].startswith('ours'))
    for row in rows.values():
        assert len(row['times']) == 2
        assert row['ratio'] == row['median'] / best
        assert row['limit_fraction'] == figures['limit'] / row['median']
    for peer in ('timm', 'torchvision'):
        assert peer in names or f'skipped {peer}' in output
    if mode == 'train':
        assert rows['ours', 'nchw']['memory'] < rows['hf', 'nchw']['memory']
    assert (tmp_path / 'figure.png').stat().st_size > 10_000


def test_forms_of_inference_compute_the_maps():
    case = measuring.Case('atto', (64, 96), 1, 'cpu', 'fp32', 'inference')
    forms = runtimes.make_runtimes(['hf'])
    assert list(forms) == ['ours, deployed', 'ours, ONNX Runtime', 'ours, OpenVINO', 'hf, frozen']
    torch.manual_seed(0)
    found = forms['ours, deployed'](case)()
    torch.manual_seed(0)
    with torch.no_grad():
        expected = peers.build_ours('atto').eval()(case.images('nchw'))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match='no products in half precision'):
        forms['ours, ONNX Runtime'](measuring.Case('atto', (64, 96), 1, 'cpu', 'bf16', 'inference'))


def test_sweep(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, 'SWEEP_ARCHS', ('atto', 'femto'))
    monkeypatch.setattr(benchmark, 'SWEEP_SIZES', (64, 128))
    args = Namespace(
        batch=1, device='cpu', dtype='fp32', mode='train', repeats=1, plot=tmp_path / 'sweep.png'
    )
    figures = benchmark.sweep(args, Console())
    for curve in figures['curves'].values():
        assert len(curve['time']) == 2
        assert curve['memory'][1] / curve['memory'][0] == pytest.approx(4, rel=0.05)
    assert args.plot.stat().st_size > 10_000


def test_growth_is_the_exponent():
    pixels = np.array([1.0, 4.0, 9.0])
    assert benchmark.growth(pixels, list(3 * pixels)) == '1.00'
    assert benchmark.growth(pixels, list(pixels**2)) == '2.00'
