"""Blocks and norms under ``torch.compile``: they stay fused, as operators that are not traced."""

import contextlib

import pytest
import torch
from helpers import randomize
from measuring import Case, saved_activations
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from convnext_backbone import ConvNextBackbone, ConvNextLayer
from convnext_backbone.ops import BlockParameters, BlockSettings, native

# Compiling takes most of the time of these tests.
ARCH = dict(depths=[1, 1], hidden_sizes=[8, 16])

AUTOCAST = {
    None: contextlib.nullcontext,
    'bf16': lambda: torch.autocast('cpu', torch.bfloat16),
    'fp16': lambda: torch.autocast('cpu', torch.float16),
}


TORCH = tuple(int(number) for number in torch.__version__.split('.')[:2])


@pytest.fixture(autouse=True)
def _reset():
    torch.compiler.reset()


def results(run, module, features, autocast=None):
    """The outputs of a module and all gradients."""
    module.zero_grad()
    features = features.detach().clone().requires_grad_()
    torch.manual_seed(1)  # drop path
    with AUTOCAST[autocast]():
        output = run(features)
    outputs = [output] if isinstance(output, torch.Tensor) else list(output)
    torch.autograd.backward(
        outputs, [torch.sin(torch.arange(o.numel()).view_as(o)) for o in outputs]
    )
    return [*outputs, features.grad, *(p.grad for p in module.parameters())]


def assert_same(values, truths, bound=1e-5):
    for value, truth in zip(values, truths, strict=True):
        assert (value is None) == (truth is None)
        if truth is not None:
            assert (value.shape, value.dtype) == (truth.shape, truth.dtype)
            assert (value - truth).norm() <= bound * truth.norm()


def called_operators(run, *args):
    """What a compiled function calls, by name; nothing falls back to the eager mode."""
    called = []

    def collect(graph, inputs):
        called.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    torch.compile(run, fullgraph=True, backend=collect)(*args)
    return called


BLOCKS = [
    (dict(drop_path=0.5), None, 'pwconv1'),
    (dict(use_grn=True, layer_scale_init_value=None, with_cp=True), 'bf16', 'layernorm'),
    (dict(dim=12, with_cp=True), None, ''),
    (dict(use_grn=True), 'bf16', 'dwconv'),
    (dict(drop_path=0.5), 'fp16', 'pwconv2'),
    (dict(use_grn=True), 'fp16', 'layernorm'),
]


@pytest.mark.parametrize(('args', 'autocast', 'frozen'), BLOCKS, ids=str)
def test_a_compiled_block_equals_the_eager_one(args, autocast, frozen):
    layer = randomize(ConvNextLayer(**{'dim': 16} | args))
    if frozen:
        getattr(layer, frozen).requires_grad_(False)
    compiled = torch.compile(layer, fullgraph=True, backend='aot_eager')
    features = torch.randn(2, layer.dwconv.in_channels, 9, 7)
    features = features.contiguous(memory_format=torch.channels_last)
    for images in (features, features.contiguous()):
        truth = results(layer, layer, images, autocast)
        assert_same(results(compiled, layer, images, autocast), truth)


def test_a_backbone_compiled_by_inductor_equals_the_eager_one():
    model = randomize(ConvNextBackbone(ARCH, out_indices=(0, 1), use_grn=True))
    compiled = torch.compile(model, fullgraph=True)
    images = torch.randn(2, 3, 32, 48)
    values, truth = (results(run, model, images) for run in (compiled, model))
    assert_same(values, truth, 1e-4)
    assert all(maps.is_contiguous() for maps in values[:2])


def test_a_compiled_backbone_calls_the_fused_operators():
    model = ConvNextBackbone(ARCH, out_indices=(0, 1))
    called = called_operators(model, torch.randn(1, 3, 32, 32))
    assert called.count('convnext_backbone.block') == 2
    assert not [name for name in called if 'linear' in name or 'gelu' in name]
    # The norms of the stem, the downsampling and two maps.
    kernels = native.load_kernels()
    assert called.count('convnext_backbone.map_norm') == (4 if kernels else 0)


