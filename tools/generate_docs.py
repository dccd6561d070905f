"""Writes the pages of docs/ that are made from the code: docs/api.md and docs/weights.md.

python tools/generate_docs.py

Run it after a change of a public docstring or signature, or of the list of published weights.
"""

from __future__ import annotations
import __future__

import argparse
import ast
import inspect
import re
from pathlib import Path
from types import ModuleType

import check_environment  # noqa: F401

import convnext_backbone
from convnext_backbone import PublishedWeights, data, engine, extraction, list_pretrained
from convnext_backbone.arch import ARCHS
from convnext_backbone.models import base, deployed

DOCS = Path(__file__).parents[1] / 'docs'
NOTICE = '<!-- Written by tools/generate_docs.py: change the code, not this page. -->'


def only_in(module: ModuleType) -> list[str]:
    """The names of a module that the package itself does not export."""
    return [name for name in module.__all__ if name not in convnext_backbone.__all__]


SECTIONS = (
    ('convnext_backbone', convnext_backbone, convnext_backbone.__all__),
    ('convnext_backbone.models.base', base, ['ConvNextBase']),
    ('convnext_backbone.models.deployed', deployed, ['DeployedBackbone']),
    ('convnext_backbone.extraction', extraction, only_in(extraction)),
    ('convnext_backbone.engine', engine, only_in(engine)),
    ('convnext_backbone.data', data, data.__all__),
)
# Their modules need frameworks that need not be installed here: they run without their imports.
INTEGRATIONS = sorted((Path(convnext_backbone.__file__).parent / 'integrations').glob('[!_]*.py'))
# The headings that Google's style has in docstrings.
HEADINGS = ('Args', 'Attributes', 'Returns', 'Yields', 'Raises', 'Shape', 'Example')
# The methods that are documented, of the classes that define them.
METHODS = ('forward', 'deploy', 'from_config', 'extract', 'prepare', 'output_shape')


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
    for path in INTEGRATIONS:
        parts.append(f'## `convnext_backbone.integrations.{path.stem}`')
        parts += document_source(path)
    return '\n\n'.join(parts) + '\n'


def document(name: str, entry: object) -> list[str]:
    """The parts of the page for a class or a function: heading, signature, docstring, methods."""
    parts = [f'### `{name}`', f'```text\n{name}{signature(entry)}\n```']
    parts += to_markdown(inspect.getdoc(entry) or '')
    if inspect.isclass(entry):
        for method_name in METHODS:
            if method_name in vars(entry) and vars(entry)[method_name].__doc__:
                method = getattr(entry, method_name)
                parts.append(f'```text\n{method_name}{signature(method)}\n```')
                parts += to_markdown(inspect.getdoc(method))
    return parts


class WithoutFramework(ast.NodeTransformer):
    """Removes imports, and base classes and decorators that come from them."""

    def visit_Import(self, node: ast.Import | ast.ImportFrom) -> None:
        return None

    visit_ImportFrom = visit_Import

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        node.bases = [base for base in node.bases if hasattr(convnext_backbone, ast.unparse(base))]
        return self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.decorator_list = [d for d in node.decorator_list if ast.unparse(d) == 'property']
        return node


def document_source(path: Path) -> list[str]:
    """The same parts for a whole module whose imports may fail."""
    tree = WithoutFramework().visit(ast.parse(path.read_text(encoding='utf-8')))
    code = compile(tree, path, 'exec', flags=__future__.annotations.compiler_flag)
    names = dict(vars(convnext_backbone), __name__=path.stem)
    exec(code, names)
    parts = [plain_code(ast.get_docstring(tree) or '')]
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith('_'):
            parts += document(node.name, names[node.name])
    return parts


def signature(entry: object) -> str:
    """The signature, one argument a line if it is long."""
    found = inspect.signature(entry)
    parameters = [p for name, p in found.parameters.items() if name != 'self']
    returns = '' if found.return_annotation in ('None', found.empty) else found.return_annotation
    # Annotations are strings, which print in quotes.
    quoted = r": (?:ForwardRef\()?'([^']*)'\)?"
    lines = [re.sub(quoted, r': \1', str(part)) for part in star_before(parameters)]
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
        if heading in ('Returns:', 'Yields:', 'Shape:'):
            parts.append(inspect.cleandoc(body))
        elif heading == 'Example:':
            parts.append(f'```text\n{inspect.cleandoc(body)}\n```')
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
