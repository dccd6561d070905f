"""A checkpoint loads fully or not at all: errors explain why, reports list every tensor."""

import copy
import logging
import random
from functools import partial

import pytest
import torch
from checkpoint_files import (
    CASES,
    WITH_MAP_NORMS,
    hugging_face,
    make_reference,
    meta,
    noise,
    timm,
    write,
)
from helpers import SMALL, STAGES, randomize, same_tensors, small_backbone
from mmengine.logging import MMLogger

from convnext_backbone import (
    ConvNextBackbone,
    ConvNextForImageClassification,
    ConvNextModel,
    LoadReport,
    infer_arch,
    load_checkpoint,
)

LEAVES = ('weight', 'bias')


def random_backbone(**args) -> ConvNextBackbone:
    return randomize(small_backbone(**args), seed=11)


def abstract(arch, **args) -> ConvNextBackbone:
    """A model on the meta device: names and shapes only."""
    with torch.device('meta'):
        return ConvNextBackbone(arch, **args)


def snapshot(model) -> dict[str, torch.Tensor]:
    return copy.deepcopy(model.state_dict())


def damage(rng: random.Random, state_dict: dict) -> None:
    """Drops, renames, truncates or reshapes one to three tensors."""
    for name in rng.sample(sorted(state_dict), rng.randint(1, 3)):
        tensor = state_dict.pop(name)
        match rng.choice(('drop', 'rename', 'truncate', 'reshape')):
            case 'rename':
                new = rng.choice((f'{name}_', f'extra.{name}', name.replace('.', '_'), f'{name}.x'))
                state_dict[new] = tensor
            case 'truncate':
                axis = rng.randrange(max(tensor.ndim, 1))
                state_dict[name] = (
                    tensor.narrow(axis, 0, tensor.shape[axis] // 2) if tensor.ndim else tensor
                )
            case 'reshape':
                change = rng.choice(
                    (
                        lambda t: t.flatten(),
                        lambda t: t[None],
                        lambda t: t[..., None, None],
                        lambda t: t.reshape(1, 1, 1, -1),
                        lambda t: t.reshape(-1, 2) if t.numel() % 2 == 0 else t[None, None],
                        lambda t: t.movedim(0, -1) if t.ndim else t,
                    )
                )
                state_dict[name] = change(tensor)


@pytest.mark.parametrize('seed', range(200))
def test_a_damaged_checkpoint_loads_fully_or_not_at_all(seed):
    rng = random.Random(seed)
    name, version = CASES[seed % len(CASES)]
    hf = make_reference(version, map_norms=name in WITH_MAP_NORMS, seed=seed).state_dict()
    state_dict = write(name, hf)
    damage(rng, state_dict)
    model = random_backbone(use_grn=version == 2)
    before = snapshot(model)
    try:
        if seed % 3:
            loaded = load_checkpoint(model, state_dict).matched
        else:
            missing = model.load_state_dict(state_dict, strict=False).missing_keys
            loaded = before.keys() - set(missing)
    except ValueError:
        assert same_tensors(before, model.state_dict())
        return
    after = model.state_dict()
    for key, tensor in after.items():
        is_norm = key.startswith('hidden_states_norms')
        assert key in loaded or is_norm
        kept = is_norm and torch.equal(tensor, before[key])
        assert kept or torch.equal(tensor, hf[key])
    for norm in model.hidden_states_norms:
        key = f'hidden_states_norms.{norm}'
        halves = [torch.equal(after[f'{key}.{x}'], before[f'{key}.{x}']) for x in LEAVES]
        assert halves[0] == halves[1]


def test_both_outcomes_of_the_fuzz_occur():
    outcomes = set()
    for seed in range(20):
        name, version = CASES[seed % len(CASES)]
        state_dict = write(name, make_reference(version).state_dict())
        damage(random.Random(seed), state_dict)
        try:
            load_checkpoint(random_backbone(use_grn=version == 2), state_dict)
            outcomes.add('loaded')
        except ValueError:
            outcomes.add('refused')
    assert outcomes == {'loaded', 'refused'}


@pytest.mark.parametrize(
    ('file', 'model', 'words'),
    [
        ('base', 'tiny', 'this file is a ConvNeXt-base, the model is a ConvNeXt-tiny'),
        ('tiny', 'v2-tiny', 'this file is a ConvNeXt-tiny, the model is a ConvNeXt-V2-tiny'),
        # The larger model's file has all tensors of the smaller model, with the same shapes.
        ('small', 'tiny', 'this file is a ConvNeXt-small, the model is a ConvNeXt-tiny'),
        ('tiny', 'small', 'this file is a ConvNeXt-tiny, the model is a ConvNeXt-small'),
        (
            dict(depths=[3, 3, 9, 3], hidden_sizes=[96, 192, 384, 770]),
            'v2-nano',
            r'hidden_sizes \(96, 192, 384, 770\) \(closest: ConvNeXt-tiny\), the model is',
        ),
    ],
)
def test_the_error_names_both_architectures(file, model, words):
    state_dict = abstract(file).state_dict()
    target = ConvNextBackbone(model)
    before = snapshot(target)
    with pytest.raises(ValueError, match=words) as error:
        load_checkpoint(target, state_dict)
    assert f'arch={file!r}' in str(error.value)
    assert '\n' not in str(error.value)
    assert same_tensors(before, target.state_dict())


def test_layer_scale_on_one_side_only_is_an_error():
    with_scale, without = random_backbone(), random_backbone(layer_scale_init_value=0)
    with pytest.raises(ValueError, match=r'without layer scale.*layer_scale_init_value=None'):
        load_checkpoint(with_scale, without.state_dict())
    with pytest.raises(ValueError, match=r'Unexpected.*layer_scale_parameter'):
        load_checkpoint(without, with_scale.state_dict())


def test_a_damaged_file_of_the_right_model_is_reported_as_damaged():
    state_dict = meta(make_reference().state_dict())
    del state_dict['stages.2.1.pwconv1.bias']
    state_dict['stages.0.1.norm.weight'] = noise(7)
    with pytest.raises(ValueError, match=r'both a ConvNeXt.*damaged') as error:
        load_checkpoint(random_backbone(), state_dict)
    assert 'encoder.stages.2.layers.1.pwconv1.bias' in str(error.value)
    assert 'encoder.stages.0.layers.1.layernorm.weight ((7,) for (8,))' in str(error.value)


def test_quantised_weights_are_refused():
    state_dict = meta(make_reference().state_dict())
    state_dict['stages.0.0.pwconv1.weight'] = state_dict['stages.0.0.pwconv1.weight'].to(torch.int8)
    with pytest.raises(ValueError, match=r'pwconv1\.weight \(\(32, 8\) int8'):
        load_checkpoint(random_backbone(), state_dict)


def test_other_networks_are_refused():
    resnet = {'conv1.weight': noise(8, 3, 7, 7), 'layer1.0.conv1.weight': noise(8, 8, 3, 3)}
    swin = {'layers.0.blocks.0.norm1.weight': noise(8), 'norm.weight': noise(8)}
    # From torchvision: a ConvNeXt has the same names for its stem and a norm.
    efficientnet = {'features.0.0.weight': noise(8, 3, 3, 3), 'features.0.1.weight': noise(8)}
    model = random_backbone()
    before = snapshot(model)
    for state_dict in (resnet, swin, efficientnet):
        with pytest.raises(
            ValueError, match=f'no ConvNeXt in a state dict.*{next(iter(state_dict))}'
        ):
            load_checkpoint(model, state_dict)
        with pytest.raises(RuntimeError, match=r'no ConvNeXt|holds no tensors'):
            model.load_state_dict(state_dict, strict=False)
    assert same_tensors(before, model.state_dict())


def test_unexpected_names_are_reported_and_with_strict_refused():
    state_dict = timm(make_reference().state_dict()) | {'extra.weight': noise(3)}
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    model = random_backbone()
    before = snapshot(model)
    try:
        with pytest.raises(ValueError, match=r'Unexpected key.*extra\.weight'):
            load_checkpoint(model, state_dict, strict=True)
        assert same_tensors(before, model.state_dict()) and not records
        report = load_checkpoint(model, state_dict)
    finally:
        logger.removeHandler(handler)
    assert isinstance(report, LoadReport)
    assert report.unexpected == ['extra.weight']
    assert [record.levelname for record in records] == ['WARNING']
    lines = records[0].getMessage().splitlines()
    assert lines == str(report).splitlines()
    assert lines == [
        'ConvNextBackbone: loaded 79 tensors from a state dict (dict): names of timm / OpenCLIP',
        '  fresh norms of feature maps, as expected: '
        + ', '.join(f'hidden_states_norms.{name}' for name in STAGES),
        '  ignored on purpose: final norm (2), head (2)',
        '  unexpected, not loaded: extra.weight',
    ]


@pytest.mark.parametrize(
    'names',
    [
        ['stages.0.blocks.0.se.fc1.weight', 'stages.0.blocks.0.se.fc2.weight'],
        ['stages.1.blocks.0.shortcut.conv.weight'],
        ['stages.2.blocks.1.mlp.fc1.lora_A.weight', 'stages.2.blocks.1.mlp.fc1.lora_B.weight'],
        ['stages.0.blocks.0.mlp.fc1.weight_scale'],
        ['stem.2.weight'],
        ['stages.3.attention.weight'],
    ],
    ids=lambda names: names[0],
)
@pytest.mark.parametrize('prefix', ['', 'backbone.'])
def test_unknown_tensors_inside_of_the_stages_are_refused(names, prefix):
    """They belong to layers that the file's model runs and this package's model does not have."""
    state_dict = timm(make_reference().state_dict()) | {name: noise(3) for name in names}
    state_dict = {prefix + name: tensor for name, tensor in state_dict.items()}
    model = random_backbone()
    before = snapshot(model)
    with pytest.raises(ValueError, match=f'unknown tensors inside.*{names[0]}.*merge them'):
        load_checkpoint(model, state_dict)
    outer = torch.nn.ModuleDict({'backbone': model})
    for strict in (False, True):
        with pytest.raises(RuntimeError, match=f'unknown tensors inside.*{names[0]}'):
            (outer if prefix else model).load_state_dict(state_dict, strict=strict)
    assert same_tensors(before, model.state_dict())


def test_a_missing_stage_is_named():
    lacking = {
        name: tensor
        for name, tensor in timm(make_reference().state_dict()).items()
        if not name.startswith('stages.1.')
    }
    with pytest.raises(ValueError, match='this file is damaged: it has no blocks of stage 2'):
        load_checkpoint(random_backbone(), lacking)


def test_a_truncated_model_loads_its_own_tensors():
    reference = make_reference(map_norms=True)
    model = random_backbone(out_features=('stem', 'stage2'))
    report = load_checkpoint(model, reference.state_dict())
    reasons = list(report.ignored.values())
    assert set(reasons) == {'deeper stages', 'norms of unused feature maps'}
    assert reasons.count('norms of unused feature maps') == 6
    assert report.missing == [f'hidden_states_norms.stem.{x}' for x in LEAVES]
    assert all(name in model.state_dict() for name in report.matched)
    with pytest.raises(ValueError, match='Missing key'):
        load_checkpoint(random_backbone(), model.state_dict())


@pytest.mark.parametrize('entry_point', ['function', 'state dict'])
@pytest.mark.parametrize('channels', [1, 2, 4, 6])
def test_adapt_stem_keeps_the_response_to_repeated_rgb(channels, entry_point):
    reference = make_reference()
    model = random_backbone(num_channels=channels, adapt_stem=True)
    state_dict = timm(reference.state_dict())
    if entry_point == 'function':
        report = load_checkpoint(model, state_dict)
        assert report.adapted == ['embeddings.patch_embeddings.weight']
        assert '(1 adapted)' in str(report)
    else:
        model.load_state_dict(state_dict)
    rgb = state_dict['stem.0.weight']
    weight = model.embeddings.patch_embeddings.weight
    if channels == 1:
        torch.testing.assert_close(weight, rgb[:, :1] + rgb[:, 1:2] + rgb[:, 2:])
    for c in range(channels if channels > 1 else 0):
        torch.testing.assert_close(weight[:, c], rgb[:, c % 3] * 3 / channels)
    if channels in (1, 6):
        grey = torch.randn(1, 1, 64, 64)
        with torch.no_grad():
            ours = model(grey.expand(-1, channels, -1, -1))
            theirs = reference(grey.expand(-1, 3, -1, -1)).feature_maps
        norms = model.hidden_states_norms
        for name, one, other in zip(STAGES, ours, theirs, strict=True):
            bias = norms[name].bias[:, None, None]
            expected = other * norms[name].weight[:, None, None] + bias
            torch.testing.assert_close(one, expected, atol=1e-4, rtol=1e-4)


def test_other_channels_without_adapt_stem_are_an_error_that_names_it():
    state_dict = timm(make_reference().state_dict())
    model = random_backbone(num_channels=4)
    before = snapshot(model)
    for load in (
        lambda: load_checkpoint(model, state_dict),
        lambda: model.load_state_dict(state_dict),
    ):
        with pytest.raises(ValueError, match=r'images with 3 channels.*takes 4.*adapt_stem=True'):
            load()
    assert same_tensors(before, model.state_dict())
    # The rule only applies to RGB weights.
    with pytest.raises(ValueError, match='num_channels=4'):
        load_checkpoint(random_backbone(adapt_stem=True), model.state_dict())
    # Larger patches are not a channel mismatch.
    with pytest.raises(ValueError, match=r'\(8, 3, 4, 4\) for \(8, 4, 8, 8\)'):
        load_checkpoint(random_backbone(num_channels=4, patch_size=8, adapt_stem=True), state_dict)


@pytest.mark.parametrize(
    ('replace', 'message'),
    [
        (lambda t: t.to_sparse(), r'sparse_coo for '),
        (lambda t: t.to('meta'), 'without values, on the meta device for '),
    ],
    ids=['sparse', 'meta'],
)
@pytest.mark.parametrize('names', ['own', 'foreign'])
def test_tensors_without_plain_values_leave_the_model_unchanged(names, replace, message):
    model = random_backbone()
    state_dict = model.state_dict() if names == 'own' else meta(make_reference().state_dict())
    name = next(k for k in state_dict if k.endswith('pwconv2.weight'))
    broken = {k: v.clone() + 1 for k, v in state_dict.items()}
    broken[name] = replace(broken[name])
    before = snapshot(model)
    for load in (lambda: load_checkpoint(model, broken), lambda: model.load_state_dict(broken)):
        with pytest.raises(ValueError, match=message):
            load()
        assert same_tensors(before, model.state_dict())


@pytest.mark.parametrize('value', [torch.nan, torch.inf])
def test_values_that_are_not_finite_are_reported(value):
    state_dict = meta(make_reference().state_dict())
    state_dict['stages.0.0.norm.weight'][0] = value
    model = random_backbone()
    before = snapshot(model)
    with pytest.raises(ValueError, match=r'infinite or NaN.*\.0\.layernorm\.weight'):
        load_checkpoint(model, state_dict, strict=True)
    assert same_tensors(before, model.state_dict())
    report = load_checkpoint(model, state_dict)
    assert report.non_finite == ['encoder.stages.0.layers.0.layernorm.weight']
    assert 'with infinite or NaN values: encoder.stages.0.layers.0.layernorm.weight' in str(report)


def test_own_names_with_values_that_are_not_finite_are_reported(capture_log):
    state_dict = random_backbone().state_dict()
    state_dict['embeddings.layernorm.weight'][0] = torch.nan
    model = random_backbone()
    before = snapshot(model)
    with pytest.raises(ValueError, match=r'infinite or NaN values: embeddings\.layernorm\.weight'):
        model.load_state_dict(state_dict)
    assert same_tensors(before, model.state_dict())
    model.load_state_dict(state_dict, strict=False)
    assert 'infinite or NaN values: embeddings.layernorm.weight' in capture_log[-1]


@pytest.mark.parametrize('write', [dict, meta], ids=['own names', 'other names'])
def test_strict_loading_refuses_before_it_copies(write):
    weights = write(randomize(small_backbone(), seed=1).state_dict())
    model = random_backbone()
    before = snapshot(model)
    odd = dict(weights, extra=noise(1))
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\): extra'):
        model.load_state_dict(odd, strict=True)
    assert same_tensors(before, model.state_dict())
    assert model.load_state_dict(odd, strict=False).unexpected_keys == ['extra']
    assert not same_tensors(before, model.state_dict())


