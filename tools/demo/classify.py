"""Prints the most probable classes of images.

python tools/demo/classify.py IMAGE... --checkpoint FILE [--config CONFIG] [--topk 5]

FILE is a classifier checkpoint in any format that the package supports. The model and the image
pipeline come from a config: by default the one that tools/train.py saved next to FILE. A model
folder of Hugging Face needs none: its config.json and preprocessor_config.json say it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import check_environment  # noqa: F401
import cv2
from hugging_face import read_model_folder
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import MODELS, init_default_scope

from convnext_backbone import load_checkpoint
from convnext_backbone.checkpoint import read_mmengine_checkpoint
from convnext_backbone.command_line import read_config, usage_errors
from convnext_backbone.models.losses import infer_problem_type


def find_config(checkpoint: Path) -> Path:
    """The config in the folder of a checkpoint.

    Raises:
        ValueError: If there is none, or more than one.
    """
    configs = sorted(checkpoint.parent.glob('*.py'))
    if len(configs) != 1:
        raise ValueError(
            f'{len(configs)} configs found next to {checkpoint}: choose one with --config, '
            'such as configs/classification/convnext-t_in1k.py'
        )
    return configs[0]


def read_classes(cfg: Config, checkpoint: Path) -> list[str] | None:
    """Class names from the config, otherwise from mmengine's checkpoint, otherwise None."""
    classes = cfg.test_dataloader.dataset.get('metainfo', {}).get('classes')
    if classes is None and checkpoint.suffix == '.pth':
        content = read_mmengine_checkpoint(str(checkpoint))
        classes = content.get('meta', {}).get('dataset_meta', {}).get('classes')
    return classes


def classify(images: list[Path], checkpoint: Path, config: Path | None, topk: int) -> None:
    """Prints the path of each image and its most probable classes.

    Raises:
        FileNotFoundError: If an image, the checkpoint or the config does not exist.
        ValueError: If no config is found or it is not a classifier's, if the checkpoint does not
            match it or has no head, or if an image cannot be read.
    """
    for path in (*images, checkpoint):
        if not path.exists():
            raise FileNotFoundError(f'no such file: {path}')
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    if config is None and (folder / 'config.json').is_file():
        config = folder / 'config.json'
        cfg = read_model_folder(folder)
    else:
        config = config or find_config(checkpoint)
        cfg = read_config(config)
    kind = cfg.get('model', {}).get('type')
    if kind != 'ConvNextForImageClassification':
        raise ValueError(
            f'{config} is the config of a {kind}, not of a ConvNextForImageClassification: '
            'choose the config of a classifier with --config'
        )
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    model = MODELS.build(cfg.model).eval()
    if (model.problem_type or infer_problem_type(model.num_labels)) == 'regression':
        raise ValueError('a regression model has no probabilities')
    load_checkpoint(model, checkpoint)
    classes = read_classes(cfg, checkpoint) or range(model.num_labels)
    pipeline = Compose(cfg.test_dataloader.dataset.pipeline)
    for path in images:
        try:
            data = pipeline(dict(img_path=str(path)))
        except (AssertionError, cv2.error) as error:
            raise ValueError(f'{path} is not an image that OpenCV can read') from error
        (sample,) = model.test_step({key: [value] for key, value in data.items()})
        probabilities, labels = sample.pred_score.topk(min(topk, model.num_labels))
        print(path)
        for probability, label in zip(probabilities.tolist(), labels.tolist(), strict=True):
            print(f'  {probability:6.1%}  {classes[label]}')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('images', type=Path, nargs='+', metavar='IMAGE', help='image file')
    parser.add_argument('--checkpoint', type=Path, required=True, help='checkpoint file or folder')
    parser.add_argument('--config', type=Path, help='config file (default: next to the checkpoint)')
    parser.add_argument('--topk', type=int, default=5, help='classes to print (default: 5)')
    args = parser.parse_args()
    if args.topk < 1:
        parser.error(f'--topk must be at least 1, got {args.topk}')
    with usage_errors(parser):
        classify(**vars(args))


if __name__ == '__main__':
    main()
