"""timm's relatives of ConvNeXt: kernel sizes, overlapping stems, norms without bias.

The tensors have timm's names, and a plain forward pass written out here computes what timm's model
does. Relatives that no argument builds are refused with the true reason.
"""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from helpers import randomize, same_tensors
from torch import Tensor

from convnext_backbone import (
    ConvNextBackbone,
    ConvNextForImageClassification,
    ConvNextLayer,
    ConvNextModel,
    infer_arch,
    load_checkpoint,
)
from convnext_backbone.checkpoint import export, translate
from convnext_backbone.checkpoint.containers import unwrap
from convnext_backbone.engine.lr_decay import layer_id
from convnext_backbone.models import blocks, norms

DEPTHS, DIMS, TIERED = [1, 2, 1, 1], [40, 48, 56, 64], 24
ARCH = dict(depths=DEPTHS, hidden_sizes=DIMS)
IMAGES = torch.randn(2, 3, 64, 77, generator=torch.Generator().manual_seed(3))
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Timm:
    """The arguments of timm's model, and its forward pass."""

    stem: str = 'patch'
    kernel_sizes: tuple[int, ...] = (7, 7, 7, 7)
    norm: str = 'layernorm'
    use_grn: bool = False
    act: str = 'gelu'

    @property
    def stem_names(self) -> list[str]:
        """The names of the convolutions and of the norm."""
        numbers = {'patch': (0, 1), 'overlap_act': (0, 2, 3)}.get(self.stem, (0, 1, 2))
        return [f'stem.{number}' for number in numbers]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every weight; most modules have a bias, too."""
        *convs, norm = self.stem_names
        mid = TIERED if self.stem == 'overlap_tiered' else DIMS[0]
        stem = [(mid, 3, 3, 3), (DIMS[0], mid, 3, 3)] if convs[1:] else [(DIMS[0], 3, 4, 4)]
        shapes = {**dict(zip(convs, stem, strict=True)), norm: (DIMS[0],)}
        for i, width in enumerate(DIMS):
            if i > 0:
                shapes[f'stages.{i}.downsample.0'] = (DIMS[i - 1],)
                shapes[f'stages.{i}.downsample.1'] = (width, DIMS[i - 1], 2, 2)
            for j in range(DEPTHS[i]):
                block, side = f'stages.{i}.blocks.{j}', self.kernel_sizes[i]
                shapes[f'{block}.conv_dw'] = (width, 1, side, side)
                shapes[f'{block}.norm'] = (width,)
                shapes[f'{block}.mlp.fc1'] = (4 * width, width)
                shapes[f'{block}.mlp.fc2'] = (width, 4 * width)
                if self.use_grn:
                    shapes[f'{block}.mlp.grn'] = (4 * width,)
        return shapes | {'head.norm': (DIMS[-1],), 'head.fc': (5, DIMS[-1])}

    def state_dict(self) -> Tensors:
        generator = torch.Generator().manual_seed(1)
        tensors = {}
        for name, shape in self.shapes().items():
            tensors[f'{name}.weight'] = torch.randn(shape, generator=generator) * 0.3
            is_norm = len(shape) == 1 and 'grn' not in name
            if not is_norm or self.norm == 'layernorm':
                tensors[f'{name}.bias'] = torch.randn(shape[0], generator=generator) * 0.3
            if 'conv_dw' in name and not self.use_grn:
                gamma = name.replace('conv_dw', 'gamma')
                tensors[gamma] = torch.randn(shape[0], generator=generator)
        return tensors

    def forward(self, tensors: Tensors, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """The outputs of the stages, and the logits."""
        given = {name: t.to(images.dtype) for name, t in tensors.items()}

        def conv(name, features, **args):
            return F.conv2d(features, given[f'{name}.weight'], given[f'{name}.bias'], **args)

        def norm(name, features):
            mean = features.mean(1, keepdim=True)
            centred = features - mean
            if self.norm == 'rmsnorm':
                scaled = features / (features.pow(2).mean(1, keepdim=True) + 1e-6).sqrt()
            elif self.norm == 'simplenorm':
                freedom = features.shape[1] - 1
                variance = centred.pow(2).sum(1, keepdim=True) / freedom
                scaled = features / (variance + 1e-6).sqrt()
            else:
                scaled = centred / (centred.pow(2).mean(1, keepdim=True) + 1e-6).sqrt()
            scaled = scaled * given[f'{name}.weight'][:, None, None]
            bias = given.get(f'{name}.bias')
            return scaled if bias is None else scaled + bias[:, None, None]

        def mlp(name, features):
            act = {'gelu': F.gelu, 'silu': F.silu}[self.act]
            rows = features.permute(0, 2, 3, 1)
            rows = act(F.linear(rows, given[f'{name}.fc1.weight'], given[f'{name}.fc1.bias']))
            if self.use_grn:
                length = rows.pow(2).sum((1, 2), keepdim=True).sqrt()
                response = length / (length.mean(-1, keepdim=True) + 1e-6)
                grn = given[f'{name}.grn.weight'] * rows * response + given[f'{name}.grn.bias']
                rows = rows + grn
            rows = F.linear(rows, given[f'{name}.fc2.weight'], given[f'{name}.fc2.bias'])
            return rows.permute(0, 3, 1, 2)

        *convs, stem_norm = self.stem_names
        if self.stem == 'patch':
            features = conv(convs[0], images, stride=4)
        else:
            features = conv(convs[0], images, stride=2, padding=1)
            if self.stem == 'overlap_act':
                features = {'gelu': F.gelu, 'silu': F.silu}[self.act](features)
            features = conv(convs[1], features, stride=2, padding=1)
        features = norm(stem_norm, features)
        maps = []
        for i, depth in enumerate(DEPTHS):
            if i > 0:
                features = norm(f'stages.{i}.downsample.0', features)
                features = conv(f'stages.{i}.downsample.1', features, stride=2)
            for j in range(depth):
                block, side = f'stages.{i}.blocks.{j}', self.kernel_sizes[i]
                branch = conv(f'{block}.conv_dw', features, padding=side // 2, groups=DIMS[i])
                branch = mlp(f'{block}.mlp', norm(f'{block}.norm', branch))
                gamma = given.get(f'{block}.gamma')
                scale = 1 if gamma is None else gamma[:, None, None]
                features = features + scale * branch
            maps.append(features)
        pooled = norm('head.norm', features.mean((2, 3), keepdim=True))
        fc = given['head.fc.weight'], given['head.fc.bias']
        return maps, F.linear(pooled.flatten(1), *fc)


# Arguments of timm's model, and what infer_arch adds.
CASES = {
    'itself': (Timm(), {}),
    'kernels': (Timm(kernel_sizes=(7, 5, 5, 3)), dict(kernel_size=(7, 5, 5, 3))),
    'kernel 9, V2': (Timm(kernel_sizes=(9,) * 4, use_grn=True), dict(kernel_size=9)),
    'overlap': (Timm(stem='overlap'), dict(stem='overlap')),
    'overlap_tiered': (Timm(stem='overlap_tiered'), dict(stem='overlap_tiered')),
    'overlap_act': (Timm(stem='overlap_act', act='silu'), dict(stem='overlap_act')),
    'rmsnorm': (Timm(norm='rmsnorm'), dict(norm='rmsnorm or simplenorm')),
    'simplenorm': (Timm(norm='simplenorm'), dict(norm='rmsnorm or simplenorm')),
    'all': (
        Timm('overlap_act', (5,) * 4, 'simplenorm', use_grn=True),
        dict(kernel_size=5, stem='overlap_act', norm='rmsnorm or simplenorm'),
    ),
}
V1 = dict(arch=ARCH, use_grn=False, layer_scale_init_value=1e-6)
V2 = dict(arch=ARCH, use_grn=True, layer_scale_init_value=None)


@pytest.mark.parametrize('name', CASES)
def test_a_variant_gives_the_maps_and_logits_of_timm(name):
    theirs, added = CASES[name]
    weights = theirs.state_dict()
    inferred = infer_arch(weights)
    assert inferred == (V2 if theirs.use_grn else V1) | added | dict(layer_norm_eps=1e-6)
    args = inferred | dict(norm=theirs.norm, hidden_act=theirs.act)
    backbone = ConvNextBackbone(**args, out_indices=(0, 1, 2, 3)).double().eval()
    classifier = ConvNextForImageClassification(**args, num_labels=5)
    load_checkpoint(backbone, weights, strict=True)
    load_checkpoint(classifier.double().eval(), weights, strict=True)
    maps, logits = theirs.forward(weights, IMAGES.double())
    with torch.no_grad():
        output = backbone(IMAGES.double(), output_hidden_states=True, return_dict=True)
        torch.testing.assert_close(classifier(IMAGES.double()), logits)
    for ours, expected in zip(output.hidden_states[1:], maps, strict=True):
        torch.testing.assert_close(ours, expected)
    assert backbone.strides == [4, 8, 16, 32]


@pytest.mark.parametrize('name', ['overlap_tiered', 'overlap_act'])
def test_variants_load_by_the_names_of_features_only_and_by_their_own(name):
    theirs, added = CASES[name]
    weights = theirs.state_dict()
    args = V1 | added
    one, other, third = (randomize(ConvNextBackbone(**args), seed=i) for i in range(3))
    load_checkpoint(one, weights)
    features = {k.replace('.', '_', 1): t for k, t in weights.items() if not k.startswith('head')}
    other.load_state_dict({f'model.{k}': t for k, t in features.items()}, strict=False)
    third.load_state_dict(one.state_dict())
    assert infer_arch(features) == infer_arch(one.state_dict()) == args
    stage = {k: t for k, t in one.state_dict().items() if not k.startswith('hidden')}
    for model in (other, third):
        assert same_tensors(stage, {k: model.state_dict()[k] for k in stage})


CONTRADICTIONS = [
    ('kernels', {}, r'build the model with .*kernel_size=\(7, 5, 5, 3\) to fit'),
    ('itself', dict(kernel_size=[7, 7, 7, 3]), 'build the model with kernel_size=7, '),
    ('kernels', dict(kernel_size=5), r'kernel_size=\(7, 5, 5, 3\), the model is .*kernel_size=5;'),
    ('overlap', {}, "build the model with .*stem='overlap' to fit"),
    ('overlap', dict(stem='overlap_act'), "build the model with stem='overlap', "),
    ('overlap_act', dict(stem='overlap'), "build the model with stem='overlap_act', "),
    ('overlap_tiered', dict(stem='overlap'), "build the model with stem='overlap_tiered', "),
    ('itself', dict(stem='overlap_tiered'), "build the model with stem='patch', "),
    ('itself', dict(norm='rmsnorm'), "build the model with norm='layernorm', "),
    ('rmsnorm', {}, "norm='rmsnorm or simplenorm' to fit the file. The tensors do not tell"),
]


@pytest.mark.parametrize(('name', 'args', 'reason'), CONTRADICTIONS)
def test_a_contradiction_names_the_argument(name, args, reason):
    model = ConvNextBackbone(ARCH, **args)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    weights = CASES[name][0].state_dict()
    for load in (lambda: load_checkpoint(model, weights), lambda: model.load_state_dict(weights)):
        with pytest.raises(ValueError, match=reason) as info:
            load()
        assert 'damaged' not in str(info.value)
    assert same_tensors(before, model.state_dict())


def test_a_norm_that_the_file_does_not_tell_must_be_given():
    args = infer_arch(CASES['rmsnorm'][0].state_dict())
    with pytest.raises(ValueError, match=r"norm must be one of .*, got 'rmsnorm or simplenorm'"):
        ConvNextBackbone(**args)


def without(*endings):
    """timm's model without some tensors."""
    return {name: t for name, t in Timm().state_dict().items() if not name.endswith(endings)}


