"""Checks of data and model before the first iteration."""

from __future__ import annotations

import os
from collections.abc import Sequence

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from ..models.base import ConvNextBase
from ..models.checks import check_flag
from .dataset_checks import check_datasets
from .layout_checks import check_layout
from .model_checks import check_channels
from .stride_checks import check_strides

# Configs whose data this process has checked: reading large annotation files takes time.
_checked: set[tuple[str, ...]] = set()


def check_datasets_once(cfg: Config, splits: Sequence[str]) -> list[str]:
    """Runs :func:`check_datasets`, unless it has passed in this process with the same settings.

    Args:
        cfg: A config.
        splits: Which of ``'train'``, ``'val'``, ``'test'``.

    Returns:
        Its warnings; none if it was left out.
    """
    keys = ('model', *(f'{s}_{part}' for s in splits for part in ('dataloader', 'evaluator')))
    settings = tuple(f'{key}={cfg.get(key)}' for key in keys)
    if settings in _checked:
        return []
    warnings = check_datasets(cfg, splits)
    _checked.add(settings)
    return warnings


def check_model(model: nn.Module, cfg: Config) -> None:
    """Refuses models whose parts do not fit each other.

    Args:
        model: The built model, wrapped or not; without a ConvNeXt, it is not checked.
        cfg: The whole config. It may lack ``model``, whose lines are not checked then.

    Raises:
        ValueError: As :func:`check_layout`, :func:`check_channels` and :func:`check_strides`.
    """
    if holds_convnext(model):
        check_layout(model)
        check_channels(cfg.get('model') or {})
        check_strides(model)


def holds_convnext(model: nn.Module) -> bool:
    """Whether one of this package's models is in a model."""
    return any(isinstance(module, ConvNextBase) for module in model.modules())


def starts_from_random_weights(model: nn.Module) -> bool:
    """Whether a ConvNeXt in a model has no ``init_cfg``, and no module around it either."""
    with_init = [n for n, m in model.named_modules() if getattr(m, 'init_cfg', None)]
    return any(
        isinstance(module, ConvNextBase)
        and not any(name == n or not n or name.startswith(f'{n}.') for n in with_init)
        for name, module in model.named_modules()
    )


@HOOKS.register_module(name=['ConvNextSetupHook', 'ConvNextLayoutHook'])
class ConvNextSetupHook(Hook):
    """Stops a run before its first iteration if its data, model and classes do not fit together.

    It checks models with one of this package's ConvNeXts, in training, validation and test:

    - the datasets, by :func:`~convnext_backbone.engine.check_datasets`: files, annotations,
      classes, and the numbers of classes of the heads;
    - ``in_channels`` of the neck and the channels of the backbone's maps;
    - strides of anchors, points and RoI extractors and those of the maps;
    - memory layouts, by :func:`~convnext_backbone.engine.check_layout`.

    What is wrong raises an error with the line to change. What is doubtful is logged as a warning,
    also a backbone that starts from random weights.

    In a config: ``default_hooks = dict(setup=dict(type='ConvNextSetupHook'))``, which is merged
    with the other hooks. ``ConvNextLayoutHook`` is its former name.

    Args:
        from_scratch: Whether random weights are meant, which silences their warning.
            Default: False.

    Raises:
        TypeError: If ``from_scratch`` is neither True nor False.
    """

    def __init__(self, from_scratch: bool = False) -> None:
        check_flag('from_scratch', from_scratch)
        self.from_scratch = from_scratch
        self._seen: set[str] = set()

    def before_train(self, runner: Runner) -> None:
        """Checks the model and the data of training and validation.

        Raises:
            ValueError: If something does not fit.
            FileNotFoundError: If files of the data do not exist.
        """
        self._check(runner, 'train', 'val')
        if (
            not (self.from_scratch or runner._has_loaded)
            and holds_convnext(runner.model)
            and starts_from_random_weights(runner.model)
        ):
            runner.logger.warning(
                'ConvNeXt starts from random weights: set init_cfg=dict(type="Pretrained", '
                'checkpoint=...) of the backbone, or ignore this with '
                'default_hooks.setup.from_scratch=True'
            )

    def before_val(self, runner: Runner) -> None:
        """Checks the same for a validation without training."""
        self._check(runner, 'val')

    def before_test(self, runner: Runner) -> None:
        """Checks the same for the test data."""
        self._check(runner, 'test')

    def _check(self, runner: Runner, *splits: str) -> None:
        if self._seen.issuperset(splits) or not holds_convnext(runner.model):
            return
        check_model(runner.model, runner.cfg)
        # Once on each machine: all processes would read the same files.
        if os.environ.get('LOCAL_RANK', '0') == '0':
            for warning in check_datasets_once(runner.cfg, splits):
                runner.logger.warning(warning)
        self._seen.update(splits)  # only now: what was refused is checked again
