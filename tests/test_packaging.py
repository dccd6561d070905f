"""The package, installed on its own: other configs build on its configs from any folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from helpers import REPO

CONFIGS = {
    'detector.py': """
_base_ = 'convnext_backbone::demo/mask-rcnn_convnext-atto_fpn_shapes.py'
model = dict(roi_head=dict(bbox_head=dict(num_classes=5)))
""",
    'segmentor.py': """
_base_ = 'convnext_backbone::segmentation/convnext-t_upernet_amp-160k_ade20k-512x512.py'
model = dict(
    decode_head=dict(num_classes=4),
    auxiliary_head=dict(num_classes=4),
)
""",
    # mmdet's own scripts do not import this package before they read a config.
    'with_import.py': """
_base_ = __import__('convnext_backbone') and 'convnext_backbone::demo/convnext-atto_shapes.py'
""",
}

SCRIPT = """
import site
import sys

site.addsitedir(sys.argv[1])
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import DATASETS, MODELS, init_default_scope

model = MODELS.build(Config.fromfile('with_import.py').model)
import convnext_backbone
assert type(model) is convnext_backbone.ConvNextForImageClassification

cfg = Config.fromfile('detector.py')
from mmdet.apis import DetInferencer
from mmdet.datasets import CocoDataset
init_default_scope('mmdet')
cfg.train_dataloader.dataset.lazy_init = True
assert type(DATASETS.build(cfg.train_dataloader.dataset)) is CocoDataset
inferencer = DetInferencer(cfg, device='cpu')
assert inferencer.model.roi_head.bbox_head.num_classes == 5
assert type(inferencer.model.backbone) is convnext_backbone.ConvNextBackbone
name = 'convnext_backbone::demo/mask-rcnn_convnext-atto_fpn_shapes.py'
assert get_config(name).model.roi_head.bbox_head.num_classes == 3

cfg = Config.fromfile('segmentor.py')
from mmseg.models import EncoderDecoder
init_default_scope('mmseg')
cfg.model.backbone.update(arch='atto', init_cfg=None)
cfg.model.decode_head.in_channels = [40, 80, 160, 320]
cfg.model.auxiliary_head.in_channels = 160
model = MODELS.build(cfg.model)
assert type(model) is EncoderDecoder
assert model.decode_head.num_classes == 4
print('installed in', convnext_backbone.__path__[0])
"""


def run(*command: object, cwd: Path, **env: str) -> str:
    """Runs a command and returns its output."""
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


@pytest.mark.parametrize('kind', ['wheel', 'editable'])
def test_other_configs_build_on_installed_ones(kind, tmp_path):
    source, site, work = (tmp_path / name for name in ('source', 'site', 'work'))
    for folder in (source, site, work):
        folder.mkdir()
    # Building leaves files beside the sources.
    for name in ('configs', 'convnext_backbone'):
        shutil.copytree(REPO / name, source / name, symlinks=True)
    for name in ('setup.py', 'setup.cfg', 'pyproject.toml', 'README.md', 'LICENSE'):
        shutil.copy(REPO / name, source)
    build = f'import setuptools.build_meta as backend; print(backend.build_{kind}({str(site)!r}))'
    wheel = site / run(sys.executable, '-c', build, cwd=source).splitlines()[-1]
    shutil.unpack_archive(wheel, site, 'zip')
    package = (site if kind == 'wheel' else source) / 'convnext_backbone'
    ours, theirs = REPO / 'configs', package / '.mim/configs'
    names = sorted(path.relative_to(ours) for path in ours.rglob('*.py'))
    assert len(names) > 40
    assert sorted(path.relative_to(theirs) for path in theirs.rglob('*.py')) == names
    assert all((ours / name).read_bytes() == (theirs / name).read_bytes() for name in names)
    for path in (REPO / 'convnext_backbone').rglob('*'):
        if path.suffix in ('.py', '.cpp', '.h', '.typed', '.yml'):
            assert (package / path.relative_to(REPO / 'convnext_backbone')).is_file()

    for name, text in CONFIGS.items():
        (work / name).write_text(text)
    # -S leaves out links of the environment, such as to this repository.
    paths = os.pathsep.join([str(site), sysconfig.get_path('purelib')])
    output = run(sys.executable, '-S', '-c', SCRIPT, site, cwd=work, PYTHONPATH=paths)
    assert output.splitlines()[-1] == f'installed in {package}'
