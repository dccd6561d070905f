"""The Triton kernels that work on rows, compiled on a card and else interpreted, against torch's.

The interpreter rounds to bfloat16 by cutting digits off, where a card rounds to the nearest.
"""

import pytest
import torch

from convnext_backbone.ops import portable

pytest.importorskip('triton', minversion='3.7')

from convnext_backbone.ops import triton_kernels
from convnext_backbone.ops.triton_kernels import norm_backward, partials, tiles

pytestmark = pytest.mark.usefixtures('triton_device')

F32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
DTYPES = [F32, BF16, FP16]

# One width of each class: the norm has a tile per power of two, the others two kinds of tiles.
NORM_WIDTHS = [40, 96, 200, 384, 768, 1536, 3072]
TILE_WIDTHS = [96, 136]

# The largest relative error of one rounding.
ROUNDING = {F32: 2e-6, BF16: 2**-7, FP16: 2**-11}


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """Maps of a few rows then need all that large maps do: several tiles in every program."""
    monkeypatch.setattr(tiles, 'MAX_PROGRAMS', 6)
    monkeypatch.setattr(partials, 'TILE_PARTIALS', 4)
    monkeypatch.setattr(partials, 'TILE_COLUMNS', 512)


@pytest.mark.parametrize('count', [1, partials.TILE_PARTIALS + 3])
def test_partial_sums_are_added_in_tiles(count, monkeypatch):
    monkeypatch.undo()
    terms = torch.randn(2, count, 72)
    total, launch = partials.plan_total(terms)
    launch.run()
    check_sums(total, terms, 1)


def rows(count, width, dtype=F32):
    return torch.randn(count, width).to(dtype)


def check(value, truth, dtype=F32, atol=2e-6):
    """Compares with the truth in float64, up to one rounding to the dtype of the result."""
    assert value.dtype == dtype
    torch.testing.assert_close(value.double(), truth, rtol=ROUNDING[dtype], atol=atol)


def check_sums(value, terms, dim=0):
    """Compares sums in float32 with those of their terms in float64."""
    assert value.dtype == F32
    error = (value - terms.double().sum(dim)).abs()
    assert (error <= 1e-5 * (terms.double().abs().sum(dim) + 1)).all()


