"""What a config for own data takes from a shipped one, scaled to the data and the machine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap

from mmengine.config import Config
from own_data.config_text import WIDTH, Code, Setting

from convnext_backbone import PublishedWeights, infer_arch, list_pretrained
from convnext_backbone.arch import ARCHS, Variant, resolve_arch
from convnext_backbone.checkpoint.downloads import parse_hub_address
from convnext_backbone.extraction.preprocessing import NORMALIZATIONS, normalization_of

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'

# Smaller models need less regularisation than the recipes of ConvNeXt-T.
SMALL_MODELS = ('atto', 'femto', 'pico', 'nano')
SMALL_DROP_PATH = 0.1

# Shorter trainings than this number of steps are prolonged, but not to more than these epochs.
MIN_STEPS, MAX_EPOCHS = 3000, 300


@dataclass(frozen=True)
class Recipe:
    """A shipped config, and what it was made for.

    Attributes:
        title: The name of the method.
        config: The file, below ``configs/``.
        images: Number of training images of the dataset that it was made for.
        best: The metric by which the best checkpoint is kept.
        others: Files that fit better for some architectures.
    """

    title: str
    config: str
    images: int
    best: str
    others: tuple[tuple[str, str], ...] = ()

    def path(self, arch: str) -> Path:
        """The file for an architecture."""
        return CONFIGS / dict(self.others).get(arch, self.config)


def base_line(config: Path, out: Path) -> str:
    """How a new config names its base: relative inside of this folder, absolute elsewhere."""
    folder = out.resolve().parent
    if CONFIGS.parent not in (folder, *folder.parents):
        return str(config)
    up = '../' * len(folder.relative_to(CONFIGS.parent).parts)
    return f'{up or "./"}{config.relative_to(CONFIGS.parent)}'


def choose_weights(arch: str, given: str | None, base: Config) -> str | None:
    """The checkpoint to start from: the given one, that of the recipe, or the
    first published one.

    Raises:
        FileNotFoundError: If a given file does not exist.
        ValueError: If it is one of another architecture, or of a relative of ConvNeXt, as far as
            this is known without a download: for files, and for published weights. Also for an
            ``hf://`` address of another form.
    """
    if given == 'none':
        return None
    if given is None:
        backbone = base.model.backbone
        if backbone.arch == arch:
            return backbone.init_cfg.checkpoint
        return list_pretrained(arch)[0].checkpoint
    if given.startswith('hf://'):
        parse_hub_address(given)
    if '://' not in given:
        if not Path(given).exists():
            raise FileNotFoundError(f'no such weights: {given}')
        arguments = infer_arch(given)
        found, wanted = resolve_arch(arguments['arch']), resolve_arch(arch)
        if (found.depths, found.hidden_sizes) != (wanted.depths, wanted.hidden_sizes):
            raise ValueError(f'{given} holds a {found}, not --arch {arch}')
        variant = {key: arguments[key] for key in vars(Variant()) if key in arguments}
        if variant:
            given_arguments = ', '.join(f'{key}={value!r}' for key, value in variant.items())
            raise ValueError(_needs_arguments(given, given_arguments))
    elif published := find_published(given):
        if published.arch != arch:
            raise ValueError(f'{given} is for --arch {published.arch}, not --arch {arch}')
        if published.note.startswith('needs '):
            raise ValueError(_needs_arguments(given, published.note.removeprefix('needs ')))
    return given


def _needs_arguments(weights: str, arguments: str) -> str:
    return (
        f'{weights} needs {arguments} in model.backbone, which no recipe has: write the config '
        'with --weights none, then add these arguments and init_cfg'
    )


def find_published(weights: str) -> PublishedWeights | None:
    """The published weights with this address; for a path, those of which it is a copy by name."""
    name = weights if '://' in weights else Path(weights).name
    for entry in list_pretrained():
        if name in (entry.checkpoint, entry.checkpoint.rpartition('/')[2]):
            return entry
    return None


def describe_weights(weights: str) -> str:
    """Publisher, pre-training, licence and notes of published weights; empty for others."""
    published = find_published(weights)
    if published is None:
        return ''
    terms = ', not for commercial use' if published.non_commercial else ''
    note = f'; {published.note}' if published.note else ''
    return (
        f'{published.source}, pre-trained on {published.pretraining}, {published.licence}{terms}'
        f'{note}'
    )


def header(what: str, weights: str | None) -> str:
    """The comment at the top of a config, with what is known of its weights."""
    description = describe_weights(weights) if weights else ''
    known = f' Weights: {description}.' if description else ''
    text = f'{what} Written by new_config.py.{known}'
    return ''.join(f'# {line}\n' for line in wrap(text, WIDTH - 2, break_on_hyphens=False))


def checkpoint_settings(weights: str | None) -> list[Setting]:
    """The line that names the weights, if there are any."""
    if weights is None:
        return []
    return [Setting('checkpoint', weights)]


def backbone_settings(arch: str, weights: str | None) -> dict:
    """The changes of the backbone."""
    settings: dict = dict(arch=arch)
    if arch.removeprefix('v2-') in SMALL_MODELS:
        settings['drop_path_rate'] = SMALL_DROP_PATH
    settings['init_cfg'] = None
    if weights:
        settings['init_cfg'] = dict(type='Pretrained', checkpoint=Code('checkpoint'))
    return settings


def normalization_settings(weights: str | None) -> dict:
    """The normalisation of images, if the weights were trained with another than ImageNet's."""
    kind = normalization_of(weights or '', prefix='')
    if kind == 'imagenet':
        return {}
    mean, std = ([round(255 * value, 3) for value in values] for values in NORMALIZATIONS[kind])
    return dict(data_preprocessor=dict(mean=mean, std=std))


