"""Shows the contents of a ConvNeXt checkpoint, converts its keys, or lists published weights.

python tools/model_converters/checkpoint.py inspect FILE
python tools/model_converters/checkpoint.py convert FILE OUT --to {hf,meta,timm} [--force]
python tools/model_converters/checkpoint.py list [ARCH]

FILE is anything that init_cfg accepts: a file, a Hugging Face folder, an http(s):// or hf://
address. OUT is a safetensors file if it ends in .safetensors, a torch file if it ends in .pth, .pt
or .bin.
"""

from __future__ import annotations

import argparse
import io
from collections import Counter
from pathlib import Path

import check_environment  # noqa: F401
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from convnext_backbone.checkpoint import (
    Translation,
    export,
    list_pretrained,
    other_arguments,
    read_arch,
    read_checkpoint,
    translate,
)
from convnext_backbone.checkpoint.formats import FORMATS, MAP_NORMS, WRITABLE
from convnext_backbone.checkpoint.names import Name, listed, parse_native
from convnext_backbone.command_line import check_file, usage_errors, whole_file

KINDS = (
    'tensors of the stages',
    'tensors of the stem',
    'norms of feature maps',
    'final norm',
    'head',
)

SUFFIXES = ('.safetensors', '.pth', '.pt', '.bin')

# Brackets in paths and values are not markup.
console = Console(markup=False, soft_wrap=True)


def inspect(file: str) -> None:
    """Prints the format, architecture, tensors, dtypes and size of a checkpoint in a table."""
    with console.status(f'reading {file}'):
        checkpoint = read_checkpoint(file)
    found = translate(checkpoint)
    arch = read_arch(found.tensors)
    table = Table(show_header=False, title=str(file))
    table.add_row('format', f'{found.format}: {FORMATS[found.format].title}')
    table.add_row('container', checkpoint.container)
    table.add_row('prefix', repr(found.prefix))
    table.add_row('architecture', str(arch))
    arguments = arch.arguments | other_arguments(checkpoint.config, arch)
    table.add_row('arguments', written(arguments))
    table.add_section()
    for row in count_tensors(found).items():
        table.add_row(*row)
    table.add_section()
    tensors = found.tensors.values()
    dtypes = Counter(str(tensor.dtype).removeprefix('torch.') for tensor in tensors)
    table.add_row('dtype', ', '.join(dtypes))
    table.add_row('parameters', f'{sum(tensor.numel() for tensor in tensors) / 1e6:.2f} M')
    table.add_row('size', f'{sum(tensor.nbytes for tensor in tensors) / 2**20:.2f} MiB')
    console.print(table)


def written(arguments: dict) -> str:
    """Writes arguments as in a call."""
    return ', '.join(f'{name}={value!r}' for name, value in arguments.items())


def count_tensors(found: Translation) -> dict[str, str]:
    """Counts the tensors of each kind and names the unexpected ones."""
    kinds = Counter(kind_of(parse_native(name)) for name in found.tensors)
    rows = {kind: str(kinds[kind]) for kind in KINDS}
    reasons = Counter(found.ignored.values())
    rows['ignored'] = ', '.join(f'{count} {reason}' for reason, count in reasons.items())
    rows['additional layers'] = ', '.join(found.additional)
    rows['unexpected'] = ', '.join(found.unexpected)
    return {kind: row or '0' for kind, row in rows.items()}


def kind_of(name: Name) -> str:
    """Returns which of ``KINDS`` a tensor belongs to."""
    stages, stem, map_norms, final_norm, head = KINDS
    if name.part in MAP_NORMS:
        return map_norms
    others = {'final_norm': final_norm, 'head': head}
    return others.get(name.part, stem if name.stage is None else stages)