def test_strict_loading_refuses_a_missing_map_norm_before_it_copies():
    weights = randomize(small_backbone(), seed=1).state_dict()
    lacking = {k: v for k, v in weights.items() if 'norms.stage2' not in k}
    model = random_backbone()
    before = snapshot(model)
    with pytest.raises(RuntimeError, match=r'Missing key\(s\): hidden_states_norms\.stage2'):
        model.load_state_dict(lacking, strict=True)
    assert same_tensors(before, model.state_dict())


def test_values_beyond_the_dtype_of_the_model_are_reported():
    state_dict = {name: t.double() for name, t in random_backbone().state_dict().items()}
    state_dict['embeddings.layernorm.weight'][0] = 1e300
    with pytest.raises(ValueError, match=r'infinite or NaN.*embeddings\.layernorm\.weight'):
        load_checkpoint(random_backbone(), state_dict, strict=True)


@pytest.mark.parametrize('name', ['pre_classifier.weight', 'fc_norm.weight', 'neck.fc.weight'])
def test_layers_between_the_pooling_and_the_head_are_refused_by_classifiers(name):
    state_dict = hugging_face(make_reference().state_dict()) | {name: noise(32, 32)}
    model = ConvNextForImageClassification(SMALL, num_labels=5)
    before = snapshot(model)
    for load in (partial(load_checkpoint, model), model.load_state_dict):
        with pytest.raises(ValueError, match=f'more than a norm and one linear layer .*{name}'):
            load(state_dict)
    assert same_tensors(before, model.state_dict())
    load_checkpoint(model.convnext, state_dict)


