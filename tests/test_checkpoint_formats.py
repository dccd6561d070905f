"""Every format, with its special shapes, gives the features of the original model."""

import re

import pytest
import torch
from checkpoint_files import (
    CASES,
    WITH_MAP_NORMS,
    WRITERS,
    make_reference,
    meta,
    mmpretrain,
    noise,
    openmmlab_segmenter,
    timm,
    torchvision,
    write,
)
from helpers import SMALL, randomize, same_tensors, small_backbone
from mmengine.hooks import EMAHook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch.utils.data import DataLoader, TensorDataset

from convnext_backbone import ConvNextModel, infer_arch, load_checkpoint


def assert_same_features(model, reference):
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        pairs = list(zip(model(images), reference(images).feature_maps, strict=True))
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(('name', 'version'), CASES)
def test_every_source_gives_its_models_features(name, version):
    reference = make_reference(version, map_norms=name in WITH_MAP_NORMS)
    model = small_backbone(use_grn=version == 2)
    report = load_checkpoint(model, write(name, reference.state_dict()), strict=True)
    assert_same_features(model, reference)

    norms = {k for k in model.state_dict() if k.startswith('hidden_states_norms')}
    assert report.format == WRITERS[name][2]
    assert report.unexpected == [] and report.adapted == []
    assert set(report.missing) == (set() if name in WITH_MAP_NORMS else norms)
    assert set(report.matched) == set(model.state_dict()) - set(report.missing)


@pytest.mark.parametrize(('name', 'version'), CASES)
def test_every_source_loads_by_load_state_dict(name, version):
    reference = make_reference(version, map_norms=name in WITH_MAP_NORMS)
    model = small_backbone(use_grn=version == 2)
    model.load_state_dict(write(name, reference.state_dict()), strict=True)
    assert_same_features(model, reference)


@pytest.mark.parametrize(('name', 'version'), CASES)
def test_the_architecture_is_inferred_from_every_source(name, version):
    arguments = infer_arch(write(name, make_reference(version).state_dict()))
    scale = 1e-6 if version == 1 else None
    expected = dict(arch=SMALL, use_grn=version == 2, layer_scale_init_value=scale)
    # Only Hugging Face's V1 and V2 have another eps in the norm of the pooled features.
    if name not in ('hugging_face', 'fcmae', 'timm_features', *WITH_MAP_NORMS):
        expected |= dict(layer_norm_eps=1e-6)
    assert arguments == expected


@pytest.mark.parametrize(
    ('name', 'version', 'reshaped'),
    [
        ('timm_conv_mlp', 1, {'pwconv1.weight', 'pwconv2.weight'}),
        ('mmpretrain_conv', 1, {'pwconv1.weight', 'pwconv2.weight'}),
        ('torchvision', 1, {'layer_scale_parameter'}),
        ('timm', 2, {'grn.weight', 'grn.bias'}),
        ('mmpretrain', 2, {'grn.weight', 'grn.bias'}),
        ('meta', 2, set()),
    ],
)
def test_the_report_names_what_was_reshaped(name, version, reshaped):
    report = load_checkpoint(
        small_backbone(use_grn=version == 2), write(name, make_reference(version).state_dict())
    )
    expected = {key for key in report.matched if any(key.endswith(f'.{r}') for r in reshaped)}
    assert set(report.reshaped) == expected
    assert len(expected) == 7 * len(reshaped)


@pytest.mark.parametrize(
    ('name', 'version', 'ignored'),
    [
        ('hugging_face', 1, {'final norm': 2, 'head': 2}),
        ('meta_dinov3', 1, {'final norm': 4, 'projector': 1}),
        ('fcmae', 2, {'decoder': 4}),
        ('torchvision', 1, {'final norm': 2, 'head': 2}),
        ('mmpretrain', 1, {'final norm': 2, 'head': 2}),
        ('hf_dinov3', 1, {'final norm': 2}),
        ('open_clip', 1, {'final norm': 2, 'head': 1, "outside of 'visual.trunk.'": 2}),
        ('meta_detector', 1, {"outside of 'backbone.'": 2}),
    ],
)
def test_the_report_says_what_was_ignored_and_why(name, version, ignored):
    reasons = load_checkpoint(
        small_backbone(use_grn=version == 2), write(name, make_reference(version).state_dict())
    ).ignored.values()
    assert {reason: list(reasons).count(reason) for reason in reasons} == ignored


