"""Code shared by train.py and test.py: mmdet's flags, config loading and checks before the work."""

from __future__ import annotations

import argparse
import inspect
import os
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.runner import FlexibleRunner, Runner

from convnext_backbone.checkpoint import read_mmengine_checkpoint
from convnext_backbone.command_line import check_folder, read_config
from convnext_backbone.engine import missing_operators
from convnext_backbone.engine.model_checks import check_channels
from convnext_backbone.engine.setup_hook import check_datasets_once


class Launcher(NamedTuple):
    """A job launcher.

    Attributes:
        rank: The variable that it sets for every process.
        local_rank: The variable by which it tells a process its rank on the machine.
        command: How to start it.
    """

    rank: str
    local_rank: str
    command: str


LAUNCHERS = {
    'pytorch': Launcher('RANK', 'LOCAL_RANK', 'torchrun --nproc_per_node=GPUS'),
    'slurm': Launcher('SLURM_PROCID', 'SLURM_LOCALID', 'srun'),
    'mpi': Launcher('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_LOCAL_RANK', 'mpirun'),
}


class Overrides(DictAction):
    """mmengine's ``KEY=VALUE`` pairs; what cannot be parsed is an error of the argument."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        for pair in values:
            if not pair.partition('=')[0] or '=' not in pair:
                raise argparse.ArgumentError(self, f'{pair!r} is not KEY=VALUE')
        try:
            super().__call__(parser, namespace, values, option_string)
        except (AssertionError, ValueError) as error:
            raise argparse.ArgumentError(self, str(error)) from error


def make_parser(description: str) -> argparse.ArgumentParser:
    """Builds a parser with the arguments of both scripts."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--work-dir', help='folder for logs and checkpoints (default: work_dirs/CONFIG_NAME)'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=Overrides,
        metavar='KEY=VALUE',
        help='settings that override the config, such as train_cfg.max_epochs=1',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', *LAUNCHERS],
        default='none',
        help='job launcher; pytorch for torchrun (default: none)',
    )
    # torch.distributed.launch passes the rank as an argument, torchrun as a variable.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    return parser


def join_processes_on_cpu(cfg: Config) -> None:
    """Initialises torchrun's processes without GPUs; mmengine's own function needs GPUs."""
    torch.distributed.init_process_group('gloo')
    cfg.setdefault('model_wrapper_cfg', dict(type='MMDistributedDataParallel', device_ids=None))


def load_config(args: argparse.Namespace) -> Config:
    """Reads ``args.config`` and applies the shared arguments to it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a config, if the launcher has not started this process, or if
            ``--cfg-options`` do not fit the config.
    """
    check_launcher(args.launcher)
    local_rank = args.local_rank
    if args.launcher != 'none':
        local_rank = os.environ.get(LAUNCHERS[args.launcher].local_rank, local_rank)
    os.environ.setdefault('LOCAL_RANK', str(local_rank))
    cfg = read_config(args.config)
    cfg.launcher = args.launcher
    if args.cfg_options:
        override(cfg, args.cfg_options)
    if args.work_dir:
        cfg.work_dir = args.work_dir
    cfg.setdefault('work_dir', f'work_dirs/{Path(args.config).stem}')
    return cfg


def check_launcher(launcher: str) -> None:
    """Raises a ValueError if a process does not come from its launcher."""
    if launcher == 'none':
        return
    rank, _, command = LAUNCHERS[launcher]
    if rank not in os.environ:
        raise ValueError(
            f'--launcher {launcher} needs a process that {command.split()[0]} has started, but '
            f'{rank} is not set: run {command} {sys.argv[0]} ..., or leave --launcher out'
        )


def override(cfg: Config, options: dict) -> None:
    """Applies ``--cfg-options``.

    Raises:
        ValueError: If a key has no place in the config, or if nothing would read it.
    """
    for key in options:
        name = key.partition('.')[0]
        if name in known_settings():
            continue
        if name not in cfg:
            raise ValueError(
                f'--cfg-options {key}: the config has no {name}, and nothing reads a setting of '
                f'this name; the config has {", ".join(sorted(cfg.keys()))}'
            )
        warn(
            f'--cfg-options {key}: settings that the config has made from its {name} keep their '
            'values; if you mean them, override each of them'
        )
    try:
        cfg.merge_from_dict(options)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        given = ', '.join(options)
        raise ValueError(f'--cfg-options {given} does not fit the config: {error}') from error


def known_settings() -> set[str]:
    """The settings that mmengine's runners read from a config."""
    runners = (Runner, FlexibleRunner)
    arguments = {name for runner in runners for name in inspect.signature(runner).parameters}
    return arguments | {
        *('runner_type', 'model_wrapper_cfg', 'find_unused_parameters', 'sync_bn'),
        'efficient_conv_bn_eval',
    }


def warn(message: str) -> None:
    """Prints a warning in one line, before there is a log."""
    print(f'warning: {message}', file=sys.stderr)


def check_weights(cfg: Config, path: str) -> None:
    """Checks the checkpoint that a runner loads or resumes from.

    Raises:
        ValueError: If it is damaged, or a folder that the runner cannot read.
        FileNotFoundError: If it does not exist.
    """
    if not os.path.isdir(path):
        read_mmengine_checkpoint(path)
    elif cfg.get('runner_type', 'Runner') == 'Runner':
        raise ValueError(
            f"{path} is a folder, and only runner_type='FlexibleRunner' reads sharded checkpoints: "
            'give a file, or the folder as --work-dir'
        )
    elif not os.listdir(path):
        raise ValueError(f'{path} is an empty folder, no checkpoint')


def prepare(cfg: Config, config: str, *splits: str) -> None:
    """Checks what can be checked before the work, and joins the processes.

    Args:
        cfg: The loaded config.
        config: Its path, for messages.
        splits: The splits that are used: the first must exist.

    Raises:
        ValueError: If the config lacks a setting, or if its neck, the checkpoint or the data do not
            fit it.
        FileNotFoundError: If data or the checkpoint do not exist.
        OSError: If the work dir cannot be written to.
    """
    needed = ['model', f'{splits[0]}_dataloader', f'{splits[0]}_cfg']
    lacking = [name for name in needed if cfg.get(name) is None]
    if lacking:
        raise ValueError(f'{config} has no {", ".join(lacking)}: choose a config that has')
    check_folder(cfg.work_dir)
    check_channels(cfg.model)  # the error of some necks has no message
    # Once on each machine: all processes of a launcher would read the same files.
    if os.environ['LOCAL_RANK'] == '0':
        weights = cfg.get('load_from')
        # Addresses are read when the runner needs them.
        if weights and '://' not in weights:
            check_weights(cfg, weights)
        warnings = check_datasets_once(cfg, splits)
        for warning in filter(None, [missing_operators(get_device()), *warnings]):
            warn(warning)
    if cfg.launcher == 'pytorch' and not torch.cuda.is_available():
        join_processes_on_cpu(cfg)