@pytest.mark.parametrize('name', ['criterion.weight', 'loss_cls.weight', 'data_preprocessor.mean'])
def test_losses_beside_the_head_are_no_layers(name):
    state_dict = hugging_face(make_reference().state_dict()) | {name: noise(5)}
    model = ConvNextForImageClassification(SMALL, num_labels=5)
    assert load_checkpoint(model, state_dict).ignored[name] == 'loss or preprocessing'


@pytest.mark.parametrize('args', [{}, dict(num_channels=1, adapt_stem=True)], ids=str)
@pytest.mark.parametrize('dtype', [torch.float8_e4m3fn, torch.complex64, torch.int8], ids=str)
def test_tensors_that_need_a_conversion_are_named(args, dtype):
    """Weights of 8 bits need a scale, which can be anywhere."""
    weights = {k: v.to(dtype) for k, v in make_reference().state_dict().items()}
    model = random_backbone(**args)
    before = snapshot(model)
    with pytest.raises(ValueError, match=f'{dtype}: convert them to torch.float32 first'):
        load_checkpoint(model, weights)
    assert same_tensors(before, model.state_dict())


def test_tensors_of_the_model_itself_can_change_places():
    model = random_backbone()
    before = snapshot(model)
    one, other = (f'encoder.stages.2.layers.{j}.pwconv1.weight' for j in (0, 1))
    swapped = {**model.state_dict(), one: model.state_dict()[other]}
    swapped[other] = model.state_dict()[one]
    load_checkpoint(model, swapped)
    assert torch.equal(model.state_dict()[one], before[other])
    assert torch.equal(model.state_dict()[other], before[one])


