"""Exported models: ONNX under ONNX Runtime, torch.export, int8, and calls that cannot be done."""

import re
from functools import partial
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from helpers import REPO, randomize
from PIL import Image

from convnext_backbone import ConvNextBackbone

TOOL = REPO / 'tools/model_converters/export.py'
# Symbolic sizes of more stages take the exporters long.
ARCH = dict(depths=[1, 1], hidden_sizes=[8, 16])
STAGES = ('stage1', 'stage2')
CONFIG = f"""
model = dict(
    type='Detector',
    data_preprocessor=dict(mean=[120, 115, 100], std=[60, 60, 60], bgr_to_rgb=True),
    backbone=dict(
        type='convnext_backbone.ConvNextBackbone', arch={ARCH}, out_indices=(0, 1)
    ),
)
"""
DETECTOR = f"""
_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'
default_scope = 'mmdet'
model = dict(
    backbone=dict(
        _delete_=True, type='ConvNextBackbone', arch={ARCH}, out_indices=(0, 1)
    ),
    neck=dict(in_channels=[8, 16], start_level=0, out_channels=16, num_outs=3),
    bbox_head=dict(in_channels=16, feat_channels=16, stacked_convs=1),
)
"""

pytestmark = [
    pytest.mark.filterwarnings('ignore'),
    pytest.mark.skipif(
        not hasattr(torch.compiler, 'is_exporting'), reason='torch is too old to export'
    ),
]
needs_onnx = pytest.mark.skipif(
    not all(find_spec(name) for name in ('onnx', 'onnxruntime', 'onnxscript')),
    reason='needs the extra onnx',
)


def backbone():
    model = randomize(ConvNextBackbone(ARCH, out_features=STAGES))
    return model.eval().requires_grad_(False)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A config, a checkpoint and images."""
    folder = tmp_path_factory.mktemp('export')
    (folder / 'config.py').write_text(CONFIG)
    (folder / 'detector.py').write_text(DETECTOR)
    torch.save(backbone().state_dict(), folder / 'small.pth')
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).resize((96, 64)).save(folder / f'image{i}.png')
    return folder


@pytest.fixture
def run_tool(monkeypatch, run_script, folder):
    """Runs the tool in the folder; returns its exit status, its output and its errors."""
    monkeypatch.chdir(folder)
    return partial(run_script, TOOL)


def onnx_maps(path, images):
    """The maps by name, from ONNX Runtime itself."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    maps = session.run(names, {'images': images.numpy()})
    return {name: torch.from_numpy(m) for name, m in zip(names, maps, strict=True)}


SHAPES = [(1, 3, 64, 96), (2, 3, 33, 16), (3, 3, 77, 101)]


