"""Which implementation a block uses, and what the log says about it."""

import hashlib
import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from helpers import REPO, SMALL, STAGES, randomize, small_backbone
from mmengine.logging import MMLogger
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrize, prune
from torch.utils.flop_counter import FlopCounterMode

from convnext_backbone import (
    ConvNextBackbone,
    ConvNextDropPath,
    ConvNextForImageClassification,
    ConvNextGRN,
    ConvNextLayer,
    ConvNextLayerNorm,
    ConvNextModel,
)
from convnext_backbone.models import fusion
from convnext_backbone.ops import build, native

KERNELS = native.library_path()


@pytest.fixture
def log(caplog):
    """The lines logged during a test, also if an earlier test logged them."""
    fusion._log_once.cache_clear()
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    yield lambda: [record.getMessage() for record in caplog.records]
    logger.removeHandler(caplog.handler)


@pytest.fixture
def layer():
    return randomize(ConvNextLayer(16))


@pytest.fixture
def features():
    return torch.randn(2, 16, 9, 9)


def assert_runs_modules(layer, features, log, reason):
    """The output is exactly that of the modules, and one log line gives the reason."""
    assert torch.equal(layer(features), layer.run_modules(features))
    assert torch.equal(layer(features), layer.run_modules(features))
    (line,) = log()
    assert line.startswith('ConvNeXt blocks run module by module: ')
    assert reason in line


@pytest.mark.skipif(not native.load_kernels(), reason='the kernels are not built')
def test_one_line_says_that_blocks_run_fused(log):
    model = ConvNextBackbone('atto', out_features=STAGES)
    for _ in range(2):
        model(torch.randn(1, 3, 64, 64))
    assert log() == ['ConvNeXt blocks run fused, with compiled kernels']


@pytest.fixture
def library(tmp_path, monkeypatch):
    """The path of the kernels during a test."""
    path = tmp_path / 'kernels.so'
    monkeypatch.setattr(native, 'library_path', lambda: path)
    native.load_kernels.cache_clear()
    yield path
    native.load_kernels.cache_clear()


def test_missing_kernels_are_reported(layer, features, log, library):
    layer(features)
    (line,) = log()
    assert 'without compiled kernels' in line
    assert 'python -m convnext_backbone.ops.build' in line


def write_library(path, content):
    """Writes a library and its checksum."""
    path.write_bytes(content)
    native.checksum_path(path).write_text(hashlib.sha256(content).hexdigest())


def test_unusable_kernels_are_reported(layer, features, log, library):
    write_library(library, b'no library')
    for _ in range(2):
        layer(features)
    lines = log()
    assert len(lines) == 2
    assert f'{library} cannot be loaded' in lines[0]


@pytest.mark.skipif(not native.load_kernels(), reason='the kernels are not built')
@pytest.mark.parametrize('kept', [0, 100, 0.5, 1.0])
def test_truncated_kernels_are_reported_and_built_again(
    layer, features, log, library, monkeypatch, kept
):
    content = KERNELS.read_bytes()
    write_library(library, content)
    size = kept if isinstance(kept, int) else int(kept * (len(content) - 1))
    library.write_bytes(content[:size])
    layer(features)
    lines = log()
    assert f'{library} is damaged' in lines[0]
    assert 'python -m convnext_backbone.ops.build' in lines[0]

    def compile_sources(name, folder):
        built = folder / f'{name}.so'
        built.write_bytes(content)
        return built

    monkeypatch.setattr(build, 'library_path', lambda: library)
    monkeypatch.setattr(build, '_compile', compile_sources)
    build.main()
    assert native.is_intact(library)
    assert library.read_bytes() == content
    assert sorted(p.name for p in library.parent.iterdir()) == ['kernels.sha256', 'kernels.so']


def test_a_damaged_checksum_is_reported(layer, features, log, library):
    write_library(library, b'no library')
    native.checksum_path(library).write_bytes(b'\xff\xfe')
    layer(features)
    assert f'{library} is damaged' in log()[0]