def test_a_backbone_without_a_classifiers_norm_is_no_damage():
    weights = make_reference().state_dict()
    with pytest.raises(ValueError, match='without the final norm of a classifier'):
        load_checkpoint(ConvNextModel(SMALL), weights)
    with pytest.raises(ValueError, match='without the final norm and the head of a classifier'):
        load_checkpoint(ConvNextForImageClassification(SMALL, num_labels=5), weights)


def test_averages_without_names_are_told_how_to_be_left_out():
    content = {'model': make_reference().state_dict(), 'ema': {'decay': torch.tensor(0.9)}}
    with pytest.raises(ValueError, match=r"key 'ema' .*use_ema=False reads weights that are not"):
        load_checkpoint(small_backbone(), content)
    load_checkpoint(small_backbone(), content, use_ema=False)


def test_unknown_names_of_a_classifier_are_written_as_in_the_file():
    model = ConvNextForImageClassification(SMALL, num_labels=5)
    odd = model.state_dict() | {'convnext.extra': noise(1)}
    with pytest.raises(ValueError, match=r'Unexpected key\(s\): convnext\.extra'):
        model.load_state_dict(odd)
    assert model.load_state_dict(odd, strict=False).unexpected_keys == ['convnext.extra']


def test_weights_of_adapters_are_no_damage():
    state_dict = timm(make_reference().state_dict())
    for name in [name for name in state_dict if name.endswith('fc1.weight')]:
        state_dict[name.replace('fc1', 'fc1.base_layer')] = state_dict.pop(name)
        state_dict[name.replace('fc1', 'fc1.lora_A.default')] = noise(2, 8)
    message = r'merge adapters.*Unexpected key\(s\): .*fc1\.(base_layer|lora_A)'
    with pytest.raises(ValueError, match=message):
        load_checkpoint(small_backbone(), state_dict)


