"""Compares ten training steps under DDP with the same steps of one process with all images.

torchrun --nproc_per_node 2 tests/ddp_steps.py
"""

import copy
import itertools

import torch
import torch.distributed as dist
import torch.nn.functional as F
from helpers import ALL_FEATURES, randomize, small_backbone
from mmengine.optim import OptimWrapper
from torch.nn.parallel import DistributedDataParallel

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


def largest_difference(args: dict, counts: int, rank: int) -> tuple[float, float]:
    """That of the parameters, relative to the largest one; and how far training moved them."""
    one = randomize(small_backbone(**args)).train()
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(10 * counts, 4, 3, 64, 64, generator=generator)
    with torch.no_grad():
        shapes = [m.shape for m in one(images[0])]
    targets = [[torch.randn(s, generator=generator) for s in shapes] for _ in images]
    start = copy.deepcopy(one)
    two = DistributedDataParallel(copy.deepcopy(one))
    share = slice(2 * rank, 2 * rank + 2)
    train(two, images[:, share], [[t[share] for t in wanted] for wanted in targets], counts)
    train(one, images, targets, counts)

    def distance(other: torch.nn.Module) -> float:
        pairs = zip(one.parameters(), other.parameters(), strict=True)
        return max(((p - q).abs().max() / p.abs().max()).item() for p, q in pairs)

    return distance(two.module), distance(start)


def main() -> None:
    dist.init_process_group('gloo')
    torch.set_num_threads(1)
    for args, counts in CASES:
        difference, moved = largest_difference(args, counts, dist.get_rank())
        verdict = 'equal' if difference < 1e-5 < 1e-2 < moved else 'DIFFERENT'
        print(f'{verdict} {difference:.1e} {moved:.1e} {args} {counts}', flush=True)


if __name__ == '__main__':
    main()
