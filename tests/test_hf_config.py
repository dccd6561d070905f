"""The config.json of a model folder tells what tensors do not: it must agree with the model."""

import json

import pytest
import torch
from helpers import SMALL, randomize, same_tensors, small_backbone
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextV2Config,
    ConvNextV2Model,
    DINOv3ConvNextConfig,
    DINOv3ConvNextModel,
)

from convnext_backbone import ConvNextBackbone, ConvNextModel, infer_arch, load_checkpoint
from convnext_backbone import ConvNextForImageClassification as Classifier
from convnext_backbone.checkpoint.hf_config import ACTIVATION_NAMES
from convnext_backbone.models.activations import ACTIVATIONS

FAMILIES = {
    'v1': (ConvNextConfig, ConvNextForImageClassification),
    'v2': (ConvNextV2Config, ConvNextV2Model),
    'dinov3': (DINOv3ConvNextConfig, DINOv3ConvNextModel),
}


def save(folder, family='v1', **settings):
    """Saves a random model of transformers and returns it."""
    config_class, model_class = FAMILIES[family]
    model = randomize(model_class(config_class(**SMALL, num_labels=5, **settings))).eval()
    model.save_pretrained(folder)
    return model


def images(channels=3):
    return torch.randn(2, channels, 64, 64, generator=torch.Generator().manual_seed(1))


def assert_close(actual, expected):
    assert (actual - expected).norm() <= 1e-5 * expected.norm()


def assert_refused(model, source, message):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_checkpoint(model, source)
    assert same_tensors(before, model.state_dict())


OTHERS = [
    ('v1', dict(hidden_act='relu')),
    ('v2', dict(hidden_act='silu')),
    ('dinov3', dict(hidden_act='gelu_new')),
    ('v1', dict(patch_size=2)),
    ('v2', dict(num_channels=1)),
    ('v1', dict(layer_norm_eps=1e-3)),
    ('v2', dict(layer_norm_eps=1e-3)),
    ('dinov3', dict(layer_norm_eps=1e-3)),
]


@pytest.mark.parametrize(
    ('family', 'settings'), OTHERS, ids=[f'{f}-{next(iter(s))}' for f, s in OTHERS]
)
def test_other_settings_are_refused_and_inferred(tmp_path, family, settings):
    reference = save(tmp_path, family, **settings)
    [(key, value)] = settings.items()
    pooled = ConvNextModel(SMALL, use_grn=family == 'v2')
    assert_refused(pooled, tmp_path, rf'config\.json .* {key} {value!r}, not .*{key}={value!r}')

    inferred = infer_arch(tmp_path)
    assert inferred[key] == value
    model = ConvNextModel(**inferred).eval()
    load_checkpoint(model, tmp_path, strict=family != 'v1')
    pixel_values = images(settings.get('num_channels', 3))
    trunk = getattr(reference, 'convnext', reference)
    with torch.no_grad():
        assert_close(model(pixel_values).pooler_output, trunk(pixel_values).pooler_output)


@pytest.mark.parametrize('family', FAMILIES)
def test_usual_settings_are_not_inferred(tmp_path, family):
    save(tmp_path, family)
    inferred = infer_arch(tmp_path)
    # The pooled features of DINOv3 have another eps than those of V1 and V2.
    expected = dict(layer_norm_eps=1e-6) if family == 'dinov3' else {}
    assert inferred.items() >= expected.items()
    assert inferred.keys() - expected.keys() == {'arch', 'use_grn', 'layer_scale_init_value'}
    load_checkpoint(ConvNextModel(**inferred), tmp_path)
    load_checkpoint(ConvNextBackbone(**inferred), tmp_path)


def test_all_entry_points_read_the_config(tmp_path):
    save(tmp_path, hidden_act='relu')
    message = r"hidden_act 'relu', not 'gelu'"
    assert_refused(Classifier(SMALL, num_labels=5), tmp_path, message)
    assert_refused(small_backbone(), tmp_path, message)
    assert_refused(small_backbone(), tmp_path / 'model.safetensors', message)
    pretrained = dict(type='Pretrained', checkpoint=str(tmp_path))
    with pytest.raises(ValueError, match=message):
        small_backbone(init_cfg=pretrained).init_weights()
    small_backbone(init_cfg=pretrained, hidden_act='relu').init_weights()


def test_sharded_folders_have_a_config_too(tmp_path):
    save(tmp_path, hidden_act='relu').save_pretrained(tmp_path / 'shards', max_shard_size='8KB')
    assert (tmp_path / 'shards' / 'model.safetensors.index.json').exists()
    assert_refused(small_backbone(), tmp_path / 'shards', 'hidden_act')


def test_an_activation_that_no_model_has_is_no_advice(tmp_path):
    save(tmp_path, hidden_act='mish')
    assert_refused(small_backbone(), tmp_path, "has no activation 'mish', so it cannot run")


