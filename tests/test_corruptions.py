"""Damaged checkpoints of every format, in every container, through every way to load them.

Each case ends as loaded-and-equal, where the model gives the maps of the undamaged checkpoint, or
as refused-and-unchanged, where every tensor of the model keeps its bits. Damage that no reader can
see is left out: other values of the right shape, whole norms of feature maps, bytes of weights.
"""

from __future__ import annotations

import json
import pickletools
import random
import zipfile
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from checkpoint_files import CASES, WITH_MAP_NORMS, make_reference, noise, write
from helpers import randomize, same_tensors, small_backbone
from mmengine.model import BaseModule
from mmengine.runner import load_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from convnext_backbone import ConvNextBackbone, load_checkpoint

IMAGES = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(3))
Tensors = dict[str, Tensor]


# ---- What is loaded: a checkpoint of one source, and the maps that it must give.


@cache
def reference(name: str, version: int) -> tuple[Tensors, list[Tensor]]:
    """The tensors and the feature maps of transformers' model."""
    model = make_reference(version, map_norms=name in WITH_MAP_NORMS)
    with torch.no_grad():
        return model.state_dict(), list(model(IMAGES).feature_maps)


def undamaged(name: str, version: int) -> Tensors:
    return write(name, reference(name, version)[0])


@cache
def backbone_names(name: str, version: int) -> list[str]:
    """The names whose tensors depend on those of the backbone: all but heads, necks, decoders."""
    hf = reference(name, version)[0]
    shifted = write(name, {key: tensor + 1 for key, tensor in hf.items()})
    return [key for key, t in write(name, hf).items() if not torch.equal(t, shifted[key])]


# ---- Ways to load.


class Detector(BaseModule):
    """A larger model; its neck and head have weights in the checkpoint too."""

    def __init__(self, backbone: nn.Module, head_first: bool) -> None:
        super().__init__()
        if head_first:
            self.bbox_head = nn.Linear(8, 4)
        self.backbone = backbone
        if not head_first:
            self.bbox_head = nn.Linear(8, 4)


def by_function(model: ConvNextBackbone, source: object) -> None:
    load_checkpoint(model, source)


def by_init_cfg(model: ConvNextBackbone, source: object) -> None:
    model.init_cfg = dict(type='Pretrained', checkpoint=source)
    model._is_init = False
    model.init_weights()


def by_state_dict(model: ConvNextBackbone, source: dict) -> None:
    model.load_state_dict(source, strict=False)


def by_detector(model: ConvNextBackbone, source: dict, head_first: bool = False) -> None:
    in_detector(model, source, head_first, lambda d, s: d.load_state_dict(s, strict=False))


def by_detector_with_its_head_first(model: ConvNextBackbone, source: dict) -> None:
    by_detector(model, source, head_first=True)


def by_load_from(model: ConvNextBackbone, source: dict) -> None:
    in_detector(model, source, False, load_state_dict)


def in_detector(model: nn.Module, source: dict, head_first: bool, load: Callable) -> None:
    """Loads a whole detector; if that is refused, its head must be unchanged too."""
    detector = Detector(model, head_first)
    before = {key: t.clone() for key, t in detector.bbox_head.state_dict().items()}
    if 'backbone.downsample_layers.1.1.bias' not in source:
        source = {f'backbone.{key}': value for key, value in source.items()}
    try:
        load(detector, source | {'bbox_head.weight': noise(4, 8)})
    except ValueError as error:
        if not same_tensors(before, detector.bbox_head.state_dict()):
            raise AssertionError('refused, but the head is loaded') from error
        raise


FILE_DOORS = (by_function, by_init_cfg)
DICT_DOORS = (
    *(by_function, by_init_cfg, by_state_dict),
    *(by_detector, by_detector_with_its_head_first, by_load_from),
)
DETECTOR_DOORS = DICT_DOORS[3:]


class Start:
    """Models with random weights, which a refused checkpoint must leave as they are."""

    def __init__(self) -> None:
        self.models: dict[tuple[int, bool], tuple[ConvNextBackbone, Tensors]] = {}

    def model(self, version: int, map_norms: bool) -> tuple[ConvNextBackbone, Tensors]:
        """A model and its weights. Without norms in the checkpoint, those of a new model stay."""
        if (version, map_norms) not in self.models:
            model = randomize(small_backbone(use_grn=version == 2), seed=11)
            if not map_norms:
                for norm in model.hidden_states_norms.values():
                    nn.init.ones_(norm.weight)
                    nn.init.zeros_(norm.bias)
            weights = {key: tensor.clone() for key, tensor in model.state_dict().items()}
            self.models[version, map_norms] = model, weights
        model, weights = self.models[version, map_norms]
        with torch.no_grad():
            for key, tensor in model.state_dict().items():
                tensor.copy_(weights[key])
        return model, weights


