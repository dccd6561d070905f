"""Frozen stages keep nothing for the backward pass."""

import pytest
import torch
from helpers import ALL_FEATURES, SMALL

from convnext_backbone import ConvNextBackbone


def saved_bytes(backbone: ConvNextBackbone, images: torch.Tensor) -> int:
    """The memory of the tensors, apart from parameters, that the backward pass will use."""
    parameters = {p.untyped_storage().data_ptr() for p in backbone.parameters()}
    saved = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        backbone(images)
    return sum(size for size, _ in saved.values())


@pytest.mark.parametrize('fused', [True, False])
@pytest.mark.parametrize('with_cp', [True, False])
def test_only_the_inputs_of_the_trainable_norms_are_kept(fused, with_cp):
    images = torch.randn(1, 3, 64, 96)
    stages = len(SMALL['depths'])
    features = ALL_FEATURES[1 : stages + 1]
    arguments = dict(out_features=features, fused=fused, with_cp=with_cp)
    frozen = ConvNextBackbone(SMALL, frozen_stages=stages, **arguments).train()
    sizes = [m.nbytes for m in frozen(images)]
    # The norms also keep the mean and the deviation of every pixel.
    statistics = [
        2 * size // channels for size, channels in zip(sizes, frozen.channels, strict=True)
    ]
    kept = saved_bytes(frozen, images)
    assert sum(sizes) <= kept <= sum(sizes) + sum(statistics)
    for norm in frozen.hidden_states_norms.values():
        norm.requires_grad_(False)
    assert saved_bytes(frozen, images) == 0
    assert saved_bytes(ConvNextBackbone(SMALL, **arguments).train(), images) > 1.5 * kept