def with_kernel(name, *shape):
    return Timm().state_dict() | {f'stages.{name}.conv_dw.weight': torch.randn(*shape)}


def meta_overlap():
    """An overlapping stem by the names of Meta, which has none."""
    given = Timm(stem='overlap').state_dict()
    stem = {n.replace('stem', 'downsample_layers.0'): t for n, t in given.items() if 'stem' in n}
    rest = {
        n.replace('.blocks', '').replace('conv_dw', 'dwconv').replace('mlp.fc', 'pwconv'): t
        for n, t in given.items()
        if '.blocks' in n
    }
    return stem | rest


FOREIGN = {
    'no bias of convolutions': (
        lambda: without('stem.0.bias', 'downsample.1.bias', 'conv_dw.bias'),
        'convolutions have no bias',
    ),
    'even kernels': (lambda: with_kernel('0.blocks.0', 40, 1, 4, 4), r'stage 1 are 4x4, but'),
    'mixed kernels': (
        lambda: with_kernel('1.blocks.1', 48, 1, 5, 5),
        r'stage 2 are 5x5, 7x7, but a stage has one odd size',
    ),
    'stem of other names': (meta_overlap, 'stack of convolutions, but not one that timm has'),
}


@pytest.mark.parametrize('name', FOREIGN)
def test_other_relatives_are_refused_with_the_reason(name):
    make, reason = FOREIGN[name]
    model, weights = ConvNextBackbone(ARCH), make()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    for load in (
        lambda: load_checkpoint(model, weights),
        lambda: model.load_state_dict(weights),
        lambda: infer_arch(weights),
    ):
        with pytest.raises(ValueError, match=reason) as info:
            load()
        assert 'damaged' not in str(info.value)
    assert same_tensors(before, model.state_dict())


