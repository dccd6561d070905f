"""Compares parameters and FLOPs with the papers' tables, and checks the counter."""

import re
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from functools import cache

import pytest
import torch
from complexity import ConvolutionsInTrace, Inference, default_shape, measure, needs_numbers
from helpers import REPO, run_tool
from mmdet.models import FPN
from mmdet.structures import DetDataSample
from mmengine.analysis import FlopAnalyzer
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from convnext_backbone import ConvNextBackbone, ConvNextForImageClassification

# Millions of parameters and billions of FLOPs as printed, with a head of 1000 classes at 224 x 224:
# ConvNeXt, tables 1 and 12, and ConvNeXt V2, table 9 (appendix).
BACKBONES = {
    'tiny': ('28.6', '4.5'),
    'small': ('50', '8.7'),
    'base': ('89', '15.4'),
    'large': ('198', '34.4'),
    'xlarge': ('350', '60.9'),
    'v2-atto': ('3.7', '0.55'),
    'v2-femto': ('5.2', '0.78'),
    'v2-pico': ('9.1', '1.37'),
    'v2-nano': ('15.6', '2.45'),
    'v2-tiny': ('28.6', '4.47'),
    'v2-base': ('89', '15.4'),
    'v2-large': ('198', '34.4'),
    'v2-huge': ('660', '115'),
}
# The same at 1280 x 800: ConvNeXt, table 3, and its repository.
DETECTORS = {
    'mask-rcnn_convnext-t': ('48', '262'),
    'cascade-mask-rcnn_convnext-t': ('86', '741'),
    'cascade-mask-rcnn_convnext-s': ('108', '827'),
    'cascade-mask-rcnn_convnext-b-in1k-pre': ('146', '964'),
    'cascade-mask-rcnn_convnext-b-in22k-pre': ('146', '964'),
    'cascade-mask-rcnn_convnext-l': ('255', '1354'),
    'cascade-mask-rcnn_convnext-xl': ('407', '1898'),
}
# The same at 2048 x 512 or 2560 x 640, by crop size: ConvNeXt, table 4, and its repository.
SEGMENTORS = {
    'convnext-t_upernet_amp-160k_ade20k-512x512': ('60', '939'),
    'convnext-s_upernet_amp-160k_ade20k-512x512': ('82', '1027'),
    'convnext-b-in1k-pre_upernet_amp-160k_ade20k-512x512': ('122', '1170'),
    'convnext-b-in22k-pre_upernet_amp-160k_ade20k-640x640': ('122', '1828'),
    'convnext-l_upernet_amp-160k_ade20k-640x640': ('235', '2458'),
    'convnext-xl_upernet_amp-160k_ade20k-640x640': ('391', '3335'),
}


ROW = re.compile(
    r'^\| \[(?P<name>\S+)\]\((?P<path>\S+)\) \|.*\| (?P<height>\d+) . (?P<width>\d+) '
    r'\| (?P<params>[\d.]+) M \| (?P<flops>[\d.]+) G \|',
    re.MULTILINE,
)
ROWS = [match.groupdict() for match in ROW.finditer((REPO / 'configs/README.md').read_text())]


def classifier(arch: str) -> Config:
    model = dict(type=ConvNextForImageClassification, arch=arch, num_labels=1000)
    return Config(dict(model=model))


def detector(name: str) -> Config:
    return load(path_of(name))


def path_of(name: str) -> str:
    return f'detection/{name}_fpn_amp-ms-crop-3x_coco.py'


@cache
def load(path: str) -> Config:
    return Config.fromfile(REPO / 'configs' / path)


@cache
def measure_once(build: Callable, name: str, shape: tuple[int, int]) -> dict[str, int | float]:
    return measure(build(name), shape)


def as_printed(number: float, published: str) -> str:
    """Formats a number with as many decimals as the published one."""
    decimals = len(published.partition('.')[2])
    return f'{number:.{decimals}f}'