@pytest.mark.parametrize('prefix', ['module.', 'backbone.', 'model.encoder.', 'student.backbone.'])
def test_prefixes_of_whole_models_are_found(prefix):
    reference = make_reference()
    model = small_backbone()
    state_dict = {prefix + k: v for k, v in meta(reference.state_dict()).items()}
    assert load_checkpoint(model, state_dict).prefix == prefix
    assert_same_features(model, reference)


def test_the_teacher_is_preferred_to_the_student():
    teacher, student = make_reference(seed=1), make_reference(seed=2)
    both = {}
    for name, network in (('student', student), ('teacher', teacher)):
        both |= {f'{name}.backbone.{k}': v for k, v in meta(network.state_dict()).items()}
        both[f'{name}.dino_head.mlp.0.weight'] = noise(4, 32)
    model = small_backbone()
    report = load_checkpoint(model, both)
    assert report.prefix == 'teacher.backbone.'
    assert_same_features(model, teacher)

    dump = {
        name: {f'backbone.{k}': v for k, v in meta(network.state_dict()).items()}
        for name, network in (('student', student), ('teacher', teacher))
    }
    report = load_checkpoint(model, dump | {'epoch': 3})
    assert 'teacher' in report.container and 'student' in report.container
    assert_same_features(model, teacher)
    load_checkpoint(model, both, prefix='student')
    assert_same_features(model, student)


@pytest.mark.parametrize(
    ('averaged', 'other'),
    [
        ('model_ema', 'model'),
        ('state_dict_ema', 'state_dict'),
        ('ema', 'net'),
        ('teacher', 'student'),
        ('ema_model', 'model'),
        ('model_ema_state_dict', 'model_state_dict'),
        ('params_ema', 'params'),
        ('teacher_state_dict', 'student_state_dict'),
    ],
)
@pytest.mark.parametrize('is_flat', [False, True])
def test_averaged_weights_are_loaded_unless_others_are_wanted(averaged, other, is_flat):
    """One rule for keys of a file and for key prefixes."""
    references = {averaged: make_reference(seed=1), other: make_reference(seed=2)}
    content = {name: timm(reference.state_dict()) for name, reference in references.items()}
    if is_flat:
        content = {f'{name}.{k}': v for name, part in content.items() for k, v in part.items()}
    model = small_backbone()
    load_checkpoint(model, dict(reversed(content.items())))
    assert_same_features(model, references[averaged])
    load_checkpoint(model, content, use_ema=False)
    assert_same_features(model, references[other])
    model.load_state_dict(content)
    assert_same_features(model, references[averaged])
    model = small_backbone(init_cfg=dict(type='Pretrained', checkpoint=content, use_ema=False))
    model.init_weights()
    assert_same_features(model, references[other])
    assert infer_arch(content, use_ema=False)['arch'] == SMALL


@pytest.mark.parametrize('key', ['teacher_head', 'ema_optimizer'])
def test_other_keys_of_averages_are_no_weights(key):
    reference = make_reference()
    model = small_backbone()
    load_checkpoint(model, {key: {'m': noise(2)}, 'model': timm(reference.state_dict())})
    assert_same_features(model, reference)


class Sums(BaseModel):
    def __init__(self):
        super().__init__()
        self.backbone = small_backbone()

    def forward(self, images, mode):
        return dict(loss=sum(maps.abs().mean() for maps in self.backbone(images)))


def test_mmengine_swaps_the_averaged_weights_with_the_others(tmp_path):
    runner = Runner(
        Sums(),
        work_dir=str(tmp_path),
        train_dataloader=DataLoader(TensorDataset(torch.randn(4, 3, 64, 64))),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=10.0)),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        custom_hooks=[dict(type='EMAHook', momentum=0.5)],
        default_hooks=dict(checkpoint=dict(type='CheckpointHook')),
    )
    runner.train()
    (hook,) = [hook for hook in runner.hooks if isinstance(hook, EMAHook)]
    trained, averaged = (
        model.backbone.state_dict() for model in (hook.src_model, hook.ema_model.module)
    )
    assert not same_tensors(trained, averaged)
    for use_ema, expected in ((True, averaged), (False, trained)):
        model = small_backbone()
        load_checkpoint(model, tmp_path / 'epoch_1.pth', use_ema=use_ema)
        assert same_tensors(model.state_dict(), expected)