@needs_onnx
def test_onnx_runtime_agrees_at_three_sizes(run_tool, folder):
    code, out, err = run_tool(
        'onnx', 'config.py', 'small.pth', 'any.onnx', '--dynamic', '--size', 64, 96
    )
    assert code == 0, err
    (told,) = re.findall(r'largest difference from PyTorch in float32: (\S+)', out)
    assert float(told) < 1e-5
    assert 'takes any number of images, from 16x16 pixels and gives stage1, stage2' in out
    model = backbone()
    for shape in SHAPES:
        images = torch.randn(shape)
        found = onnx_maps(folder / 'any.onnx', images)
        assert tuple(found) == STAGES
        for actual, expected in zip(found.values(), model(images), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@needs_onnx
def test_backbone_and_neck_of_a_detector(run_tool, folder):
    pytest.importorskip('mmdet')
    from mmengine.config import Config
    from mmengine.registry import MODELS, init_default_scope

    cfg = Config.fromfile(folder / 'detector.py')
    init_default_scope('mmdet')
    model = MODELS.build(cfg.model.copy()).eval().requires_grad_(False)
    torch.save(dict(state_dict=model.state_dict()), folder / 'detector.pth')
    code, out, err = run_tool(
        *('onnx', 'detector.py', 'detector.pth', 'neck.onnx', '--neck', '--dynamic'),
        *('--size', 64, 96),
    )
    assert code == 0, err
    # The strides of the backbone's maps are 4 and 8, and FPN adds one.
    assert 'gives p2, p3, p4\n' in out
    for shape in ((1, 3, 64, 64), (2, 3, 65, 100), (1, 3, 96, 128)):
        images = torch.randn(shape)
        found = onnx_maps(folder / 'neck.onnx', images)
        assert list(found) == ['p2', 'p3', 'p4']
        for actual, expected in zip(found.values(), model.extract_feat(images), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@needs_onnx
def test_half_precision_in_onnx(run_tool, folder):
    code, out, err = run_tool(
        *('onnx', 'config.py', 'small.pth', 'half.onnx', '--dtype', 'fp16', '--size', 64, 96)
    )
    assert code == 0, err
    assert 'takes one image of 64x96 pixels' in out
    images = torch.randn(1, 3, 64, 96)
    found = onnx_maps(folder / 'half.onnx', images.half())
    for actual, expected in zip(found.values(), backbone()(images), strict=True):
        assert actual.dtype == torch.float16
        torch.testing.assert_close(actual.float(), expected, rtol=0, atol=0.01 * expected.max())


@needs_onnx
@pytest.mark.parametrize('kind', ['dynamic', 'static'])
def test_int8(run_tool, folder, kind):
    import onnx

    code, out, err = run_tool(
        *('onnx', 'config.py', 'small.pth', f'{kind}.onnx', '--size', 64, 96, '--int8', kind),
        *('--calibration', 'image*.png'),
    )
    assert code == 0, err
    tensors = onnx.load(folder / f'{kind}.onnx').graph.initializer
    weights = [t.data_type for t in tensors if len(t.dims) > 1]
    # Two products in each of the two blocks, and four convolutions.
    assert weights.count(onnx.TensorProto.INT8) == {'dynamic': 4, 'static': 8}[kind]
    assert len(weights) == 8
    # Two of five images measure the error.
    assert 'int8 against float32, 2 images' in out
    told = {name: float(e) for name, e in re.findall(r'(stage\d): relative error (\S+),', out)}
    model, error, square = backbone(), {}, {}
    for i in (0, 4):
        pixels = np.array(Image.open(folder / f'image{i}.png'), np.float32)
        normalised = (pixels - (120, 115, 100)) / 60
        images = torch.from_numpy(normalised).float().permute(2, 0, 1)[None]
        found = onnx_maps(folder / f'{kind}.onnx', images)
        for (name, actual), expected in zip(found.items(), model(images), strict=True):
            error[name] = error.get(name, 0) + (actual - expected).square().sum()
            square[name] = square.get(name, 0) + expected.square().sum()
    for name in STAGES:
        assert (error[name] / square[name]).sqrt() == pytest.approx(told[name], rel=0.1)
        assert 0 < told[name] < 0.1


def test_torch_export_agrees_at_three_sizes(run_tool, folder):
    code, out, err = run_tool(
        'torchexport', 'config.py', 'small.pth', 'any.pt2', '--dynamic', '--size', 64, 96
    )
    assert code == 0, err
    assert 'largest difference from PyTorch in float32' in out
    program = torch.export.load(folder / 'any.pt2')
    # No operator of this package: the file runs where only torch is installed.
    targets = {str(n.target) for n in program.graph.nodes if n.op == 'call_function'}
    assert not [target for target in targets if 'convnext' in target]
    model = backbone()
    for shape in SHAPES:
        images = torch.randn(shape)
        for actual, expected in zip(program.module()(images), model(images), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_torch_export_of_an_architecture_by_name(run_tool, folder):
    """In half precision, and with chosen maps."""
    model = ConvNextBackbone('atto', out_features=['stem', 'stage2']).eval()
    torch.save(model.state_dict(), folder / 'atto.pth')
    code, _, err = run_tool(
        *('torchexport', 'atto', 'atto.pth', 'atto.pt2', '--out-features', 'stem', 'stage2'),
        *('--dtype', 'fp16', '--size', 32, 64),
    )
    assert code == 0, err
    images = torch.randn(1, 3, 32, 64)
    found = torch.export.load(folder / 'atto.pt2').module()(images.half())
    with torch.no_grad():
        for actual, expected in zip(found, model(images), strict=True):
            assert actual.dtype == torch.float16
            torch.testing.assert_close(actual.float(), expected, rtol=0, atol=0.01 * expected.max())


def test_a_model_that_overflows_in_half_precision_is_not_written(run_tool, folder):
    model = backbone()
    model.embeddings.patch_embeddings.weight *= 1e6
    torch.save(model.state_dict(), folder / 'large.pth')
    (folder / 'kept.pt2').write_text('older')
    code, _, _ = run_tool(
        *('torchexport', 'config.py', 'large.pth', 'kept.pt2', '--dtype', 'fp16', '--force'),
        *('--size', 32, 32),
    )
    assert re.match(r'kept.pt2 is not written.*too large for float16', code)
    assert (folder / 'kept.pt2').read_text() == 'older'
    assert not list(folder.glob('.kept*'))


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ('torchexport config.py small.pth a.onnx', 'a.onnx must end in .pt2 for torchexport'),
        ('torchexport config.py small.pth old.pt2', 'old.pt2 exists: .*--force'),
        ('torchexport config.py absent.pth a.pt2', 'absent.pth'),
        ('torchexport large-tiny small.pth a.pt2', 'neither a config file nor an architecture'),
        ('torchexport config.py small.pth a.pt2 --neck', 'config.py has no model with a neck'),
        ('torchexport atto small.pth a.pt2 --neck', '--neck needs a config'),
        ('torchexport empty.py small.pth a.pt2', 'empty.py has no model with a backbone'),
        ('torchexport config.py small.pth a.pt2 --out-features stem', 'leave it out'),
        ('torchexport config.py small.pth a.pt2 --size 8 7', 'at least 8 8 .* got 8 7'),
        ('torchexport config.py small.pth a.pt2 --size 15 16 --dynamic', 'at least 16 16'),
        ('torchexport tiny small.pth a.pt2', 'small.pth'),
        ('torchexport config.py small.pth a.pt2 --int8 dynamic', '--int8 is for onnx in fp32'),
        ('onnx config.py small.pth a.onnx --dtype fp16 --int8 dynamic', 'is for onnx in fp32'),
        ('onnx config.py small.pth a.onnx --int8 static', 'needs images'),
        ('onnx config.py small.pth a.onnx --calibration image0.png', '--calibration is for --int8'),
        pytest.param(
            'onnx config.py small.pth a.onnx --int8 static --calibration image0.png',
            'at least 4 images, got 1',
            marks=needs_onnx,
        ),
        pytest.param(
            'onnx config.py small.pth a.onnx --int8 static --calibration absent*',
            'no images found',
            marks=needs_onnx,
        ),
    ],
)
def test_bad_calls_end_in_a_sentence(run_tool, folder, args, message):
    (folder / 'old.pt2').touch()
    (folder / 'empty.py').touch()
    code, _, err = run_tool(*args.split())
    assert code == 2
    assert re.search(message, err.splitlines()[-1]), err
    assert not (folder / 'a.onnx').exists() and not (folder / 'a.pt2').exists()


def test_a_missing_library_is_named(run_tool, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    code, _, err = run_tool('onnx', 'config.py', 'small.pth', 'a.onnx')
    assert code == 2
    assert r'onnx, onnxscript not installed: pip install "convnext-backbone[onnx]"' in err
