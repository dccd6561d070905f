"""The command line that shows and converts checkpoints."""

import json

import pytest
import torch
from checkpoint_files import make_reference, meta, meta_detector, mmpretrain, timm, torchvision
from helpers import run_tool, same_tensors, small_backbone
from safetensors.torch import load_file, save_file

from convnext_backbone import ConvNextBackbone, load_checkpoint
from convnext_backbone.checkpoint import export, read_checkpoint, translate
from convnext_backbone.checkpoint.containers import unwrap

TOOL = 'model_converters/checkpoint.py'


def test_inspect_prints_what_a_checkpoint_is(tmp_path):
    model = ConvNextBackbone('v2-atto', kernel_size=5, stem='overlap_tiered')
    state_dict = model.half().state_dict()
    torch.save(dict(state_dict={f'module.{k}': v for k, v in state_dict.items()}), tmp_path / 'x')
    output = run_tool(TOOL, 'inspect', 'x', cwd=tmp_path)
    for words in (
        'hf: Hugging Face ConvNext',
        "torch file, key 'state_dict'",
        "'module.'",
        'ConvNeXt-V2-atto',
        "arch='v2-atto', use_grn=True",
        'layer_scale_init_value=None',
        'kernel_size=5',
        "stem='overlap_tiered'",
        'float16',
        f'{sum(v.numel() for v in state_dict.values()) / 1e6:.2f} M',
    ):
        assert words in output


@pytest.mark.parametrize('out', ['out.safetensors', 'out.pth'])
def test_convert_writes_by_the_suffix(tmp_path, out):
    hf = make_reference(2).state_dict()
    save_file(mmpretrain(hf), tmp_path / 'in.safetensors')
    output = run_tool(TOOL, 'convert', 'in.safetensors', out, '--to', 'timm', cwd=tmp_path)
    assert '(mmpretrain) written to' in output
    load = load_file if out.endswith('safetensors') else lambda p: torch.load(p, weights_only=True)
    assert same_tensors(load(tmp_path / out), timm(hf))


def test_what_only_the_config_says_is_printed(tmp_path):
    make_reference().save_pretrained(tmp_path / 'folder')
    path = tmp_path / 'folder' / 'config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(hidden_act='relu')))
    assert "hidden_act='relu'" in run_tool(TOOL, 'inspect', 'folder', cwd=tmp_path)
    output = run_tool(TOOL, 'convert', 'folder', 'out.pth', '--to', 'meta', cwd=tmp_path)
    assert "Build the model with hidden_act='relu'" in output


def test_convert_overwrites_only_with_force(tmp_path):
    torch.save(small_backbone().state_dict(), tmp_path / 'in.pth')
    (tmp_path / 'out.pth').write_text('precious')
    args = (TOOL, 'convert', 'in.pth', 'out.pth', '--to', 'timm')
    with pytest.raises(AssertionError, match=r'out\.pth exists'):
        run_tool(*args, cwd=tmp_path)
    assert (tmp_path / 'out.pth').read_text() == 'precious'
    run_tool(*args, '--force', cwd=tmp_path)
    assert load_checkpoint(small_backbone(), tmp_path / 'out.pth').format == 'timm'


@pytest.mark.parametrize('version', [1, 2])
@pytest.mark.parametrize('to', ['hf', 'meta', 'timm'])
def test_a_round_trip_is_an_identity(to, version):
    model = small_backbone(use_grn=version == 2, out_features=('stage2', 'stage4'))
    native = model.state_dict()
    written, left = export(native, to)
    norms = [k for k in native if k.startswith('hidden_states_norms')]
    assert left == (norms if to == 'timm' else [])
    back = translate(unwrap(written)).tensors
    assert same_tensors(back, {k: v for k, v in native.items() if k not in left})
    assert load_checkpoint(model, written, strict=True).format == to


@pytest.mark.parametrize('version', [1, 2])
def test_formats_are_written_like_the_original_projects(version):
    hf = make_reference(version, map_norms=True).state_dict()
    for source in (meta, timm):
        found = translate(unwrap(source(hf)))
        assert same_tensors(export(found.tensors, source.__name__)[0], source(hf))
    whole = translate(unwrap(meta_detector(hf)))
    assert same_tensors(export(whole.tensors, 'hf')[0], hf)
    with pytest.raises(ValueError, match="written as hf, meta, timm, not as 'torchvision'"):
        export(whole.tensors, 'torchvision')


def test_the_suffix_does_not_matter_for_reading(tmp_path):
    state_dict = torchvision(make_reference().state_dict())
    save_file(state_dict, tmp_path / 'a.bin')
    torch.save(state_dict, tmp_path / 'b.safetensors')
    for name in ('a.bin', 'b.safetensors'):
        assert same_tensors(read_checkpoint(tmp_path / name).tensors, state_dict)


def test_layers_that_no_format_has_are_not_dropped(tmp_path):
    state_dict = meta(make_reference(2).state_dict())
    state_dict['stages.0.0.adapter.weight'] = torch.zeros(1)
    torch.save(state_dict, tmp_path / 'in.pth')
    assert 'stages.0.0.adapter.weight' in run_tool(TOOL, 'inspect', 'in.pth', cwd=tmp_path)
    with pytest.raises(AssertionError, match='may change the output: stages'):
        run_tool(TOOL, 'convert', 'in.pth', 'out.pth', '--to', 'timm', cwd=tmp_path)
    assert not (tmp_path / 'out.pth').exists()
