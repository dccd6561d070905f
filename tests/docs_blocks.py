"""Finds the code blocks of Markdown pages, and prepares the folder that they run in.

A block runs as it stands, in the folder that :func:`make_workspace` makes. A comment on the line
before it changes this:

- ``<!-- test: config -->``: the block is a whole config; its model and optimiser are built.
- ``<!-- test: config over FILE -->``: the same, with ``_base_ = 'FILE'``.
- ``<!-- test: not run, REASON -->``: Python is only compiled. Of shell commands, the script must
  exist, and its parser must accept the arguments.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from helpers import REPO
from mmengine.config import Config

BLOCK = re.compile(
    r'(?:^<!-- test: (?P<directive>[^\n]*?) -->\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```$',
    re.MULTILINE | re.DOTALL,
)
DETECTOR = 'configs/demo/mask-rcnn_convnext-atto_fpn_shapes.py'
SEGMENTOR = 'configs/demo/upernet_convnext-atto_shapes.py'
LANGUAGES = ('bash', 'json', 'python', 'text')


@dataclass(frozen=True)
class Block:
    """A code block: its page, line, language, code, and the directive before it."""

    page: str
    line: int
    language: str
    code: str
    directive: str

    @property
    def reason(self) -> str:
        """Why the block does not run, or nothing."""
        kind, _, reason = self.directive.partition(', ')
        return reason if kind == 'not run' else ''

    @property
    def base(self) -> str | None:
        """The base of a config; empty if the block has its own; None for other blocks."""
        match = re.fullmatch(r'config(?: over (\S+))?', self.directive)
        return (match[1] or '') if match else None


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding='utf-8')
    return [
        Block(
            page=str(page.relative_to(REPO)),
            line=text[: match.start('code')].count('\n') + 1,
            language=match['language'],
            code=match['code'],
            directive=match['directive'] or '',
        )
        for match in BLOCK.finditer(text)
    ]


def make_workspace(folder: Path) -> None:
    """Writes the files that the pages name: small ones, with random weights."""
    import mmcv
    import numpy as np
    from mmdet.registry import MODELS as DETECTORS
    from mmdet.utils import register_all_modules as use_mmdet
    from mmseg.registry import MODELS as SEGMENTORS
    from mmseg.utils import register_all_modules as use_mmseg

    from convnext_backbone import ConvNextForImageClassification

    (folder / 'configs').symlink_to(REPO / 'configs')
    pixels = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    mmcv.imwrite(pixels, str(folder / 'image.jpg'))
    for arch, name in (('atto', 'convnext.pth'), ('tiny', 'convnext_tiny_1k_224_ema.pth')):
        state_dict = ConvNextForImageClassification(arch).state_dict()
        torch.save(dict(model=state_dict), folder / name)

    classes = ('circle', 'square', 'triangle')
    use_mmdet()
    detector = DETECTORS.build(Config.fromfile(REPO / DETECTOR).model)
    (folder / 'my_config.py').write_text(f'_base_ = {DETECTOR!r}')
    save(detector, folder / 'work_dirs/my_config/best_coco_segm_mAP_epoch_36.pth', classes)
    use_mmseg()
    segmentor = SEGMENTORS.build(Config.fromfile(REPO / SEGMENTOR).model)
    (folder / 'my_segmentor.py').write_text(f'_base_ = {SEGMENTOR!r}')
    save(segmentor, folder / 'my_segmentor.pth', ('background', *classes))
    use_mmdet()


def save(model: torch.nn.Module, path: Path, classes: tuple[str, ...]) -> None:
    """Writes a checkpoint as mmengine's runner does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    palette = [[60 * i, 200 - 60 * i, 90] for i in range(len(classes))]
    meta = dict(dataset_meta=dict(classes=classes, palette=palette))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), path)