def test_without_a_cache_folder_blocks_run_without_kernels(layer, features, log, monkeypatch):
    monkeypatch.setenv('TORCH_EXTENSIONS_DIR', '~nobody-has-this-name/folder')
    native.load_kernels.cache_clear()
    layer(features)
    native.load_kernels.cache_clear()
    assert 'blocks run without them: the user has no home folder' in log()[0]


@pytest.mark.parametrize(
    ('folder', 'message'),
    [
        ('~nobody-has-this-name', 'set TORCH_EXTENSIONS_DIR to a folder'),
        ('file', 'file/convnext_backbone: Not a directory'),
    ],
)
def test_building_without_a_cache_folder_is_one_sentence(tmp_path, folder, message):
    (tmp_path / 'file').touch()
    run = subprocess.run(
        [sys.executable, '-m', 'convnext_backbone.ops.build'],
        env={**os.environ, 'TORCH_EXTENSIONS_DIR': folder, 'PYTHONPATH': str(REPO)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    assert message in run.stderr and 'Traceback' not in run.stderr


def test_kernels_are_in_the_cache_folder_of_torch_extensions(monkeypatch, tmp_path):
    monkeypatch.delenv('TORCH_EXTENSIONS_DIR', raising=False)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    folder = tmp_path / 'torch_extensions/convnext_backbone'
    assert native.library_path().parent == folder
    monkeypatch.setenv('TORCH_EXTENSIONS_DIR', str(tmp_path / 'elsewhere'))
    assert native.library_path().parent == tmp_path / 'elsewhere/convnext_backbone'


@pytest.mark.parametrize('args', [{}, dict(use_grn=True)], ids=str)
def test_fused_false_runs_the_modules(features, log, args):
    layer = randomize(ConvNextLayer(16, fused=False, **args))
    assert_runs_modules(layer, features, log, 'fused=False')


def test_the_environment_variable_switches_fusion_off(layer, features, log, monkeypatch):
    monkeypatch.setenv('CONVNEXT_FUSED', '0')
    assert_runs_modules(layer, features, log, 'CONVNEXT_FUSED=0')


def test_fused_true_overrides_the_environment_variable(features, log, monkeypatch):
    monkeypatch.setenv('CONVNEXT_FUSED', '0')
    randomize(ConvNextLayer(16, fused=True))(features)
    (line,) = log()
    assert line.startswith('ConvNeXt blocks run fused')


def test_a_wrong_environment_variable_is_an_error(layer, features, monkeypatch):
    monkeypatch.setenv('CONVNEXT_FUSED', 'off')
    with pytest.raises(ValueError, match="CONVNEXT_FUSED must be 0 or 1, got 'off'"):
        layer(features)


@pytest.mark.parametrize('fused', [None, True, False])
@pytest.mark.parametrize(
    'build_model',
    [ConvNextBackbone, ConvNextModel, partial(ConvNextForImageClassification, num_labels=3)],
)
def test_the_switch_reaches_all_blocks_and_norms(build_model, fused):
    model = build_model(SMALL, fused=fused)
    kinds = [m for m in model.modules() if isinstance(m, (ConvNextLayer, ConvNextLayerNorm))]
    # The norms inside of blocks and of pooled features are channels-last, which is never fused.
    switches = {m.fused for m in kinds if getattr(m, 'data_format', '') != 'channels_last'}
    assert switches == {fused}


def test_switched_off_a_model_has_gradients_of_gradients():
    model = randomize(ConvNextBackbone(SMALL, out_features=STAGES, fused=False)).double()
    images = torch.randn(1, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    maps = model(images)
    loss = sum(m.square().sum() for m in maps)
    grad = torch.autograd.grad(loss, images, create_graph=True)[0]
    direction = torch.randn_like(images)
    product = torch.autograd.grad((grad * direction).sum(), images)[0]

    def gradient_at(point):
        point = point.detach().requires_grad_()
        return torch.autograd.grad(sum(m.square().sum() for m in model(point)), point)[0]

    step = 1e-5
    difference = gradient_at(images + step * direction) - gradient_at(images - step * direction)
    torch.testing.assert_close(product, difference / (2 * step), rtol=1e-4, atol=1e-4)


def test_widths_without_kernels_are_reported(log):
    ConvNextLayer(12)(torch.randn(1, 12, 8, 8))
    assert log() == ['ConvNeXt blocks run fused, in torch operators (12 channels in torch.float32)']


@pytest.mark.parametrize('hidden_act', ['relu', 'silu', 'gelu_new'])
def test_other_activations(features, log, hidden_act):
    layer = randomize(ConvNextLayer(16, hidden_act=hidden_act))
    assert_runs_modules(layer, features, log, 'their act')


def test_replaced_module(layer, features, log):
    class Lora(nn.Linear):
        def forward(self, rows):
            return super().forward(rows) + rows.sum(-1, keepdim=True)

    replacement = Lora(16, 64)
    replacement.load_state_dict(layer.pwconv1.state_dict())
    layer.pwconv1 = replacement
    assert_runs_modules(layer, features, log, 'their pwconv1 is Lora, which')


def test_replaced_forward(layer, features, log):
    layer.layernorm.forward = lambda rows: 2 * rows
    assert_runs_modules(layer, features, log, 'the forward of their layernorm was replaced')


@pytest.mark.parametrize(
    ('part', 'method'), [('layernorm', 'normalize'), ('dwconv', '_conv_forward')], ids=str
)
def test_replaced_method(layer, features, log, part, method):
    inner = getattr(layer, part)
    original = getattr(inner, method)
    setattr(inner, method, lambda *args: 2 * original(*args))
    assert_runs_modules(layer, features, log, f'the {method} of their {part} was replaced')


def test_replaced_class_of_a_module(layer, features, log):
    class Doubled(nn.Linear):
        def forward(self, rows):
            return 2 * super().forward(rows)

    layer.pwconv1.__class__ = Doubled
    assert_runs_modules(layer, features, log, 'their pwconv1 is Doubled, which')


PATCHED = [
    *(
        (nn.Linear, '__call__'),
        (nn.GELU, '_call_impl'),
        (nn.Conv2d, 'forward'),
        (nn.Conv2d, '_conv_forward'),
    ),
    *((nn.Linear, 'forward'), (nn.GELU, 'forward'), (nn.functional, 'linear')),
    *((nn.functional, 'gelu'), (nn.functional, 'layer_norm'), (nn.functional, 'conv2d')),
    *((ConvNextLayerNorm, 'forward'), (ConvNextLayerNorm, 'normalize')),
    *((ConvNextGRN, 'forward'), (ConvNextDropPath, 'forward')),
]


@pytest.mark.parametrize(
    ('owner', 'name'), PATCHED, ids=lambda value: getattr(value, '__name__', value)
)
def test_patched_functions_are_called(features, log, monkeypatch, owner, name):
    layer, calls = randomize(ConvNextLayer(16, use_grn=True)), []
    original = getattr(owner, name)

    def patch(*args, **kwargs):
        calls.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, patch)
    assert_runs_modules(layer, features, log, f'{owner.__name__}.{name} was patched')
    assert calls


def test_a_patched_call_of_all_modules_is_noticed(layer, features, log, monkeypatch):
    original = nn.Module.__call__
    monkeypatch.setattr(nn.Module, '__call__', lambda *args: original(*args))
    assert_runs_modules(layer, features, log, '.__call__ was patched')


def test_a_patched_run_modules_is_called(layer, features, log, monkeypatch):
    monkeypatch.setattr(ConvNextLayer, 'run_modules', lambda self, features: 2 * features)
    assert torch.equal(layer(features), 2 * features)
    assert 'ConvNextLayer.run_modules was patched' in log()[0]


@pytest.mark.parametrize(
    ('owner', 'name'), [(ConvNextLayerNorm, 'normalize'), (nn.functional, 'layer_norm')]
)
def test_a_norm_of_maps_calls_patched_functions(features, monkeypatch, owner, name):
    norm = randomize(ConvNextLayerNorm(16, data_format='channels_first'))
    monkeypatch.setattr(owner, name, lambda *args: args[owner is ConvNextLayerNorm] * 2)
    assert torch.equal(norm(features), 2 * features)


def test_a_function_that_was_patched_before_is_noticed(monkeypatch):
    with monkeypatch.context() as patches:
        patches.setattr(fusion, '_replaced', [])
        patches.setattr(nn.Linear, 'forward', lambda self, rows: rows)
        fusion.fused_replaces(nn.Linear, 'forward')
        assert fusion.obstacle_in_functions() == 'Linear.forward was patched'
    assert fusion.obstacle_in_functions() is None


@pytest.mark.parametrize('part', ['dwconv', 'layernorm', 'pwconv1', 'act', 'pwconv2', 'drop_path'])
def test_hooks_on_inner_modules_are_called(layer, features, log, part):
    calls = []
    getattr(layer, part).register_forward_hook(lambda *args: calls.append(args))
    assert_runs_modules(layer, features, log, f'hooks are registered on their {part}')
    assert len(calls) == 4


def test_hooks_on_all_modules_are_called(layer, features, log):
    calls = []
    handle = nn.modules.module.register_module_forward_hook(lambda *args: calls.append(args))
    try:
        assert_runs_modules(layer, features, log, 'hooks are registered on all modules')
    finally:
        handle.remove()
    assert any(isinstance(args[0], ConvNextDropPath) for args in calls)


def test_pruned_layer(layer, features, log):
    prune.random_unstructured(layer.pwconv2, 'weight', amount=0.5)
    assert_runs_modules(layer, features, log, 'their pwconv2')


def test_parametrized_layer(layer, features, log):
    class Doubled(nn.Module):
        def forward(self, weight):
            return 2 * weight

    parametrize.register_parametrization(layer.pwconv1, 'weight', Doubled())
    assert_runs_modules(layer, features, log, 'their pwconv1')


def test_an_inner_norm_that_does_not_fit_is_an_error(layer, features):
    layer.layernorm.normalized_shape = (9, 16)
    with pytest.raises(RuntimeError, match='normalized_shape'):
        layer(features)
    layer.layernorm.normalized_shape, layer.layernorm.data_format = (16,), 'channels_first'
    with pytest.raises(RuntimeError, match='normalized_shape'):
        layer(features)


def test_dilated_convolution(layer, features, log):
    layer.dwconv.dilation, layer.dwconv.padding = (2, 2), (6, 6)
    assert_runs_modules(layer, features, log, 'their dwconv')


@pytest.mark.parametrize(
    'args', [dict(kernel_size=5, padding=2, groups=16), dict(kernel_size=7, padding=3)]
)
def test_another_convolution(layer, features, log, args):
    layer.dwconv = nn.Conv2d(16, 16, **args)
    assert_runs_modules(layer, features, log, 'their dwconv is Conv2d')


@pytest.mark.parametrize('part', ['dwconv', 'layernorm', 'pwconv1', 'pwconv2'])
def test_removed_bias(layer, features, log, part):
    getattr(layer, part).bias = None
    assert_runs_modules(layer, features, log, 'is missing')


def test_another_hidden_width(layer, features, log):
    layer.pwconv1, layer.pwconv2 = nn.Linear(16, 27), nn.Linear(27, 16)
    reason = 'weight1 must be of shape (64, 16) and is of shape (27, 16)'
    assert_runs_modules(layer, features, log, reason)


@pytest.mark.parametrize('channels', [8, 24])
def test_a_wrong_number_of_channels_is_an_error(layer, channels):
    maps = torch.randn(1, channels, 8, 8)
    with pytest.raises(RuntimeError, match='to have 16 channels'):
        layer(maps)
    with pytest.raises(RuntimeError, match='normalized_shape'):
        ConvNextLayerNorm(16, data_format='channels_first')(maps)


def test_meta_tensors(layer):
    assert layer.to('meta')(torch.empty(2, 16, 9, 9, device='meta')).device.type == 'meta'


def test_overridden_reference(features, log):
    class Silent(ConvNextLayer):
        def run_modules(self, hidden_states):
            return hidden_states

    class Idle(ConvNextLayerNorm):
        def normalize(self, features):
            return features

    assert_runs_modules(randomize(Silent(16)), features, log, 'Silent overrides run_modules')
    assert torch.equal(Idle(16, data_format='channels_first')(features), features)


def test_more_children(layer, features):
    layer.adapter = nn.Identity()
    torch.testing.assert_close(layer(features), layer.run_modules(features))


def test_drop_prob_out_of_range_is_an_error(layer, features):
    layer.drop_path.drop_prob = 1.0
    with pytest.raises(ValueError, match=r'drop_prob must be in \[0, 1\), got 1.0'):
        layer(features)


def test_half_precision(layer, features, log):
    with torch.autocast('cpu', torch.float16):
        layer(features)
    layer.half()(features.half())
    title = 'ConvNeXt blocks run fused, in torch operators (16 channels in torch.float16)'
    assert log() == [title]


def test_autocast_of_another_half_precision(layer, features, log):
    with torch.autocast('cpu', torch.float16):
        assert_runs_modules(layer, features.bfloat16(), log, 'compute in torch.float16')


def test_mixed_types(features, log):
    layer = randomize(ConvNextLayer(16))
    layer.layer_scale_parameter.data = layer.layer_scale_parameter.data.double()
    assert_runs_modules(layer, features, log, 'torch.float32, torch.float64')


def test_an_empty_batch(layer, log):
    assert layer(torch.empty(0, 16, 8, 8)).shape == (0, 16, 8, 8)
    assert 'the feature maps are empty' in log()[0]


def test_operations_are_counted(layer, features, log):
    def count(run):
        with FlopCounterMode(display=False) as counter:
            run(features)
        return counter.get_total_flops()

    products = 2 * 2 * (2 * 9 * 9 * 16 * 64) + 2 * (2 * 9 * 9 * 16 * 49)
    assert count(layer) == count(layer.run_modules) == products


def test_function_transforms(layer, features, log):
    parameters = dict(layer.named_parameters())

    def loss(parameters, image):
        return torch.func.functional_call(layer, parameters, image[None]).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, features)
    whole = torch.autograd.grad(layer.run_modules(features).square().sum(), layer.pwconv1.weight)[0]
    torch.testing.assert_close(each['pwconv1.weight'].sum(0), whole, rtol=1e-4, atol=1e-4)
    assert 'function transform' in log()[0]


def test_forward_mode_differentiation(layer):
    layer, features = layer.double(), torch.randn(1, 16, 5, 5, dtype=torch.float64)
    tangent, step = torch.randn_like(features), 1e-6
    with forward_ad.dual_level():
        output = layer(forward_ad.make_dual(features, tangent))
        derivative = forward_ad.unpack_dual(output).tangent
    difference = layer(features + step * tangent) - layer(features - step * tangent)
    torch.testing.assert_close(derivative, difference / (2 * step), rtol=1e-6, atol=1e-7)


def test_fake_tensors(layer, features):
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert layer(mode.from_tensor(features)).shape == features.shape


@pytest.mark.filterwarnings('ignore::DeprecationWarning', 'ignore::torch.jit.TracerWarning')
def test_traced_and_exported_models_hold_only_standard_operators():
    model = randomize(small_backbone())
    images = torch.randn(2, 3, 64, 64)
    # The default since torch 2.7. Before, a strict export cannot be told apart from torch.compile.
    exported = torch.export.export(model, (images,), strict=False)
    traced = torch.jit.trace(model, images)
    used = {str(node.target) for node in exported.graph.nodes if node.op == 'call_function'}
    used |= {node.kind() for node in traced.inlined_graph.nodes()}
    assert not [name for name in used if 'convnext' in name or 'mkldnn' in name]
    for result in (exported.module()(images), traced(images)):
        for value, truth in zip(result, model(images), strict=True):
            torch.testing.assert_close(value, truth, rtol=1e-5, atol=1e-5)
