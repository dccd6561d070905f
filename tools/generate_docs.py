"""Writes the pages of docs/ that are made from the code: docs/api.md and docs/weights.md.

python tools/generate_docs.py

Run it after a change of a public docstring or signature, or of the list of published weights.
"""

from __future__ import annotations

import argparse
import inspect
import re
from pathlib import Path

import check_environment  # noqa: F401

import convnext_backbone
from convnext_backbone import PublishedWeights, data, engine, list_pretrained
from convnext_backbone.arch import ARCHS
from convnext_backbone.models import base

DOCS = Path(__file__).parents[1] / 'docs'
NOTICE = '<!-- Written by tools/generate_docs.py: change the code, not this page. -->'

# Names of the engine that the package itself does not export.
ENGINE_ONLY = [name for name in engine.__all__ if name not in convnext_backbone.__all__]
SECTIONS = (
    ('convnext_backbone', convnext_backbone, convnext_backbone.__all__),
    ('convnext_backbone.models.base', base, ['ConvNextBase']),
    ('convnext_backbone.engine', engine, ENGINE_ONLY),
    ('convnext_backbone.data', data, data.__all__),
)
# The headings that Google's style has in docstrings.
HEADINGS = ('Args', 'Attributes', 'Returns', 'Raises', 'Shape')


def api_page() -> str:
    """The API reference: signatures and docstrings of everything public."""
    parts = [
        '# API reference',
        NOTICE,
        'Everything public, with the docstrings of the code. Shapes are PyTorch shapes: N images, '
        'C channels, H rows, W columns.',
    ]
    for title, module, names in SECTIONS:
        parts.append(f'## `{title}`')
        for name in names:
            parts += document(name, getattr(module, name))
    return '\n\n'.join(parts) + '\n'


def document(name: str, entry: object) -> list[str]:
    """The parts of the page for a class or a function: heading, signature, docstring, methods."""
    parts = [f'### `{name}`', f'```text\n{name}{signature(entry)}\n```']
    parts += to_markdown(inspect.getdoc(entry) or '')
    if inspect.isclass(entry):
        forward = vars(entry).get('forward')
        if forward is not None and forward.__doc__:
            parts.append(f'```text\nforward{signature(forward)}\n```')
            parts += to_markdown(inspect.cleandoc(forward.__doc__))
    return parts


def signature(entry: object) -> str:
    """The signature, one argument a line if it is long."""
    found = inspect.signature(entry)
    parameters = [p for name, p in found.parameters.items() if name != 'self']
    returns = '' if found.return_annotation in ('None', found.empty) else found.return_annotation
    # Annotations are strings, which print in quotes.
    lines = [re.sub(r": '([^']*)'", r': \1', str(part)) for part in star_before(parameters)]
    text, end = ', '.join(lines), f') -> {returns}' if returns else ')'
    if len(text) <= 72:
        return f'({text}{end}'
    return '(\n' + ''.join(f'    {line},\n' for line in lines) + end


def star_before(parameters: list[inspect.Parameter]) -> list[object]:
    """The parameters, with ``*`` before the first one that has to be named."""
    kinds = [parameter.kind for parameter in parameters]
    if inspect.Parameter.KEYWORD_ONLY not in kinds or inspect.Parameter.VAR_POSITIONAL in kinds:
        return list(parameters)
    first = kinds.index(inspect.Parameter.KEYWORD_ONLY)
    return [*parameters[:first], '*', *parameters[first:]]


def to_markdown(docstring: str) -> list[str]:
    """A docstring in Google's style as paragraphs and lists."""
    parts = []
    for paragraph in plain_code(docstring).split('\n\n'):
        heading, _, body = paragraph.partition('\n')
        if heading.removesuffix(':') not in HEADINGS:
            parts.append(paragraph)
            continue
        parts.append(f'**{heading.removesuffix(":")}**')
        if heading in ('Returns:', 'Shape:'):
            parts.append(inspect.cleandoc(body))
        else:
            parts.append(to_list(body))
    return parts


