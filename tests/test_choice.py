"""Which implementation a GPU's blocks run: the rule, the measurement and the file of times."""

import json
import tempfile
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from helpers import randomize

from convnext_backbone import ConvNextBackbone, ConvNextLayer
from convnext_backbone.models import blocks
from convnext_backbone.ops import choice, native, portable, timings, trial

CUDA, CPU = torch.device('cuda'), torch.device('cpu')
WIDTH = 8, torch.float32

# The modules infer fastest and the torch operators train fastest.
TIMES = {
    'train': {'modules': 3.0, 'torch': 1.0, 'triton': 2.0},
    'inference': {'modules': 1.0, 'torch': 2.0, 'triton': 3.0},
}


@pytest.fixture
def path(tmp_path, monkeypatch):
    """The file of times during a test, and no variable, whatever the environment."""
    monkeypatch.delenv(choice.VARIABLE, raising=False)
    monkeypatch.setattr(trial, 'ELEMENTS', 2**10)
    monkeypatch.setattr(timings, 'file', lambda: tmp_path / 'folder/times.json')
    monkeypatch.setattr(choice, '_known', {})
    return tmp_path / 'folder/times.json'


@pytest.fixture
def on_a_card(path, monkeypatch):
    """Stands in for a card: its name and its times in the file, which may be replaced."""
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device: 'Card')
    monkeypatch.setattr(choice, 'have_triton', lambda: True)
    monkeypatch.setattr(choice, 'have_triton_kernels', lambda *_: True)
    timings.save(path, f'Card, 8 channels, {torch.float32}', TIMES)


def modules_run(trains, prefer='speed'):
    return choice.modules_are_better(CUDA, *WIDTH, trains, prefer)


def test_the_fastest_candidate_runs(on_a_card):
    assert choice.fused_kernels(CUDA, *WIDTH) == 'torch'
    assert modules_run(trains=True) is None
    assert modules_run(trains=False) == 'they are faster on Card'


def test_preferring_memory_fuses_what_trains(on_a_card, path):
    slow = {mode: TIMES[mode] | {'modules': 0.1} for mode in TIMES}
    timings.save(path, f'Card, 8 channels, {torch.float32}', slow)
    assert modules_run(trains=True) == 'they are faster on Card'
    assert modules_run(trains=True, prefer='memory') is None
    assert modules_run(trains=False, prefer='memory') == 'they are faster on Card'


@pytest.mark.parametrize('name', ['triton', 'torch', 'modules'])
def test_the_environment_variable_overrides_the_times(on_a_card, monkeypatch, name):
    monkeypatch.setenv('CONVNEXT_KERNELS', name)
    fused = name != 'modules'
    assert choice.fused_kernels(CUDA, *WIDTH) == (name if fused else 'torch')
    for trains in (False, True):
        assert modules_run(trains) == (None if fused else 'CONVNEXT_KERNELS=modules')


def test_a_wrong_environment_variable_is_an_error(path, monkeypatch):
    monkeypatch.setenv('CONVNEXT_KERNELS', 'cuda')
    with pytest.raises(ValueError, match="one of auto, triton, torch, modules, got 'cuda'"):
        choice.setting()
    monkeypatch.setenv('CONVNEXT_KERNELS', 'triton')
    monkeypatch.setattr(choice, 'have_triton', lambda: False)
    with pytest.raises(ValueError, match=r'needs Triton 3\.7 or newer'):
        choice.setting()


def test_the_choice_is_fixed_under_deterministic_algorithms(on_a_card, monkeypatch):
    torch.use_deterministic_algorithms(True)
    try:
        assert choice.fused_kernels(CUDA, *WIDTH) == 'triton'
        assert modules_run(trains=False) is None
        monkeypatch.setattr(choice, 'have_triton_kernels', lambda *_: False)
        assert choice.fused_kernels(CUDA, *WIDTH) == 'torch'
        assert 'deterministic algorithms are on' in modules_run(trains=True)
    finally:
        torch.use_deterministic_algorithms(False)


def test_known_times_decide_while_a_cuda_graph_is_captured(on_a_card, path, monkeypatch):
    monkeypatch.setattr(choice, 'is_capturing', lambda: True)
    assert choice.fused_kernels(CUDA, *WIDTH) == 'torch'  # as the file says
    assert modules_run(trains=False) == 'they are faster on Card'
    path.unlink()
    assert choice.fused_kernels(CUDA, *WIDTH) == 'torch'  # as the process knows
    choice._known.clear()
    assert choice.fused_kernels(CUDA, *WIDTH) == 'triton'
    assert modules_run(trains=False) is None
    monkeypatch.setattr(choice, 'have_triton_kernels', lambda *_: False)
    assert 'a CUDA graph is captured' in modules_run(trains=True)
    assert not path.exists()


def test_times_are_measured_once_kept_and_logged(path, capture_log):
    state = torch.get_rng_state()
    times = choice.known_times(CPU, 12, torch.float32)
    assert torch.equal(torch.get_rng_state(), state)
    (line,) = capture_log
    assert 'ConvNeXt blocks timed on cpu, 12 channels, torch.float32: ms of a training' in line
    for mode in ('train', 'inference'):
        assert times[mode].keys() == {'modules', 'torch'}
        assert min(times[mode].values()) > 0
    choice._known.clear()
    assert choice.known_times(CPU, 12, torch.float32) == times
    assert capture_log == [line]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    'content', ['', '{"a": ', '[]', '{"a": 1}', '{"a": {"train": {"torch": 1.0}}}', '\0']
)
def test_a_damaged_file_is_reported_and_replaced(path, capture_log, content):
    path.parent.mkdir()
    path.write_text(content)
    assert timings.load(path) == {}
    timings.save(path, 'b', TIMES)
    assert f'{path} is damaged' in capture_log[0]
    assert json.loads(path.read_text()) == {'b': TIMES}


