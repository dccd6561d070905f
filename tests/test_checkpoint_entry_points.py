"""Checkpoints written by transformers and mmengine, loaded through every entry point."""

import copy
import json
import os
import pickle
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import torch
from checkpoint_files import make_reference, meta, meta_detector, noise
from helpers import SMALL, STAGES, randomize, same_tensors, small_backbone
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextModel,
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    DINOv3ConvNextBackbone,
    DINOv3ConvNextConfig,
    DINOv3ConvNextModel,
)

from convnext_backbone import ConvNextBackbone, load_checkpoint

FAMILIES = {
    'convnext': (ConvNextConfig, ConvNextForImageClassification, {}),
    'convnext-model': (ConvNextConfig, ConvNextModel, {}),
    'convnextv2': (ConvNextV2Config, ConvNextV2ForImageClassification, dict(use_grn=True)),
    'dinov3': (DINOv3ConvNextConfig, DINOv3ConvNextModel, {}),
    'dinov3-backbone': (DINOv3ConvNextConfig, DINOv3ConvNextBackbone, {}),
}
DETECTOR = dict(
    type='RetinaNet',
    data_preprocessor=dict(type='DetDataPreprocessor'),
    backbone=dict(type='ConvNextBackbone', arch=SMALL, out_features=STAGES),
    neck=dict(type='FPN', in_channels=SMALL['hidden_sizes'], out_channels=8, num_outs=5),
    bbox_head=dict(
        type='RetinaHead',
        num_classes=2,
        in_channels=8,
        feat_channels=8,
        stacked_convs=1,
        anchor_generator=dict(
            type='AnchorGenerator', scales=[4], ratios=[1.0], strides=[4, 8, 16, 32, 64]
        ),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
    ),
    train_cfg=dict(
        assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0),
        sampler=dict(type='PseudoSampler'),
        allowed_border=-1,
        pos_weight=-1,
    ),
)


def build_detector(**backbone_args) -> torch.nn.Module:
    register_all_modules()
    return MODELS.build(DETECTOR | dict(backbone=DETECTOR['backbone'] | backbone_args))


def images():
    return torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def hidden_states(model) -> list[torch.Tensor]:
    """Outputs of the four stages, before the map norms."""
    if isinstance(model, ConvNextBackbone):
        return model(images(), output_hidden_states=True, return_dict=True).hidden_states[1:]
    return model(images(), output_hidden_states=True).hidden_states[-4:]


