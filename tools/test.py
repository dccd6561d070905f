"""Evaluates a checkpoint with the metrics of its config.

python tools/test.py CONFIG CHECKPOINT [--show-dir DIR] [--out FILE.pkl]
torchrun --nproc_per_node=8 tools/test.py CONFIG CHECKPOINT --launcher pytorch
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import check_environment  # noqa: F401
import mmcv
from cli import load_config, make_parser, prepare, warn
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.evaluator import DumpResults
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import METRICS
from mmengine.runner import Runner

from convnext_backbone.checkpoint import download, read_mmengine_checkpoint
from convnext_backbone.command_line import (
    check_file,
    check_folder,
    refused_values,
    usage_errors,
    whole_file,
)
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


class SavePictures(Hook):
    """Saves drawings of all test images, under the names of the images.

    mmdet's hook would put the folder into that of the run, and mmseg's has names of its own.

    Args:
        folder: Folder of the drawings.
        options: More arguments of the visualizer's ``add_datasample``.
    """

    def __init__(self, folder: str, options: dict) -> None:
        self.folder = Path(folder)
        self.options = options

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: dict, outputs) -> None:
        """Draws the images of a batch with their predictions, and annotations if there are."""
        prefix = getattr(runner.test_dataloader.dataset, 'data_prefix', {})
        images = Path(prefix.get('img') or prefix.get('img_path') or '')
        for sample in outputs:
            path = Path(sample.img_path)
            # Images in several folders may have the same name.
            name = path.relative_to(images) if path.is_relative_to(images) else path.name
            runner.visualizer.add_datasample(
                path.name,
                mmcv.imread(sample.img_path, channel_order='rgb'),
                data_sample=sample,
                out_file=str(self.folder / name),
                **self.options,
            )


def draw_to(cfg: Config, folder: str) -> SavePictures:
    """Replaces the config's visualization hook by one that saves drawings to a folder.

    Raises:
        ValueError: If the config has no visualization hook.
        OSError: If the folder cannot be written to.
    """
    if 'visualization' not in cfg.get('default_hooks', {}):
        raise ValueError('--show-dir needs a visualization hook, the config has none')
    check_folder(folder)
    hook = cfg.default_hooks.pop('visualization')
    options = dict(pred_score_thr=hook.score_thr) if 'score_thr' in hook else {}
    return SavePictures(folder, options)


def check_checkpoint(path: str, runner: Runner) -> None:
    """Refuses a checkpoint of another model or of other classes: mmengine only warns.

    Raises:
        ValueError: If weights of the model are missing or have another shape, or if the
            checkpoint's classes have another number or order than those of the test set.
    """
    checkpoint = read_mmengine_checkpoint(path)
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
        # mmengine's own loader of addresses would run code in the file.
        is_address = '://' in args.checkpoint
        cfg.load_from = str(download(args.checkpoint)) if is_address else args.checkpoint
        if args.out:
            check_file(args.out)
        pictures = draw_to(cfg, args.show_dir) if args.show_dir else None
        prepare(cfg, args.config, 'test')
    with usage_errors(parser, of_checkers=True), refused_values(parser):
        runner = Runner.from_cfg(cfg)
        check_model(runner.model, cfg)
        check_checkpoint(args.checkpoint, runner)
    if pictures:
        runner.register_hook(pictures)
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