def test_a_file_that_lacks_a_few_biases_is_damaged():
    weights = without('stem.1.bias', 'stages.0.blocks.0.norm.bias', '2.blocks.0.conv_dw.bias')
    with pytest.raises(ValueError, match='but the file is damaged'):
        load_checkpoint(ConvNextBackbone(ARCH), weights)


@pytest.mark.parametrize('name', ['overlap', 'overlap_act'])
def test_damaged_variants_are_refused(name):
    theirs, added = CASES[name]
    weights = theirs.state_dict()
    model = ConvNextBackbone(ARCH, **added)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    for key in [key for key in weights if not key.startswith('head')]:
        removed = {other: tensor for other, tensor in weights.items() if other != key}
        for damaged in (removed, weights | {key: weights[key][1:]}, removed | {f'{key}x': IMAGES}):
            with pytest.raises(ValueError):
                load_checkpoint(model, damaged)
    assert same_tensors(before, model.state_dict())


@pytest.mark.parametrize('name', ['overlap', 'overlap_act', 'kernels', 'simplenorm'])
def test_variants_are_written_as_timm_alone(name):
    weights = CASES[name][0].state_dict()
    found = translate(unwrap(weights))
    written, left = export(found.tensors, 'timm')
    assert same_tensors(written, weights) and left == []
    for to in ('hf', 'meta'):
        with pytest.raises(ValueError, match=f'written as {to}, .* has no models with .*: write'):
            export(found.tensors, to)


