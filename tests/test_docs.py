"""Every code block of the README and docs/ does what the page says; every link has a target."""

import argparse
import os
import re
import runpy
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from docs_blocks import LANGUAGES, Block, blocks_of, make_workspace
from helpers import REPO
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope

PAGES = [REPO / 'README.md', *sorted((REPO / 'docs').glob('*.md'))]
LINKING = [*PAGES, REPO / 'CONTRIBUTING.md', REPO / 'configs/README.md']
BLOCKS = [block for page in PAGES for block in blocks_of(page)]

pytestmark = pytest.mark.filterwarnings('ignore')


@pytest.fixture(scope='module')
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp('docs')
    make_workspace(folder)
    return folder


@pytest.fixture(scope='module')
def namespaces():
    """The names that the blocks of each page have defined."""
    return {}


def ids(block: Block) -> str:
    return f'{block.page}:{block.line}'


def test_every_block_is_tested():
    """A fence that the pattern misses, an unknown language or directive would not be."""
    for page in PAGES:
        fences = re.findall(r'^ *```', page.read_text(encoding='utf-8'), re.MULTILINE)
        assert len(fences) == 2 * len(blocks_of(page)), page
        directives = re.findall(r'<!-- test: (.*?) -->', page.read_text(encoding='utf-8'))
        assert directives == [block.directive for block in blocks_of(page) if block.directive]
    for block in BLOCKS:
        assert block.language in LANGUAGES, ids(block)
        assert not block.directive or block.reason or block.base is not None, ids(block)


def check_comments(code: str, names: dict) -> None:
    """A line ``EXPRESSION  # LITERAL`` says its value."""
    for expression, said in re.findall(r'^([\w\[(][^=\n]*?)  # ([\[(].*)$', code, re.MULTILINE):
        assert eval(expression, names) == eval(said), expression


def read_config(block: Block) -> Config:
    base = f'_base_ = {block.base!r}\n' if block.base else ''
    Path('example.py').write_text(base + block.code)
    return Config.fromfile('example.py')


def check_config(block: Block) -> None:
    """Builds model and optimiser; anchors must have the strides of the maps they are put on."""
    cfg = read_config(block)
    with (
        DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmdet')),
        torch.device('meta'),
    ):
        model = MODELS.build({**cfg.model, 'data_preprocessor': None})
        maps = model.backbone(torch.empty(1, model.backbone.embeddings.num_channels, 128, 128))
        if model.with_neck:
            strides = [128 // out.shape[-1] for out in model.neck(maps)]
            anchors = model.rpn_head.prior_generator.strides
            assert strides == [stride for stride, _ in anchors]
            for extractor in (model.roi_head.bbox_roi_extractor, model.roi_head.mask_roi_extractor):
                assert extractor.featmap_strides == strides[: len(maps)]
    build_optim_wrapper(model, {**cfg.optim_wrapper, 'type': 'OptimWrapper'})


def test_the_readmes_grayscale_images_reach_the_stem(workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    (block,) = [block for block in BLOCKS if "color_type='grayscale'" in block.code]
    cfg = read_config(block)
    with DefaultScope.overwrite_default_scope('mmdet'):
        # Without the annotations.
        steps = [step for step in cfg.test_dataloader.dataset.pipeline if 'Anno' not in step.type]
        data = Compose(steps)(dict(img_path='image.jpg', img_id=0))
        preprocessor = MODELS.build(cfg.model.data_preprocessor)
        backbone = MODELS.build(cfg.model.backbone)
    batch = preprocessor(dict(inputs=[data['inputs']], data_samples=[data['data_samples']]))
    assert batch['inputs'].shape[1] == 1
    assert abs(batch['inputs'].mean()) < 0.3, 'random pixels have the mean that is subtracted'
    assert [m.shape[1] for m in backbone(batch['inputs'])] == [40, 80, 160, 320]


def commands(block: Block) -> list[list[str]]:
    """The words of each command, without comments and variables before it."""
    lines = block.code.replace('\\\n', ' ').splitlines()
    found = [shlex.split(line, comments=True) for line in lines]
    return [list(drop_variables(words)) for words in found if words]


def drop_variables(words: list[str]) -> list[str]:
    while re.fullmatch(r'[A-Z_]+=\S*', words[0]):
        words = words[1:]
    return words


@pytest.mark.parametrize('block', [b for b in BLOCKS if b.language == 'bash'], ids=ids)
def test_shell(block, workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    for program, *args in commands(block):
        if program.endswith('python'):
            run_python(args, monkeypatch, parse_only=bool(block.reason))
            continue
        assert block.reason, f'only python commands run here, not {program}'
        if program == 'make':
            assert re.search(rf'^{args[0]}:', (REPO / 'Makefile').read_text(), re.MULTILINE)
        elif program.endswith('.sh'):
            assert os.access(REPO / program, os.X_OK), program
        else:
            assert program.rpartition('/')[2] in ('pip', 'ruff', 'mypy', 'git'), program


class Parsed(Exception):
    """The parser has accepted the arguments."""


def run_python(args: list[str], monkeypatch, parse_only: bool) -> None:
    """Runs a script or a module in this process, or only its argument parser."""
    target, *rest = args if args[0] != '-m' else args[1:]
    if target == 'pytest':
        return
    path = REPO / target
    if args[0] == '-m' and parse_only:
        assert find_spec(target)
        return
    with monkeypatch.context() as patch:
        patch.setattr(sys, 'argv', [target, *rest])
        if parse_only:
            patch.setattr(argparse.ArgumentParser, 'parse_args', parse_and_stop)
        # The script's own folder comes first on the path, as if it were started.
        patch.syspath_prepend(str(path.parent))
        try:
            if args[0] == '-m':
                runpy.run_module(target, run_name='__main__')
            else:
                runpy.run_path(str(path), run_name='__main__')
        except Parsed:
            return
    assert not parse_only, f'{target} has no arguments to parse'


PARSE = argparse.ArgumentParser.parse_args


def parse_and_stop(parser: argparse.ArgumentParser, *args) -> None:
    PARSE(parser, *args)
    raise Parsed


# After the commands: Python reads what they have written.
@pytest.mark.parametrize('block', [b for b in BLOCKS if b.language == 'python'], ids=ids)
def test_python(block, workspace, namespaces, monkeypatch):
    code = compile(block.code, ids(block), 'exec')
    monkeypatch.chdir(workspace)
    if block.reason:
        return
    if block.base is None:
        names = namespaces.setdefault(block.page, {})
        exec(code, names)
        check_comments(block.code, names)
    else:
        check_config(block)


@pytest.mark.parametrize('page', LINKING, ids=lambda page: str(page.relative_to(REPO)))
def test_links_have_targets(page):
    text = re.sub(r'^```.*?^```$', '', page.read_text(encoding='utf-8'), flags=re.M | re.DOTALL)
    for target in re.findall(r'\]\(([^)\s]+)\)', text):
        if '://' in target:
            continue
        file, _, anchor = target.partition('#')
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), target
        if anchor:
            headings = re.findall(r'^#+ (.*)$', path.read_text(encoding='utf-8'), re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, target


def slug(heading: str) -> str:
    """GitHub's anchor of a heading."""
    return re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')


def test_the_readme_is_short():
    assert len((REPO / 'README.md').read_text(encoding='utf-8').splitlines()) <= 150