def assert_same_states(model, reference):
    for ours, theirs in zip(hidden_states(model), hidden_states(reference), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.fixture(params=FAMILIES)
def saved(request, tmp_path):
    """A transformers model, arguments for ours, and its saved folders: whole, sharded, .bin."""
    config_class, model_class, args = FAMILIES[request.param]
    reference = randomize(model_class(config_class(**SMALL))).eval()
    reference.save_pretrained(tmp_path / 'whole')
    reference.save_pretrained(tmp_path / 'sharded', max_shard_size='20KB')
    (tmp_path / 'bin').mkdir()
    torch.save(reference.state_dict(), tmp_path / 'bin' / 'pytorch_model.bin')
    return reference, args, tmp_path


SOURCES = ('whole', 'sharded', 'bin', 'whole/model.safetensors', 'bin/pytorch_model.bin')


@pytest.mark.parametrize('source', SOURCES)
def test_folders_and_files_of_transformers_load_by_the_function(saved, source):
    reference, args, folder = saved
    model = small_backbone(**args)
    report = load_checkpoint(model, folder / source, strict=True)
    assert_same_states(model, reference)
    shards = len(list((folder / 'sharded').glob('*.safetensors')))
    assert shards > 1
    assert (f'{shards} shards' in report.container) == (source == 'sharded')


@pytest.mark.parametrize('source', SOURCES)
def test_they_load_by_init_cfg(saved, source):
    reference, args, folder = saved
    init_cfg = dict(type='Pretrained', checkpoint=str(folder / source))
    model = small_backbone(init_cfg=init_cfg, **args)
    model.init_weights()
    assert_same_states(model, reference)
    assert model.init_cfg == init_cfg


def test_they_load_by_load_state_dict(saved):
    reference, args, _ = saved
    model = small_backbone(**args)
    model.load_state_dict(reference.state_dict())
    assert_same_states(model, reference)


def test_pretrained_comes_last_and_once(tmp_path):
    reference = make_reference()
    torch.save(dict(model=meta(reference.state_dict())), tmp_path / 'meta.pth')
    pretrained = dict(type='Pretrained', checkpoint=str(tmp_path / 'meta.pth'))
    model = small_backbone(init_cfg=[pretrained, dict(type='Constant', layer='Conv2d', val=7.0)])
    model.init_weights()
    assert_same_states(model, reference)
    randomize(model, seed=9)
    kept = copy.deepcopy(model.state_dict())
    model.init_weights()
    assert all(torch.equal(kept[k], v) for k, v in model.state_dict().items())


def test_mmengines_override_comes_after_a_pretrained_entry(tmp_path):
    reference = make_reference()
    torch.save(meta(reference.state_dict()), tmp_path / 'good.pth')
    override = dict(type='Constant', name='hidden_states_norms', val=2.0, layer='ConvNextLayerNorm')
    entry = dict(type='Pretrained', checkpoint=str(tmp_path / 'good.pth'), override=override)
    model = randomize(small_backbone(init_cfg=entry))
    model.init_weights()
    assert_same_states(model, reference)


def test_an_entry_that_fails_leaves_nothing_of_the_others(tmp_path):
    torch.save(meta(make_reference().state_dict()), tmp_path / 'good.pth')
    entries = [dict(type='Constant', layer='Conv2d', val=3.0)]
    entries += [dict(type='Pretrained', checkpoint=str(tmp_path / n)) for n in ('good.pth', 'none')]
    model = randomize(small_backbone(init_cfg=entries))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(FileNotFoundError, match='no such checkpoint'):
        model.init_weights()
    assert same_tensors(before, model.state_dict())
    assert model.init_cfg == entries


def test_mmengine_still_records_where_every_parameter_came_from(tmp_path):
    path = tmp_path / 'meta.pth'
    torch.save(dict(model=meta(make_reference().state_dict())), path)
    detector = build_detector(init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    records = {}
    detector._dump_init_info = lambda: records.update(
        {k: detector._params_init_info[p]['init_info'] for k, p in detector.named_parameters()}
    )
    detector.init_weights()
    assert f'load from {path}' in records['backbone.encoder.stages.2.layers.1.dwconv.weight']
    assert f'load from {path}' not in records['backbone.hidden_states_norms.stage1.weight']
    assert not hasattr(detector.backbone, '_params_init_info')


@pytest.mark.parametrize('prefix', [None, 'backbone', 'backbone.'])
def test_the_backbone_of_a_whole_detector_loads_by_init_cfg(tmp_path, prefix):
    reference = make_reference(map_norms=True)
    torch.save(dict(state_dict=meta_detector(reference.state_dict())), tmp_path / 'detector.pth')
    checkpoint = str(tmp_path / 'detector.pth')
    model = small_backbone(init_cfg=dict(type='Pretrained', checkpoint=checkpoint, prefix=prefix))
    model.init_weights()
    with torch.no_grad():
        for ours, theirs in zip(model(images()), reference(images()).feature_maps, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_prefix_that_is_not_there_is_an_error(tmp_path):
    torch.save(meta_detector(make_reference().state_dict()), tmp_path / 'detector.pth')
    checkpoint = str(tmp_path / 'detector.pth')
    model = small_backbone(
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint, prefix='encoder')
    )
    with pytest.raises(ValueError, match=r"with the key prefix 'encoder\.'"):
        model.init_weights()


class Scenes(torch.utils.data.Dataset):
    """Two random images with one box per image."""

    def __init__(self):
        self.metainfo = dict(classes=('a', 'b'))

    def __len__(self):
        return 2

    def __getitem__(self, index):
        boxes = torch.tensor([[8.0, 8.0, 40.0, 40.0]])
        sample = DetDataSample(
            gt_instances=InstanceData(bboxes=boxes, labels=torch.tensor([index]))
        )
        sample.set_metainfo(
            dict(img_shape=(64, 64), batch_input_shape=(64, 64), scale_factor=(1.0, 1.0))
        )
        return dict(inputs=noise(3, 64, 64, seed=index), data_samples=sample)


def make_runner(work_dir, name, max_epochs=1, **args) -> Runner:
    return Runner(
        model=copy.deepcopy(DETECTOR),
        work_dir=str(work_dir),
        train_dataloader=dict(
            batch_size=2, num_workers=0, dataset=Scenes(), sampler=dict(type='DefaultSampler')
        ),
        train_cfg=dict(by_epoch=True, max_epochs=max_epochs),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-3)),
        default_scope='mmdet',
        experiment_name=f'{work_dir.name}-{name}',
        **args,
    )


