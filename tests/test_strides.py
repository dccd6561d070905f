"""Other strides: dilated stages, and stems with smaller patches."""

import pytest
import torch
import torch.nn.functional as F
from helpers import SMALL, randomize, small_backbone
from torch import nn

from convnext_backbone import ConvNextBackbone, ConvNextModel, load_checkpoint
from convnext_backbone.models import fusion

MAPS = ('stage1', 'stage2', 'stage3', 'stage4')


@pytest.mark.parametrize(
    ('output_stride', 'strides'),
    [(32, [4, 8, 16, 32]), (16, [4, 8, 16, 16]), (8, [4, 8, 8, 8])],
)
def test_strides_follow_and_weights_load_unchanged(output_stride, strides):
    source = randomize(small_backbone(out_features=MAPS))
    model = small_backbone(out_features=MAPS, output_stride=output_stride)
    model.load_state_dict(source.state_dict())
    assert model.strides == strides and model.stride == max(strides)
    maps = model(torch.randn(2, 3, 64, 96))
    assert [m.shape[2:] for m in maps] == [(64 // s, 96 // s) for s in strides]
    sum(m.sum() for m in maps).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize('output_stride', [8, 16])
def test_dilated_stages_see_what_the_original_saw(output_stride):
    """Where the original samples its maps, the dilated model has the same values.

    Every second pixel of a stage that kept its resolution is what the stage computes after
    downsampling, far enough from the borders, where padding differs: 'same' pads the 2x2
    convolutions of the dilated model. So the images are constant near the borders, and the norm
    of a zero map is that of the padding.
    """
    arch = dict(depths=[1, 1, 1, 1], hidden_sizes=[4, 8, 8, 8])
    source = randomize(ConvNextBackbone(arch, out_features=MAPS)).double().eval()
    model = ConvNextBackbone(arch, out_features=MAPS, output_stride=output_stride).double().eval()
    model.load_state_dict(source.state_dict())
    side = 1024  # far more than the receptive field of the last stage's centre needs
    images = torch.randn(1, 3, side, side, dtype=torch.double)
    with torch.no_grad():
        pairs = zip(model(images), source(images), model.strides, source.strides, strict=True)
        for value, truth, stride, full in pairs:
            step, centre = full // stride, truth.shape[-1] // 2
            # Dilated 2x2 convolutions with padding 'same' are shifted by half their dilation.
            shift = 1 if step == 4 else 0
            sampled = value[:, :, shift::step, shift::step]
            window = slice(centre - 2, centre + 2)
            torch.testing.assert_close(
                sampled[:, :, window, window], truth[:, :, window, window], atol=1e-9, rtol=1e-9
            )


def test_it_is_timms_model():
    timm = pytest.importorskip('timm', exc_type=(ImportError, RuntimeError))
    for output_stride in (16, 8):
        theirs = timm.create_model(
            'convnext_atto',
            features_only=True,
            output_stride=output_stride,
            depths=SMALL['depths'],
            dims=SMALL['hidden_sizes'],
        ).eval()
        randomize(theirs)
        model = ConvNextBackbone(SMALL, out_features=MAPS, output_stride=output_stride).eval()
        load_checkpoint(model, theirs.state_dict())
        model.hidden_states_norms = nn.ModuleDict({name: nn.Identity() for name in MAPS})
        images = torch.randn(1, 3, 70, 64)
        with torch.no_grad():
            for value, truth in zip(model(images), theirs(images), strict=True):
                torch.testing.assert_close(value, truth, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('value', [4, 12, 64, 16.0, True, '16'])
def test_other_strides_are_refused(value):
    with pytest.raises(ValueError, match=r'output_stride must be one of \[8, 16, 32\]'):
        small_backbone(output_stride=value)


def test_strides_follow_the_patches_too():
    assert small_backbone(patch_size=2, output_stride=8).strides[-2:] == [8, 8]


def test_a_dilated_block_says_why_it_is_not_fused(capture_log):
    fusion._log_once.cache_clear()
    small_backbone(output_stride=16)(torch.randn(1, 3, 64, 64))
    assert any('whose dilation no fused function has' in message for message in capture_log)
    with pytest.raises(ValueError, match='cannot be deployed with output_stride'):
        small_backbone(output_stride=16).deploy()


@pytest.mark.parametrize('channels', [3, 1])
@pytest.mark.parametrize('patch_size', [1, 2])
def test_a_stem_of_smaller_patches_is_the_original_on_enlarged_images(patch_size, channels):
    source = randomize(ConvNextModel(SMALL)).eval()
    model = ConvNextModel(
        SMALL, patch_size=patch_size, num_channels=channels, adapt_stem=True
    ).eval()
    report = load_checkpoint(model, source.state_dict())
    assert report.adapted == ['embeddings.patch_embeddings.weight']
    grey = torch.randn(1, 1, 32, 40)
    enlarged = F.interpolate(grey.expand(1, 3, 32, 40), scale_factor=4 // patch_size)
    with torch.no_grad():
        # Grey images have the same values in all channels.
        truth = source(enlarged).pooler_output
        value = model(grey.expand(1, channels, 32, 40)).pooler_output
    torch.testing.assert_close(value, truth, atol=1e-4, rtol=1e-4)


def test_smaller_patches_need_consent():
    state_dict = ConvNextModel(SMALL).state_dict()
    with pytest.raises(ValueError, match=r'patches of 4 pixels.*adapt_stem=True.*patch_size=4'):
        load_checkpoint(ConvNextModel(SMALL, patch_size=2), state_dict)
    for patch_size in (3, 8):
        with pytest.raises(ValueError, match='was not loaded'):
            load_checkpoint(
                ConvNextModel(SMALL, patch_size=patch_size, adapt_stem=True), state_dict
            )