def convert(file: str, out: Path, to: str, force: bool) -> None:
    """Writes a checkpoint's ConvNeXt tensors with the keys of another format.

    Raises:
        ValueError: If the checkpoint cannot be read or has layers that no ConvNeXt has, if ``out``
            has another suffix than ``SUFFIXES``, or if it is the checkpoint itself.
        FileExistsError: If ``out`` exists and ``force`` is not set.
        FileNotFoundError: If the checkpoint or the folder of ``out`` does not exist.
        OSError: If ``out`` cannot be written.
    """
    check_file(out)
    if out.suffix not in SUFFIXES:
        raise ValueError(f'{out} must end in {", ".join(SUFFIXES)}: the suffix tells the file type')
    if not out.parent.is_dir():
        raise FileNotFoundError(f'no such folder: {out.parent}')
    if out.exists() and out.resolve() == Path(file).resolve():
        raise ValueError(f'{out} is the input file: choose another output')
    if out.exists() and not force:
        raise FileExistsError(f'{out} exists: choose another output, or overwrite it with --force')
    with console.status(f'reading {file}'):
        checkpoint = read_checkpoint(file)
        found = translate(checkpoint)
    if found.additional:
        raise ValueError(
            f'{file} has layers that {to} does not have keys for and that may change the output: '
            f'{listed(found.additional)}. Merge them into the weights first'
        )
    exported, left = export(found.tensors, to)
    # A view would be saved with its whole storage.
    layout = torch.contiguous_format
    tensors = {name: tensor.clone(memory_format=layout) for name, tensor in exported.items()}
    with console.status(f'writing {out}'), whole_file(out) as part:
        save(tensors, part)
    console.print(f'{len(tensors)} tensors of {file} ({found.format}) written to {out} ({to})')
    others = other_arguments(checkpoint.config, read_arch(found.tensors))
    if others:
        console.print(f'Build the model with {written(others)}: only the config.json says so')
    left += [*found.ignored, *found.unexpected]
    if left:
        console.print(f'{len(left)} not written, {to} does not have keys for: {listed(left)}')


def save(tensors: dict[str, Tensor], out: Path) -> None:
    """Writes a state dict with safetensors or torch, depending on the suffix.

    Raises:
        OSError: If the disk is full; torch and safetensors have other errors for this.
    """
    if out.suffix == '.safetensors':
        from safetensors.torch import save as to_bytes

        out.write_bytes(to_bytes(tensors, metadata={'format': 'pt'}))
    else:
        buffer = io.BytesIO()
        torch.save(tensors, buffer)
        out.write_bytes(buffer.getbuffer())


def list_weights(arch: str | None) -> None:
    """Prints the published weights of one architecture, or of all: facts, then what to paste.

    Raises:
        ValueError: If there is no architecture of this name.
    """
    console.print("For init_cfg=dict(type='Pretrained', checkpoint=...) of the backbone:")
    for weights in list_pretrained(arch):
        facts = [weights.pretraining, weights.licence]
        if weights.non_commercial:
            facts.append('non-commercial')
        if weights.size:
            facts.append(f'{weights.size} px')
        if weights.top1:
            facts.append(f'top-1 {weights.top1} at {weights.top1_size} px')
        facts += [weights.note] if weights.note else []
        facts += [] if weights.tried else ['not tried']
        console.print(f'{weights.arch}, {weights.source}: {"; ".join(facts)}')
        console.print(f'    {weights.checkpoint}')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest='command', required=True)
    inspecting = commands.add_parser('inspect', help='print the contents of a checkpoint')
    inspecting.add_argument('file', help='checkpoint: file, folder or address')
    converting = commands.add_parser('convert', help='convert a checkpoint to another format')
    converting.add_argument('file', help='checkpoint: file, folder or address')
    converting.add_argument('out', type=Path, help='output file, .safetensors or .pth')
    converting.add_argument('--force', action='store_true', help='overwrite an existing file')
    converting.add_argument('--to', required=True, choices=WRITABLE, help='output format')
    listing = commands.add_parser('list', help='list published weights')
    listing.add_argument('arch', nargs='?', help='architecture, such as tiny (default: all)')
    args = vars(parser.parse_args())
    with usage_errors(parser):
        {'inspect': inspect, 'convert': convert, 'list': list_weights}[args.pop('command')](**args)


if __name__ == '__main__':
    main()