@pytest.mark.parametrize('is_flat', [False, True])
def test_the_student_never_replaces_a_damaged_teacher(is_flat):
    content = {}
    for name, seed in (('student', 1), ('teacher', 2)):
        content[name] = meta(make_reference(seed=seed).state_dict())
    kept = [k for k in content['teacher'] if k.startswith(('downsample_layers.0', 'stages.0.0'))]
    content['teacher'] = {k: content['teacher'][k] for k in kept}
    if is_flat:
        content = {f'{name}.{k}': v for name, part in content.items() for k, v in part.items()}
    model = randomize(small_backbone())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match='Missing key'):
        load_checkpoint(model, content)
    assert same_tensors(before, model.state_dict())
    model = small_backbone()
    load_checkpoint(model, content, use_ema=False)
    assert_same_features(model, make_reference(seed=1))


def test_one_of_two_equal_backbones_must_be_chosen():
    one, other = make_reference(seed=1), make_reference(seed=2)
    both = {f'rgb.{k}': v for k, v in meta(one.state_dict()).items()}
    both |= {f'depth.{k}': v for k, v in meta(other.state_dict()).items()}
    model = small_backbone()
    with pytest.raises(ValueError, match=r'several ConvNeXts, with .* depth\., rgb\.'):
        load_checkpoint(model, both)
    for prefix, reference in (('rgb', one), ('depth.', other)):
        load_checkpoint(model, both, prefix=prefix)
        assert_same_features(model, reference)
    with pytest.raises(ValueError, match=r"nothing with the key prefix 'lidar.'.* depth, rgb"):
        load_checkpoint(model, both, prefix='lidar')


def test_a_small_part_of_another_model_is_ignored():
    reference = make_reference()
    state_dict = {f'backbone.{k}': v for k, v in meta(reference.state_dict()).items()}
    state_dict |= {f'aux.{k}': v for k, v in state_dict.items() if 'stages.0.0' in k}
    model = small_backbone()
    assert load_checkpoint(model, state_dict).prefix == 'backbone.'
    assert_same_features(model, reference)


@pytest.mark.parametrize(
    'key',
    [
        *('state_dict', 'model', 'model_state', 'model_ema', 'teacher', 'module'),
        *('net', 'ema', 'network', 'weights', 'params', 'student_state_dict'),
    ],
)
def test_containers_are_opened(key):
    reference = make_reference()
    content = {'epoch': 1, key: timm(reference.state_dict())}
    model = small_backbone()
    assert key in load_checkpoint(model, content).container
    assert_same_features(model, reference)
    model = small_backbone()
    model.load_state_dict(content)
    assert_same_features(model, reference)


STAGE4_NORM = [f'hidden_states_norms.stage4.{leaf}' for leaf in ('weight', 'bias')]


def one_map_detector(hf: dict) -> dict:
    """A whole detector from OpenMMLab with one feature map, such as YOLOF."""
    return {k: v for k, v in openmmlab_segmenter(hf).items() if not re.match(r'.*norm[012]', k)}


def test_a_single_norm3_belongs_to_a_classifier_if_there_is_a_head():
    hf = make_reference(map_norms=True).state_dict()
    alone = {k: v for k, v in mmpretrain(hf).items() if not k.startswith('head')}
    model = small_backbone(out_features=('stage4',))
    classifiers = (
        mmpretrain(hf),
        alone | {'head.layers.0.fc.weight': noise(5, 32)},
        mmpretrain(hf) | {'teacher.conv.weight': noise(5, 32)},
    )
    for state_dict in classifiers:
        for prefix in (None, 'backbone'):
            report = load_checkpoint(model, state_dict, prefix=prefix)
            assert report.missing == STAGE4_NORM and not report.unclear


def test_a_single_norm3_belongs_to_a_map_if_there_is_a_neck_or_a_dense_head():
    hf = make_reference(map_norms=True).state_dict()
    for prefix in (None, 'backbone', 'backbone.'):
        model = small_backbone(out_features=('stage4',))
        report = load_checkpoint(model, one_map_detector(hf), prefix=prefix)
        assert report.missing == [] and not report.unclear
        for name in STAGE4_NORM:
            assert torch.equal(model.state_dict()[name], hf[name])
    # Several norms are always norms of feature maps.
    assert (
        load_checkpoint(small_backbone(), openmmlab_segmenter(hf), prefix='backbone').missing == []
    )


