"""Compares one training step with mmengine's FSDP strategy to the same step without it.

torchrun --nproc_per_node 2 tests/fsdp_step.py
"""

import copy

import torch
import torch.distributed as dist
import torch.nn.functional as F
from helpers import SMALL
from mmengine._strategy import FSDPStrategy
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from convnext_backbone import ConvNextBackbone, ConvNextLayer

OPTIM_WRAPPER = dict(
    type='OptimWrapper',
    constructor='ConvNextLayerDecayOptimWrapperConstructor',
    optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=0.05),
    paramwise_cfg=dict(decay_rate=0.7),
)


class Classifier(BaseModel):
    """A backbone, average pooling and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = ConvNextBackbone(SMALL, layer_scale_init_value=1.0)
        self.head = nn.Linear(32, 3)

    def forward(self, inputs, labels, mode):
        logits = self.head(self.backbone(inputs)[-1].mean(dim=(2, 3)))
        return dict(loss=F.cross_entropy(logits, labels))


def main() -> None:
    dist.init_process_group('gloo')
    rank, count = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    model = Classifier()
    plain = copy.deepcopy(model)
    images, labels = torch.randn(2 * count, 3, 64, 64), torch.arange(2 * count) % 3

    plain_wrapper = build_optim_wrapper(plain, OPTIM_WRAPPER)
    plain.train_step(dict(inputs=images, labels=labels), plain_wrapper)

    strategy = FSDPStrategy(
        model_wrapper=dict(
            type='MMFullyShardedDataParallel',
            auto_wrap_policy='convnext_auto_wrap_policy',
            device_id=torch.device('cpu'),
            use_orig_params=True,
        )
    )
    strategy.prepare(model, optim_wrapper=OPTIM_WRAPPER)
    wrapped = strategy.model
    units = FullyShardedDataParallel.fsdp_modules(wrapped)
    blocks = [unit.module for unit in units if isinstance(unit.module, ConvNextLayer)]
    print(f'units: {len(units)}, blocks: {len(blocks)}')
    shards = sum(p.numel() for p in wrapped.parameters())
    whole = sum(p.numel() for p in plain.parameters())
    print(f'share of the parameters held: {shards / whole:.2f}')

    mine = slice(2 * rank, 2 * rank + 2)
    wrapped.train_step(dict(inputs=images[mine], labels=labels[mine]), strategy.optim_wrapper)
    settings = [
        [(g['layer_id'], g['lr'], g['weight_decay']) for g in w.optimizer.param_groups]
        for w in (plain_wrapper, strategy.optim_wrapper)
    ]
    print(f'same settings: {settings[0] == settings[1]}')
    with FullyShardedDataParallel.summon_full_params(wrapped, writeback=False):
        stepped = {n.replace('_fsdp_wrapped_module.', ''): p for n, p in wrapped.named_parameters()}
        for name, expected in plain.named_parameters():
            torch.testing.assert_close(stepped[name], expected, rtol=1e-5, atol=1e-7)
    print('same parameters: True')


if __name__ == '__main__':
    main()
