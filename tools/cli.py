"""Code shared by train.py and test.py: mmdet's flags and config loading."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from mmengine.config import Config, DictAction


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
        action=DictAction,
        metavar='KEY=VALUE',
        help='settings that override the config, such as train_cfg.max_epochs=1',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
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
    """Reads ``args.config`` and applies the shared arguments to it."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = Config.fromfile(args.config)
    cfg.launcher = args.launcher
    if args.launcher == 'pytorch' and not torch.cuda.is_available():
        join_processes_on_cpu(cfg)
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    if args.work_dir:
        cfg.work_dir = args.work_dir
    cfg.setdefault('work_dir', f'work_dirs/{Path(args.config).stem}')
    return cfg