def to_list(body: str) -> str:
    """``name: text`` entries, with deeper continuation lines, as a list."""
    items: list[str] = []
    for line in body.splitlines():
        if re.match(r' {4}\S', line):
            name, _, text = line.strip().partition(': ')
            name = ', '.join(f'`{part}`' for part in name.rstrip(':').split(', '))
            items.append(f'- {name}: {text}')
        else:
            items.append(f'  {line.strip()}')
    return '\n'.join(items)


def plain_code(text: str) -> str:
    """Sphinx's roles and double backticks as Markdown's code."""
    text = re.sub(r':\w+:`~?([^`]+)`', r'`\1`', text)
    return text.replace('``', '`')


def weights_page() -> str:
    """The tables of published weights, one for each architecture."""
    parts = [
        '# Published weights',
        NOTICE,
        "The last column is what to write into the backbone's `init_cfg=dict(type='Pretrained', "
        "checkpoint=...)`. `hf://` addresses need `pip install '.[checkpoints]'`. "
        'The same list in the shell and in Python:',
        '```bash\npython tools/model_converters/checkpoint.py list tiny\n```',
        '```python\nfrom convnext_backbone import list_pretrained\n\n'
        "[weights.checkpoint for weights in list_pretrained('v2-tiny') if weights.size == 384]\n"
        '```',
        '- **None of these files was tried**: the machines of this project cannot download them. '
        'What was tested are files with the same names and shapes of tensors, in every one of '
        'these formats. A failure to load is a bug: please report it.\n'
        '- **Top-1** is what the publisher measured on ImageNet-1K, in per cent, at the size in '
        'brackets; for OpenCLIP zero-shot, with its text tower. An empty cell means that no figure '
        'was found. Sources: the READMEs of facebookresearch/ConvNeXt and ConvNeXt-V2, '
        "`results-imagenet.csv` of timm, torchvision's code, LAION's model cards.\n"
        "- **Licences** in bold exclude commercial use. For ConvNeXt V2, Meta's repository says "
        'CC-BY-NC, and so does timm; the cards of the same weights on the hub say Apache-2.0. The '
        'DINOv3 License allows commercial use under its own conditions. All of these are about '
        'the weights; the code of this project is Apache-2.0.\n'
        "- **Size** is the side of the training images; a dash, if nobody publishes it. timm's "
        'variants with an overlapping stem (`_ols`) or other norms (`_rms`) need '
        '[arguments](checkpoints.md#relatives): those in brackets, or for `_rms`, which is not '
        "listed, `norm='simplenorm'`. mmpretrain's files are not listed either: they are "
        "conversions of Meta's.\n"
        "- CLIP-trained weights expect images normalised with CLIP's mean and standard deviation: "
        '`mean=[122.77, 116.75, 104.09], std=[68.50, 66.63, 70.32]`.',
    ]
    for arch in ARCHS:
        rows = [f'## `{arch}`\n', '| pre-training | source | size | top-1 | licence | checkpoint |']
        rows.append('|---' * 6 + '|')
        rows += [weights_row(entry) for entry in list_pretrained(arch)]
        parts.append('\n'.join(rows))
    return '\n\n'.join(parts) + '\n'


def weights_row(entry: PublishedWeights) -> str:
    """One row of the table."""
    licence = f'**{entry.licence}**' if entry.non_commercial else entry.licence
    cells = (
        entry.pretraining,
        entry.source,
        str(entry.size or '-'),
        f'{entry.top1} ({entry.top1_size})' if entry.top1 else '',
        licence,
        f'`{entry.checkpoint}`' + (f' ({entry.note})' if entry.note else ''),
    )
    return f'| {" | ".join(cells)} |'


PAGES = {'api.md': api_page, 'weights.md': weights_page}


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding='utf-8')
        print(f'docs/{name}')


if __name__ == '__main__':
    main()
