"""Compares the pooled model and the classifier with transformers, and checks their errors."""

import pytest
import torch
from checkpoint_files import CASES, WRITERS
from helpers import SMALL, randomize, small_backbone
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from transformers import (
    ConvNextConfig,
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    ConvNextV2Model,
)
from transformers import ConvNextForImageClassification as HFConvNextForImageClassification
from transformers import ConvNextModel as HFConvNextModel

from convnext_backbone import (
    ConvNextForImageClassification,
    ConvNextModel,
    load_checkpoint,
)

FAMILIES = {
    'v1': (ConvNextConfig, HFConvNextModel, HFConvNextForImageClassification, {}),
    'v2': (
        ConvNextV2Config,
        ConvNextV2Model,
        ConvNextV2ForImageClassification,
        dict(use_grn=True),
    ),
}
REGRESSION, SINGLE, MULTI = (
    'regression',
    'single_label_classification',
    'multi_label_classification',
)
# Problem type, number of labels, labels of three images.
PROBLEMS = {
    'one-number': (REGRESSION, 1, torch.tensor([0.5, -2.0, 3.0])),
    'numbers': (REGRESSION, 2, torch.tensor([[0.5, 1.0], [-2.0, 0.0], [3.0, 1.0]])),
    'classes': (SINGLE, 5, torch.tensor([4, 0, 2])),
    'int32-classes': (SINGLE, 5, torch.tensor([4, 0, 2], dtype=torch.int32)),
    'several-classes': (
        MULTI,
        5,
        torch.tensor([[1.0, 0, 0, 1, 0], [0, 0, 0, 0, 0], [0.5, 1, 1, 0, 0]]),
    ),
}

# Names of the final norm and of the head in the classifiers of each source.
FINAL_NORM_AND_HEAD = {
    'hugging_face': ('convnext.layernorm', 'classifier'),
    'meta': ('norm', 'head'),
    'timm': ('head.norm', 'head.fc'),
    'timm_conv_mlp': ('head.norm', 'head.fc'),
    'torchvision': ('classifier.0', 'classifier.2'),
    'mmpretrain': ('backbone.norm3', 'head.fc'),
    'mmpretrain_conv': ('backbone.norm3', 'head.fc'),
}


def images(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, 65, 97)


def build_pair(family, num_labels=5, problem_type=None):
    config_class, _, hf_class, own_args = FAMILIES[family]
    config = config_class(**SMALL, num_labels=num_labels, problem_type=problem_type)
    reference = randomize(hf_class(config)).eval()
    model = ConvNextForImageClassification(
        SMALL, num_labels=num_labels, problem_type=problem_type, **own_args
    ).eval()
    # Hugging Face uses another name for the trunk of V2.
    state_dict = {
        k.replace('convnextv2.', 'convnext.'): v for k, v in reference.state_dict().items()
    }
    model.load_state_dict(state_dict, strict=True)
    return model, reference


def assert_close(actual, expected):
    assert actual.shape == expected.shape
    assert (actual - expected).norm() <= 1e-5 * expected.norm()


def samples(labels, name='gt_label'):
    return [BaseDataElement(**{name: label}) for label in labels]


@pytest.mark.parametrize('eps', [1e-12, 0.1])
@pytest.mark.parametrize('family', FAMILIES)
def test_pooled_model_agrees(family, eps):
    config_class, hf_class, _, own_args = FAMILIES[family]
    reference = randomize(hf_class(config_class(**SMALL, layer_norm_eps=eps))).eval()
    model = MODELS.build(dict(type='ConvNextModel', arch=SMALL, layer_norm_eps=eps, **own_args))
    model.load_state_dict(reference.state_dict(), strict=True)
    pixel_values = images()
    expected = reference(pixel_values, output_hidden_states=True)
    output = model.eval()(pixel_values, output_hidden_states=True)
    assert_close(output.last_hidden_state, expected.last_hidden_state)
    assert_close(output.pooler_output, expected.pooler_output)
    assert len(output.hidden_states) == len(expected.hidden_states) == 5
    for own, theirs in zip(output.hidden_states, expected.hidden_states, strict=True):
        assert_close(own, theirs)
    assert model(pixel_values).hidden_states is None