def test_weight_normalisation_is_named():
    state_dict = timm(make_reference().state_dict())
    for name in [name for name in state_dict if name.endswith('conv_dw.weight')]:
        state_dict[f'{name}_v'] = state_dict.pop(name)
    with pytest.raises(ValueError, match=r'no ConvNeXt.* weight normalisation into the weights'):
        load_checkpoint(small_backbone(), state_dict)


def test_a_classifier_that_normalises_before_pooling_is_named():
    """timm's head_norm_first."""
    state_dict = timm(make_reference().state_dict())
    state_dict |= {f'norm_pre.{leaf}': noise(32) for leaf in LEAVES}
    state_dict |= {'head.fc.weight': noise(5, 32), 'head.fc.bias': noise(5)}
    state_dict = {k: v for k, v in state_dict.items() if not k.startswith('head.norm')}
    with pytest.raises(ValueError, match='normalises before pooling'):
        load_checkpoint(ConvNextForImageClassification(SMALL, num_labels=5), state_dict)
    load_checkpoint(small_backbone(), state_dict)


def test_a_head_of_two_layers_is_refused_by_classifiers():
    """timm's convnext_large_mlp has a hidden layer before its last one."""
    state_dict = timm(make_reference().state_dict())
    state_dict |= {
        'head.norm.weight': noise(32),
        'head.norm.bias': noise(32),
        'head.pre_logits.fc.weight': noise(32, 32),
        'head.pre_logits.fc.bias': noise(32),
        'head.fc.weight': noise(5, 32),
        'head.fc.bias': noise(5),
    }
    model = ConvNextForImageClassification(SMALL, num_labels=5)
    before = snapshot(model)
    for strict in (False, True):
        with pytest.raises(
            ValueError, match=r'more than a norm and one linear layer .*head\.pre_logits\.fc'
        ):
            load_checkpoint(model, state_dict, strict=strict)
    assert same_tensors(before, model.state_dict())
    report = load_checkpoint(model.convnext, state_dict)
    assert list(report.ignored.values()).count('head') == 4


