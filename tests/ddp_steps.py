"""Compares ten training steps under DDP with the same steps of one process with all images.

torchrun --nproc_per_node 2 tests/ddp_steps.py
"""

import copy
import itertools

import torch
import torch.distributed as dist
import torch.nn.functional as F
from helpers import ALL_FEATURES, STAGES, randomize
from mmengine.optim import OptimWrapper
from torch.nn.parallel import DistributedDataParallel

from convnext_backbone import ConvNextBackbone

# Small: there are many cases.
ARCH = dict(depths=[1, 1, 2, 1], hidden_sizes=[8, 8, 16, 16])
SUBSETS = [s for n in range(1, 6) for s in itertools.combinations(ALL_FEATURES, n)]
# Arguments of the backbone, and the number of batches per step of the optimiser.
CASES = [
    *((dict(out_features=subset), 1) for subset in SUBSETS),
    *((dict(frozen_stages=stages), 1) for stages in range(5)),
    (dict(with_cp=True), 1),
    (dict(with_cp=True, frozen_stages=2, out_features=('stage1', 'stage4')), 1),
    (dict(use_grn=True), 1),
    (dict(use_grn=True, with_cp=True), 2),
    (dict(layer_scale_init_value=None), 2),
    (dict(fused=False), 2),
    (dict(), 3),
]


def train(model: torch.nn.Module, images: torch.Tensor, targets: list[list], counts: int) -> None:
    """Ten steps; with several batches per step, only the last one synchronises gradients."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=0.05, momentum=0.9)
    wrapper = OptimWrapper(optimizer, accumulative_counts=counts, clip_grad=dict(max_norm=5.0))
    for batch, wanted in zip(images, targets, strict=True):
        with wrapper.optim_context(model):
            maps = model(batch)
            loss = sum(F.mse_loss(m, target) for m, target in zip(maps, wanted, strict=True))
        wrapper.update_params(loss)


def compare(index: int, args: dict, counts: int, rank: int) -> None:
    """Trains both ways and prints how far the parameters are apart, and how far they moved."""
    args = dict(out_features=STAGES) | args
    start = randomize(ConvNextBackbone(ARCH, **args)).train()
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(10 * counts, 4, 3, 32, 32, generator=generator)
    with torch.no_grad():
        shapes = [m.shape for m in start(images[0])]
    targets = [[torch.randn(s, generator=generator) for s in shapes] for _ in images]
    two = DistributedDataParallel(copy.deepcopy(start))
    share = slice(2 * rank, 2 * rank + 2)
    train(two, images[:, share], [[t[share] for t in wanted] for wanted in targets], counts)
    # Both processes have the result. They take turns with the other way.
    if index % 2 != rank:
        return
    one = copy.deepcopy(start)
    train(one, images, targets, counts)

    def distance(other: torch.nn.Module) -> float:
        pairs = zip(one.parameters(), other.parameters(), strict=True)
        return max(((p - q).abs().max() / p.abs().max()).item() for p, q in pairs)

    difference, moved = distance(two.module), distance(start)
    verdict = 'equal' if difference < 1e-5 < 1e-2 < moved else 'DIFFERENT'
    print(f'{verdict} {difference:.1e} {moved:.1e} {args} {counts}\n', end='', flush=True)


def main() -> None:
    dist.init_process_group('gloo')
    torch.set_num_threads(1)
    for index, (args, counts) in enumerate(CASES):
        compare(index, args, counts, dist.get_rank())


if __name__ == '__main__':
    main()