def test_a_runner_loads_a_foreign_detector_and_resumes_its_own(tmp_path):
    reference = make_reference(map_norms=True)
    # Everything but the backbone keeps the detector's own names.
    rest = {
        k: torch.full_like(v, 0.01)
        for k, v in build_detector().state_dict().items()
        if not k.startswith('backbone.')
    }
    foreign = {k: v for k, v in meta_detector(reference.state_dict()).items() if 'backbone' in k}
    torch.save(dict(state_dict=foreign | rest, meta={}), tmp_path / 'foreign.pth')

    first = make_runner(tmp_path, 'load', load_from=str(tmp_path / 'foreign.pth'))
    first.load_or_resume()
    assert_same_states(first.model.backbone.eval(), reference)
    loaded = copy.deepcopy(first.model.state_dict())
    assert all(torch.equal(loaded[k], v) for k, v in rest.items())
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert 'ConvNextBackbone: loaded' in log and 'names of Meta' in log

    first.train()
    trained = copy.deepcopy(first.model.state_dict())
    assert not same_tensors(trained, loaded)
    second = make_runner(tmp_path, 'resume', max_epochs=2, resume=True)
    second._train_loop = second.build_train_loop(second._train_loop)
    second.optim_wrapper = second.build_optim_wrapper(second.optim_wrapper)
    second.load_or_resume()
    assert second.epoch == 1
    assert same_tensors(trained, second.model.state_dict())


def test_a_detector_refuses_a_backbone_of_another_size():
    other = {f'backbone.{k}': v for k, v in meta(make_reference().state_dict()).items()}
    detector = build_detector(arch='atto')
    before = copy.deepcopy(detector.state_dict())
    with pytest.raises(RuntimeError, match='the model is a ConvNeXt-atto'):
        detector.load_state_dict(other, strict=False)
    assert same_tensors(before, detector.state_dict())
    for nothing in (meta(make_reference().state_dict()), {'bbox_head.weight': torch.zeros(2)}):
        with pytest.raises(
            ValueError, match=r"nothing under the key prefix 'backbone\.'.*init_cfg"
        ):
            detector.load_state_dict(nothing, strict=False)


def test_round_trips_match_torch():
    model = randomize(small_backbone())
    state_dict = model.state_dict()
    copied = small_backbone()
    result = copied.load_state_dict(state_dict, strict=True)
    assert result.missing_keys == [] and result.unexpected_keys == []
    assert same_tensors(state_dict, copied.state_dict())

    assigned = small_backbone()
    assigned.load_state_dict(state_dict, strict=True, assign=True)
    assert assigned.encoder.stages[0].layers[0].dwconv.weight.data_ptr() == (
        state_dict['encoder.stages.0.layers.0.dwconv.weight'].data_ptr()
    )
    odd = {**state_dict, 'extra': noise(1)}
    assert small_backbone().load_state_dict(odd, strict=False).unexpected_keys == ['extra']
    with pytest.raises(RuntimeError, match=r'Unexpected key.*extra'):
        small_backbone().load_state_dict(odd, strict=True)
    for name in ('encoder.stages.1.layers.0.dwconv.bias', 'hidden_states_norms.stage2.weight'):
        lacking = {k: v for k, v in state_dict.items() if k != name}
        for strict in (True, False):
            with pytest.raises(RuntimeError, match=f'Missing key.*{name}'):
                small_backbone().load_state_dict(lacking, strict=strict)
    lacking = {k: v for k, v in state_dict.items() if 'norms.stage2' not in k}
    with pytest.raises(RuntimeError, match=r'Missing key.*hidden_states_norms\.stage2'):
        small_backbone().load_state_dict(lacking, strict=True)
    assert len(small_backbone().load_state_dict(lacking, strict=False).missing_keys) == 2


def test_distributed_wrappers_load_and_are_loaded(tmp_path):
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1
    )
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(randomize(small_backbone()))
        state_dict = wrapped.state_dict()
        assert all(k.startswith('module.') for k in state_dict)
        plain = small_backbone()
        plain.load_state_dict(state_dict, strict=True)
        assert_same_states(plain, wrapped.module)

        reference = make_reference()
        foreign = {f'module.{k}': v for k, v in meta(reference.state_dict()).items()}
        wrapped.load_state_dict(foreign, strict=True)
        assert_same_states(wrapped.module, reference)
        other = make_reference(seed=5)
        load_checkpoint(wrapped, other.state_dict())
        assert_same_states(wrapped.module, other)
    finally:
        torch.distributed.destroy_process_group()