def test_models_that_cannot_be_loaded_are_refused():
    state_dict = make_reference().state_dict()
    with pytest.raises(TypeError, match=r'got Linear.*pass its backbone'):
        load_checkpoint(torch.nn.Linear(2, 2), state_dict)
    with pytest.raises(ValueError, match=r'meta device: call to_empty'):
        load_checkpoint(abstract(SMALL), state_dict)
    with pytest.raises(TypeError, match='got int'):
        load_checkpoint(random_backbone(), 3)


@pytest.mark.parametrize(
    'arch', ['atto', 'nano', 'small', 'xlarge', 'xxlarge', 'v2-atto', 'v2-base', 'v2-huge']
)
def test_named_architectures_are_recognised(arch):
    scale = None if arch.startswith('v2') else 1e-6
    expected = dict(arch=arch, use_grn=arch.startswith('v2'), layer_scale_init_value=scale)
    assert infer_arch(abstract(arch).state_dict()) == expected


def test_inferred_arguments_build_the_model_of_the_checkpoint():
    odd = [
        dict(arch='small', use_grn=True),
        dict(arch='v2-huge', use_grn=False),
        dict(arch='atto', layer_scale_init_value=0),
        dict(arch=SMALL, use_grn=True),
        dict(arch=dict(depths=[1, 2], hidden_sizes=[8, 24])),
    ]
    for args in odd:
        state_dict = abstract(**args).state_dict()
        inferred = infer_arch(state_dict)
        assert inferred['arch'] == args['arch']
        built = abstract(**inferred).state_dict()
        assert {k: v.shape for k, v in built.items()} == {k: v.shape for k, v in state_dict.items()}