@pytest.mark.parametrize('args', [dict(kernel_size=5), dict(norm='rmsnorm')])
def test_fused_functions_never_run_for_them(args, monkeypatch, capture_log):
    def refuse(*args, **kwargs):
        raise AssertionError('a fused function runs')

    for module, name in ((blocks, 'fused_block'), (norms, 'fused_norm')):
        monkeypatch.setattr(module, name, refuse)
    plain = ConvNextLayer(8, fused=True)
    with pytest.raises(AssertionError, match='a fused function runs'):
        plain(torch.randn(1, 8, 6, 6))
    layer = ConvNextLayer(8, fused=True, **args)
    assert layer.obstacle() is not None
    layer(torch.randn(1, 8, 6, 6)).sum().backward()
    assert layer.dwconv.weight.grad is not None
    if 'norm' in args:
        ConvNextBackbone(ARCH, fused=True, out_features=['stem', 'stage4'], **args)(IMAGES)


@pytest.mark.parametrize('args', [{}, dict(kernel_size=5), dict(norm='rmsnorm')])
def test_compiled_blocks_run_their_modules(args):
    layer = randomize(ConvNextLayer(8, fused=True, **args)).eval()
    features = torch.randn(1, 8, 6, 6)
    operators = set()

    def keep(graph, inputs):
        operators.update(str(node.target) for node in graph.graph.nodes)
        return graph

    with torch.no_grad():
        torch.testing.assert_close(torch.compile(layer, backend=keep)(features), layer(features))
    assert operators and any('convnext' in name for name in operators) == (not args), operators


