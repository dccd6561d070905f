"""Fused models, blocks and norms equal their modules for arbitrary inputs."""

from functools import partial

import pytest
import torch
from helpers import ALL_FEATURES, SMALL, randomize

from convnext_backbone import ConvNextBackbone, ConvNextLayer, ConvNextLayerNorm

hypothesis = pytest.importorskip('hypothesis')
st = hypothesis.strategies

# The same few examples in every run, and no file of earlier failures.
examples = partial(hypothesis.settings, derandomize=True, deadline=None, database=None)

# The largest relative error of an output or a gradient.
BOUNDS = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 1e-1}

# Views with the given shape but other strides, made from tensors that are larger or transposed.
LAYOUTS = {
    'contiguous': lambda make, n, c, h, w: make(n, c, h, w),
    'channels_last': lambda make, n, c, h, w: make(n, h, w, c).permute(0, 3, 1, 2),
    'transposed': lambda make, n, c, h, w: make(w, h, c, n).permute(3, 2, 1, 0),
    'cropped': lambda make, n, c, h, w: make(n, c, h + 2, w + 3)[:, :, 1:-1, 2:-1],
    'every second pixel': lambda make, n, c, h, w: make(n, c, 2 * h, 2 * w)[:, :, ::2, ::2],
    'a channel slice': lambda make, n, c, h, w: make(n, h, w, 2 * c)[..., c:].permute(0, 3, 1, 2),
    'one sample repeated': lambda make, n, c, h, w: make(1, c, h, w).expand(n, c, h, w),
    'one value per channel': lambda make, n, c, h, w: make(n, c, 1, 1).expand(n, c, h, w),
}

dtypes = st.sampled_from(list(BOUNDS))
layouts = st.sampled_from(list(LAYOUTS))
batches, flags = st.integers(0, 3), st.booleans()


def outputs_and_gradients(module, features, layout):
    """The outputs, and the gradients for random gradients of the outputs in a layout."""
    features = features.detach().requires_grad_()
    torch.manual_seed(1)
    output = module(features)
    maps = [output] if isinstance(output, torch.Tensor) else list(output)
    grads = [LAYOUTS[layout](partial(torch.randn, dtype=m.dtype), *m.shape) for m in maps]
    tensors = [features, *module.parameters()]
    return [*maps, *torch.autograd.grad(maps, tensors, grads, allow_unused=True)]


def assert_equal_to_modules(module, shape, dtype, layout, layout_of_grads):
    module = randomize(module).to(dtype)
    torch.manual_seed(0)
    features = LAYOUTS[layout](partial(torch.randn, dtype=dtype), *shape)
    assert features.shape == shape
    results = outputs_and_gradients(module, features, layout_of_grads)
    switch_off(module)
    truths = outputs_and_gradients(module, features, layout_of_grads)
    for value, truth in zip(results, truths, strict=True):
        assert (value is None) == (truth is None)
        if truth is not None:
            assert (value.shape, value.dtype) == (truth.shape, truth.dtype)
            error, scale = (value - truth).double().norm(), truth.double().norm()
            # Norms of two or three channels have gradients that cancel to nearly zero.
            assert error <= BOUNDS[dtype] * (scale + 1e-2)


def switch_off(module):
    for part in module.modules():
        if hasattr(part, 'fused'):
            part.fused = False


@examples(max_examples=40)
@hypothesis.given(
    features=st.lists(st.sampled_from(ALL_FEATURES), min_size=1, unique=True),
    size=st.tuples(batches, st.just(3), st.integers(32, 70), st.integers(32, 70)),
    args=st.fixed_dictionaries(dict(use_grn=flags, with_cp=flags, drop_path_rate=st.just(0.3))),
    others=st.tuples(dtypes, layouts, layouts),
    train=flags,
)
def test_a_model_equals_its_modules(features, size, args, others, train):
    features = sorted(features, key=ALL_FEATURES.index)
    model = ConvNextBackbone(SMALL, out_features=features, **args).train(train)
    assert_equal_to_modules(model, size, *others)


@examples(max_examples=60)
@hypothesis.given(
    size=st.tuples(batches, st.integers(1, 40), st.integers(1, 12), st.integers(1, 12)),
    args=st.fixed_dictionaries(dict(use_grn=flags, with_cp=flags, drop_path=st.just(0.5))),
    has_scale=flags,
    others=st.tuples(dtypes, layouts, layouts),
    train=flags,
)
def test_a_block_equals_its_modules(size, args, has_scale, others, train):
    layer = ConvNextLayer(size[1], layer_scale_init_value=1.0 if has_scale else None, **args)
    assert_equal_to_modules(layer.train(train), size, *others)


@examples(max_examples=60)
@hypothesis.given(
    size=st.tuples(batches, st.integers(1, 40), st.integers(1, 12), st.integers(1, 12)),
    contiguous=flags,
    others=st.tuples(dtypes, layouts, layouts),
)
def test_a_norm_equals_its_modules(size, contiguous, others):
    norm = ConvNextLayerNorm(size[1], data_format='channels_first', contiguous=contiguous)
    assert_equal_to_modules(norm, size, *others)