def test_a_file_that_cannot_be_written_is_reported(path, capture_log):
    path.parent.write_text('in the way')
    timings.save(path, 'a', TIMES)
    assert 'times of ConvNeXt blocks cannot be kept' in capture_log[-1]


def test_a_candidate_that_does_not_run_is_left_out(path, capture_log):
    class Broken:
        def depthwise_norm(self, *args):
            raise RuntimeError('no such card')

    candidates = {'triton': Broken(), 'torch': portable}
    times = trial.time_block(CPU, 8, torch.bfloat16, candidates)
    assert times['train'].keys() == times['inference'].keys() == {'modules', 'torch'}
    assert 'triton kernels do not run on this card' in capture_log[0]
    assert 'no such card' in capture_log[0]


def test_blocks_are_timed_in_inference_mode():
    with torch.inference_mode():
        times = trial.time_block(CPU, 8, torch.float32, {'torch': portable})
    assert times['train'].keys() == {'modules', 'torch'}


def test_all_processes_of_a_job_get_the_times_of_the_first():
    """Whoever asks first never waits; the others wait for its times, and measure nothing."""
    store, asked, go_on, got = dist.HashStore(), threading.Event(), threading.Event(), []

    def first():
        asked.set()
        go_on.wait()
        return TIMES

    def never():
        raise AssertionError('measured twice')

    def ask(find):
        got.append(choice.shared_times(store, 'key', find))

    threads = [threading.Thread(target=ask, args=[find]) for find in (first, never, never)]
    threads[0].start()
    asked.wait()
    for thread in threads[1:]:
        thread.start()
    go_on.set()
    for thread in threads:
        thread.join()
    assert got == [TIMES] * 3


def test_blocks_ask_for_the_choice(monkeypatch):
    layer, features = randomize(ConvNextLayer(8)), torch.randn(1, 8, 5, 5)
    asked = []

    def modules_are_better(*args):
        asked.append(args)
        return 'they are faster'

    monkeypatch.setattr(blocks, 'modules_are_better', modules_are_better)
    assert torch.equal(layer(features), layer.run_modules(features))
    with torch.no_grad():
        layer(features)
    assert asked == [(CPU, *WIDTH, trains, 'speed') for trains in (True, False)]
    layer.fused = True
    layer(features)
    assert len(asked) == 2


def test_the_preference_reaches_all_blocks():
    model = ConvNextBackbone(dict(depths=[1, 1], hidden_sizes=[8, 16]), prefer='memory')
    layers = [module for module in model.modules() if isinstance(module, ConvNextLayer)]
    assert [layer.prefer for layer in layers] == ['memory'] * 2
    with pytest.raises(ValueError, match=r"prefer must be one of .*, got 'fast'"):
        ConvNextBackbone(prefer='fast')


def test_the_cpu_is_not_asked(path):
    assert choice.modules_are_better(CPU, *WIDTH, True, 'speed') is None
    choice.pick_kernels(torch.randn(1, 2, 2, 8), torch.float32)
    assert not path.exists()


def test_the_file_depends_on_the_sources(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_EXTENSIONS_DIR', str(tmp_path))
    before = timings.file()
    assert before.parent == tmp_path / 'convnext_backbone'
    monkeypatch.setattr(torch, '__version__', '0.0')
    assert timings.file() != before


def test_users_without_a_home_folder_keep_times_with_temporary_files(monkeypatch):
    monkeypatch.setenv('TORCH_EXTENSIONS_DIR', '~nobody-has-this-name')
    assert timings.file().parent == Path(tempfile.gettempdir())


def test_widths_that_were_never_compiled_use_torch_operators(path, monkeypatch):
    """The record of compiled kernels has no others: see test_triton_compilation.py."""
    monkeypatch.setenv(choice.VARIABLE, 'triton')
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: native.MIN_CAPABILITY)
    for module in (native, choice):
        monkeypatch.setattr(module, 'have_triton', lambda: True)
    for channels, name in {
        **dict.fromkeys((8, 32, 44, 3080, 4096), 'torch'),
        **dict.fromkeys((40, 96, 3072), 'triton'),
    }.items():
        assert choice.fused_kernels(CUDA, channels, torch.float32) == name
        assert choice.fused_kernels(CUDA, channels, torch.float64) == 'torch'
        assert not native.have_triton_kernels(CPU, channels, torch.float32)


@pytest.mark.cuda
def test_tensors_on_a_gpu_use_triton(monkeypatch):
    triton_kernels = pytest.importorskip('convnext_backbone.ops.triton_kernels')
    monkeypatch.setenv(choice.VARIABLE, 'triton')
    features = torch.randn(1, 2, 2, 48, device='cuda')
    assert choice.pick_kernels(features, torch.float32) is triton_kernels
    assert choice.pick_kernels(features, torch.float64) is portable
    assert choice.pick_kernels(features[..., :44], torch.float32) is portable


@pytest.mark.cuda
def test_a_backbone_is_captured_in_a_cuda_graph(path):
    model = ConvNextBackbone('atto').cuda().eval()
    images = torch.randn(1, 3, 64, 64, device='cuda')
    with torch.no_grad():
        truth = model(images)[0]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = model(images)[0]
        images.copy_(other := torch.randn_like(images))
        graph.replay()
        assert not torch.equal(output, truth)
        torch.testing.assert_close(output, model(other)[0])