def test_patches_that_are_not_square_are_no_advice(tmp_path):
    save(tmp_path)
    path = tmp_path / 'config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(patch_size=[4, 8])))
    assert_refused(small_backbone(), tmp_path, r'square patches, not \[4, 8\]')


def test_every_activation_has_a_name_in_the_config():
    assert set(ACTIVATION_NAMES.values()) == set(ACTIVATIONS)


def test_final_eps_does_not_concern_backbones(tmp_path):
    save(tmp_path, layer_norm_eps=1e-3)
    load_checkpoint(small_backbone(), tmp_path)
    # The other norms of V1 and V2 have a fixed eps.
    assert_refused(small_backbone(norm_eps=1e-5), tmp_path, r'norm_eps 1e-06, not 1e-05')


def test_adapt_stem_allows_other_channels_but_nothing_else(tmp_path):
    save(tmp_path)
    assert_refused(small_backbone(num_channels=1), tmp_path, r'num_channels 3, not 1')
    report = load_checkpoint(small_backbone(num_channels=1, adapt_stem=True), tmp_path)
    assert report.adapted
    other = small_backbone(num_channels=1, adapt_stem=True, hidden_act='relu')
    assert_refused(other, tmp_path, r"model with hidden_act 'gelu', not 'relu'\. Build")


def rewrite(folder, change):
    path = folder / 'config.json'
    config = json.loads(path.read_text())
    path.write_text(json.dumps(change(config)))


def test_other_spellings_of_the_same_settings_agree(tmp_path):
    save(tmp_path)
    rewrite(tmp_path, lambda config: config | dict(hidden_act='swish', patch_size=[4, 4]))
    load_checkpoint(small_backbone(hidden_act='silu'), tmp_path)


def test_missing_settings_are_those_of_transformers(tmp_path):
    save(tmp_path, 'v1')
    rewrite(tmp_path, lambda config: dict(model_type=config['model_type']))
    load_checkpoint(small_backbone(), tmp_path)
    assert_refused(small_backbone(hidden_act='relu'), tmp_path, "hidden_act 'gelu', not 'relu'")


def test_the_backbone_of_a_segmentor_has_its_own_config(tmp_path):
    save(tmp_path, hidden_act='relu')
    rewrite(tmp_path, lambda config: dict(model_type='upernet', backbone_config=config))
    assert_refused(small_backbone(), tmp_path, "hidden_act 'relu'")


def test_configs_of_other_models_are_not_compared(tmp_path):
    save(tmp_path)
    for kind in ('vit', None, ['convnext']):
        changes = dict(model_type=kind, architectures=None)
        rewrite(tmp_path, lambda config, changes=changes: config | changes)
        load_checkpoint(small_backbone(hidden_act='relu'), tmp_path)


@pytest.mark.parametrize(
    'change',
    [
        lambda config: config | dict(model_type=None),
        lambda config: dict(model_type='llava', vision_config=config),
        lambda config: dict(model_type='maskformer', backbone_config=config),
    ],
    ids=['by its class', 'vision_config', 'backbone_config'],
)
def test_configs_are_found_by_their_class_and_in_larger_models(tmp_path, change):
    save(tmp_path, hidden_act='relu')
    rewrite(tmp_path, change)
    assert_refused(small_backbone(), tmp_path, r"hidden_act 'relu', not 'gelu'")


def test_a_config_beside_a_file_of_any_name_is_not_read(tmp_path):
    save(tmp_path, hidden_act='relu')
    (tmp_path / 'model.safetensors').rename(tmp_path / 'model-best.safetensors')
    load_checkpoint(small_backbone(), tmp_path / 'model-best.safetensors')


@pytest.mark.parametrize('name', ['model.fp16.safetensors', 'model-00001-of-00001.safetensors'])
def test_variants_and_shards_by_their_path_have_a_config_too(tmp_path, name):
    save(tmp_path, hidden_act='relu')
    (tmp_path / 'model.safetensors').rename(tmp_path / name)
    assert_refused(small_backbone(), tmp_path / name, "hidden_act 'relu'")


@pytest.mark.parametrize('eps', ['1e-5', None, -1, float('nan'), True])
def test_an_eps_that_no_model_takes_is_damage(tmp_path, eps):
    save(tmp_path)
    rewrite(tmp_path, lambda config: config | dict(layer_norm_eps=eps))
    with pytest.raises(ValueError, match=r'config\.json is damaged: layer_norm_eps is'):
        infer_arch(tmp_path)
    load_checkpoint(small_backbone(), tmp_path)  # which has no such norm


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'{"hidden_act": "re', r'config\.json is damaged, it is not JSON'),
        (b'\xff\xfe\x00', r'config\.json is damaged, it is not JSON'),
        (b'[]', r'config\.json is damaged, it holds a list, not an object'),
    ],
)
def test_damaged_configs_are_reported(tmp_path, content, message):
    save(tmp_path)
    (tmp_path / 'config.json').write_bytes(content)
    assert_refused(small_backbone(), tmp_path, message)
    with pytest.raises(ValueError, match=message):
        infer_arch(tmp_path)
