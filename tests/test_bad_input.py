"""Bad calls of all kinds: each is refused at once, with a message that names the way out."""

import math
import os
import re
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from helpers import REPO, SMALL, small_backbone
from mmengine.registry import (
    DATASETS,
    HOOKS,
    METRICS,
    MODELS,
    OPTIM_WRAPPER_CONSTRUCTORS,
    TRANSFORMS,
)

from convnext_backbone import (
    ConvNextBackbone,
    ConvNextEmbeddings,
    ConvNextEncoder,
    ConvNextForImageClassification,
    ConvNextGRN,
    ConvNextLayer,
    ConvNextLayerNorm,
    ConvNextStage,
    drop_path,
    infer_arch,
    load_checkpoint,
)

MMDET = pytest.mark.skipif(find_spec('mmdet') is None, reason='mmdet is not installed')
DETECTION = REPO / 'configs/demo/mask-rcnn_convnext-atto_fpn_shapes.py'
CLASSIFICATION = REPO / 'configs/demo/convnext-atto_shapes.py'
CHECKPOINT = 'model_converters/checkpoint.py'
BENCHMARK = 'analysis_tools/benchmark.py'
CHECK_GPU = 'check_gpu.py'
COMPLEXITY = 'analysis_tools/complexity.py'
TRANSFER = 'analysis_tools/transfer.py'
CLASSIFY = 'demo/classify.py'
SHAPES = 'dataset_converters/make_shapes_dataset.py'
FEATURES = r"'stem', 'stage1', 'stage2', 'stage3', 'stage4'"
RANGE = r'0 \(stage1\) to 3 \(stage4\), and -1 to -4'


# Bad arguments of the parts of the models.
PARTS = [
    (ConvNextLayer, ['8'], {}, TypeError, "dim must be an integer, got '8'"),
    (ConvNextLayer, [8], dict(use_grn='no'), TypeError, 'use_grn must be True or False'),
    (ConvNextLayer, [8], dict(layer_scale_init_value=math.nan), ValueError, 'must be finite'),
    (ConvNextLayer, [8], dict(norm_eps=-1.0), ValueError, 'eps must be positive'),
    (ConvNextLayer, [8], dict(norm_eps=math.nan), ValueError, 'eps must be finite'),
    (ConvNextLayer, [8], dict(kernel_size=4), ValueError, 'kernel_size must be odd'),
    (ConvNextLayer, [8], dict(kernel_size=(7,)), TypeError, 'kernel_size must be an integer'),
    (ConvNextLayerNorm, [8], dict(eps=None), TypeError, 'eps must be a number'),
    (ConvNextLayer, [8], dict(dilation=0), ValueError, 'dilation must be at least 1'),
    (ConvNextEmbeddings, [], dict(patch_size=(4, 4)), TypeError, 'patch_size must be an integer'),
    (ConvNextStage, [8, 8], dict(depth=0), ValueError, 'depth must be at least 1'),
    (ConvNextEncoder, [[0], [8]], {}, ValueError, 'depth must be at least 1'),
    (ConvNextEncoder, [[1, 1], [8]], {}, ValueError, 'one number per stage'),
    (ConvNextEncoder, [[1, 1], [8, 8]], dict(max_stride=True), ValueError, r'one of \[1, 2\]'),
    (
        ConvNextEncoder,
        [[1, 1], [8, 8]],
        dict(max_stride=3),
        ValueError,
        'max_stride must be None or',
    ),
    (ConvNextGRN, [0], {}, ValueError, 'dim must be at least 1'),
    (drop_path, [torch.ones(2), 0.5, 'False'], {}, TypeError, 'training must be True or False'),
]


def case(name, call, error, message, *marks):
    return pytest.param(call, error, message, id=name, marks=marks)


def backbone(error, message, **args):
    """A bad argument of the backbone."""
    name = ', '.join(f'{k}={v!r}' for k, v in args.items())
    return case(name, lambda: ConvNextBackbone(**{'arch': SMALL, **args}), error, message)


def classifier(error, message, **args):
    """A bad argument of the classifier."""
    name = f'classifier, {", ".join(f"{k}={v!r}" for k, v in args.items())}'
    args = {'arch': SMALL, **args}
    return case(name, lambda: ConvNextForImageClassification(**args), error, message)