def count_layers(cfg: Config) -> Counter:
    """Counts FLOPs from the output shapes of layers, without tracing.

    Returns:
        The multiply-adds of convolutions and linear layers in ``products``. Not every counter
        includes the rest: ``biases`` of convolutions and ReLUs; 5 per element of a layer norm, in
        ``last_norms`` (in blocks and after the pooling) or ``first_norms`` (elsewhere); 2 per
        element of a batch norm and 1 per element that FPN upsamples, in ``others``.
    """
    flops = Counter()

    def count(module, args, output):
        if isinstance(module, nn.ConvTranspose2d):
            flops['products'] += module.weight.numel() * args[0][:, 0].numel()
            flops['biases'] += output.numel()
        elif isinstance(module, nn.Conv2d):
            flops['products'] += module.weight.numel() * output[:, 0].numel()
            flops['biases'] += 0 if module.bias is None else output.numel()
        elif isinstance(module, nn.Linear):
            flops['products'] += module.in_features * output.numel()
        elif isinstance(module, nn.ReLU):
            flops['biases'] += output.numel()
        elif isinstance(module, nn.LayerNorm):
            axis = module.data_format.removeprefix('channels_')
            flops[f'{axis}_norms'] += 5 * output.numel()
        elif isinstance(module, _BatchNorm):
            flops['others'] += 2 * output.numel()
        elif isinstance(module, FPN):
            flops['others'] += sum(level.numel() for level in output[: module.num_ins - 1])

    init_default_scope(cfg.get('default_scope') or 'mmengine')
    with torch.device('meta'):
        model = Inference(revert_sync_batchnorm(MODELS.build(deepcopy(cfg.model)))).eval()
        for module in model.modules():
            module.register_forward_hook(count)
        model(torch.zeros(1, 3, *default_shape(cfg)))
    return flops


@pytest.mark.parametrize(
    ('build', 'name', 'params', 'flops'),
    [(classifier, name, *figures) for name, figures in BACKBONES.items()]
    + [(load, path_of(name), *figures) for name, figures in DETECTORS.items()],
    ids=[*BACKBONES, *DETECTORS],
)
def test_figures_are_those_published(build, name, params, flops):
    cfg = build(name)
    found, layers = measure_once(build, name, default_shape(cfg)), count_layers(cfg)
    assert as_printed(found['params'] / 1e6, params) == params
    assert found['flops'] == layers.total() - layers['biases']
    # The first paper counts biases and ReLUs, but no norms of ConvNeXt. The second paper counts
    # norms like mmengine, except for norms over the first axis.
    left = 'last_norms' if name.startswith('v2-') else 'biases'
    assert as_printed((layers['products'] + layers[left]) / 1e9, flops) == flops
    assert found['flops'] / 1e9 == pytest.approx(float(flops), rel=0.01)


@pytest.mark.parametrize('name', SEGMENTORS)
def test_figures_of_segmentors_are_those_published(name):
    params, flops = SEGMENTORS[name]
    path = f'segmentation/{name}.py'
    cfg = load(path)
    found, layers = measure_once(load, path, default_shape(cfg)), count_layers(cfg)
    assert as_printed(found['params'] / 1e6, params) == params
    # The figures include biases, ReLUs and batch norms, but not ConvNeXt's norms or the resizing
    # of maps, which mmengine counts as 4 FLOPs per element: about 0.1 % of the total.
    counted = layers['products'] + layers['biases'] + layers['others']
    assert as_printed(counted / 1e9, flops) == flops
    assert 1 < found['flops'] / 1e9 / float(flops) < 1.002


def test_a_detector_on_the_meta_device_counts_as_one_that_runs():
    cfg, shape = detector('mask-rcnn_convnext-t'), (256, 320)
    expected = measure(cfg, shape)
    model = MODELS.build(deepcopy(cfg.model)).eval()
    sample = DetDataSample(metainfo=dict(img_shape=shape, scale_factor=(1.0, 1.0)))

    class Running(nn.Module):
        """mmdet's own forward pass, with proposals from its RPN."""

        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, images):
            return self.model(images, [sample], mode='tensor')

    assert FlopAnalyzer(Running(), (torch.randn(1, 3, *shape),)).total() == expected['flops']


