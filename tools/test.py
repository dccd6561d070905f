"""Evaluates a checkpoint with the metrics of its config.

python tools/test.py CONFIG CHECKPOINT [--show-dir DIR] [--out FILE.pkl]
torchrun --nproc_per_node=8 tools/test.py CONFIG CHECKPOINT --launcher pytorch
"""

from __future__ import annotations

from cli import load_config, make_parser
from mmengine.registry import METRICS
from mmengine.runner import Runner


def main() -> None:
    parser = make_parser('Evaluates a checkpoint with the metrics of its config.')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--show-dir', help='folder for the images with predictions drawn in')
    parser.add_argument('--out', help='pickle file (.pkl) for the predictions')
    args = parser.parse_args()
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        parser.error(f'--out must end in .pkl or .pickle, got {args.out}')

    cfg = load_config(args)
    cfg.load_from = args.checkpoint
    if args.show_dir:
        if 'visualization' not in cfg.get('default_hooks', {}):
            parser.error(f'--show-dir needs a visualization hook, {args.config} has none')
        cfg.default_hooks.visualization.update(draw=True, test_out_dir=args.show_dir)
    runner = Runner.from_cfg(cfg)
    if args.out:
        # mmdet's own compresses masks.
        dump = 'DumpDetResults' if cfg.get('default_scope') == 'mmdet' else 'DumpResults'
        metric = METRICS.build(dict(type=dump, out_file_path=args.out))
        runner.test_evaluator.metrics.append(metric)
    runner.test()


if __name__ == '__main__':
    main()
