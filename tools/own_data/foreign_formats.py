"""Recognises annotations in other formats than COCO's, and says how to convert them."""

from __future__ import annotations

import json
from pathlib import Path

CONVERSIONS = {
    'Pascal VOC (XML)': (
        'pip install supervision, then python -c "import supervision as sv; '
        "sv.DetectionDataset.from_pascal_voc('IMAGES', 'FOLDER_OF_XML')"
        ".as_coco(annotations_path='train.json')\""
    ),
    'YOLO (txt)': (
        'pip install supervision, then python -c "import supervision as sv; '
        "sv.DetectionDataset.from_yolo('IMAGES', 'FOLDER_OF_TXT', 'data.yaml')"
        ".as_coco(annotations_path='train.json')\""
    ),
    'LabelMe': 'pip install labelme2coco, then labelme2coco FOLDER_OF_JSON',
    'CSV': (
        'the columns have no standard, so write images, categories and annotations yourself, '
        'as in docs/own_dataset.md'
    ),
}
SUFFIXES = {
    '.xml': 'Pascal VOC (XML)',
    '.txt': 'YOLO (txt)',
    '.yaml': 'YOLO (txt)',
    '.csv': 'CSV',
    '.json': 'LabelMe',
}


def check_is_coco(path: Path) -> None:
    """Refuses annotations in a known format that is not COCO's.

    Args:
        path: What was given as annotations: a file, or a folder with one file per image.

    Raises:
        FileNotFoundError: If there is nothing.
        ValueError: If it is another format, with the way to convert it; if it is anything else.
    """
    if not path.exists():
        raise FileNotFoundError(f'no such annotation file: {path}')
    name = _format_of(path)
    if name is not None:
        raise ValueError(f'{path} is {name}, not COCO JSON; to convert it: {CONVERSIONS[name]}')
    if path.is_dir():
        files = sorted(path.glob('*.json'))
        way_out = f'give a file in it, such as {files[0]}' if files else 'it holds no annotations'
        raise ValueError(f'{path} is a folder, not a JSON file in COCO format: {way_out}')
    if path.suffix.lower() != '.json':
        raise ValueError(f'{path} is no annotation file: give a JSON file in COCO format')


def _format_of(path: Path) -> str | None:
    """The known format of a file, or of the first such file in a folder; None for all others."""
    if path.is_dir():
        files = (p for p in sorted(path.iterdir()) if p.suffix.lower() in SUFFIXES and p.is_file())
        path = next(files, path)
    name = SUFFIXES.get(path.suffix.lower())
    return None if name == 'LabelMe' and not _is_labelme(path) else name


def _is_labelme(path: Path) -> bool:
    try:
        content = json.loads(path.read_text())
    except ValueError:  # a damaged file is for the reader of COCO files
        return False
    return isinstance(content, dict) and 'shapes' in content and 'images' not in content
