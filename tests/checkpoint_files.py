"""Checkpoints in other projects' formats, made from a Hugging Face model's tensors.

The keys are written out here for each source, independent of the package's own table. A writer
takes the tensors of ``ConvNextBackbone`` or ``ConvNextV2Backbone``.
"""

from __future__ import annotations

import torch
from helpers import SMALL, STAGES, randomize
from torch import Tensor
from transformers import (
    ConvNextBackbone,
    ConvNextConfig,
    ConvNextV2Backbone,
    ConvNextV2Config,
    PreTrainedModel,
)


def make_reference(version: int = 1, map_norms: bool = False, seed: int = 0) -> PreTrainedModel:
    """A random Hugging Face backbone; its map norms are only random with ``map_norms``."""
    config, model = {
        1: (ConvNextConfig, ConvNextBackbone),
        2: (ConvNextV2Config, ConvNextV2Backbone),
    }[version]
    reference = randomize(model(config(**SMALL, out_features=list(STAGES))), seed).eval()
    if not map_norms:
        for norm in reference.hidden_states_norms.values():
            torch.nn.init.ones_(norm.weight)
            torch.nn.init.zeros_(norm.bias)
    return reference


def noise(*shape: int, seed: int = 1) -> Tensor:
    """Weights of modules outside the backbone."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def split(hf: dict[str, Tensor]):
    """Yields (kind, stage, block, inner name, tensor) for stem, downsampling and block tensors."""
    for name, tensor in hf.items():
        words = name.split('.')
        if words[0] == 'embeddings':
            yield 'stem', 0, None, f'{int(words[1] == "layernorm")}.{words[2]}', tensor
        elif words[0] == 'encoder' and words[3] == 'downsampling_layer':
            yield 'down', int(words[2]), None, '.'.join(words[4:]), tensor
        elif words[0] == 'encoder':
            yield 'block', int(words[2]), int(words[4]), '.'.join(words[5:]), tensor


def rename_inner(inner: str, words: dict[str, str]) -> str:
    """Replaces the beginning of a block tensor's name by the first matching entry."""
    for old, new in words.items():
        if inner.startswith(old):
            return inner.replace(old, new, 1)
    raise AssertionError(inner)


def hugging_face(hf: dict[str, Tensor]) -> dict[str, Tensor]:
    """ConvNextForImageClassification."""
    written = {f'convnext.{k}': v for k, v in hf.items() if not k.startswith('hidden')}
    written |= {'convnext.layernorm.weight': noise(32), 'convnext.layernorm.bias': noise(32)}
    return written | {'classifier.weight': noise(5, 32), 'classifier.bias': noise(5)}


def meta(hf: dict[str, Tensor]) -> dict[str, Tensor]:
    """Meta's classifiers of V1 and V2."""
    words = {
        'dwconv': 'dwconv',
        'layernorm': 'norm',
        'pwconv': 'pwconv',
        'layer_scale_parameter': 'gamma',
        'grn.weight': 'grn.gamma',
        'grn.bias': 'grn.beta',
    }
    written = {}
    for kind, i, j, inner, tensor in split(hf):
        if kind == 'block':
            written[f'stages.{i}.{j}.{rename_inner(inner, words)}'] = tensor
        else:
            written[f'downsample_layers.{i}.{inner}'] = tensor
    written |= {'norm.weight': noise(32), 'norm.bias': noise(32)}
    return written | {'head.weight': noise(5, 32), 'head.bias': noise(5)}


def meta_dinov3(hf: dict[str, Tensor]) -> dict[str, Tensor]:
    """Meta's DINOv3 and EUPE: no head, the last norm twice, projectors."""
    written = {k: v for k, v in meta(hf).items() if not k.startswith('head')}
    written |= {f'norms.3.{leaf}': written[f'norm.{leaf}'] for leaf in ('weight', 'bias')}
    return written | {'projectors.dinov3.0.weight': noise(4, 32)}


def meta_detector(hf: dict[str, Tensor]) -> dict[str, Tensor]:
    """A whole detector from Meta, with map norms."""
    written = {
        f'backbone.{k}': v for k, v in meta(hf).items() if not k.startswith(('norm', 'head'))
    }
    for i in range(4):
        for leaf in ('weight', 'bias'):
            written[f'backbone.norm{i}.{leaf}'] = hf[f'hidden_states_norms.stage{i + 1}.{leaf}']
    written['neck.lateral_convs.0.conv.weight'] = noise(4, 8, 1, 1)
    return written | {'roi_head.bbox_head.0.fc_cls.weight': noise(3, 4)}


