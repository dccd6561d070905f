"""Trains the model of a config.

python tools/train.py CONFIG [--work-dir DIR] [--amp] [--resume [CHECKPOINT]]
tools/dist_train.sh CONFIG GPUS      # on several GPUs and machines
"""

from __future__ import annotations

import check_environment  # noqa: F401
from cli import load_config, make_parser, prepare
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import OPTIMIZERS, RUNNERS
from mmengine.runner import Runner

from convnext_backbone.command_line import refused_values, usage_errors
from convnext_backbone.engine import check_model, resume_from


def enable_amp(cfg: Config) -> None:
    """Switches the config's optimiser wrapper to automatic mixed precision."""
    kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
    if kind not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise ValueError(f'--amp needs optim_wrapper.type OptimWrapper, the config has {kind}')
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def check_amp(cfg: Config, asked: bool) -> None:
    """Raises a ValueError if mmengine's mixed precision cannot run on this machine.

    Args:
        cfg: The config.
        asked: Whether ``--amp`` was given; if not, the config itself has mixed precision.
    """
    device, wrapper = get_device(), cfg.get('optim_wrapper', {})
    if wrapper.get('type') != 'AmpOptimWrapper' or device not in ('cpu', 'mps'):
        return
    if asked:
        raise ValueError(f'--amp needs a GPU, this machine has only {device}: leave out --amp')
    # These have no place in the other wrapper, and options cannot remove them.
    amp_only = [key for key in ('loss_scale', 'dtype') if key in wrapper]
    raise ValueError(
        f"mixed precision, optim_wrapper.type='AmpOptimWrapper' in the config, needs a GPU, this "
        f'machine has only {device}: '
        + (
            f"set type='OptimWrapper' there without {' and '.join(amp_only)}"
            if amp_only
            else 'add --cfg-options optim_wrapper.type=OptimWrapper'
        )
        + '; a config of tools/new_config.py can be written again with --gpus 0 --force'
    )


def check_optimizer(cfg: Config) -> None:
    """Raises a ValueError for an unknown optimiser; mmengine's own error has no message."""
    kind = ((cfg.get('optim_wrapper') or {}).get('optimizer') or {}).get('type')
    with OPTIMIZERS.switch_scope_and_registry(None) as registry:
        if isinstance(kind, str) and registry.get(kind) is None:
            raise ValueError(
                f'optim_wrapper.optimizer.type is {kind!r}, which is no registered optimizer: '
                'choose one of torch.optim, such as AdamW'
            )


def main() -> None:
    parser = make_parser('Trains the model of a config.')
    parser.add_argument('--amp', action='store_true', help='train in automatic mixed precision')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='resume from a checkpoint; without a path, from the latest one in the work dir',
    )
    args = parser.parse_args()

    with usage_errors(parser):
        cfg = load_config(args)
        if args.amp:
            enable_amp(cfg)
        check_amp(cfg, args.amp)
        if args.resume or cfg.get('resume'):
            checkpoint = args.resume or cfg.get('load_from')
            resume_from(cfg, None if checkpoint == 'auto' else checkpoint)
        prepare(cfg, args.config, 'train', 'val')
    with usage_errors(parser, of_checkers=True), refused_values(parser):
        # Strategies such as FSDP need runner_type='FlexibleRunner'.
        runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
        if isinstance(runner, Runner):
            check_model(runner.model, cfg)
        check_optimizer(cfg)
    with refused_values(parser):  # it builds the optimiser, the datasets and more first
        runner.train()


if __name__ == '__main__':
    main()
