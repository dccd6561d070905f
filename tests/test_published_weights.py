"""The list of published weights: complete, consistent, and what the configs name."""

import ast
import runpy
from collections import Counter
from pathlib import Path

import pytest
from helpers import REPO

from convnext_backbone import list_pretrained
from convnext_backbone.arch import ARCHS

META = 'https://dl.fbaipublicfiles.com/convnext/'


def test_every_architecture_has_weights_and_none_is_listed_twice():
    weights = list_pretrained()
    assert {entry.arch for entry in weights} == set(ARCHS)
    assert [entry.arch for entry in weights] == sorted(
        (entry.arch for entry in weights), key=list(ARCHS).index
    )
    assert max(Counter(entry.checkpoint for entry in weights).values()) == 1
    for arch in ARCHS:
        assert list_pretrained(arch) == [entry for entry in weights if entry.arch == arch]
        # The first one is the start of generated configs: trained with labels, not only masked.
        assert 'ImageNet' in list_pretrained(arch)[0].pretraining
        assert 'FCMAE' not in list_pretrained(arch)[0].checkpoint.upper()


def test_published_accuracies_of_the_official_tables():
    """The READMEs of facebookresearch/ConvNeXt and ConvNeXt-V2."""
    top1 = {
        entry.checkpoint.removeprefix(META): (entry.top1, entry.top1_size)
        for entry in list_pretrained()
    }
    assert top1['convnext_tiny_1k_224_ema.pth'] == (82.1, 224)
    assert top1['convnext_base_22k_1k_384.pth'] == (86.8, 384)
    assert top1['convnext_xlarge_22k_1k_384_ema.pth'] == (87.8, 384)
    assert top1['convnext_large_22k_224.pth'] == (None, None)
    assert top1['convnextv2/im1k/convnextv2_atto_1k_224_ema.pt'] == (76.7, 224)
    assert top1['convnextv2/im22k/convnextv2_huge_22k_512_ema.pt'] == (88.9, 512)


def test_entries_agree_with_their_names():
    for entry in list_pretrained():
        assert (entry.top1 is None) == (entry.top1_size is None)
        name = entry.checkpoint.rpartition('/')[2]
        assert ('convnextv2' in name) == entry.arch.startswith('v2-')
        size = entry.arch.removeprefix('v2-')
        # EUPE's names have only the first letter.
        assert size in name or name == f'EUPE-ConvNeXt-{size[0].upper()}', entry


@pytest.mark.parametrize(
    ('part', 'licence', 'non_commercial'),
    [
        ('convnext/convnext_', 'MIT', False),
        ('convnextv2', 'CC-BY-NC-4.0', True),
        ('dinov3', 'DINOv3 License', False),
        ('eupe', 'FAIR Research License', True),
        ('laion/', 'MIT', False),
    ],
)
def test_licences(part, licence, non_commercial):
    entries = [entry for entry in list_pretrained() if part in entry.checkpoint.lower()]
    assert entries
    for entry in entries:
        assert (entry.licence, entry.non_commercial) == (licence, non_commercial), entry


def test_an_unknown_architecture_is_refused():
    with pytest.raises(ValueError, match="unknown arch 'micro': choose one of atto"):
        list_pretrained('micro')


def named_weights(path: Path) -> str | None:
    """The value of ``checkpoint`` in a config's own text."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == 'checkpoint':
            return ast.literal_eval(node.value)
    return None


def test_configs_name_listed_weights_and_say_their_limits():
    named = {path: named_weights(path) for path in (REPO / 'configs').rglob('*_coco*.py')}
    named |= {path: named_weights(path) for path in (REPO / 'configs').rglob('*_ade20k*.py')}
    listed = {entry.checkpoint: entry for entry in list_pretrained()}
    used = {path: listed[checkpoint] for path, checkpoint in named.items() if checkpoint}
    assert len(used) >= 20
    for path, entry in used.items():
        header = path.read_text().partition('_base_')[0]
        assert ('non-commercial' in header) == entry.non_commercial, path
        assert ('DINOv3 License' in header) == (entry.licence == 'DINOv3 License'), path


def test_the_tool_lists_what_to_paste(monkeypatch, capsys):
    tool = REPO / 'tools/model_converters/checkpoint.py'
    monkeypatch.setattr('sys.argv', [str(tool), 'list', 'v2-nano'])
    runpy.run_path(str(tool), run_name='__main__')
    lines = capsys.readouterr().out.splitlines()
    assert f'    {META}convnextv2/im1k/convnextv2_nano_1k_224_ema.pt' in lines
    assert any('CC-BY-NC-4.0; non-commercial' in line and 'not tried' in line for line in lines)
    assert not any('hf://timm/convnext_nano.' in line for line in lines)
