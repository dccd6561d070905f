"""mmengine's ways of training give the same with fused blocks as with their modules."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import SMALL, randomize
from mmengine.model import (
    BaseModel,
    ExponentialMovingAverage,
    convert_sync_batchnorm,
    revert_sync_batchnorm,
)
from mmengine.optim import OptimWrapper
from torch import nn

from convnext_backbone import ConvNextBackbone

KINDS = {'v1': dict(layer_scale_init_value=0.5), 'v2': dict(use_grn=True)}


class Model(BaseModel):
    """A backbone, a batch norm and a linear head."""

    def __init__(self, **args) -> None:
        super().__init__()
        self.backbone = ConvNextBackbone(SMALL, **args)
        self.norm = nn.BatchNorm2d(32)
        self.head = nn.Linear(32, 3)

    def forward(self, inputs, labels=None, mode='tensor'):
        logits = self.head(self.norm(self.backbone(inputs)[-1]).mean(dim=(2, 3)))
        return logits if mode == 'tensor' else dict(loss=F.cross_entropy(logits.float(), labels))


class AmpOnCpu(OptimWrapper):
    """What mmengine's AmpOptimWrapper does, which refuses the CPU."""

    def __init__(self, dtype: torch.dtype, **args) -> None:
        super().__init__(**args)
        self.dtype = dtype
        self.scaler = torch.amp.GradScaler('cpu', enabled=dtype == torch.float16)

    def optim_context(self, model):
        return torch.autocast('cpu', dtype=self.dtype)

    def backward(self, loss, **args):
        self.scaler.scale(loss).backward(**args)

    def step(self, **args):
        self.scaler.unscale_(self.optimizer)
        self._clip_grad()
        self.scaler.step(self.optimizer)
        self.scaler.update()


def build(kind: str, fused: bool) -> Model:
    model = Model(**KINDS[kind], fused=fused)
    return randomize(model).train()


def batches(count: int, size: int = 4) -> list[dict]:
    generator = torch.Generator().manual_seed(1)
    return [
        dict(
            inputs=torch.randn(size, 3, 64, 64, generator=generator),
            labels=torch.randint(3, (size,), generator=generator),
        )
        for _ in range(count)
    ]


def train(model: Model, data: list[dict], wrapper: type = OptimWrapper, **args) -> list[float]:
    """Trains with SGD and returns the losses."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    optim_wrapper = wrapper(optimizer=optimizer, clip_grad=dict(max_norm=1.0), **args)
    return [model.train_step(batch, optim_wrapper)['loss'].item() for batch in data]


def distance(one: nn.Module, other: nn.Module, start: nn.Module) -> float:
    """The difference of two trained models, relative to what training changed."""
    weights = [nn.utils.parameters_to_vector(m.parameters()) for m in (one, other, start)]
    return ((weights[0] - weights[1]).norm() / (weights[0] - weights[2]).norm()).item()


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('counts', [1, 3])
def test_clipping_and_accumulation(kind, counts):
    one, other = build(kind, True), build(kind, False)
    start = copy.deepcopy(one)
    for model in (one, other):
        train(model, batches(6), accumulative_counts=counts)
    assert distance(one, other, start) < 1e-4


@pytest.mark.parametrize('kind', KINDS)
def test_accumulated_batches_are_one_large_batch(kind):
    one, other = (build(kind, True).eval() for _ in range(2))
    start = copy.deepcopy(one)
    data = batches(4)
    large = [
        dict(
            inputs=torch.cat([batch['inputs'] for batch in pair]),
            labels=torch.cat([batch['labels'] for batch in pair]),
        )
        for pair in (data[:2], data[2:])
    ]
    train(one, data, accumulative_counts=2)
    train(other, large)
    assert distance(one, other, start) < 1e-4


@pytest.mark.parametrize('kind', KINDS)
def test_moving_averages(kind):
    """The average of fused models is that of the weights, and predicts with them."""
    averages, data = [], batches(4)
    for fused in (True, False):
        model = build(kind, fused)
        start = copy.deepcopy(model)
        average = ExponentialMovingAverage(model, momentum=0.3, update_buffers=True)
        for batch in data:
            train(model, [batch])
            average.update_parameters(model)
            # Its blocks must not keep what they computed from earlier weights.
            average.module.eval()(batch['inputs'])
        averages.append(average.module)
    one, other = averages
    assert distance(one, other, start) < 1e-4
    with torch.no_grad():
        outputs = [m.eval()(data[0]['inputs']) for m in averages]
        outputs.append(start.eval()(data[0]['inputs']))
    assert (outputs[0] - outputs[1]).norm() < 1e-3 * (outputs[0] - outputs[2]).norm()


@pytest.mark.parametrize('kind', KINDS)
def test_conversions_of_batch_norms_change_no_backbone(kind):
    model = build(kind, True)
    inputs = batches(1)[0]['inputs']
    kinds = [type(m) for m in model.backbone.modules()]
    maps = model.backbone(inputs)
    converted = convert_sync_batchnorm(copy.deepcopy(model))
    assert isinstance(converted.norm, nn.SyncBatchNorm)
    reverted = revert_sync_batchnorm(copy.deepcopy(converted))
    assert not isinstance(reverted.norm, nn.SyncBatchNorm)
    for other in (converted, reverted):
        assert [type(m) for m in other.backbone.modules()] == kinds
        assert all(map(torch.equal, maps, other.backbone(inputs)))
    start = copy.deepcopy(model)
    train(model, batches(2))
    train(reverted, batches(2))
    assert distance(model, reverted, start) < 1e-4


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize(
    ('dtype', 'tolerance', 'bound'), [('bfloat16', 0.1, 0.1), ('float16', 0.02, 0.05)]
)
def test_mixed_precision(kind, dtype, tolerance, bound):
    """Fused blocks and modules follow the path of float32.

    Eight steps enlarge the roundings of the first one: in float16, the distance of V2 is between
    0.004 and 0.027 for other weights, of fused blocks and of modules.
    """
    exact, data = build(kind, False), batches(8)
    start = copy.deepcopy(exact)
    losses = train(exact, data)
    for fused in (True, False):
        model = build(kind, fused)
        mixed = train(model, data, wrapper=AmpOnCpu, dtype=getattr(torch, dtype))
        assert mixed == pytest.approx(losses, rel=tolerance)
        # On processors with bfloat16, V2's modules are at 0.17 and fused blocks at 0.07.
        is_far = (kind, dtype, fused) == ('v2', 'bfloat16', False)
        assert distance(exact, model, start) < (0.2 if is_far else bound)
