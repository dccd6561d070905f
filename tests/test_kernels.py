"""The compiled operators: schemas, fakes, and errors for tensors on a wrong device."""

import pytest
import torch
from torch.library import opcheck

from convnext_backbone.ops import fakes, native

pytestmark = pytest.mark.skipif(not native.load_kernels(), reason='the kernels are not built')

C, FEATURES = 16, (2, 5, 6, 16)


def vectors(*shape, dtype=torch.float32):
    return torch.randn(shape, dtype=dtype)


def arguments(dtype):
    """Arguments of every operator: feature maps in ``dtype``, parameters and sums in float32."""
    features, rows, inner = vectors(*FEATURES, dtype=dtype), vectors(60, C, dtype=dtype), 4 * C
    hidden = vectors(60, inner, dtype=dtype)
    taps, vector, convolved = vectors(49, C), vectors(C), vectors(*FEATURES)
    samples = vectors(2, inner)
    return {
        'depthwise_norm': [
            (features, taps, vector, vector, vector, 1e-6, dtype, keep) for keep in (True, False)
        ],
        'depthwise_input_grad': [(convolved, taps, features)],
        'depthwise_weight_grad': [(features, convolved)],
        'norm': [(features, vector, vector, 1e-6, first) for first in (True, False)],
        'norm_backward_': [(vectors(60, C), rows, vector, 1e-6)],
        'gelu_backward_': [
            (hidden.clone(), hidden, None, None),
            (hidden.clone(), hidden, samples, samples),
        ],
        'add_branch_': [
            (torch.empty_like(rows), rows, rows, None, None),
            (torch.empty_like(rows), rows, rows, vector, vectors(60)),
        ],
        'branch_grad': [(rows, None, dtype), (rows, vectors(60), dtype, vector)],
        'row_products': [(hidden, hidden)],
        'column_products': [(hidden, hidden, 2)],
    }


NAMES = [fake.__name__ for fake in fakes.FAKES]

# The operators in Python that torch.compile sees; test_compiled.py checks them.
WHOLE = {'block', 'block_backward', 'map_norm', 'map_norm_backward'}


def test_every_operator_has_a_fake():
    assert sorted(NAMES) == sorted(arguments(torch.float32))
    registered = torch._C._dispatch_get_all_op_names()
    ours = {name.split('::')[1] for name in registered if name.startswith('convnext_backbone::')}
    assert ours == {*NAMES, *WHOLE}


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('name', NAMES)
def test_schema_and_fake_describe_the_operator(name, dtype):
    operator = getattr(torch.ops.convnext_backbone, name).default
    for args in arguments(dtype)[name]:
        opcheck(operator, args, test_utils=('test_schema', 'test_faketensor'))


@pytest.mark.parametrize('name', NAMES)
def test_meta_tensors_have_the_same_shapes_and_dtypes(name):
    operator = getattr(torch.ops.convnext_backbone, name)
    for args in arguments(torch.float32)[name]:
        real = operator(*args)
        meta = operator(*(a.to('meta') if isinstance(a, torch.Tensor) else a for a in args))
        for one, other in zip(as_tuple(real), as_tuple(meta), strict=True):
            assert other.device.type == 'meta'
            assert (one.shape, one.dtype) == (other.shape, other.dtype)


@pytest.mark.parametrize('name', NAMES)
def test_a_wrong_device_is_an_error(name):
    """On a GPU the same dispatcher error is raised; sparse tensors show it without one."""
    operator = getattr(torch.ops.convnext_backbone, name)
    args = arguments(torch.float32)[name][0]
    with pytest.raises(NotImplementedError, match=f'convnext_backbone::{name}'):
        operator(*(a.to_sparse() if isinstance(a, torch.Tensor) else a for a in args))


def as_tuple(output):
    return () if output is None else output if isinstance(output, tuple) else (output,)
