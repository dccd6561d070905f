"""Evaluates a checkpoint with the metrics of its config.

python tools/test.py CONFIG CHECKPOINT [--show-dir DIR] [--out FILE.pkl]
torchrun --nproc_per_node=8 tools/test.py CONFIG CHECKPOINT --launcher pytorch
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from cli import load_config, make_parser, prepare, read_checkpoint, warn
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.evaluator import DumpResults
from mmengine.model import is_model_wrapper
from mmengine.registry import METRICS
from mmengine.runner import Runner

from convnext_backbone.command_line import check_file, check_folder, usage_errors, whole_file
from convnext_backbone.engine import check_model


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
    """Makes the config's visualization hook save drawings of all test images to a folder.

    Raises:
        OSError: If the folder cannot be written to.
    """
    hook = cfg.default_hooks.visualization
    hook.draw = True
    if cfg.get('default_scope') == 'mmseg':
        # By default, mmseg's hook draws one image in 50, to the visualizer's own folder.
        hook.interval = 1
        cfg.visualizer.save_dir = folder
        check_folder(folder)
    else:
        hook.test_out_dir = folder
        # mmdet's hook puts the folder in that of the run.
        check_folder(Path(cfg.work_dir, folder))


def check_checkpoint(path: str, runner: Runner) -> None:
    """Refuses a checkpoint of another model or of other classes: mmengine only warns.

    Raises:
        ValueError: If weights of the model are missing or have another shape, or if the
            checkpoint's classes have another number or order than those of the test set.
    """
    checkpoint = read_checkpoint(path)
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    saved = checkpoint.get('state_dict', checkpoint)
    saved = {name.removeprefix('module.'): tensor for name, tensor in saved.items()}
    try:
        missing = set(model.load_state_dict(saved, strict=False).missing_keys)
    except RuntimeError as error:
        raise ValueError(f'{path} does not fit the model of the config: {error}') from error
    lacking = [name for name, _ in model.named_parameters() if name in missing]
    if lacking:
        raise ValueError(
            f'{path} lacks {len(lacking)} weights of the model of the config, such as {lacking[0]}:'
            ' choose the config that it was trained with'
        )
    trained = checkpoint.get('meta', {}).get('dataset_meta', {}).get('classes') or ()
    tested = runner.test_dataloader.dataset.metainfo.get('classes') or ()
    if trained and tested and tuple(trained) != tuple(tested):
        difference = (
            f'{path} was trained on the classes {", ".join(trained)}, the test set has '
            f'{", ".join(tested)}'
        )
        if len(trained) != len(tested) or set(trained) == set(tested):
            raise ValueError(f'{difference}: set the same metainfo.classes')
        # The same classes may have other names.
        warn(difference)


def main() -> None:
    parser = make_parser('Evaluates a checkpoint with the metrics of its config.')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--show-dir', help='folder for images with drawn predictions')
    parser.add_argument('--out', help='pickle file (.pkl) for the predictions')
    args = parser.parse_args()
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        parser.error(f'--out must end in .pkl or .pickle, got {args.out}')

    with usage_errors(parser):
        cfg = load_config(args)
        cfg.load_from = args.checkpoint
        if args.out:
            check_file(args.out)
        if args.show_dir:
            if 'visualization' not in cfg.get('default_hooks', {}):
                raise ValueError(f'--show-dir needs a visualization hook, {args.config} has none')
            draw_to(cfg, args.show_dir)
        prepare(cfg, args.config, 'test')
    with usage_errors(parser, of_checkers=True):
        runner = Runner.from_cfg(cfg)
        check_model(runner.model, cfg)
        check_checkpoint(args.checkpoint, runner)
    writes = args.out and is_main_process()
    with whole_file(args.out) if writes else nullcontext(args.out) as out:
        if out:
            runner.test_evaluator.metrics.append(build_dump(cfg, str(out)))
        runner.test()
    if writes:
        # The log names the temporary file.
        print(f'The predictions are in {args.out}')


if __name__ == '__main__':
    main()