@pytest.mark.parametrize('family', FAMILIES)
def test_logits_and_gradients_agree(family):
    model, reference = build_pair(family)
    pixel_values, labels = images(), torch.tensor([1, 3, 0])
    assert_close(model(pixel_values), reference(pixel_values).logits)
    model(pixel_values, labels, mode='loss')['loss'].backward()
    reference(pixel_values, labels=labels).loss.backward()
    gradients = {
        n.replace('convnextv2.', 'convnext.'): p.grad for n, p in reference.named_parameters()
    }
    assert gradients.keys() == {n for n, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        assert_close(parameter.grad, gradients[name])


@pytest.mark.parametrize('inferred', [True, False])
@pytest.mark.parametrize('problem', PROBLEMS)
@pytest.mark.parametrize('family', FAMILIES)
def test_losses_agree(family, problem, inferred):
    problem_type, num_labels, labels = PROBLEMS[problem]
    if inferred and (problem_type, num_labels) == (REGRESSION, 2):
        problem_type = MULTI
        labels = labels.clamp(0, 1)
    model, reference = build_pair(family, num_labels, None if inferred else problem_type)
    pixel_values = images()
    # Hugging Face's cross entropy only takes int64.
    expected = reference(pixel_values, labels=labels.long() if problem_type == SINGLE else labels)
    assert reference.config.problem_type == problem_type
    for data_samples in (labels, samples(labels), samples(labels.reshape(3, -1))):
        losses = model(pixel_values, data_samples, mode='loss')
        assert losses.keys() == {'loss'}
        assert_close(losses['loss'], expected.loss)


def test_predictions_match_the_logits():
    model, _ = build_pair('v1', problem_type=SINGLE)
    pixel_values = images()
    logits = model(pixel_values)
    given = samples(torch.tensor([0, 1, 2]))
    results = model(pixel_values, given, mode='predict')
    assert [a is b for a, b in zip(results, given, strict=True)] == [True] * 3
    for row, result in zip(logits, results, strict=True):
        assert_close(result.pred_score, row.exp() / row.exp().sum())
        assert result.pred_label.tolist() == [row.argmax().item()]
    assert [r.gt_label.item() for r in results] == [0, 1, 2]

    model.problem_type = MULTI
    for row, result in zip(logits, model(pixel_values, mode='predict'), strict=True):
        assert_close(result.pred_score, 1 / (1 + (-row).exp()))
        assert result.pred_label.tolist() == [i for i, logit in enumerate(row) if logit >= 0]

    model.problem_type = REGRESSION
    for row, result in zip(logits, model(pixel_values, mode='predict'), strict=True):
        assert torch.equal(result.pred_score, row)
        assert 'pred_label' not in result


def test_smoothed_and_mixed_targets():
    """A smoothed label is (1 - s) * label + s / num_labels."""
    model, _ = build_pair('v1')
    pixel_values, labels = images(), torch.tensor([4, 0, 2])
    scores = torch.tensor([[0, 0.3, 0, 0, 0.7], [1, 0, 0, 0, 0], [0.2, 0.2, 0.2, 0.2, 0.2]])
    log_probabilities = model(pixel_values).log_softmax(dim=1)
    one_hot = torch.eye(5)[labels]
    for smoothing in (0.0, 0.1):
        model.label_smoothing = smoothing
        for targets, data_samples in (
            (one_hot, samples(labels)),
            (scores, samples(scores, 'gt_score')),
        ):
            targets = (1 - smoothing) * targets + smoothing / 5
            expected = -(targets * log_probabilities).sum(dim=1).mean()
            assert_close(model(pixel_values, data_samples, mode='loss')['loss'], expected)


def test_no_labels_give_features():
    model = ConvNextForImageClassification(SMALL, num_labels=0)
    pixel_values = images()
    assert torch.equal(model(pixel_values), model.convnext(pixel_values).pooler_output)
    assert not [name for name in model.state_dict() if name.startswith('classifier')]
    for mode in ('loss', 'predict'):
        with pytest.raises(ValueError, match=f'{mode}.*num_labels=0'):
            model(pixel_values, torch.zeros(3), mode=mode)


@pytest.mark.parametrize(
    ('problem_type', 'labels', 'error', 'message'),
    [
        (SINGLE, torch.tensor([0, 5, 1]), ValueError, 'between 0 and 4 .*got 5'),
        (SINGLE, torch.tensor([0, -100, 1]), ValueError, 'between 0 and 4 .*got -100'),
        (SINGLE, torch.tensor([0.0, 1, 2]), TypeError, 'class indices.*float32'),
        (SINGLE, torch.tensor([True, False, True]), TypeError, 'class indices.*bool'),
        (SINGLE, torch.tensor([0, 1]), ValueError, r'\(3,\) or \(3, 1\).*got shape \(2,\)'),
        (None, torch.zeros(3, 5, dtype=torch.int64), ValueError, r'got shape \(3, 5\)'),
        (MULTI, torch.zeros(3, 5, dtype=torch.int64), TypeError, 'floating-point.*int64'),
        (MULTI, torch.full((3, 5), 2.0), ValueError, 'between 0 and 1 .*got 2'),
        (MULTI, torch.full((3, 5), torch.nan), ValueError, 'got nan'),
        (None, torch.zeros(3, 4), ValueError, r'\(3, 5\) for 3 images, got shape \(3, 4\)'),
        (None, torch.zeros(3), ValueError, r'\(3, 5\) for 3 images, got shape \(3,\)'),
        (REGRESSION, torch.zeros(3, 5).long(), TypeError, 'floating-point.*int64'),
        (REGRESSION, torch.zeros(3, 1), ValueError, r'\(3, 5\) for 3 images'),
        (None, samples(torch.zeros(3), 'other'), ValueError, 'gt_label in every data sample'),
        (None, samples([torch.tensor(1), torch.tensor([1]), 0]), ValueError, 'one shape'),
        (None, samples(torch.full((3, 5), 1.5), 'gt_score'), ValueError, 'between 0 and 1'),
        (None, None, ValueError, 'needs data_samples'),
        (None, [], ValueError, 'gt_label'),
    ],
)
def test_bad_labels_are_refused(problem_type, labels, error, message):
    model = ConvNextForImageClassification(SMALL, num_labels=5, problem_type=problem_type)
    with pytest.raises(error, match=message):
        model(images(), labels, mode='loss')


def test_bad_calls_are_refused():
    model = ConvNextForImageClassification(SMALL, num_labels=5)
    with pytest.raises(ValueError, match='tensor, loss or predict'):
        model(images(), mode='train')
    with pytest.raises(ValueError, match=r'31x97 are too small for stage4.*32x32'):
        model(images()[:, :, :31])
    with pytest.raises(TypeError, match=r'floating point, got torch\.uint8'):
        model(images().byte())
    smoothing = ConvNextForImageClassification(SMALL, num_labels=5, label_smoothing=0.1)
    with pytest.raises(ValueError, match=r'label_smoothing=0\.1 needs single_label'):
        smoothing(images(), torch.zeros(3, 5), mode='loss')


def reference_checkpoint(writer, version):
    """A Hugging Face classifier, and its weights with the keys of another project."""
    config_class, _, hf_class, own_args = FAMILIES[f'v{version}']
    reference = randomize(hf_class(config_class(**SMALL, num_labels=5))).eval()
    trunk = reference.base_model
    tensors = {k: v for k, v in trunk.state_dict().items() if not k.startswith('layernorm')}
    written = WRITERS[writer][0](tensors)
    modules = (trunk.layernorm, reference.classifier)
    for name, module in zip(FINAL_NORM_AND_HEAD[writer], modules, strict=True):
        for leaf in ('weight', 'bias'):
            assert f'{name}.{leaf}' in written
            written[f'{name}.{leaf}'] = module.state_dict()[leaf]
    return reference, written, own_args


@pytest.mark.parametrize(
    ('writer', 'version'), [case for case in CASES if case[0] in FINAL_NORM_AND_HEAD]
)
def test_classifiers_load_with_head(writer, version, tmp_path):
    reference, written, own_args = reference_checkpoint(writer, version)
    pixel_values = images()
    expected = reference(pixel_values)
    torch.save(dict(state_dict=written), tmp_path / 'file.pth')

    def build(**args):
        return ConvNextForImageClassification(SMALL, num_labels=5, **own_args, **args).eval()

    model = build()
    report = load_checkpoint(model, tmp_path / 'file.pth')
    assert report.format == WRITERS[writer][2]
    assert report.missing == report.unexpected == []
    assert {'layernorm.weight', 'classifier.bias'} < set(report.matched)
    assert_close(model(pixel_values), expected.logits)

    model = build()
    model.load_state_dict(written, strict=True)
    assert_close(model(pixel_values), expected.logits)

    model = build(init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'file.pth')))
    model.init_weights()
    assert_close(model(pixel_values), expected.logits)

    pooled = ConvNextModel(SMALL, **own_args).eval()
    load_checkpoint(pooled, written)
    expected_pooled = reference.base_model(pixel_values).pooler_output
    assert_close(pooled(pixel_values).pooler_output, expected_pooled)


