"""Models exported to ONNX by torch's older exporter, which deployment tools use."""

import io

import pytest
import torch
from helpers import ALL_FEATURES, randomize

from convnext_backbone import ConvNextBackbone, ConvNextForImageClassification, ConvNextLayerNorm

onnx = pytest.importorskip('onnx')
pytestmark = pytest.mark.filterwarnings('ignore')

TINY = dict(depths=[1, 1], hidden_sizes=[8, 16])


def exported(model, images):
    """The checked ONNX model, and its outputs for the images."""
    from onnx.reference import ReferenceEvaluator

    file = io.BytesIO()
    torch.onnx.export(model, (images,), file, dynamo=False)
    program = onnx.load_from_string(file.getvalue())
    onnx.checker.check_model(program, full_check=True)
    name = program.graph.input[0].name
    return [
        torch.from_numpy(o) for o in ReferenceEvaluator(program).run(None, {name: images.numpy()})
    ]


@pytest.mark.parametrize('use_grn', [False, True])
def test_a_backbone_passes_the_checker_and_gives_its_maps(use_grn):
    features = ALL_FEATURES[:3]
    model = randomize(ConvNextBackbone(TINY, out_features=features, use_grn=use_grn)).eval()
    images = torch.randn(2, 3, 16, 24)
    for value, truth in zip(exported(model, images), model(images), strict=True):
        torch.testing.assert_close(value, truth, rtol=1e-4, atol=1e-5)


def test_a_classifier_passes_the_checker_and_gives_its_logits():
    model = randomize(ConvNextForImageClassification(TINY, num_labels=5)).eval()
    images = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(exported(model, images)[0], model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('contiguous', [False, True])
@pytest.mark.parametrize('shape', [(2, 8, 5), (2, 8, 5, 3), (1, 8, 2, 3, 4)])
def test_norms_pass_the_checker(shape, contiguous):
    norm = randomize(ConvNextLayerNorm(8, data_format='channels_first', contiguous=contiguous))
    features = torch.randn(shape)
    torch.testing.assert_close(exported(norm, features)[0], norm(features), rtol=1e-4, atol=1e-5)
