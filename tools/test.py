"""Evaluates a checkpoint with the metrics of its config.

python tools/test.py CONFIG CHECKPOINT [--show-dir DIR] [--out FILE.pkl]
torchrun --nproc_per_node=8 tools/test.py CONFIG CHECKPOINT --launcher pytorch
"""

from __future__ import annotations

from cli import load_config, make_parser
from mmengine.config import Config
from mmengine.evaluator import DumpResults
from mmengine.registry import METRICS
from mmengine.runner import Runner


class DumpSegments(DumpResults):
    """Leaves out mmseg's logits: for ADE20K they would take hundreds of gigabytes."""

    def process(self, data_batch: object, predictions: list[dict]) -> None:
        """Stores the predictions without logits."""
        kept = [{k: v for k, v in p.items() if k != 'seg_logits'} for p in predictions]
        super().process(data_batch, kept)


def build_dump(cfg: Config, path: str) -> DumpResults:
    """Builds the metric that writes the predictions to a pickle file."""
    scope = cfg.get('default_scope')
    if scope == 'mmseg':
        return DumpSegments(path)
    # mmdet's own metric compresses masks.
    dump = 'DumpDetResults' if scope == 'mmdet' else 'DumpResults'
    return METRICS.build(dict(type=dump, out_file_path=path))


def draw_to(cfg: Config, folder: str) -> None:
    """Makes the config's visualization hook save drawings of all test images to a folder."""
    hook = cfg.default_hooks.visualization
    hook.draw = True
    if cfg.get('default_scope') == 'mmseg':
        # By default, mmseg's hook draws one image in 50, to the visualizer's own folder.
        hook.interval = 1
        cfg.visualizer.save_dir = folder
    else:
        hook.test_out_dir = folder


def main() -> None:
    parser = make_parser('Evaluates a checkpoint with the metrics of its config.')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--show-dir', help='folder for images with drawn predictions')
    parser.add_argument('--out', help='pickle file (.pkl) for the predictions')
    args = parser.parse_args()
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        parser.error(f'--out must end in .pkl or .pickle, got {args.out}')

    cfg = load_config(args)
    cfg.load_from = args.checkpoint
    if args.show_dir:
        if 'visualization' not in cfg.get('default_hooks', {}):
            parser.error(f'--show-dir needs a visualization hook, {args.config} has none')
        draw_to(cfg, args.show_dir)
    runner = Runner.from_cfg(cfg)
    if args.out:
        runner.test_evaluator.metrics.append(build_dump(cfg, args.out))
    runner.test()


if __name__ == '__main__':
    main()