def test_a_head_that_does_not_fit_leaves_the_model_unchanged():
    _, written, _ = reference_checkpoint('meta', 1)
    headless = {k: v for k, v in written.items() if not k.startswith('head')}
    model = ConvNextForImageClassification(SMALL, num_labels=4)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for state_dict, message in (
        (written, r'a head for num_labels=5.*classifier\.weight'),
        (headless, r'no head.*classifier\.weight'),
    ):
        for load in (lambda d: load_checkpoint(model, d), model.load_state_dict):
            with pytest.raises(ValueError, match=message):
                load(state_dict)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    load_checkpoint(model.convnext, headless)
    assert torch.equal(model.convnext.layernorm.weight, written['norm.weight'])


def test_a_classifier_loads_into_a_backbone(tmp_path):
    model = randomize(ConvNextForImageClassification(SMALL, num_labels=5)).eval()
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'classifier.pth')
    backbone = small_backbone(
        init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'classifier.pth'))
    )
    backbone.init_weights()
    pixel_values = images()
    expected = model.convnext(pixel_values).last_hidden_state
    output = backbone(pixel_values, output_hidden_states=True, return_dict=True)
    assert_close(output.hidden_states[-1], expected)


def test_stems_are_adapted_on_demand():
    reference, written, _ = reference_checkpoint('meta', 1)
    grey = images()[:, :1]
    model = ConvNextForImageClassification(SMALL, num_labels=5, num_channels=1).eval()
    with pytest.raises(ValueError, match='adapt_stem=True'):
        load_checkpoint(model, written)
    model = ConvNextForImageClassification(
        SMALL, num_labels=5, num_channels=1, adapt_stem=True
    ).eval()
    assert load_checkpoint(model, written).adapted
    assert_close(model(grey), reference(grey.expand(-1, 3, -1, -1)).logits)


def test_a_detector_is_no_damaged_classifier():
    tensors = {f'backbone.{k}': v for k, v in small_backbone().state_dict().items()}
    tensors |= {'neck.conv.weight': torch.ones(1), 'rpn_head.conv.weight': torch.ones(1)}
    with pytest.raises(ValueError, match=r'a larger model, .* also has neck, rpn_head') as info:
        load_checkpoint(ConvNextForImageClassification(SMALL, num_labels=3), tensors)
    assert 'without the final norm and the head of a classifier' in str(info.value)
    assert 'damaged' not in str(info.value)