def images(name, build, error, message):
    """Bad images for the backbone."""
    return case(name, lambda: small_backbone()(build()), error, message)


def checkpoint(name, content, error, message, **args):
    """A bad checkpoint: a state dict, or the bytes of a file."""

    def call():
        source = content() if callable(content) else content
        if isinstance(source, bytes):
            Path('file.pth').write_bytes(source)
            source = 'file.pth'
        load_checkpoint(small_backbone(), source, **args)

    return case(f'checkpoint, {name}', call, error, message)


def built(registry, error, message, **cfg):
    """A bad entry of a config."""
    name = f'config, {", ".join(f"{k}={v!r}" for k, v in cfg.items())}'
    # The data of classifiers need mmcv.
    marks = () if registry is MODELS and 'Mixing' not in cfg['type'] else (MMDET,)

    def call():
        if marks:
            import convnext_backbone.data  # noqa: F401
        registry.build(cfg)

    return case(name, call, error, message, *marks)


def tool(name, message, *args):
    """A bad call of a script: status 2, and one sentence as the last line."""
    marks = (MMDET,) if name not in (CHECKPOINT, BENCHMARK, CHECK_GPU, SHAPES) else ()
    shown = ' '.join(Path(str(arg)).name for arg in args)

    def call():
        script = REPO / 'tools' / name
        sys.argv = [str(script), *map(str, args)]
        sys.path.insert(0, str(script.parent))
        runpy.run_path(str(script), run_name='__main__')

    return case(f'{name} {shown}', call, SystemExit, message, *marks)


def train(message, *args, config=DETECTION):
    return tool('train.py', message, config, *args)


def layer_decay(error, message, **paramwise):
    def call():
        OPTIM_WRAPPER_CONSTRUCTORS.build(
            dict(
                type='ConvNextLayerDecayOptimWrapperConstructor',
                optim_wrapper_cfg=dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3)),
                paramwise_cfg=paramwise,
            )
        )

    return case(f'paramwise_cfg={paramwise}', call, error, message)


def small_tensors(**changes):
    tensors = small_backbone().state_dict()
    return {**tensors, **changes}


ARCHS = [
    backbone(ValueError, r"unknown arch 'tinny'.*tiny.*v2-huge", arch='tinny'),
    backbone(TypeError, r'dict\(depths=..., hidden_sizes=...\), got int', arch=3),
    backbone(ValueError, r"depths and hidden_sizes, got \['depths'\]", arch=dict(depths=[1])),
    backbone(
        ValueError, r'2 depths \(1, 1\) and 1 hidden', arch=dict(depths=[1, 1], hidden_sizes=[8])
    ),
    backbone(ValueError, 'at least one', arch=dict(depths=[], hidden_sizes=[])),
    backbone(ValueError, 'positive integers', arch=dict(depths=[1, 0], hidden_sizes=[8, 8])),
    backbone(ValueError, 'positive integers', arch=dict(depths=[1], hidden_sizes=[8.0])),
    backbone(ValueError, 'positive integers', arch=dict(depths=[True], hidden_sizes=[8])),
    backbone(TypeError, 'depths must be a list', arch=dict(depths=2, hidden_sizes=[8])),
]

PICKS = [
    *(
        backbone(ValueError, FEATURES, out_features=names)
        for names in ((), ('stage5',), ('stage1', 'stage1'), ('stage2', 'stage1'))
    ),
    *(
        backbone(ValueError, FEATURES, out_indices=indices)
        for indices in ((), (0, 0), (1, 0), (3, -1))
    ),
    *(backbone(ValueError, RANGE, out_indices=(index,)) for index in (4, -5)),
    backbone(ValueError, 'disagree', out_features=('stage1',), out_indices=(1,)),
    backbone(ValueError, 'disagree', out_features=('stem', 'stage1'), out_indices=(0,)),
    backbone(TypeError, 'must', out_features='stage4'),
    backbone(TypeError, 'must', out_indices=3),
    backbone(TypeError, 'must', out_indices=(0, 1.0)),
]