def test_no_architecture_is_inferred_where_a_stage_is_missing():
    state_dict = meta(make_reference().state_dict())
    holed = {k: v for k, v in state_dict.items() if not k.startswith('stages.1.')}
    with pytest.raises(ValueError, match=r'damaged.*\(2, 0, 3, 1\)'):
        infer_arch(holed)


def test_no_architecture_is_inferred_where_a_block_is_missing():
    state_dict = meta(make_reference().state_dict())
    holed = {k: v for k, v in state_dict.items() if not k.startswith('stages.2.1.')}
    with pytest.raises(
        ValueError, match=r'damaged: it has no encoder\.stages\.2\.layers\.1\.dwconv\.weight, '
    ):
        infer_arch(holed)


def test_another_patch_size_is_named():
    weights = small_backbone(patch_size=2).state_dict()
    with pytest.raises(ValueError, match='build the model with patch_size=2 to fit the file'):
        load_checkpoint(small_backbone(), weights)


@pytest.mark.parametrize(
    'container, put',
    [
        (torch.nn.ModuleDict, lambda box, backbone: box.update({'backbone': backbone})),
        (torch.nn.ModuleList, lambda box, backbone: box.append(backbone)),
        (torch.nn.Sequential, lambda box, backbone: box.append(backbone)),
        (torch.nn.Module, lambda box, backbone: box.add_module('backbone', backbone)),
        (
            lambda: torch.nn.ModuleDict(dict(inner=torch.nn.ModuleDict())),
            lambda box, backbone: box['inner'].update({'backbone': backbone}),
        ),
        (
            lambda: torch.nn.Sequential(torch.nn.Identity()).insert(0, small_backbone()),
            lambda box, backbone: None,
        ),
    ],
    ids=['dict', 'list', 'sequential', 'module', 'nested', 'inserted'],
)
def test_a_model_in_a_container_refuses_before_the_head_is_loaded(container, put):
    model = torch.nn.Module()
    model.head = torch.nn.Linear(3, 3)
    model.parts = container()
    put(model.parts, small_backbone())
    before = snapshot(model)
    weights = {name: torch.zeros_like(t) for name, t in before.items()}
    lost = next(name for name in weights if name.endswith('dwconv.bias'))
    del weights[lost]
    with pytest.raises(RuntimeError, match=r'Missing key\(s\): .*dwconv\.bias'):
        model.load_state_dict(weights, strict=False)
    assert same_tensors(before, model.state_dict())


def test_a_backbone_under_a_private_name_is_checked_too():
    model = torch.nn.Module()
    model.head, model._backbone = torch.nn.Linear(3, 3), small_backbone()
    before = snapshot(model)
    weights = {'head.weight': torch.zeros(3, 3), 'head.bias': torch.zeros(3)}
    with pytest.raises(ValueError, match=r"nothing under the key prefix '_backbone\.'"):
        model.load_state_dict(weights, strict=False)
    assert same_tensors(before, model.state_dict())


def test_a_larger_model_without_the_backbones_tensors_keeps_its_head():
    head = torch.nn.Linear(3, 3)
    model = torch.nn.Sequential(head, small_backbone())
    before = head.weight.clone()
    weights = {'0.weight': torch.zeros(3, 3), '0.bias': torch.zeros(3)}
    with pytest.raises(ValueError, match=r"nothing under the key prefix '1\.'"):
        model.load_state_dict(weights, strict=False)
    assert torch.equal(head.weight, before)