def check_norm_backward(count, width, dtype, grad_dtype):
    features, grad = rows(count, width, dtype) + 1, rows(count, width, grad_dtype)
    weight = torch.randn(width)
    truth = features.double()
    true_sums = portable.norm_backward_(truth, grad.double(), weight.double(), 1e-6)
    sums = triton_kernels.norm_backward_(features, grad, weight, 1e-6)
    check(features, truth, dtype, atol=1e-5)
    assert sums.dtype == F32 and sums.shape == (3, width)
    torch.testing.assert_close(sums.double(), true_sums, rtol=1e-5, atol=1e-5 * count)


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('width', NORM_WIDTHS)
def test_norm_backward(width, dtype):
    count = 3 * max(1, norm_backward.TILE_ELEMENTS // width) + 2
    check_norm_backward(count, width, dtype, dtype)


@pytest.mark.parametrize(('dtype', 'grad_dtype'), [(F32, BF16), (F32, FP16), (BF16, F32)])
@pytest.mark.parametrize('count', [1, 37])
def test_norm_backward_with_other_dtypes_and_one_row(count, dtype, grad_dtype):
    check_norm_backward(count, 48, dtype, grad_dtype)


def test_norm_backward_without_eps_ignores_missing_rows():
    features, grad = rows(3, 40), rows(3, 40)
    sums = triton_kernels.norm_backward_(features, grad, torch.ones(40), 0.0)
    assert features.isfinite().all() and sums.isfinite().all()


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize(('count', 'width'), [(133, 96), (1, 136)])
def test_gelu_backward(count, width, dtype):
    inner, grad = 2 * rows(count, width, dtype), rows(count, width, dtype)
    truth = grad.double()
    true_hidden, _ = portable.gelu_backward_(truth, inner.double(), None, None)
    hidden, sums = triton_kernels.gelu_backward_(grad, inner, None, None)
    check(grad, truth, dtype)
    check(hidden, true_hidden, dtype)
    check_sums(sums, grad)


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('width', TILE_WIDTHS)
def test_gelu_backward_with_response_normalisation(width, dtype):
    """Samples of 83 rows end in the middle of tiles."""
    inner, grad = rows(166, width, dtype), rows(166, width, dtype)
    scale, shift = torch.randn(2, width), torch.randn(2, width)
    truth = grad.double()
    true_hidden, _ = portable.gelu_backward_(truth, inner.double(), scale.double(), shift.double())
    hidden, sums = triton_kernels.gelu_backward_(grad, inner, scale, shift)
    check(grad, truth, dtype, atol=1e-5)
    check(hidden, true_hidden, dtype)
    check_sums(sums, grad)


# The dtypes of the features, the branch and the output.
@pytest.mark.parametrize(
    'dtypes', [*((d, d, d) for d in DTYPES), (F32, BF16, F32), (FP16, FP16, F32)], ids=str
)
@pytest.mark.parametrize('scaled', [False, True])
@pytest.mark.parametrize('kept', [False, True])
def test_add_branch(kept, scaled, dtypes):
    for count, width in (70, 96), (1, 136):
        features, branch = rows(count, width, dtypes[0]), rows(count, width, dtypes[1])
        output = torch.empty(count, width, dtype=dtypes[2])
        scale = torch.randn(width) if scaled else None
        keep = torch.rand(count) if kept else None
        truth = output.double()
        wide = (t if t is None else t.double() for t in (features, branch, scale, keep))
        portable.add_branch_(truth, *wide)
        triton_kernels.add_branch_(output, features, branch, scale, keep)
        check(output, truth, dtypes[2])


@pytest.mark.parametrize(
    ('dtype', 'to'), [*((d, d) for d in DTYPES), (F32, BF16), (F32, FP16)], ids=str
)
@pytest.mark.parametrize('kept', [False, True])
def test_branch_grad(kept, dtype, to):
    for count, width in (150, 96), (1, 136):
        grad, keep = rows(count, width, dtype), torch.rand(count) if kept else None
        true_kept, _ = portable.branch_grad(
            grad.double(), keep.double() if kept else None, torch.float64
        )
        result, sums = triton_kernels.branch_grad(grad, keep, to)
        check(result, true_kept, to)
        check_sums(sums, true_kept)
        assert (result is grad) == (not kept and dtype == to)


@pytest.mark.parametrize(
    'dtypes', [(F32, F32), (BF16, BF16), (BF16, F32), (F32, BF16), (FP16, F32)]
)
@pytest.mark.parametrize(('count', 'width'), [(1, 40), (3, 1032), (5, 11264)])
def test_row_products(count, width, dtypes):
    first, second = rows(count, width, dtypes[0]), rows(count, width, dtypes[1])
    products = triton_kernels.row_products(first, second)
    check_sums(products, first.double() * second.double(), 1)


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize(('samples', 'count'), [(1, 1), (3, 83)])
@pytest.mark.parametrize('width', TILE_WIDTHS)
def test_column_products(width, samples, count, dtype):
    first, second = (rows(samples * count, width, dtype) for _ in range(2))
    products = triton_kernels.column_products(first, second, samples)
    terms = (first.double() * second.double()).view(samples, count, width)
    check_sums(products, terms, 1)


def test_squares_in_float16_do_not_overflow():
    hidden = torch.full((70, 40), 60000.0, dtype=FP16)
    products = triton_kernels.column_products(hidden, hidden, 1)
    torch.testing.assert_close(products, torch.full((1, 40), 70 * 59999.9999**2), rtol=1e-3, atol=0)


def broken(count, width):
    """Random rows of which some hold a value that is not finite."""
    values = rows(count, width)
    values[1, 3], values[count - 1, 5], values[count - 2, width - 1] = (
        torch.nan,
        torch.inf,
        -torch.inf,
    )
    return values


def both(name, device, *arguments):
    """Runs the torch operator and the Triton operator on copies; returns all tensors of both."""
    results = []
    for kernels in (portable, triton_kernels):
        copies = [a.to(device, copy=True) if torch.is_tensor(a) else a for a in arguments]
        outputs = getattr(kernels, name)(*copies)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        results.append([t for t in (*outputs, *copies) if isinstance(t, torch.Tensor)])
    return zip(*results, strict=True)


BAD, GOOD, VECTOR = broken(70, 40), torch.randn(70, 40), torch.randn(40)


@pytest.mark.parametrize(
    ('name', 'arguments'),
    [
        ('norm_backward_', (BAD, GOOD, VECTOR, 1e-6)),
        ('norm_backward_', (GOOD, BAD, VECTOR, 1e-6)),
        ('gelu_backward_', (BAD, GOOD, None, None)),
        ('gelu_backward_', (GOOD, BAD, None, None)),
        ('gelu_backward_', (BAD, GOOD, VECTOR.repeat(2, 1), VECTOR.repeat(2, 1))),
        ('add_branch_', (GOOD, BAD, GOOD, VECTOR, BAD[:, 5].contiguous())),
        ('branch_grad', (BAD, BAD[:, 3].contiguous(), F32)),
        ('row_products', (BAD, GOOD)),
        ('column_products', (BAD, GOOD, 2)),
    ],
)
def test_values_that_are_not_finite_spread_as_in_torch(name, arguments, triton_device):
    found = False
    for truth, value in both(name, triton_device, *arguments):
        assert torch.equal(value.isfinite(), truth.isfinite())
        found |= not truth.isfinite().all()
    assert found


def test_a_tensor_with_gaps_is_an_error():
    with pytest.raises(ValueError, match=r'branch must be contiguous.*call \.contiguous\(\)'):
        triton_kernels.add_branch_(GOOD, GOOD, GOOD.t().contiguous().t(), None, None)


def test_results_are_the_same_in_every_run_and_do_not_depend_on_the_card():
    """The number of partial sums follows from the shape. Equal inputs give equal bits."""
    grad, keep = rows(300, 96), torch.rand(300)
    one, other = (triton_kernels.branch_grad(grad, keep, F32)[1] for _ in range(2))
    assert torch.equal(one, other)