def column_major(weight: Tensor) -> Tensor:
    """A dense kernel in the sparse library's layout, with positions in column-major order."""
    size = weight.shape[-1]
    positions = [weight[:, :, y, x] for x in range(size) for y in range(size)]
    kernel = torch.stack(positions).transpose(1, 2)  # (K * K, I, O)
    return kernel[:, 0] if weight.shape[1] == 1 else kernel


def fcmae(hf: dict[str, Tensor]) -> dict[str, Tensor]:
    """Meta's V2 pre-training: a sparse encoder and a dense decoder."""
    written = {}
    for name, tensor in meta(hf).items():
        words = name.split('.')
        if words[0] in ('norm', 'head'):
            continue
        if words[:2] != ['downsample_layers', '0']:
            is_norm = words[-2] == 'norm' or (words[0] == 'downsample_layers' and words[2] == '0')
            if is_norm:
                words.insert(-1, 'ln')
            elif words[-2].startswith('pwconv'):
                words.insert(-1, 'linear')
            elif words[-2] == 'grn':
                tensor = tensor.reshape(1, -1)
            elif words[-1] == 'weight':
                words[-1], tensor = 'kernel', column_major(tensor)
            else:
                tensor = tensor.reshape(1, -1)
        written['.'.join(['encoder', *words])] = tensor
    written |= {'decoder.0.dwconv.weight': noise(16, 1, 7, 7), 'mask_token': noise(1, 16, 1, 1)}
    return written | {'proj.weight': noise(16, 32, 1, 1), 'pred.weight': noise(48, 16, 1, 1)}