def test_copies_and_pickles_load_independently():
    model = randomize(small_backbone())
    before = copy.deepcopy(model.state_dict())
    reference = make_reference()
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert same_tensors(before, copied.state_dict())
        copied.load_state_dict(meta(reference.state_dict()))
        assert_same_states(copied, reference)
    assert same_tensors(before, model.state_dict())


def test_http_addresses_load_through_torchs_cache(tmp_path, monkeypatch):
    reference = make_reference()
    make_reference(seed=4).save_pretrained(tmp_path / 'site' / 'other')
    reference.save_pretrained(tmp_path / 'site' / 'this')
    torch.save(dict(model=meta(reference.state_dict())), tmp_path / 'site' / 'meta.pth')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    monkeypatch.setenv('no_proxy', '*')
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / 'site'))
    server = ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    site = f'http://127.0.0.1:{server.server_port}'
    model = small_backbone(init_cfg=dict(type='Pretrained', checkpoint=f'{site}/meta.pth'))
    try:
        model.init_weights()
        assert_same_states(model, reference)
        load_checkpoint(model, f'{site}/other/model.safetensors')
        load_checkpoint(model, f'{site}/this/model.safetensors')
        assert_same_states(model, reference)
        with pytest.raises(OSError, match=f'cannot download {site}/none.pth'):
            load_checkpoint(model, f'{site}/none.pth')
    finally:
        server.shutdown()
        server.server_close()
    assert list((tmp_path / 'home/hub/checkpoints').glob('*-meta.pth'))
    load_checkpoint(randomize(model), f'{site}/meta.pth')
    assert_same_states(model, reference)


class Hub(SimpleHTTPRequestHandler):
    """Answers as the hub of Hugging Face does."""

    def translate_path(self, path):
        return f'{self.directory}/{path.rpartition("/resolve/main/")[2]}'

    def end_headers(self):
        self.send_header('X-Repo-Commit', 40 * '0')
        self.send_header('ETag', f'"{Path(self.translate_path(self.path)).name}"')
        super().end_headers()

    def send_error(self, code, *args):
        self.send_response(code)
        self.send_header('X-Error-Code', 'EntryNotFound')
        self.send_header('Content-Length', '0')
        self.end_headers()


@pytest.mark.parametrize('has_config', [True, False])
def test_the_config_beside_a_file_of_the_hub_is_read(tmp_path, has_config):
    make_reference().save_pretrained(tmp_path / 'site')
    path = tmp_path / 'site' / 'config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(hidden_act='relu')))
    if not has_config:
        path.unlink()
    handler = partial(Hub, directory=str(tmp_path / 'site'))
    server = ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    script = (
        'from convnext_backbone import infer_arch\n'
        'print(infer_arch("hf://someone/convnext/model.safetensors"))'
    )
    # huggingface_hub reads its address when it is imported.
    settings = dict(
        HF_ENDPOINT=f'http://127.0.0.1:{server.server_port}', HF_HOME=str(tmp_path), no_proxy='*'
    )
    try:
        output = subprocess.run(
            [sys.executable, '-c', script],
            env={**os.environ, **settings},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    finally:
        server.shutdown()
        server.server_close()
    assert "'arch'" in output and ("'hidden_act': 'relu'" in output) == has_config


@pytest.mark.parametrize(
    'address',
    [
        'hf://someone/convnext',
        'hf://someone/convnext@v1',
        'hf://someone/convnext/model.safetensors',
        'hf://someone/convnext@v1/model.safetensors',
    ],
)
def test_hub_addresses_load_from_the_local_cache(tmp_path, monkeypatch, address):
    """Builds huggingface_hub's cache layout by hand and reads it without a network."""
    reference = make_reference()
    repo = tmp_path / 'models--someone--convnext'
    commit = '0123456789012345678901234567890123456789'
    reference.save_pretrained(repo / 'snapshots' / commit)
    (repo / 'refs').mkdir()
    for name in ('main', 'v1'):
        (repo / 'refs' / name).write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    model = small_backbone()
    assert load_checkpoint(model, address, strict=True).source == address
    assert_same_states(model, reference)
    with pytest.raises(OSError, match='cannot download hf://someone/resnet'):
        load_checkpoint(model, 'hf://someone/resnet')
    with pytest.raises(ValueError, match='hf://owner/name'):
        load_checkpoint(model, 'hf://convnext')