ARGUMENTS = [
    backbone(TypeError, r'patch_size must be an integer, got \(4, 4\)', patch_size=(4, 4)),
    backbone(ValueError, 'patch_size must be at least 1, got 0', patch_size=0),
    backbone(ValueError, 'patch_size must be at least 1, got -4', patch_size=-4),
    backbone(ValueError, 'num_channels must be at least 1, got 0', num_channels=0),
    backbone(TypeError, 'num_channels must be an integer, got 3.0', num_channels=3.0),
    backbone(ValueError, 'must be finite in float32, got nan', layer_scale_init_value=float('nan')),
    backbone(ValueError, 'norm_eps must be positive in float32, at least .*, got 0', norm_eps=0),
    backbone(ValueError, 'norm_eps must be finite in float32, got inf', norm_eps=float('inf')),
    backbone(TypeError, "norm_eps must be a number or None, got '1e-5'", norm_eps='1e-5'),
    backbone(
        ValueError,
        'layer_norm_eps must be positive in float32, at least .*, got -1e-06',
        layer_norm_eps=-1e-6,
    ),
    backbone(TypeError, "a number or None, got '1'", layer_scale_init_value='1'),
    backbone(TypeError, "with_cp must be True or False, got 'False'", with_cp='False'),
    backbone(TypeError, 'adapt_stem must be True or False, got 1', adapt_stem=1),
    backbone(TypeError, "use_grn must be True, False or None, got 'no'", use_grn='no'),
    backbone(TypeError, "fused must be True, False or None, got 'off'", fused='off'),
    backbone(ValueError, 'between -1 .* and 4 .*got True', frozen_stages=True),
    backbone(ValueError, 'between -1 .* and 4 .*got 1.0', frozen_stages=1.0),
    backbone(ValueError, 'between -1 .* and 4', frozen_stages=-2),
    backbone(ValueError, 'between -1 .* and 4', frozen_stages=5),
    backbone(TypeError, r"number in \[0, 1\), got '0.1'", drop_path_rate='0.1'),
    backbone(ValueError, r'drop_path_rate must be in \[0, 1\), got -0.1', drop_path_rate=-0.1),
    backbone(ValueError, r'drop_path_rate must be in \[0, 1\), got 1', drop_path_rate=1),
    backbone(ValueError, r"hidden_act must be one of .*, got \['gelu'\]", hidden_act=['gelu']),
    backbone(ValueError, 'kernel_size must be odd, so that .*, got 4', kernel_size=4),
    backbone(ValueError, 'kernel_size must be at least 3, got 1', kernel_size=[7, 7, 7, 1]),
    backbone(ValueError, r'one for each of the 4 stages, got \(7, 5\)', kernel_size=(7, 5)),
    backbone(TypeError, "kernel_size must be an integer, got '7'", kernel_size='7'),
    backbone(TypeError, 'kernel_size must be an integer, got 7.0', kernel_size=7.0),
    backbone(ValueError, "stem must be one of .*'overlap_act'.*, got 'ols'", stem='ols'),
    backbone(
        ValueError, r"norm must be one of .*'simplenorm'.*, got \['layernorm'\]", norm=['layernorm']
    ),
    backbone(ValueError, "patch_size must be 4 with stem='overlap'", stem='overlap', patch_size=2),
    backbone(ValueError, 'must be finite in float32, got 1e', layer_scale_init_value=1e300),
    backbone(ValueError, 'must be finite in float32', norm_eps=10**400),
    backbone(
        ValueError, 'norm_eps must be positive in float32, at least .*, got 1e-60', norm_eps=1e-60
    ),
    backbone(TypeError, r"dict\(type='Pretrained', checkpoint=...\)", init_cfg='x.pth'),
    backbone(TypeError, 'a list of dicts, got 3 in it', init_cfg=[3]),
    backbone(ValueError, 'needs a type in each dict', init_cfg=[{}]),
    backbone(ValueError, "such as type='Pretrained'", init_cfg=dict(checkpoint='x.pth')),
    backbone(ValueError, r'takes checkpoint=\.\.\.', init_cfg=dict(type='Pretrained')),
    backbone(
        ValueError,
        r'optionally prefix=\.\.\.',
        init_cfg=dict(type='Pretrained', checkpoint='x.pth', prefx='backbone.'),
    ),
    backbone(TypeError, 'archs', archs='tiny'),
    classifier(ValueError, 'num_labels must not be negative', num_labels=-1),
    classifier(TypeError, 'num_labels must be an integer', num_labels=2.0),
    classifier(ValueError, 'regression, single_label', problem_type='ranking'),
    classifier(ValueError, r'label_smoothing must be in \[0, 1\]', label_smoothing=1.5),
    classifier(ValueError, r'label_smoothing must be in \[0, 1\]', label_smoothing=None),
    classifier(ValueError, 'hidden_act must be one of', hidden_act='tanh'),
    classifier(TypeError, 'out_indices', out_indices=(3,)),
    classifier(TypeError, 'num_stages', num_stages=2),
    case('layer norm', lambda: ConvNextLayerNorm(4, data_format='x'), ValueError, 'channels_first'),
    *(
        case(
            f'{kind.__name__} {args} {settings}',
            lambda kind=kind, args=args, settings=settings: kind(*args, **settings),
            error,
            message,
        )
        for kind, args, settings, error, message in PARTS
    ),
    case(
        'stage',
        lambda: ConvNextStage(8, 8, depth=2, drop_path_rates=[0.0]),
        ValueError,
        '1 drop_path_rates were given for 2 layers',
    ),
    case('drop path', lambda: drop_path(torch.ones(1), 1.5, True), ValueError, r'in \[0, 1\)'),
]