@pytest.mark.parametrize('args', [dict(kernel_size=5), dict(stem='overlap'), dict(norm='rmsnorm')])
def test_variants_are_not_deployed(args):
    ((name, value),) = args.items()
    with pytest.raises(ValueError, match=f'cannot be deployed with {name}={value!r}'):
        ConvNextBackbone(ARCH, **args).deploy()


def test_dilated_small_kernels_are_large_ones_with_zeros():
    small = randomize(ConvNextLayer(8, kernel_size=5, dilation=2)).double()
    large = ConvNextLayer(8, kernel_size=9).double()
    weights = small.state_dict()
    weights['dwconv.weight'] = torch.zeros(8, 1, 9, 9, dtype=torch.float64)
    weights['dwconv.weight'][..., ::2, ::2] = small.dwconv.weight.detach()
    large.load_state_dict(weights)
    features = torch.randn(2, 8, 12, 13, dtype=torch.float64)
    torch.testing.assert_close(small(features), large(features))
    model = ConvNextBackbone(ARCH, kernel_size=[7, 5, 5, 3], output_stride=8)
    assert model(IMAGES)[0].shape == (2, 64, 8, 9)


def test_frozen_stages_and_layer_decay_cover_both_convolutions():
    model = ConvNextBackbone(ARCH, stem='overlap_act', frozen_stages=0)
    stem = {name for name, p in model.named_parameters() if not p.requires_grad}
    modules = ('patch_embeddings.0', 'patch_embeddings.2', 'layernorm')
    assert stem == {f'embeddings.{m}.{leaf}' for m in modules for leaf in ('weight', 'bias')}
    assert {layer_id(name, 'layer_wise', 6) for name in stem} == {0}


def test_an_overlapping_stem_adapts_to_other_channels():
    weights = Timm(stem='overlap').state_dict()
    colour = ConvNextModel(ARCH, stem='overlap').eval()
    grey = ConvNextModel(ARCH, stem='overlap', num_channels=1, adapt_stem=True).eval()
    load_checkpoint(colour, weights)
    assert load_checkpoint(grey, weights).adapted == ['embeddings.patch_embeddings.0.weight']
    one = IMAGES[:, :1]
    with torch.no_grad():
        expected = colour(one.expand(-1, 3, -1, -1)).pooler_output
        torch.testing.assert_close(grey(one).pooler_output, expected)
    with pytest.raises(ValueError, match='images with 3 channels, ConvNextModel takes 1'):
        load_checkpoint(ConvNextModel(ARCH, stem='overlap', num_channels=1), weights)


def test_a_norm_in_half_precision_is_computed_in_float32():
    features = torch.randn(2, 6, 6, 8) * 300  # squares above 65504
    for norm in ('rmsnorm', 'simplenorm'):
        module = norms.make_norm(norm, 8)
        half = module.half()(features.half())
        assert half.dtype == torch.float16
        torch.testing.assert_close(half.float(), module.float()(features), atol=3e-3, rtol=3e-3)