def test_a_single_norm3_beside_the_head_of_a_pose_estimator_is_reported():
    hf = make_reference(map_norms=True).state_dict()
    inside = {k: v for k, v in one_map_detector(hf).items() if k.startswith('backbone.')}
    for prefix in (None, 'backbone'):
        model = small_backbone(out_features=('stage4',))
        report = load_checkpoint(
            model, inside | {'head.final_layer.weight': noise(3, 8)}, prefix=prefix
        )
        assert report.unclear
        assert torch.equal(model.state_dict()[STAGE4_NORM[0]], hf[STAGE4_NORM[0]])


def test_a_single_norm3_of_unclear_meaning_is_loaded_where_it_fits_and_reported(capture_log):
    hf = make_reference(map_norms=True).state_dict()
    inside = {k: v for k, v in one_map_detector(hf).items() if k.startswith('backbone.')}
    detector = torch.nn.ModuleDict({'backbone': small_backbone(out_features=('stage4',))})
    for load in (
        lambda: load_checkpoint(detector['backbone'], inside),
        lambda: detector.load_state_dict(inside),
        lambda: detector.load_state_dict(one_map_detector(hf), strict=False),
    ):
        randomize(detector)
        capture_log.clear()
        load()
        for name in STAGE4_NORM:
            assert torch.equal(detector['backbone'].state_dict()[name], hf[name])
        assert "'norm3' is the norm" in capture_log[-1] or "'backbone.norm3' is" in capture_log[-1]
    # A backbone with other maps, too, is not the model of this file.
    report = load_checkpoint(small_backbone(), inside)
    assert 'It is taken as the final norm.' in report.unclear
    assert set(STAGE4_NORM) <= set(report.missing)
    pooled = ConvNextModel(SMALL)
    assert 'It is taken as the final norm.' in load_checkpoint(pooled, inside).unclear
    assert torch.equal(pooled.layernorm.weight, hf[STAGE4_NORM[0]])


@pytest.mark.parametrize('name', ['weight', 'bias'])
def test_half_of_a_single_norm_is_refused(name):
    inside = one_map_detector(make_reference(map_norms=True).state_dict())
    model = small_backbone(out_features=('stage4',))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    backbone = {k: v for k, v in inside.items() if k.startswith('backbone.')}
    del backbone[f'backbone.norm3.{name}']
    with pytest.raises(ValueError, match=f'norm3|hidden_states_norms.stage4.{name}'):
        load_checkpoint(model, backbone)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_norms_of_some_maps_leave_the_others_unchanged():
    hf = make_reference(map_norms=True).state_dict()
    segmenter = openmmlab_segmenter(hf)
    del segmenter['backbone.norm1.weight'], segmenter['backbone.norm1.bias']
    report = load_checkpoint(small_backbone(), segmenter)
    assert report.missing == [f'hidden_states_norms.stage2.{x}' for x in ('weight', 'bias')]
    assert 'fresh norms of feature maps, as expected: hidden_states_norms.stage2' in str(report)


def test_half_precision_is_loaded_in_the_models_precision():
    hf = {k: v.half() for k, v in make_reference().state_dict().items()}
    model = small_backbone()
    load_checkpoint(model, timm(hf))
    weight = model.embeddings.patch_embeddings.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, hf['embeddings.patch_embeddings.weight'].float())


def test_two_names_of_one_tensor_are_refused():
    state_dict = timm(make_reference().state_dict())
    state_dict['stem.0.kernel'] = state_dict['stem.0.weight']
    with pytest.raises(ValueError, match=r'stem\.0\.weight.*stem\.0\.kernel.*patch_embeddings'):
        load_checkpoint(small_backbone(), state_dict)


def test_invalid_stage_numbers_are_refused():
    state_dict = torchvision(make_reference().state_dict())
    # Blocks have odd numbers, downsampling layers have even numbers.
    state_dict['features.2.0.block.0.weight'] = noise(8, 1, 7, 7)
    with pytest.raises(ValueError, match=r'unknown tensors inside.*features\.2\.0\.block\.0'):
        load_checkpoint(small_backbone(), state_dict)