FORWARDS = [
    images('list', lambda: [[1.0]], TypeError, 'must be a tensor, got list'),
    images('None', lambda: None, TypeError, 'must be a tensor, got NoneType'),
    images(
        '3-D',
        lambda: torch.ones(3, 64, 64),
        ValueError,
        r'4-D tensor \(N, C, H, W\), got shape \(3, 64, 64\)',
    ),
    images('4 channels', lambda: torch.ones(1, 4, 64, 64), ValueError, '4 channels.*built for 3'),
    images(
        'uint8',
        lambda: torch.ones(1, 3, 64, 64).byte(),
        TypeError,
        'floating point, got torch.uint8: convert and normalise them',
    ),
    images(
        'sparse',
        lambda: torch.ones(1, 3, 64, 64).to_sparse(),
        TypeError,
        r'torch.sparse_coo.*to_dense\(\)',
    ),
    images(
        'nested',
        lambda: torch.nested.nested_tensor([torch.ones(3, 64, 64)], layout=torch.jagged),
        TypeError,
        'layout nested.*pad nested images',
    ),
    images('complex', lambda: torch.ones(1, 3, 64, 64).cfloat(), TypeError, 'got torch.complex64'),
    images('31x64', lambda: torch.ones(1, 3, 31, 64), ValueError, '31x64 are too small.*32x32'),
    images('64x31', lambda: torch.ones(1, 3, 64, 31), ValueError, '64x31 are too small.*32x32'),
    case(
        'mode',
        lambda: ConvNextForImageClassification(SMALL)(torch.ones(1, 3, 64, 64), mode='train'),
        ValueError,
        'tensor, loss or predict',
    ),
    case(
        'loss without labels',
        lambda: ConvNextForImageClassification(SMALL)(torch.ones(1, 3, 64, 64), mode='loss'),
        ValueError,
        'needs data_samples with labels',
    ),
    case(
        'loss without logits',
        lambda: ConvNextForImageClassification(SMALL, num_labels=0)(
            torch.ones(1, 3, 64, 64), torch.zeros(1), mode='loss'
        ),
        ValueError,
        'build it with a positive num_labels',
    ),
]