start = Start()


def end(load: Callable, source: object, name: str, version: int) -> str:
    """Loads a damaged checkpoint; returns 'loaded', 'refused', or how it ends otherwise."""
    model, before = start.model(version, name in WITH_MAP_NORMS)
    try:
        load(model, source)
    except (ValueError, FileNotFoundError):
        return 'refused' if same_tensors(before, model.state_dict()) else 'refused, but changed'
    except Exception as error:
        return f'{type(error).__name__}: {error}'
    with torch.no_grad():
        maps = model(IMAGES)
    pairs = zip(maps, reference(name, version)[1], strict=True)
    if all(torch.allclose(ours, theirs, atol=1e-4, rtol=1e-4) for ours, theirs in pairs):
        return 'loaded'
    return 'loaded with other maps'


class Tally:
    """Counts how cases end and remembers those that end as they must not."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []

    def add(self, case: str, ending: str, allowed: tuple[str, ...] = ('loaded', 'refused')) -> None:
        self.counts[ending] += 1
        if ending not in allowed:
            self.faults.append(f'{case}: {ending}')

    def check(self, record_property: Callable) -> None:
        for ending in ('loaded', 'refused'):
            record_property(ending, self.counts[ending])
        assert not self.faults, '\n'.join([f'{len(self.faults)} faults', *self.faults])


# ---- Containers.


def write_zip(content: dict, folder: Path) -> Path:
    torch.save(content, folder / 'weights.pth')
    return folder / 'weights.pth'


def write_legacy(content: dict, folder: Path) -> Path:
    torch.save(content, folder / 'old.pth', _use_new_zipfile_serialization=False)
    return folder / 'old.pth'


def write_nested(content: dict, folder: Path) -> Path:
    return write_zip(nest(content, len(content)), folder)


def write_safetensors(content: dict, folder: Path) -> Path:
    path = folder / 'model.safetensors'
    save_file({key: tensor.clone().contiguous() for key, tensor in content.items()}, path)
    return path


def write_bin(content: dict, folder: Path) -> Path:
    torch.save(content, folder / 'pytorch_model.bin')
    return folder


def write_shards(content: dict, folder: Path) -> Path:
    """A folder with an index and three files, as Hugging Face writes large models."""
    names = sorted(content)
    shard_of = {key: f'model-{i * 3 // len(names) + 1}.safetensors' for i, key in enumerate(names)}
    for shard in set(shard_of.values()):
        part = {key: content[key].clone().contiguous() for key in names if shard_of[key] == shard}
        save_file(part, folder / shard)
    write_index(folder, shard_of)
    return folder


def write_index(folder: Path, shard_of: object) -> None:
    (folder / 'model.safetensors.index.json').write_text(json.dumps(dict(weight_map=shard_of)))


def keep_dict(content: dict, folder: Path) -> dict:
    return content


def nest(content: dict, number: int) -> dict:
    """A training checkpoint around the weights."""
    keys = [('state_dict',), ('model',), ('model_ema',), ('model', 'state_dict'), ('teacher',)]
    for key in reversed(keys[number % len(keys)]):
        content = {key: content, 'epoch': 3}
    return content


TORCH_CONTAINERS = (keep_dict, write_zip, write_legacy, write_nested, write_bin)
CONTAINERS = (*TORCH_CONTAINERS, write_safetensors, write_shards)


# ---- Damage to tensors: none of it is a checkpoint of the model any more.


def remove(rng, content, key):
    del content[key]


def typo(rng, content, key):
    i = rng.choice([i for i, letter in enumerate(key) if letter.isalpha()])
    content[key[:i] + rng.choice([x for x in 'qxz' if x != key[i]]) + key[i + 1 :]] = content.pop(
        key
    )


def drop_letter(rng, content, key):
    i = rng.choice([i for i, letter in enumerate(key) if letter.isalpha()])
    content[key[:i] + key[i + 1 :]] = content.pop(key)


def duplicate(rng, content, key):
    places = (f'module.{key}', f'{key}_copy', f'{key}.weight', f'old.{key}', f'backbone.{key}')
    content[rng.choice(places)] = content[key] + 1


def transpose(rng, content, key):
    shape = content[key].shape
    turns = [
        (a, b)
        for a in range(len(shape))
        for b in range(a)
        if shape[a] != shape[b] and min(shape[a], shape[b]) > 1
    ]
    if turns:
        content[key] = content[key].transpose(*rng.choice(turns)).contiguous()
    else:
        content[key] = torch.stack([content[key]] * 2)


def narrow(rng, content, key):
    axis = rng.choice([a for a, size in enumerate(content[key].shape) if size > 1])
    content[key] = content[key].narrow(axis, 0, rng.randrange(1, content[key].shape[axis])).clone()


def widen(rng, content, key):
    axis = rng.choice([a for a, size in enumerate(content[key].shape) if size > 1])
    content[key] = torch.cat([content[key]] * 2, axis)


def integers(rng, content, key):
    dtype = rng.choice((torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool))
    content[key] = content[key].to(dtype)


def swap(rng, content, key):
    size = content[key].numel()
    others = [k for k, t in content.items() if t.numel() != size]
    other = rng.choice(others)
    content[key], content[other] = content[other], content[key]


def empty(rng, content, key):
    content[key] = content[key].new_zeros(rng.choice(((0,), (0, 3), (8, 0))))


def scalar(rng, content, key):
    content[key] = torch.tensor(rng.random())


def move_some(rng, content, key):
    """Another key prefix for a part of the tensors."""
    prefix = rng.choice(('module.', 'old.', 'teacher.', 'student.', 'model_ema.', 'backbone.'))
    for name in {key, *(k for k in list(content) if rng.random() < 0.3)}:
        content[prefix + name] = content.pop(name)


# Only torch's own files and dicts can hold these.


def sparse(rng, content, key):
    content[key] = content[key].to_sparse()


def without_values(rng, content, key):
    content[key] = content[key].to('meta')


def complex_values(rng, content, key):
    content[key] = content[key].to(torch.complex64)


def no_tensor(rng, content, key):
    values = (None, 'a text', 3, 0.5, [1.0, 2.0], content[key].numpy(), {'weight': content[key]})
    content[key] = rng.choice(values)


def number_as_name(rng, content, key):
    content[rng.randrange(99)] = content.pop(key)


ANYWHERE = (
    *(remove, typo, drop_letter, duplicate, transpose, narrow, widen, integers, swap, empty),
    *(scalar, move_some),
)
ONLY_IN_TORCH = (sparse, without_values, complex_values, no_tensor, number_as_name)
ACCEPTABLE = (duplicate,)


# Damage to the architecture, before the tensors get the names of a source.


def drop_block(rng, hf):
    i = rng.choice((0, 2))
    forget(hf, f'encoder.stages.{i}.layers.{rng.randrange((2, 1, 3, 1)[i])}.')


def add_block(rng, hf):
    i = rng.randrange(4)
    first, new = (f'encoder.stages.{i}.layers.{j}.' for j in (0, (2, 1, 3, 1)[i]))
    hf |= {key.replace(first, new): hf[key] for key in list(hf) if key.startswith(first)}


def drop_stage(rng, hf):
    forget(hf, f'encoder.stages.{rng.randrange(4)}.')


def drop_stem(rng, hf):
    forget(hf, 'embeddings.')


def drop_downsampling(rng, hf):
    forget(hf, f'encoder.stages.{rng.randrange(1, 4)}.downsampling_layer.')


def forget(tensors: dict, prefix: str) -> None:
    for key in [key for key in tensors if key.startswith(prefix)]:
        del tensors[key]


ARCHITECTURE = (drop_block, add_block, drop_stage, drop_stem, drop_downsampling)


def damaged_tensors(name: str, version: int, kind: Callable, rng: random.Random) -> dict:
    if kind in ARCHITECTURE:
        hf = dict(reference(name, version)[0])
        kind(rng, hf)
        return write(name, hf)
    content = undamaged(name, version)
    kind(rng, content, rng.choice(backbone_names(name, version)))
    return content


def doors(container: Callable, name: str, kind: Callable) -> tuple[Callable, ...]:
    if container is not keep_dict:
        return FILE_DOORS
    allowed = DICT_DOORS
    if name.startswith('mmpretrain') or kind is number_as_name:
        # Only the backbone's names are visible in a larger model, and its norm3 could be the norm
        # of a map. torch itself does not take numbers as names.
        allowed = tuple(door for door in allowed if door not in DETECTOR_DOORS)
    return tuple(door for door in allowed if door is not by_init_cfg)


@pytest.mark.parametrize(('name', 'version'), CASES[::2])
def test_undamaged_checkpoints_load(name, version, tmp_path):
    """Otherwise the refusals below would prove nothing."""
    for container in CONTAINERS:
        folder = tmp_path / container.__name__
        folder.mkdir()
        source = container(undamaged(name, version), folder)
        loads = doors(container, name, remove)
        for load in loads if container is keep_dict else loads[:1]:
            ending = end(load, source, name, version)
            assert ending == 'loaded', (container.__name__, load.__name__)


@pytest.mark.parametrize(('name', 'version'), CASES[::2])
def test_damaged_tensors_are_refused(name, version, tmp_path, record_property):
    first = CASES.index((name, version))
    tally = Tally()
    for number, kind in enumerate((*ANYWHERE, *ONLY_IN_TORCH, *ARCHITECTURE)):
        containers = TORCH_CONTAINERS if kind in ONLY_IN_TORCH else CONTAINERS
        in_a_file = containers[(first + number) % len(containers)]
        for container in (in_a_file, keep_dict)[(first + number) % 2 :]:
            folder = tmp_path / f'{number}{container.__name__}'
            folder.mkdir(exist_ok=True)
            case = f'{name}, version {version}, {kind.__name__}, {container.__name__}'
            rng = random.Random(case)
            source = container(damaged_tensors(name, version, kind, rng), folder)
            load = rng.choice(doors(container, name, kind))
            allowed = ('loaded', 'refused') if kind in ACCEPTABLE else ('refused',)
            tally.add(f'{case}, {load.__name__}', end(load, source, name, version), allowed)
    tally.check(record_property)


def nan_values(rng, content, key):
    content[key] = content[key].clone(memory_format=torch.contiguous_format)
    content[key].view(-1)[rng.randrange(content[key].numel())] = rng.choice(
        (float('nan'), float('inf'), float('-inf'))
    )


def strictly(model: ConvNextBackbone, source: object) -> None:
    load_checkpoint(model, source, strict=True)


@pytest.mark.parametrize(('name', 'version'), CASES[::3])
def test_values_that_are_not_finite_are_refused_if_strict(name, version, tmp_path, record_property):
    tally = Tally()
    tally.add('undamaged', end(strictly, undamaged(name, version), name, version), ('loaded',))
    for container in (keep_dict, write_zip, write_safetensors):
        case = f'{name}, version {version}, {container.__name__}'
        content = damaged_tensors(name, version, nan_values, random.Random(case))
        source = container(content, tmp_path)
        tally.add(case, end(strictly, source, name, version), ('refused',))
    tally.check(record_property)


def half_a_teacher(rng: random.Random, name: str, version: int) -> dict:
    """A student, and a teacher that has lost between one and most of its tensors."""
    teacher = undamaged(name, version)
    names = backbone_names(name, version)
    student = {key: tensor + 1 if key in names else tensor for key, tensor in teacher.items()}
    for key in rng.sample(names, rng.choice((1, len(names) // 3, 2 * len(names) // 3))):
        del teacher[key]
    if rng.random() < 0.5:
        return dict(teacher=teacher, student=student)
    return {
        f'{who}.{key}': tensor
        for who, tensors in (('teacher', teacher), ('student', student))
        for key, tensor in tensors.items()
    }


@pytest.mark.parametrize(('name', 'version'), CASES[::3])
def test_a_damaged_teacher_beside_a_student_is_refused(name, version, tmp_path, record_property):
    tally = Tally()
    for number in range(4):
        case = f'{name}, version {version}, half_a_teacher, {number}'
        source = half_a_teacher(random.Random(case), name, version)
        if number % 2:
            source = write_zip(source, tmp_path)
        tally.add(case, end(by_function, source, name, version), ('refused',))
    tally.check(record_property)


# ---- Damage to files.


def structure(path: Path) -> list[int]:
    """The positions of all bytes that are not weights."""
    with path.open('rb') as file:
        if path.suffix == '.safetensors':
            return list(range(8 + int.from_bytes(file.read(8), 'little')))
        if not zipfile.is_zipfile(path):
            for _ in range(5):
                list(pickletools.genops(file))
            return list(range(file.tell()))
    with zipfile.ZipFile(path) as archive:
        pickled = archive.getinfo(next(n for n in archive.namelist() if n.endswith('data.pkl')))
        return [
            *range(pickled.header_offset, pickled.header_offset + 100 + pickled.file_size),
            *range(archive.start_dir, path.stat().st_size),
        ]


def truncate(rng, path):
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def flip(rng, path):
    content = bytearray(path.read_bytes())
    for place in rng.sample(structure(path), rng.randint(1, 3)):
        content[place] ^= rng.randrange(1, 256)
    path.write_bytes(content)


def insert(rng, path):
    content, place = path.read_bytes(), rng.randrange(path.stat().st_size)
    path.write_bytes(content[:place] + rng.randbytes(rng.randint(1, 16)) + content[place:])


def cut_out(rng, path):
    content, place = path.read_bytes(), rng.randrange(path.stat().st_size - 16)
    path.write_bytes(content[:place] + content[place + rng.randint(1, 16) :])


def replace_by_text(rng, path):
    texts = ('<!DOCTYPE html>', '{"error": "not found"}', 'x' * 8 + '{', '', 'PK', 'version 1', ' ')
    path.write_text(rng.choice(texts))


def replace_by_noise(rng, path):
    path.write_bytes(rng.choice((b'', b'PK\x03\x04', b'\x80\x02')) + rng.randbytes(99))


FILE_DAMAGE = (truncate, flip, insert, cut_out, replace_by_text, replace_by_noise)
FILES = (write_zip, write_legacy, write_nested, write_bin, write_safetensors, write_shards)


@pytest.mark.parametrize('container', FILES)
@pytest.mark.parametrize('damage', FILE_DAMAGE)
def test_damaged_files(container, damage, tmp_path, record_property):
    tally = Tally()
    for number, (name, version) in enumerate(CASES[FILE_DAMAGE.index(damage) % 2 :: 2]):
        folder = tmp_path / str(number)
        folder.mkdir()
        case = f'{name}, version {version}, {container.__name__}, {damage.__name__}, {number}'
        rng = random.Random(case)
        source = container(undamaged(name, version), folder)
        damage(rng, rng.choice(sorted(p for p in folder.iterdir() if p.suffix != '.json')))
        load = FILE_DOORS[number % 2]
        tally.add(f'{case}, {load.__name__}', end(load, source, name, version))
    tally.check(record_property)


# ---- Damage to the index of a folder with several files.


def lose_a_shard(rng, folder, shard_of):
    (folder / rng.choice(sorted(set(shard_of.values())))).unlink()


def list_an_absent_tensor(rng, folder, shard_of):
    shard_of['encoder.ghost'] = 'model-1.safetensors'


def list_an_absent_shard(rng, folder, shard_of):
    shard_of[rng.choice(sorted(shard_of))] = rng.choice(('gone.safetensors', '../gone', '/gone'))


def list_no_file(rng, folder, shard_of):
    shard_of[rng.choice(sorted(shard_of))] = rng.choice((3, None, '', '.', ['a'], {}, True))


def forget_a_shard(rng, folder, shard_of):
    lost = rng.choice(sorted(set(shard_of.values())))
    for key in [key for key, shard in shard_of.items() if shard == lost]:
        del shard_of[key]


def leave_the_folder(rng, folder, shard_of):
    """A file outside of the folder."""
    (folder / 'model-1.safetensors').rename(folder.parent / f'{folder.name}.safetensors')
    for key, shard in shard_of.items():
        if shard == 'model-1.safetensors':
            shard_of[key] = f'../{folder.name}.safetensors'


def keep_an_old_copy(rng, folder, shard_of):
    """A tensor with old values in another file than the index says."""
    key = rng.choice(sorted(key for key in shard_of if shard_of[key] == 'model-1.safetensors'))
    path = folder / 'model-3.safetensors'
    stored = load_file(path)
    save_file(stored | {key: load_file(folder / shard_of[key])[key] + 1}, path)


INDEX_DAMAGE = (
    *(lose_a_shard, list_an_absent_tensor, list_an_absent_shard, list_no_file),
    *(forget_a_shard, leave_the_folder, keep_an_old_copy),
)


@pytest.mark.parametrize('damage', INDEX_DAMAGE)
def test_damaged_indices(damage, tmp_path, record_property):
    tally = Tally()
    for number, (name, version) in enumerate(CASES[::3]):
        case = f'{name}, version {version}, {damage.__name__}'
        rng = random.Random(case)
        folder = tmp_path / str(number)
        folder.mkdir()
        write_shards(undamaged(name, version), folder)
        index = folder / 'model.safetensors.index.json'
        shard_of = json.loads(index.read_text())['weight_map']
        damage(rng, folder, shard_of)
        write_index(folder, shard_of)
        tally.add(case, end(FILE_DOORS[number % 2], folder, name, version))
    tally.check(record_property)