def map_channels(arch: str, base: Config) -> list[int]:
    """The channels of the maps that a recipe uses, with another architecture."""
    names = base.model.backbone.out_features
    return [ARCHS[arch].hidden_sizes[int(name.removeprefix('stage')) - 1] for name in names]


def training_settings(
    recipe: Recipe,
    base: Config,
    arch: str,
    weights: str | None,
    images: int,
    gpus: int,
    batch: int,
) -> list[Setting]:
    """Schedule, evaluation, learning rates and their decay.

    Args:
        recipe: The recipe.
        base: Its config.
        arch: The architecture.
        weights: The pre-trained weights, None for random ones.
        images: Number of images to train on.
        gpus: Number of GPUs, 0 for the CPU.
        batch: Images per step on each of them.
    """
    total = batch * max(gpus, 1)
    recipe_total = base.auto_scale_lr.base_batch_size
    by_epoch = 'max_epochs' in base.train_cfg
    length = base.train_cfg.max_epochs if by_epoch else base.train_cfg.max_iters
    recipe_epochs = length if by_epoch else length * recipe_total / recipe.images
    # The last step of an epoch may have fewer images; without epochs, images are never counted.
    steps_per_epoch = math.ceil(images / total) if by_epoch else images / total
    # The epochs of the recipe, but not more images than there, and not too few steps.
    most = recipe_epochs * recipe.images / images
    least = min(MIN_STEPS / steps_per_epoch, MAX_EPOCHS)
    epochs = math.ceil(max(min(recipe_epochs, most), least))
    steps = math.ceil(epochs * steps_per_epoch)
    new_length = epochs if by_epoch else steps
    interval = max(1, new_length // 12)
    loop = dict(type='EpochBasedTrainLoop', max_epochs=epochs, val_interval=interval)
    if not by_epoch:
        loop = dict(type='IterBasedTrainLoop', max_iters=steps, val_interval=interval)
    per_step = min(total, images) if by_epoch else total
    schedule = (
        f'{epochs} epochs, {steps} steps of {per_step} images; the recipe has '
        f'{recipe_epochs:.0f} epochs of {recipe.images}.'
    )
    scale = total / recipe_total
    lr = base.optim_wrapper.optimizer.lr
    rates = (
        f'Scaled linearly from {lr} for {recipe_total} images per step; decay_rate lowers it '
        'towards the stem.'
    )
    hooks: dict = dict(checkpoint=dict(interval=interval, max_keep_ckpts=2, save_best=recipe.best))
    if weights is None:
        hooks['setup'] = dict(from_scratch=True)
    settings = [
        Setting('train_cfg', dict(_delete_=True, **loop), schedule),
        Setting('param_scheduler', _schedulers(base, length, new_length, steps, scale)),
        Setting('default_hooks', hooks),
        Setting('optim_wrapper', _optim_wrapper(base, arch, scale, gpus), rates),
        Setting('auto_scale_lr', dict(enable=False, base_batch_size=total)),
    ]
    given = base.get('custom_hooks', [])
    if any('switch_epoch' in hook for hook in given):
        last = epochs - max(1, epochs // 10)
        changed = [
            Code(
                f'dict(_base_.custom_hooks[{i}], switch_epoch={last})'
                if 'switch_epoch' in hook
                else f'_base_.custom_hooks[{i}]'
            )
            for i, hook in enumerate(given)
        ]
        settings.append(Setting('custom_hooks', changed, 'The last epochs have no mosaics.'))
    return settings


def _schedulers(base: Config, length: int, new_length: int, steps: int, scale: float) -> list:
    """The schedulers of a recipe in proportion to the new length."""
    given = base.param_scheduler
    warm_up_end, new_warm_up_end = 0, 0
    result = []
    for scheduler in [given] if isinstance(given, dict) else given:
        scheduler = {key: value for key, value in scheduler.items() if key != '_scope_'}
        if scheduler['type'] == 'LinearLR':
            warm_up_end = scheduler['end']
            scheduler['start_factor'] = _short(scheduler['start_factor'])
            new_warm_up_end = scheduler['end'] = max(1, min(warm_up_end, steps // 10))
        else:
            for key in ('begin', 'end'):
                if scheduler.get(key) == warm_up_end and not scheduler.get('by_epoch', True):
                    scheduler[key] = new_warm_up_end
                elif key in scheduler:
                    scheduler[key] = round(scheduler[key] * new_length / length)
            if 'T_max' in scheduler:
                scheduler['T_max'] = scheduler['end'] - scheduler['begin']
            if 'milestones' in scheduler:
                new = [round(m * new_length / length) for m in scheduler['milestones']]
                scheduler['milestones'] = sorted(set(new))
            if scheduler.get('eta_min'):
                scheduler['eta_min'] = _short(scheduler['eta_min'] * scale)
        if scheduler.get('begin') == 0:
            del scheduler['begin']  # the default
        result.append(scheduler)
    return result


def _optim_wrapper(base: Config, arch: str, scale: float, gpus: int) -> dict:
    """The optimiser wrapper of a recipe, with scaled rates; on the CPU without mixed precision."""
    wrapper = base.optim_wrapper.to_dict()
    wrapper.pop('_scope_', None)
    wrapper['optimizer']['lr'] = _short(wrapper['optimizer']['lr'] * scale)
    wrapper['paramwise_cfg']['num_layers'] = 6 if ARCHS[arch].depths[2] <= 9 else 12
    if gpus == 0:
        wrapper['type'] = 'OptimWrapper'
        wrapper.pop('loss_scale', None)
    return dict(_delete_=True, **wrapper)


def _short(number: float) -> float:
    return float(f'{number:.3g}')
