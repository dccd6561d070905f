"""Stages and encoder: shapes, drop-path rates, hidden states."""

import pytest
import torch
from helpers import SMALL
from torch import nn

from convnext_backbone import ConvNextEncoder, ConvNextLayer, ConvNextStage


def rates(module: nn.Module) -> list[float]:
    return [m.drop_path.drop_prob for m in module.modules() if isinstance(m, ConvNextLayer)]


def test_stage_downsamples_only_where_something_changes():
    x = torch.randn(1, 8, 9, 6)
    assert ConvNextStage(8, 8, stride=1)(x).shape == (1, 8, 9, 6)
    assert not list(ConvNextStage(8, 8, stride=1).downsampling_layer)
    assert ConvNextStage(8, 12, stride=1)(x).shape == (1, 12, 9, 6)
    assert ConvNextStage(8, 8, stride=2)(x).shape == (1, 8, 4, 3)


def test_stage_needs_one_rate_per_layer():
    with pytest.raises(ValueError, match='3 drop_path_rates were given for 2 layers'):
        ConvNextStage(8, 8, depth=2, drop_path_rates=[0.0, 0.1, 0.2])


def test_a_wrong_rate_is_reported_as_given():
    with pytest.raises(ValueError, match=r'drop_path_rate must be in \[0, 1\), got -0.1$'):
        ConvNextEncoder(**SMALL, drop_path_rate=-0.1)


def test_rates_rise_linearly_over_all_blocks():
    encoder = ConvNextEncoder(**SMALL, drop_path_rate=0.3)
    assert rates(encoder) == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3])


def test_a_truncated_encoder_has_the_rates_of_the_whole_one():
    encoder = ConvNextEncoder(**SMALL, drop_path_rate=0.3, num_stages=2)
    assert rates(encoder) == pytest.approx([0.0, 0.05, 0.1])


def test_hidden_states_start_with_the_stem():
    encoder = ConvNextEncoder(**SMALL).eval()
    x = torch.randn(2, 8, 16, 24)
    hidden_states = encoder(x, output_hidden_states=True)
    assert hidden_states[0] is x
    assert [tuple(h.shape[1:]) for h in hidden_states] == [
        (8, 16, 24),
        (8, 16, 24),
        (16, 8, 12),
        (24, 4, 6),
        (32, 2, 3),
    ]
    assert torch.equal(hidden_states[-1], encoder(x))
