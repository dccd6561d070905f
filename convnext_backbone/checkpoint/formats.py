"""The tensor names of every ConvNeXt checkpoint format: the only table of name rules.

A format maps the parts of a ConvNeXt to templates of names, without the model's key prefix. A part
is a module with a weight and a bias, or one of ``PARAMETERS``. In a template, ``{i}`` is the stage
counted from 0, ``{n}`` the stage counted from 1, ``{even}`` and ``{odd}`` are 2i and 2i + 1, and
``{j}`` is the block. If two templates match a name, the first one is used. To support a new format,
add an entry to ``FORMATS``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# Parts that are one tensor, without a weight and a bias.
PARAMETERS = ('layer_scale', 'grn_weight', 'grn_bias')

# The norms of feature maps.
MAP_NORMS = ('stem_map_norm', 'map_norm')

# Parts outside the stem and the stages.
NORMS_AND_HEAD = (*MAP_NORMS, 'final_norm', 'head')


@dataclass(frozen=True, eq=False)
class Format:
    """The tensor names of one source.

    Attributes:
        title: The source, for messages.
        parts: The template of every part that the format has.
        flat_grn: Whether the parameters of GRN are stored as ``(4C,)``, not ``(1, 1, 1, 4C)``.
        lone_norm_is_final: Whether the final norm of a classifier has the name of the norm of the
            last feature map.
        convolutions: The parts that must be there as convolutions: other networks, and other stems,
            share the names.
    """

    title: str
    parts: Mapping[str, str]
    flat_grn: bool = False
    lone_norm_is_final: bool = False
    convolutions: tuple[str, ...] = ('dwconv',)


_HF = {
    'stem_conv': 'embeddings.patch_embeddings',
    'overlap_conv1': 'embeddings.patch_embeddings.0',
    'overlap_conv2': 'embeddings.patch_embeddings.1',
    'overlap_act_conv2': 'embeddings.patch_embeddings.2',
    'stem_norm': 'embeddings.layernorm',
    'down_norm': 'encoder.stages.{i}.downsampling_layer.0',
    'down_conv': 'encoder.stages.{i}.downsampling_layer.1',
    'dwconv': 'encoder.stages.{i}.layers.{j}.dwconv',
    'norm': 'encoder.stages.{i}.layers.{j}.layernorm',
    'pwconv1': 'encoder.stages.{i}.layers.{j}.pwconv1',
    'pwconv2': 'encoder.stages.{i}.layers.{j}.pwconv2',
    'layer_scale': 'encoder.stages.{i}.layers.{j}.layer_scale_parameter',
    'grn_weight': 'encoder.stages.{i}.layers.{j}.grn.weight',
    'grn_bias': 'encoder.stages.{i}.layers.{j}.grn.bias',
    'stem_map_norm': 'hidden_states_norms.stem',
    'map_norm': 'hidden_states_norms.stage{n}',
    'final_norm': 'layernorm',
    'head': 'classifier',
}

_META = {
    'stem_conv': 'downsample_layers.0.0',
    'stem_norm': 'downsample_layers.0.1',
    'down_norm': 'downsample_layers.{i}.0',
    'down_conv': 'downsample_layers.{i}.1',
    'dwconv': 'stages.{i}.{j}.dwconv',
    'norm': 'stages.{i}.{j}.norm',
    'pwconv1': 'stages.{i}.{j}.pwconv1',
    'pwconv2': 'stages.{i}.{j}.pwconv2',
    'layer_scale': 'stages.{i}.{j}.gamma',
    'grn_weight': 'stages.{i}.{j}.grn.gamma',
    'grn_bias': 'stages.{i}.{j}.grn.beta',
    'map_norm': 'norm{i}',
    'final_norm': 'norm',
    'head': 'head',
}

# In the sparse encoder, the names of norms and linear layers have one more level.
_FCMAE = {
    **_META,
    'down_norm': 'downsample_layers.{i}.0.ln',
    'norm': 'stages.{i}.{j}.norm.ln',
    'pwconv1': 'stages.{i}.{j}.pwconv1.linear',
    'pwconv2': 'stages.{i}.{j}.pwconv2.linear',
}

_TIMM = {
    'stem_conv': 'stem.0',
    'stem_norm': 'stem.1',
    'down_norm': 'stages.{i}.downsample.0',
    'down_conv': 'stages.{i}.downsample.1',
    'dwconv': 'stages.{i}.blocks.{j}.conv_dw',
    'norm': 'stages.{i}.blocks.{j}.norm',
    'pwconv1': 'stages.{i}.blocks.{j}.mlp.fc1',
    'pwconv2': 'stages.{i}.blocks.{j}.mlp.fc2',
    'layer_scale': 'stages.{i}.blocks.{j}.gamma',
    'grn_weight': 'stages.{i}.blocks.{j}.mlp.grn.weight',
    'grn_bias': 'stages.{i}.blocks.{j}.mlp.grn.bias',
    'final_norm': 'head.norm',
    'head': 'head.fc',
}

# The two convolutions of overlapping stems, without and with an activation between them.
_TIMM_OVERLAP = {
    **_TIMM,
    'overlap_conv1': 'stem.0',
    'overlap_conv2': 'stem.1',
    'stem_norm': 'stem.2',
}
_TIMM_OVERLAP_ACT = {
    **_TIMM,
    'overlap_conv1': 'stem.0',
    'overlap_act_conv2': 'stem.2',
    'stem_norm': 'stem.3',
}
del _TIMM_OVERLAP['stem_conv'], _TIMM_OVERLAP_ACT['stem_conv']
_OVERLAP = ('dwconv', 'overlap_conv2')
_OVERLAP_ACT = ('dwconv', 'overlap_act_conv2')


def _features_only(parts: Mapping[str, str]) -> dict[str, str]:
    """The names with features_only=True, which flattens their outermost level."""
    return {
        part: template.replace('stem.', 'stem_').replace('stages.', 'stages_')
        for part, template in parts.items()
        if part not in NORMS_AND_HEAD
    }


_TORCHVISION = {
    'stem_conv': 'features.0.0',
    'stem_norm': 'features.0.1',
    'down_norm': 'features.{even}.0',
    'down_conv': 'features.{even}.1',
    'dwconv': 'features.{odd}.{j}.block.0',
    'norm': 'features.{odd}.{j}.block.2',
    'pwconv1': 'features.{odd}.{j}.block.3',
    'pwconv2': 'features.{odd}.{j}.block.5',
    'layer_scale': 'features.{odd}.{j}.layer_scale',
    'final_norm': 'classifier.0',
    'head': 'classifier.2',
}

_MMPRETRAIN = {
    **_META,
    'dwconv': 'stages.{i}.{j}.depthwise_conv',
    'pwconv1': 'stages.{i}.{j}.pointwise_conv1',
    'pwconv2': 'stages.{i}.{j}.pointwise_conv2',
    'head': 'head.fc',
}
del _MMPRETRAIN['final_norm']

_HF_DINOV3 = {
    'stem_conv': 'stages.0.downsample_layers.0',
    'stem_norm': 'stages.0.downsample_layers.1',
    'down_norm': 'stages.{i}.downsample_layers.0',
    'down_conv': 'stages.{i}.downsample_layers.1',
    'dwconv': 'stages.{i}.layers.{j}.depthwise_conv',
    'norm': 'stages.{i}.layers.{j}.layer_norm',
    'pwconv1': 'stages.{i}.layers.{j}.pointwise_conv1',
    'pwconv2': 'stages.{i}.layers.{j}.pointwise_conv2',
    'layer_scale': 'stages.{i}.layers.{j}.gamma',
    'final_norm': 'layer_norm',
}

FORMATS = {
    'hf': Format('Hugging Face ConvNext / ConvNextV2', _HF),
    'meta': Format('Meta (V1, V2, DINOv3, EUPE)', _META),
    'fcmae': Format('Meta V2 FCMAE pre-training', _FCMAE),
    'timm': Format('timm / OpenCLIP', _TIMM, flat_grn=True),
    'timm_features': Format('timm features_only', _features_only(_TIMM), flat_grn=True),
    'timm_overlap': Format(
        'timm with an overlapping stem', _TIMM_OVERLAP, flat_grn=True, convolutions=_OVERLAP
    ),
    'timm_overlap_features': Format(
        'timm features_only with an overlapping stem',
        _features_only(_TIMM_OVERLAP),
        flat_grn=True,
        convolutions=_OVERLAP,
    ),
    'timm_overlap_act': Format(
        'timm with overlap_act', _TIMM_OVERLAP_ACT, flat_grn=True, convolutions=_OVERLAP_ACT
    ),
    'timm_overlap_act_features': Format(
        'timm features_only with overlap_act',
        _features_only(_TIMM_OVERLAP_ACT),
        flat_grn=True,
        convolutions=_OVERLAP_ACT,
    ),
    'torchvision': Format('torchvision', _TORCHVISION),
    'mmpretrain': Format(
        'mmpretrain / OpenMMLab', _MMPRETRAIN, flat_grn=True, lone_norm_is_final=True
    ),
    'hf_dinov3': Format('Hugging Face DINOv3ConvNext', _HF_DINOV3),
}

# The names of this package.
NATIVE = FORMATS['hf']

# Formats in which weights can be written, and the one of timm's for each stem.
WRITABLE = ('hf', 'meta', 'timm')
TIMM_STEMS = {
    'patch': 'timm',
    'overlap': 'timm_overlap',
    'overlap_tiered': 'timm_overlap',
    'overlap_act': 'timm_overlap_act',
}

# Regular expressions of names that are not part of a backbone in any format, and their meaning.
IGNORED = {
    r'norms\.\d+\.|norm_pre\.': 'final norm',
    r'(decoder|proj|pred)\.|mask_token$': 'decoder',
    r'projectors?\.': 'projector',
    r'(head|classifier|dino_head|ibot_head)\.': 'head',
    r'(criterion|loss\w*|\w+_loss|data_preprocessor)\.': 'loss or preprocessing',
}

# A regular expression of tensors that adapters and weight normalisation store in place of weights.
REPLACED_WEIGHTS = r'\.(weight_[gv]|parametrizations|base_layer|lora_\w+)(\.|$)'

# One rule for files with several sets of weights: averaged weights are read if there are any,
# unless the caller asks for the others. A teacher is the average of its student.
#
# Words in the key prefixes of averaged weights and of others. Of several ConvNeXts of one kind, the
# first of these words that is in exactly one of their key prefixes selects which one is read.
AVERAGED_WORDS = ('teacher', 'ema')
OTHER_WORDS = ('student',)

# Keys under which files store a state dict that is not averaged. The first one that exists is read.
# Averaged weights are under a key of one of the words above and words of these, such as model_ema.
CONTAINERS = (
    'state_dict',
    'model',
    'model_state',
    'model_state_dict',
    'student',
    'student_state_dict',
    'module',
    'net',
    'network',
    'params',
    'weights',
)