CHECKPOINTS = [
    checkpoint('None', None, TypeError, 'must be a path, an http.* address, or a state dict'),
    checkpoint('list', lambda: [1], TypeError, 'or a state dict, got list'),
    checkpoint('absent', 'none.pth', FileNotFoundError, 'no such checkpoint: none.pth'),
    checkpoint('empty file', b'', ValueError, 'an empty file: download it again'),
    checkpoint('text file', b'<html>', ValueError, 'the download failed: download it again'),
    checkpoint('empty', {}, ValueError, 'holds no tensors, it is empty'),
    checkpoint('no tensors', dict(epoch=3), ValueError, "holds no tensors, only 'epoch'"),
    checkpoint('strict', {}, TypeError, "strict must be True or False, got 'no'", strict='no'),
    checkpoint('use_ema', {}, TypeError, 'use_ema must be True or False, got 1', use_ema=1),
    checkpoint('number as prefix', {}, TypeError, 'prefix must be a key prefix', prefix=3),
    checkpoint('ftp', 'ftp://x/y.pth', ValueError, 'download it and pass its path'),
    checkpoint('hf', 'hf://x', ValueError, 'hf://owner/name'),
    checkpoint('prefix', small_tensors, ValueError, "the key prefix 'teacher.'", prefix='teacher.'),
    checkpoint(
        'strict, infinite',
        lambda: small_tensors(**{'embeddings.layernorm.bias': torch.full((8,), torch.inf)}),
        ValueError,
        'infinite or NaN values need strict=False',
        strict=True,
    ),
    checkpoint(
        'other size',
        lambda: ConvNextBackbone('atto').state_dict(),
        ValueError,
        "build the model with arch='atto'",
    ),
    case(
        'checkpoint into a linear layer',
        lambda: load_checkpoint(torch.nn.Linear(1, 1), {}),
        TypeError,
        'pass its backbone, or use load_from',
    ),
    case(
        'checkpoint on meta',
        lambda: load_checkpoint(small_backbone().to('meta'), {}),
        ValueError,
        r'call to_empty\(device=...\) first',
    ),
    case('infer_arch', lambda: infer_arch('none.pth'), FileNotFoundError, 'no such checkpoint'),
]

CONFIGS = [
    built(MODELS, KeyError, 'ConvNextBackbon is not in', type='ConvNextBackbon'),
    built(MODELS, TypeError, 'out_indexes', type='ConvNextBackbone', arch='atto', out_indexes=[0]),
    layer_decay(ValueError, r'decay_rate in \(0, 1\]', decay_rate=2),
    layer_decay(ValueError, r'decay_rate in \(0, 1\].*got True', decay_rate=True),
    layer_decay(
        *(ValueError, "unknown keys, 'decay', 'layers': choose from decay_rate, .*bias_lr_mult"),
        decay_rate=0.9,
        decay=0.9,
        layers=6,
    ),
    built(
        *(HOOKS, TypeError, "from_scratch must be True or False, got 'False'"),
        type='ConvNextSetupHook',
        from_scratch='False',
    ),
    layer_decay(ValueError, 'decay_type must be one of', decay_rate=0.9, decay_type='x'),
    layer_decay(ValueError, 'num_layers must be 6, 12 or None', decay_rate=0.9, num_layers=7),
    built(METRICS, ValueError, 'one or more positive', type='ConvNextAccuracy', topk=5),
    built(METRICS, ValueError, 'one or more positive', type='ConvNextAccuracy', topk=()),
    built(METRICS, ValueError, 'topk must be at least 1', type='ConvNextAccuracy', topk=(0, 1)),
    built(METRICS, TypeError, 'topk must be an integer', type='ConvNextAccuracy', topk=(1.5,)),
    built(MODELS, ValueError, 'one must be', type='MixingDataPreprocessor', num_labels=3),
    built(
        *(MODELS, ValueError, 'finite numbers, .* got nan'),
        type='MixingDataPreprocessor',
        num_labels=3,
        mixup_alpha=float('nan'),
    ),
    built(
        *(MODELS, ValueError, 'num_labels must be at least 1, got 0'),
        type='MixingDataPreprocessor',
        num_labels=0,
        mixup_alpha=0.8,
    ),
    built(
        TRANSFORMS,
        TypeError,
        'scale must be an integer',
        type='ConvNextRandomResizedCrop',
        scale=(),
    ),
    built(
        *(TRANSFORMS, ValueError, r'area must be \(minimum, maximum\) .* <= 1, got \(1, 0.1\)'),
        type='ConvNextRandomResizedCrop',
        scale=32,
        area=(1, 0.1),
    ),
    built(
        *(TRANSFORMS, ValueError, r'ratio must be \(minimum, maximum\)'),
        type='ConvNextRandomResizedCrop',
        scale=32,
        ratio=(0, 1),
    ),
    built(TRANSFORMS, ValueError, r'in \[0, 1\], got 2', type='ConvNextRandomErasing', prob=2),
    built(DATASETS, TypeError, 'path of a folder', type='ConvNextImageFolder', data_root=3),
    built(
        DATASETS, FileNotFoundError, 'set it to the', type='ConvNextImageFolder', data_root='none'
    ),
    built(
        *(DATASETS, TypeError, "a list of names, got 'cat'"),
        type='ConvNextImageFolder',
        data_root='.',
        metainfo=dict(classes='cat'),
    ),
    built(
        *(DATASETS, FileNotFoundError, 'images must be in ./CLASS_NAME/'),
        type='ConvNextImageFolder',
        data_root='.',
        metainfo=dict(classes=['cat']),
    ),
]