def test_a_compiled_block_saves_no_more_than_the_eager_one():
    layer, features = ConvNextLayer(16), torch.randn(1, 16, 32, 32)
    features = features.contiguous(memory_format=torch.channels_last)
    case = Case('', (32, 32), 1, 'cpu', 'fp32', 'train')
    for with_cp in (False, True):
        layer.with_cp = with_cp
        compiled = torch.compile(layer, fullgraph=True, backend='aot_eager')
        saved = saved_activations(layer, features, case)
        assert saved_activations(compiled, features, case) == saved
        assert saved == features.nbytes / 2**20 * (1 if with_cp else 5)


def test_other_sizes_are_not_compiled_again():
    arch = dict(depths=[1], hidden_sizes=[8])
    model = randomize(ConvNextBackbone(arch, use_grn=True))
    counter = CompileCounterWithBackend('aot_eager')
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
    counts = []
    for shape in ((2, 3, 32, 64), (3, 3, 96, 32), (5, 3, 48, 72)):
        images = torch.randn(shape)
        assert_same(results(compiled, model, images), results(model, model, images))
        counts.append(counter.frame_count)
    assert counts[0] > 0
    assert counts[1] == counts[2]
    # torch 2.6 compiles once more for its second size.
    if TORCH >= (2, 13):
        assert counts[0] == counts[1]


def hook(layer, monkeypatch):
    layer.pwconv1.register_forward_hook(lambda *args: 2 * args[2])


def replaced(layer, monkeypatch):
    layer.act = nn.ReLU()


def patched(layer, monkeypatch):
    monkeypatch.setattr(nn.functional, 'layer_norm', lambda rows, *args: 2 * rows)


@pytest.mark.parametrize('change', [hook, replaced, patched])
def test_a_changed_block_is_compiled_by_its_modules(change, monkeypatch):
    layer, features = randomize(ConvNextLayer(16)), torch.randn(1, 16, 5, 5)
    change(layer, monkeypatch)
    called = called_operators(layer, features)
    assert not [name for name in called if 'convnext' in name]
    compiled = torch.compile(layer, fullgraph=True, backend='eager')
    assert torch.equal(compiled(features), layer.run_modules(features))


def test_a_change_after_compiling_is_noticed():
    layer, features = randomize(ConvNextLayer(16)), torch.randn(1, 16, 5, 5)
    compiled = torch.compile(layer, fullgraph=True, backend='eager')
    compiled(features)
    layer.act = nn.ReLU()
    assert torch.equal(compiled(features), layer.run_modules(features))


def test_function_transforms_are_compiled():
    layer, features = randomize(ConvNextLayer(16)), torch.randn(3, 16, 5, 5)

    def norms(features):
        return torch.func.vmap(lambda image: layer(image[None]).norm())(features)

    compiled = torch.compile(norms, fullgraph=True, backend='aot_eager')
    with torch.no_grad():
        torch.testing.assert_close(compiled(features), layer(features).flatten(1).norm(dim=1))


def leaf(*shape):
    return torch.randn(shape, requires_grad=True)


@pytest.mark.parametrize(('lean', 'use_grn'), [(False, False), (True, True)])
def test_fakes_and_gradients_of_the_block_operator(lean, use_grn):
    grn = leaf(1, 1, 1, 32) if use_grn else None
    parameters = BlockParameters(
        leaf(8, 1, 7, 7), leaf(8), leaf(8), leaf(8), leaf(32, 8), leaf(32), leaf(8, 32), leaf(8),
        None if use_grn else leaf(8), grn, grn,
    )  # fmt: skip
    settings = BlockSettings(torch.bfloat16, torch.float32, 1e-6, 1e-6, lean)
    features, keep = leaf(2, 4, 3, 8), torch.tensor([2.0, 0.0])
    operators = torch.ops.convnext_backbone
    arguments = features, keep, *parameters, *settings
    torch.library.opcheck(operators.block, (*arguments, not lean))
    output, inner = operators.block(*arguments, not lean)
    needs = [True] * 6 + [t is not None for t in parameters[5:]]
    backward = torch.ones_like(output), inner, *arguments, needs
    torch.library.opcheck(
        operators.block_backward, backward, test_utils=('test_schema', 'test_faketensor')
    )


@pytest.mark.skipif(not native.load_kernels(), reason='the kernels are not built')
@pytest.mark.parametrize('channels_first', [False, True])
def test_fakes_and_gradients_of_the_norm_operator(channels_first):
    arguments = leaf(2, 3, 4, 8), leaf(8), leaf(8), 1e-6, channels_first
    torch.library.opcheck(torch.ops.convnext_backbone.map_norm, arguments)