def test_a_backbone_alone_is_its_classifier_without_the_head():
    stages = ('stage4',)
    cfg = Config(dict(model=dict(type=ConvNextBackbone, arch='atto', out_features=stages)))
    alone, whole = measure(cfg), measure(classifier('atto'))
    assert whole['params'] - alone['params'] == 320 * 1000 + 1000
    # The head, and a norm of one pooled vector instead of 7 x 7.
    assert whole['flops'] - alone['flops'] == 320 * 1000 - 5 * 320 * 48


def test_relatives_are_counted():
    args = dict(type=ConvNextBackbone, arch='atto', out_features=('stage4',))
    backbone = measure(Config(dict(model=args)))
    small = measure(Config(dict(model=args | dict(kernel_size=5))))
    overlap = measure(Config(dict(model=args | dict(stem='overlap', norm='rmsnorm'))))
    places = ((2, 40, 56), (2, 80, 28), (6, 160, 14), (2, 320, 7))  # depth, channels, side
    taps = sum(depth * channels * side**2 for depth, channels, side in places)
    assert backbone['flops'] - small['flops'] == (49 - 25) * taps
    biases = 40 + sum(depth * channels for depth, channels, _ in places) + 40 + 80 + 160 + 320
    stem = (27 + 1) * 40 + 9 * 40 * 40 - 48 * 40
    assert overlap['params'] - backbone['params'] == stem - biases


def test_shapes_are_those_of_the_tables():
    assert default_shape(detector('mask-rcnn_convnext-t')) == (800, 1280)
    assert default_shape(Config(dict(default_scope='mmseg', crop_size=(640, 640)))) == (640, 2560)
    assert default_shape(classifier('tiny')) == (224, 224)


def test_what_cannot_be_counted_is_an_error():
    with torch.inference_mode(), torch.device('meta'):
        layer, signal = nn.Conv1d(3, 8, kernel_size=3), torch.zeros(1, 3, 16)
        with (
            ConvolutionsInTrace(),
            pytest.raises(NotImplementedError, match='conv1d cannot be counted'),
        ):
            layer(signal)


def test_tool_prints_what_it_measures(tmp_path):
    path = 'demo/convnext-atto_shapes.py'
    output = run_tool(
        'analysis_tools/complexity.py', REPO / 'configs' / path, '--shape', 128, 192, cwd=tmp_path
    )
    found = measure(load(path), (128, 192))
    assert '128 x 192' in output
    assert f'{found["params"] / 1e6:.2f} M' in output
    assert f'{found["flops"] / 1e9:.2f} G' in output
    assert f'{found["activations"] / 1e6:.1f} M' in output


def test_table_lists_every_config_once():
    configs = REPO / 'configs'
    paths = [path.relative_to(configs) for path in configs.glob('[!_]*/*.py')]
    # Recipes have their own table: tests/test_recipes.py.
    paths = [path for path in paths if path.parts[0] != 'recipes']
    assert sorted(row['path'] for row in ROWS) == sorted(str(path) for path in paths)
    assert all(row['path'].endswith(f'/{row["name"]}.py') for row in ROWS)


@pytest.mark.parametrize('row', ROWS, ids=lambda row: row['name'])
def test_table_matches_the_measurement(row):
    cfg = load(row['path'])
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    with torch.device('meta'):
        model = MODELS.build({**deepcopy(cfg.model), 'data_preprocessor': None})
    params = sum(parameter.numel() for parameter in model.parameters())
    # DINO's decoder differs by 0.13 M parameters between the two stacks.
    tolerance = 0.15 if row['name'].startswith('dino') else 0.05
    assert params / 1e6 == pytest.approx(float(row['params']), rel=0, abs=tolerance)
    # Models that must run would take minutes.
    if not needs_numbers(model):
        found = measure_once(load, row['path'], (int(row['height']), int(row['width'])))
        assert found['params'] == params
        assert f'{found["flops"] / 1e9:.2f}' == row['flops']