OPTIONS = '--cfg-options'
AMP = 'optim_wrapper.type=AmpOptimWrapper'
COMMANDS = [
    train('no such config: none.py', config='none.py'),
    train('cannot read the config broken.py: .* never closed', config='broken.py'),
    train('cannot read the config broken.yaml: .*expected', config='broken.yaml'),
    train('cannot read the config broken.json: .*line 1', config='broken.json'),
    train('cannot read the config lazy.py: .*absent.py not found', config='lazy.py'),
    train('has no model, train_dataloader, train_cfg', config='empty.py'),
    train("'foo' is not KEY=VALUE", OPTIONS, 'foo'),
    train("'=3' is not KEY=VALUE", OPTIONS, '=3'),
    train('Imbalanced brackets', OPTIONS, 'x=[(1,2]'),
    train('the config has no trian_cfg, and nothing', OPTIONS, 'trian_cfg.max_epochs=3'),
    train('does not fit the config: .*Index 7', OPTIONS, 'param_scheduler.7.end=3'),
    train('torchrun has started, but RANK is not set', '--launcher', 'pytorch'),
    train('srun has started, but SLURM_PROCID is not', '--launcher', 'slurm'),
    train('file cannot be a folder', '--work-dir', 'file'),
    train('is a file: choose another', '--work-dir', 'file/below'),
    train('no such checkpoint: none.pth', '--resume', 'none.pth'),
    train('text.pth is truncated or damaged', '--resume', 'text.pth'),
    train('--amp needs', '--amp', OPTIONS, 'optim_wrapper.type=ApexOptimWrapper'),
    *(
        []
        if torch.cuda.is_available()
        else [
            train('--amp needs a GPU, .*: leave out --amp', '--amp'),
            train('in the config, needs a GPU, .*: add --cfg-options', OPTIONS, AMP),
            train(
                "needs a GPU, .*: set type='OptimWrapper' there without loss_scale and dtype;",
                *(OPTIONS, AMP, 'optim_wrapper.loss_scale=1', 'optim_wrapper.dtype=bfloat16'),
            ),
        ]
    ),
    train('no annotation file data/shapes/annotations/instances_train.json: check data_root'),
    train('set it to the folder with the classes', config=CLASSIFICATION),
    tool('test.py', 'no such checkpoint: none.pth', DETECTION, 'none.pth'),
    tool('test.py', 'empty.pth is damaged, or no', DETECTION, 'empty.pth'),
    tool('test.py', 'must end in .pkl', DETECTION, 'none.pth', '--out', 'x.json'),
    tool('test.py', 'is a file: choose another', DETECTION, 'none.pth', '--out', 'file/x.pkl'),
    tool(
        *('test.py', 'file cannot be a folder', DETECTION, 'none.pth'),
        *('--work-dir', '.', '--show-dir', 'file'),
    ),
    tool('test.py', 'needs a visualization', CLASSIFICATION, 'none.pth', '--show-dir', 'x'),
    tool(CHECKPOINT, 'no such checkpoint', 'inspect', 'none.pth'),
    tool(CHECKPOINT, 'download it again', 'inspect', 'text.pth'),
    tool(CHECKPOINT, 'download it again', 'convert', 'text.pth', 'x.pth', '--to', 'hf'),
    tool(CHECKPOINT, 'invalid choice', 'convert', 'text.pth', 'x.pth', '--to', 'x'),
    tool(CHECKPOINT, 'no such folder', 'convert', 'text.pth', 'none/x.pth', '--to', 'hf'),
    tool(CHECKPOINT, 'is a folder: give the', 'convert', 'text.pth', '.', '--to', 'hf'),
    tool(CHECKPOINT, 'is the input', 'convert', 'text.pth', 'text.pth', '--to', 'hf'),
    tool(
        CHECKPOINT,
        r'x.txt must end in .safetensors, .*tells',
        'convert',
        'a',
        'x.txt',
        '--to',
        'hf',
    ),
    tool(CHECKPOINT, 'empty.pth exists: .* --force', 'convert', 'a', 'empty.pth', '--to', 'hf'),
    tool(BENCHMARK, '--arch takes atto', '--arch', 'x'),
    tool(BENCHMARK, '--size must be at least 32 32', '--size', 16, 64),
    tool(BENCHMARK, 'must be at least 1', '--batch', 0),
    tool(BENCHMARK, 'must be at least 1', '--repeats', 0),
    tool(BENCHMARK, 'is a file: choose', '--json', 'file/x.json'),
    tool(BENCHMARK, 'must end in .png', '--plot', 'x.foo'),
    tool(BENCHMARK, '--peers takes hf', '--peers', 'x'),
    tool(CHECK_GPU, 'is a file: choose', '--out', 'file/x.json'),
    tool(COMPLEXITY, 'the following arguments are required: CONFIG'),
    tool(COMPLEXITY, 'no such config: none.py', 'none.py'),
    tool(COMPLEXITY, 'empty.py has no model', 'empty.py'),
    tool(COMPLEXITY, '--shape must be positive', CLASSIFICATION, '--shape', 0, 0),
    tool(COMPLEXITY, '8x8 are too small', CLASSIFICATION, '--shape', 8, 8),
    tool(TRANSFER, 'no such checkpoint: none.pth', 'none.pth'),
    tool(TRANSFER, 'must be at least 1', 'none.pth', '--seeds', 0),
    tool(TRANSFER, 'is a file: choose another', 'none.pth', '--work-dir', 'file'),
    tool('demo/demo.py', 'invalid choice', 'x'),
    tool('demo/demo.py', 'is a file: choose another', '--work-dir', 'file'),
    tool(CLASSIFY, 'no such file: none.png', 'none.png', '--checkpoint', 'text.pth'),
    tool(CLASSIFY, 'choose one with --config', 'file', '--checkpoint', 'text.pth'),
    tool(CLASSIFY, 'must be at least 1', 'file', '--checkpoint', 'text.pth', '--topk', 0),
    tool(
        *(CLASSIFY, 'text.pth is neither a torch nor a safetensors file'),
        *('file', '--checkpoint', 'text.pth', '--config', CLASSIFICATION),
    ),
    tool(
        *(CLASSIFY, 'the config of a MaskRCNN, not of a ConvNextForImageClassification: choose'),
        *('file', '--checkpoint', 'text.pth', '--config', DETECTION),
    ),
    tool(SHAPES, 'each split needs at least 1 image', 'out', '--train', 0),
    tool(SHAPES, 'at least 32 pixels, got 16', 'out', '--size', 16),
    tool(SHAPES, 'must not be negative', 'out', '--seed', -1),
    tool(SHAPES, 'cannot write to file/train', 'file'),
]


@pytest.mark.parametrize(
    ('call', 'error', 'message'),
    [*ARCHS, *PICKS, *ARGUMENTS, *FORWARDS, *CHECKPOINTS, *CONFIGS, *COMMANDS],
)
def test_bad_calls_are_refused(call, error, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    # Scripts change these.
    monkeypatch.setattr(sys, 'argv', sys.argv)
    monkeypatch.setattr(sys, 'path', sys.path.copy())
    monkeypatch.setenv('LOCAL_RANK', '0')
    for name in ('file', 'empty.py', 'empty.pth'):
        Path(name).touch()
    Path('text.pth').write_text('no checkpoint')
    Path('broken.py').write_text('model = dict(\n')
    Path('broken.yaml').write_text('model: [1, 2\nb: {')
    Path('broken.json').write_text('{"model": ')
    Path('lazy.py').write_text(
        'from mmengine.config import read_base\nwith read_base():\n    from .absent import *\n'
    )
    before = sorted(os.listdir())
    if error is not SystemExit:
        with pytest.raises(error, match=message):
            call()
        return
    with pytest.raises(SystemExit) as caught:
        call()
    assert caught.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.search(rf'^[\w. ]+: error: .*{message}', last), last
    assert sorted(os.listdir()) == before
