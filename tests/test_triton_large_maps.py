"""Maps of more than 2**31 elements: offsets have 64 bits. Only the interpreter runs one program.

Only the end of each map is used: memory that nobody touches is not there.
"""

import pytest
import torch

from convnext_backbone.ops import portable

pytest.importorskip('triton', minversion='3.7')

from triton.runtime.interpreter import GridExecutor, InterpretedFunction, interpreter_builder

from convnext_backbone.ops import triton_kernels
from convnext_backbone.ops.triton_kernels import depthwise

pytestmark = pytest.mark.skipif(
    not isinstance(depthwise._depthwise_norm, InterpretedFunction),
    reason='the kernels are compiled',
)

F32, BF16 = torch.float32, torch.bfloat16


def run_last_program(launch, monkeypatch, last, **arguments):
    """Runs only the programs with the last index along the first axis."""
    set_place, set_size = interpreter_builder.set_grid_idx, interpreter_builder.set_grid_dim
    with monkeypatch.context() as patch:
        patch.setattr(interpreter_builder, 'set_grid_idx', lambda x, y, z: set_place(last, y, z))
        patch.setattr(interpreter_builder, 'set_grid_dim', lambda x, y, z: set_size(last + 1, y, z))
        # It copies every tensor onto itself.
        patch.setattr(GridExecutor, '_restore_args_dev', lambda *args: None)
        grid = (1, *launch.grid[1:])
        launch._replace(grid=grid, arguments=launch.arguments | arguments).run()


@pytest.mark.parametrize(
    ('name', 'height'),
    [
        *(('depthwise_norm', 1), ('depthwise_input_grad', 1)),
        *(('depthwise_input_grad', 2**31 // 40 + 3), ('norm', 2**31 // 40 + 3)),
    ],
)
def test_depthwise_kernels_and_norms(name, height, monkeypatch):
    count = 2**31 // 40 + 3
    big = torch.empty(count // height, height, 1, 40, dtype=BF16)
    taps, (bias, weight, shift) = torch.randn(49, 40), torch.randn(3, 40)
    tail = big.view(-1, 40)[-20:]
    tail.copy_(torch.randn(20, 40))
    make = {
        'depthwise_norm': lambda t: (t, taps, bias, weight, shift, 1e-6, BF16, True),
        'depthwise_input_grad': lambda t: (t, taps, t),
        'norm': lambda t: (t, weight, shift, 1e-6, False),
    }[name]
    # The end of a map of rows has rows above it. An image has no neighbours.
    small = tail.clone().view(1, 20, 1, 40) if height > 1 else tail[-1:].clone().view(1, 1, 1, 40)
    expected = getattr(triton_kernels, name)(*make(small))
    expected = expected if torch.is_tensor(expected) else expected[0]
    _, (launch,) = getattr(triton_kernels, f'plan_{name}')(*make(big.to('meta')))
    maps_of = {'features', 'grad', 'grad_output', 'grad_input', 'normed', 'convolved', 'output'}
    arguments = dict.fromkeys(maps_of & launch.arguments.keys(), big)
    run_last_program(launch, monkeypatch, launch.grid[0] - 1, **arguments)
    assert torch.equal(big.view(-1, 40)[-1], expected.view(-1, 40)[-1])


def test_the_weight_gradient(tmp_path, monkeypatch):
    """The last program, in its first 32 channels: it has the gradients of 16 rows."""
    channels = 2816
    height = 2**31 // (16 * 4 * channels) * 16 + 16
    big = torch.empty(1, height, 4, channels, dtype=BF16)
    features, seen = big[:, -19:], torch.randn(1, 19, 4, 32).to(BF16)
    features[..., :32] = seen
    grad = seen.clone()
    grad[:, :3] = 0
    _, (launch, _) = triton_kernels.plan_depthwise_weight_grad(*[big.to('meta')] * 2)
    count = height // 16
    # Every program has a place for its sums. A file has no memory where nobody writes.
    sizes = dict(size=count * 49 * channels, dtype=F32)
    partials = torch.from_file(str(tmp_path / 'partials'), shared=True, **sizes)
    launch = launch._replace(grid=(count, 1))
    run_last_program(launch, monkeypatch, count - 1, features=big, grad=big, partials=partials)
    sums = partials.view(count, 49, channels)[-1, :, :32]
    truth = portable.depthwise_weight_grad(seen.double(), grad.double())
    torch.testing.assert_close(sums.double(), truth, rtol=2e-6, atol=1e-4)


@pytest.mark.parametrize(
    ('name', 'maps', 'make'),
    [
        ('norm_backward_', ['features', 'grad'], lambda t, v: (t, t, v, 1e-6)),
        ('gelu_backward_', ['grad', 'inner', 'hidden'], lambda t, v: (t, t, None, None)),
        ('branch_grad', ['grad', 'kept'], lambda t, v: (t, None, F32)),
        ('add_branch_', ['output', 'features', 'branch'], lambda t, v: (t, t, t, v, None)),
        ('column_products', ['first', 'second'], lambda t, v: (t, t, 1)),
    ],
)
def test_kernels_that_work_on_rows(name, maps, make, monkeypatch):
    width = 40
    count = 2**31 // width + 3
    big, vector = torch.empty(count, width, dtype=BF16), torch.randn(width)
    _, launches = getattr(triton_kernels, f'plan_{name}')(*make(big.to('meta'), vector))
    launch = launches[0]
    tile = (count - 1) // launch.constants['TILE_ROWS']
    tail = big[tile * launch.constants['TILE_ROWS'] :]
    tail.copy_(torch.randn(tail.shape))
    small = tail.clone()
    expected = make(small, vector)
    others = {}
    if 'partials' in launch.arguments:
        others['partials'] = torch.empty(tile + 1, launch.arguments['partials'].shape[-1])
    if name == 'branch_grad':  # it has no output of this size without a change of the dtype
        launch.arguments['kept'] = None
    run_last_program(
        launch,
        monkeypatch,
        tile,
        **{argument: big for argument in maps if launch.arguments[argument] is not None},
        **others,
    )
    outputs = getattr(triton_kernels, name)(*expected)
    if name != 'column_products' and name != 'branch_grad':
        assert torch.equal(tail, small if name != 'add_branch_' else expected[0])
    if 'partials' in others:
        sums = outputs if torch.is_tensor(outputs) else outputs[-1]
        assert torch.equal(others['partials'][tile], sums.flatten())