def timm(hf: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's classifiers."""
    words = {
        'dwconv': 'conv_dw',
        'layernorm': 'norm',
        'pwconv': 'mlp.fc',
        'layer_scale_parameter': 'gamma',
        'grn': 'mlp.grn',
    }
    written = {}
    for kind, i, j, inner, tensor in split(hf):
        if kind == 'stem':
            written[f'stem.{inner}'] = tensor
        elif kind == 'down':
            written[f'stages.{i}.downsample.{inner}'] = tensor
        else:
            name = f'stages.{i}.blocks.{j}.{rename_inner(inner, words)}'
            written[name] = tensor.flatten() if '.grn.' in name else tensor
    written |= {'head.norm.weight': noise(32), 'head.norm.bias': noise(32)}
    return written | {'head.fc.weight': noise(5, 32), 'head.fc.bias': noise(5)}


def timm_conv_mlp(hf: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm with conv_mlp=True: pointwise layers are 1x1 convolutions."""
    return {
        k: v[..., None, None] if k.endswith(('fc1.weight', 'fc2.weight')) else v
        for k, v in timm(hf).items()
    }


def timm_features(hf: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm with features_only=True: the outermost modules are flattened."""
    return {
        k.replace('.', '_', 1): v for k, v in timm(hf).items() if k.startswith(('stem', 'stages'))
    }


def open_clip(hf: dict[str, Tensor]) -> dict[str, Tensor]:
    """OpenCLIP: a timm trunk, a projection and a text tower."""
    written = {f'visual.trunk.{k}': v for k, v in timm(hf).items() if not k.startswith('head.fc')}
    written |= {'visual.head.proj.weight': noise(4, 32), 'logit_scale': noise(1)[0]}
    return written | {'transformer.resblocks.0.ln_1.weight': noise(4)}


def torchvision(hf: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's classifiers: numbered layers, layer scale of shape (C, 1, 1)."""
    words = {
        'dwconv': 'block.0',
        'layernorm': 'block.2',
        'pwconv1': 'block.3',
        'pwconv2': 'block.5',
        'layer_scale_parameter': 'layer_scale',
    }
    written = {}
    for kind, i, j, inner, tensor in split(hf):
        if kind == 'block':
            name = f'features.{2 * i + 1}.{j}.{rename_inner(inner, words)}'
            written[name] = tensor[:, None, None] if name.endswith('layer_scale') else tensor
        else:
            written[f'features.{2 * i}.{inner}'] = tensor
    written |= {'classifier.0.weight': noise(32), 'classifier.0.bias': noise(32)}
    return written | {'classifier.2.weight': noise(5, 32), 'classifier.2.bias': noise(5)}


def mmpretrain(hf: dict[str, Tensor]) -> dict[str, Tensor]:
    """mmpretrain's classifiers: norm3 follows the pooling."""
    words = {
        'dwconv': 'depthwise_conv',
        'layernorm': 'norm',
        'pwconv': 'pointwise_conv',
        'layer_scale_parameter': 'gamma',
        'grn.weight': 'grn.gamma',
        'grn.bias': 'grn.beta',
    }
    written = {}
    for kind, i, j, inner, tensor in split(hf):
        if kind == 'block':
            name = f'backbone.stages.{i}.{j}.{rename_inner(inner, words)}'
            written[name] = tensor.flatten() if '.grn.' in name else tensor
        else:
            written[f'backbone.downsample_layers.{i}.{inner}'] = tensor
    written |= {'backbone.norm3.weight': noise(32), 'backbone.norm3.bias': noise(32)}
    return written | {'head.fc.weight': noise(5, 32), 'head.fc.bias': noise(5)}


def mmpretrain_conv(hf: dict[str, Tensor]) -> dict[str, Tensor]:
    """mmpretrain with linear_pw_conv=False."""
    return {
        k: v[..., None, None] if 'pointwise' in k and k.endswith('weight') else v
        for k, v in mmpretrain(hf).items()
    }


def openmmlab_segmenter(hf: dict[str, Tensor]) -> dict[str, Tensor]:
    """A whole segmenter from OpenMMLab, with map norms."""
    written = {k: v for k, v in mmpretrain(hf).items() if 'norm3' not in k and 'head' not in k}
    for i in range(4):
        for leaf in ('weight', 'bias'):
            written[f'backbone.norm{i}.{leaf}'] = hf[f'hidden_states_norms.stage{i + 1}.{leaf}']
    return written | {'decode_head.conv_seg.weight': noise(3, 4, 1, 1)}


def hf_dinov3(hf: dict[str, Tensor]) -> dict[str, Tensor]:
    """Hugging Face's DINOv3ConvNextModel."""
    words = {
        'dwconv': 'depthwise_conv',
        'layernorm': 'layer_norm',
        'pwconv': 'pointwise_conv',
        'layer_scale_parameter': 'gamma',
    }
    written = {}
    for kind, i, j, inner, tensor in split(hf):
        if kind == 'block':
            written[f'model.stages.{i}.layers.{j}.{rename_inner(inner, words)}'] = tensor
        else:
            written[f'model.stages.{i}.downsample_layers.{inner}'] = tensor
    return written | {'layer_norm.weight': noise(32), 'layer_norm.bias': noise(32)}


# Writer, supported versions, expected format.
WRITERS = {
    'hugging_face': (hugging_face, (1, 2), 'hf'),
    'meta': (meta, (1, 2), 'meta'),
    'meta_dinov3': (meta_dinov3, (1,), 'meta'),
    'fcmae': (fcmae, (2,), 'fcmae'),
    'timm': (timm, (1, 2), 'timm'),
    'timm_conv_mlp': (timm_conv_mlp, (1, 2), 'timm'),
    'timm_features': (timm_features, (1, 2), 'timm_features'),
    'open_clip': (open_clip, (1,), 'timm'),
    'torchvision': (torchvision, (1,), 'torchvision'),
    'mmpretrain': (mmpretrain, (1, 2), 'mmpretrain'),
    'mmpretrain_conv': (mmpretrain_conv, (1, 2), 'mmpretrain'),
    'hf_dinov3': (hf_dinov3, (1,), 'hf_dinov3'),
    'meta_detector': (meta_detector, (1, 2), 'meta'),
    'openmmlab_segmenter': (openmmlab_segmenter, (1, 2), 'mmpretrain'),
}
CASES = [(name, version) for name, (_, versions, _) in WRITERS.items() for version in versions]
WITH_MAP_NORMS = ('meta_detector', 'openmmlab_segmenter')


def write(name: str, hf: dict[str, Tensor]) -> dict[str, Tensor]:
    """The checkpoint of one source."""
    return WRITERS[name][0](hf)
