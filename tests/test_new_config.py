"""Configs for own data: what is printed, drawn, written and refused, and that they train."""

import contextlib
import io
import json
import runpy
import shutil
import sys
from itertools import takewhile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import REPO, make_shapes
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import Runner
from PIL import Image

from convnext_backbone import ConvNextForImageClassification
from convnext_backbone.engine import check_datasets, check_model

TOOLS = REPO / 'tools'
ANNOTATIONS = {name: f'data/shapes/annotations/instances_{name}.json' for name in ('train', 'val')}
DETECTION = {
    name: (f'--{name}', ANNOTATIONS[name], f'data/shapes/{name}') for name in ('train', 'val')
}
SEGMENTATION = {
    name: (f'--{name}', f'data/shapes/{name}', f'data/shapes/masks/{name}')
    for name in ('train', 'val')
}


@pytest.fixture(scope='module')
def generated(tmp_path_factory):
    folder = tmp_path_factory.mktemp('generated')
    make_shapes(folder, 12, 4, '--size', 64)
    return folder


@pytest.fixture
def folder(generated, tmp_path, monkeypatch):
    """A copy of the data, as the working folder; the tool's modules can be imported."""
    shutil.copytree(generated, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(TOOLS)
    return tmp_path


def new_config(*args: object, data: dict = DETECTION) -> str:
    """Runs the tool in this process; returns what it prints, or raises its SystemExit."""
    args = (*data['train'], *data['val'], *args)
    before, sys.argv = sys.argv, ['new_config.py', *map(str, args)]
    try:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            runpy.run_path(str(TOOLS / 'new_config.py'), run_name='__main__')
    finally:
        sys.argv = before
    return printed.getvalue()


def refusal(capsys, *args: object, data: dict = DETECTION) -> str:
    """The sentence with which the tool ends."""
    files = set(Path().rglob('*'))
    with pytest.raises(SystemExit) as caught:
        new_config(*args, data=data)
    assert caught.value.code == 2
    assert set(Path().rglob('*')) == files, 'something was written'
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith('new_config.py: error: ')
    return last


def edit(change, name: str = 'train') -> None:
    """Applies a function to the content of an annotation file."""
    path = Path(ANNOTATIONS[name])
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def build(cfg: Config) -> torch.nn.Module:
    with (
        MODELS.switch_scope_and_registry(cfg.default_scope) as registry,
        torch.device('meta'),
    ):
        return registry.build(cfg.model)


# Each head with another architecture and machine: GPUs and images per GPU; then the learning rate,
# the length for 12 images, and the part of it after which the rate falls first.
DETECTORS = {
    'mask-rcnn': ('tiny', 1, None, 1e-4 * 2 / 16, 300, 27 / 36),
    'cascade-mask-rcnn': ('small', 8, 2, 2e-4, 300, 27 / 36),
    'faster-rcnn': ('v2-atto', 4, 4, 1e-4, 300, 8 / 12),
    'retinanet': ('femto', 0, 1, 1e-4 / 16, 250, 8 / 12),
    'fcos': ('v2-nano', 1, 16, 1e-4, 300, 8 / 12),
    'rtmdet': ('atto', 2, 32, 1e-3 * 64 / 128, 300, None),
    'dino': ('base', 8, 1, 1e-4 * 8 / 16, 300, 11 / 12),
    'mask2former': ('v2-tiny', 1, 1, 1e-4 / 16, 3000, 327778 / 368750),
}
SEGMENTORS = {
    'upernet': ('small', 1, None, 1e-4 * 2 / 16, 1800, None),
    'semantic-fpn': ('v2-pico', 4, 8, 1e-4 * 32 / 16, 113, None),
    'segformer': ('base', 0, 2, 1e-4 * 2 / 16, 1800, None),
}


def write_text(
    head: str, arch: str, gpus: int, batch: int | None, out: Path, weights: str | None = None
) -> str:
    from own_data import detection, segmentation
    from own_data.detection_data import read_split
    from own_data.segmentation_data import read_mask_split

    if head in DETECTORS:
        data = [read_split(n, *map(Path, args)) for n, (_, *args) in DETECTION.items()]
        write = detection.write_detection_config
    else:
        data = [read_mask_split(n, *map(Path, args)) for n, (_, *args) in SEGMENTATION.items()]
        write = segmentation.write_segmentation_config
    return write(head, arch, weights, *data, gpus, batch, out)


@pytest.mark.parametrize('head', [*DETECTORS, *SEGMENTORS])
def test_configs_of_every_head_fit_data_and_machine(head, folder):
    arch, gpus, batch, lr, length, first_step = (DETECTORS | SEGMENTORS)[head]
    out = folder / 'out.py'
    text = write_text(head, arch, gpus, batch, out)
    out.write_text(text)
    assert len(text.splitlines()) <= 60
    cfg = Config.fromfile(out)

    assert check_datasets(cfg) == []  # all heads have the number of classes of the data
    for split in ('train', 'val', 'test'):
        assert len(cfg[f'{split}_dataloader'].dataset.metainfo.classes) == 3 + (head in SEGMENTORS)
    assert cfg.test_evaluator == cfg.val_evaluator
    model = build(cfg)
    check_model(model, cfg)
    assert cfg.model.backbone.arch == arch
    assert cfg.model.backbone.init_cfg.checkpoint
    assert 0.7 <= cfg.optim_wrapper.paramwise_cfg.decay_rate <= 0.95
    wrapper = {**cfg.optim_wrapper, 'type': 'OptimWrapper'}
    wrapper.pop('loss_scale', None)
    build_optim_wrapper(model, wrapper)

    # Linear scaling, and no mixed precision without a GPU.
    total = max(gpus, 1) * cfg.train_dataloader.batch_size
    assert batch in (None, cfg.train_dataloader.batch_size)
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(lr, rel=0.01)
    assert cfg.auto_scale_lr.base_batch_size == total
    assert gpus or cfg.optim_wrapper.type == 'OptimWrapper'

    # The schedule ends with the training, and keeps its proportions.
    last = cfg.param_scheduler[-1]
    assert last.end == (cfg.train_cfg.get('max_epochs') or cfg.train_cfg.max_iters) == length
    if first_step:
        assert last.milestones[0] == round(first_step * length)
    assert cfg.train_cfg.val_interval == length // 12


def comment(text: str) -> str:
    """The comment at the top of a config, in one line."""
    lines = takewhile(lambda line: line.startswith('# '), text.splitlines())
    return ' '.join(line.removeprefix('# ') for line in lines)


def test_weights_and_architectures(folder):
    out = folder / 'out.py'
    text = write_text('cascade-mask-rcnn', 'large', 1, None, out)
    assert 'cascade-mask-rcnn_convnext-l_fpn' in text  # the recipe of this architecture
    assert 'convnext_large_22k_224.pth' in text
    text = write_text('fcos', 'v2-tiny', 1, None, out)
    assert (
        'Weights: Meta, pre-trained on FCMAE, ImageNet-1K, CC-BY-NC-4.0, not for commercial use.'
    ) in comment(text)
    assert 'im1k/convnextv2_tiny_1k_224_ema.pt' in text

    model = ConvNextForImageClassification('atto', num_labels=2)
    torch.save(model.state_dict(), 'weights.pth')
    assert "'weights.pth'" in write_text('retinanet', 'atto', 1, None, out, 'weights.pth')
    with pytest.raises(ValueError, match='not --arch tiny'):
        write_text('retinanet', 'tiny', 1, None, out, 'weights.pth')
    model = ConvNextForImageClassification('atto', num_labels=2, stem='overlap')
    torch.save(model.state_dict(), 'weights.pth')
    with pytest.raises(ValueError, match=r"needs stem='overlap' in model.backbone"):
        write_text('retinanet', 'atto', 1, None, out, 'weights.pth')
    with pytest.raises(FileNotFoundError, match=r'no such weights: none\.pth'):
        write_text('retinanet', 'tiny', 1, None, out, 'none.pth')


def test_published_weights_are_compared_and_described(folder, capsys):
    out = folder / 'out.py'
    tiny = 'hf://facebook/dinov3-convnext-tiny-pretrain-lvd1689m'
    text = write_text('retinanet', 'tiny', 1, None, out, tiny)
    assert (
        'Weights: Hugging Face, pre-trained on DINOv3 on LVD-1689M, DINOv3 License; accept the '
        'licence on its page first.'
    ) in comment(text)
    assert max(map(len, text.splitlines())) <= 100
    args = ('--head', 'fcos', '--weights', tiny, '--arch')
    assert f'{tiny} is for --arch tiny, not --arch small' in refusal(capsys, *args, 'small', out)
    overlap = 'hf://timm/convnext_atto_ols.a2_in1k'
    args = ('--head', 'fcos', '--weights', overlap, '--arch', 'atto')
    assert f"{overlap} needs stem='overlap_tiered' in model.backbone, which no recipe" in refusal(
        capsys, *args, out
    )
    # A downloaded file has the name of its address.
    model = ConvNextForImageClassification('v2-atto', num_labels=2)
    torch.save(model.state_dict(), 'convnextv2_atto_1k_224_ema.pt')
    args = ('--head', 'fcos', '--weights', 'convnextv2_atto_1k_224_ema.pt', '--arch', 'v2-atto')
    printed = new_config(*args, out)
    assert (
        'weights: convnextv2_atto_1k_224_ema.pt\n'
        '  Meta, pre-trained on FCMAE, ImageNet-1K, CC-BY-NC-4.0, not for commercial use\n'
    ) in printed
    assert 'weights: ' not in new_config('--head', 'fcos', '--weights', 'none', 'other.py')


def test_schedule_counts_the_steps_that_are_run(folder):
    out = folder / 'out.py'
    # 12 images: an epoch is one step of all of them, however large the batch.
    text = write_text('faster-rcnn', 'atto', 4, 4, out)
    assert '# 300 epochs, 300 steps of 12 images; the recipe has 12 epochs of 117266.' in text
    # And two steps with a batch of 8: the second one has 4 images.
    text = write_text('faster-rcnn', 'atto', 1, 8, out)
    assert '# 300 epochs, 600 steps of 8 images;' in text
    out.write_text(text)
    cfg = Config.fromfile(out)
    cfg.train_dataloader.update(num_workers=0, persistent_workers=False)
    with DATASETS.switch_scope_and_registry('mmdet'):
        loader = Runner.build_dataloader(cfg.train_dataloader)
    assert len(loader) * cfg.train_cfg.max_epochs == 600
    # Without epochs, the loader starts again in the middle of a batch.
    text = write_text('upernet', 'small', 1, 16, out)
    assert '# 300 epochs, 225 steps of 16 images;' in text


def test_clip_weights_get_images_as_clip_normalises_them(folder):
    out = folder / 'out.py'
    text = write_text('retinanet', 'large', 1, None, out, 'hf://laion/CLIP-convnext_large_d_320')
    assert 'data_preprocessor=dict(mean=[122.771, 116.746, 104.094], std=[68.501,' in text
    assert 'data_preprocessor' not in write_text('retinanet', 'large', 1, None, out)


def test_what_the_data_hold_is_printed_and_drawn(folder):
    def change(content):
        content['categories'].append(dict(id=9, name='star'))
        content['images'].append(dict(id=99, file_name='000001.png', width=64, height=64))
        content['annotations'][0].update(iscrowd=1, area=100.0)
        content['annotations'][0]['segmentation'] = dict(size=[64, 64], counts=[0, 64, 4032])
        content['annotations'][1].update(bbox=[0, 0, 70, 64], area=96.0**2)

    edit(change)
    edit(lambda content: content['categories'].append(dict(id=9, name='star')), 'val')
    printed = new_config('--head', 'mask-rcnn', 'new/out.py')
    content = json.loads(Path(ANNOTATIONS['train']).read_text())
    objects = content['annotations']
    rows = {row[0]: row[1] for row in table(printed)}
    assert rows['images'] == '13'
    assert rows['images without annotation'] == '1'
    assert rows['missing image files'] == '0'
    assert rows['objects'] == str(len(objects))
    assert rows['large'] == '1'
    assert rows['small, below 32 x 32 pixels'] == str(sum(o['area'] < 1024 for o in objects))
    assert rows['crowds'] == '1'
    assert rows['boxes that reach outside their image'] == '1'
    assert rows['objects of circle'] == str(sum(o['category_id'] == 1 for o in objects))
    printed = ' '.join(printed.split())
    assert 'train: no object of star: nothing can learn it' in printed
    assert 'val: no object of star: its AP cannot be measured' in printed
    assert 'train: 1 images without annotation' in printed
    assert 'train: 1 boxes reach outside their image' in printed
    assert 'reach outside their image, such as annotation 2' in printed
    assert f'python {TOOLS}/train.py new/out.py' in printed
    missing = 'the config is for a GPU (--gpus 1), and this machine has none: to train here'
    assert (missing in printed) != torch.cuda.is_available()
    picture = cv2.imread('new/out.png')
    assert picture.shape[0] > 800
    # The axes hold coloured shapes, not only white.
    assert (picture.max(axis=2).astype(int) - picture.min(axis=2) > 100).mean() > 0.01


def table(text: str) -> list[list[str]]:
    rows = [line for line in text.splitlines() if line.startswith('│')]
    return [[cell.strip() for cell in row.strip('│').split('│')] for row in rows]


def test_names_may_have_signs_of_formulas(folder):
    for split in ('train', 'val'):
        edit(lambda content: content['categories'][0].update(name='cost $x_$'), split)
    printed = new_config('--head', 'fcos', '--gpus', 0, 'a new.py')
    assert f"python {TOOLS}/train.py 'a new.py'" in ' '.join(printed.split())
    assert 'cost $x_$' in Config.fromfile('a new.py').classes


def test_masks_that_compression_has_changed_are_refused(folder, capsys):
    for path in Path('data/shapes/masks/train').iterdir():
        Image.open(path).save(path.with_suffix('.jpg'))
        path.unlink()
    message = refusal(
        capsys, '--task', 'segmentation', '--head', 'upernet', 'out.py', data=SEGMENTATION
    )
    assert 'masks/train holds .jpg files, whose compression changes the values' in message


def test_masks_are_counted_and_drawn(folder, capsys):
    args = ('--task', 'segmentation', '--head', 'upernet')
    printed = new_config(*args, 'out.py', data=SEGMENTATION)
    rows = {row[0]: row[1:] for row in table(printed)}
    assert rows['images'] == ['12', '4']
    assert rows['masks with class 0'] == ['12', '4']
    masks = [cv2.imread(str(p), 0) for p in Path('data/shapes/masks/train').iterdir()]
    assert rows['masks with class 2'][0] == str(sum((mask == 2).any() for mask in masks))
    assert cv2.imread('out.png').shape[0] > 800

    for path in Path('data/shapes/masks/train').iterdir():
        with Image.open(path) as file:
            plain = np.array(file)
        # The values stay, and stand for colours.
        palette = Image.fromarray(plain)
        palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
        palette.save(path)
        assert cv2.imread(str(path), cv2.IMREAD_UNCHANGED).ndim == 3
    again = new_config(*args, 'palette.py', data=SEGMENTATION)
    assert {row[0]: row[1:] for row in table(again)} == rows
    np.testing.assert_array_equal(cv2.imread('palette.png'), cv2.imread('out.png'))

    mask = Path('data/shapes/masks/train/000001.png')
    original = np.array(Image.open(mask))
    cv2.imwrite(str(mask), original[:32])
    args = (*args, 'other.py')
    assert '1 masks in data/shapes/masks/train have another size' in refusal(
        capsys, *args, data=SEGMENTATION
    )
    cv2.imwrite(str(mask), cv2.merge([original] * 3))
    assert 'must have one channel of 8 bits' in refusal(capsys, *args, data=SEGMENTATION)
    mask.unlink()
    assert '1 of 12 images in data/shapes/train have no mask' in refusal(
        capsys, *args, data=SEGMENTATION
    )
    for path in Path('data/shapes/masks').rglob('*.png'):
        cv2.imwrite(str(path), 255 * (np.array(Image.open(path)) > 0).astype(np.uint8))
    cv2.imwrite(str(mask), 255 * (original > 0).astype(np.uint8))
    assert 'only the values [0, 255], but 255 is ignored' in refusal(
        capsys, *args, data=SEGMENTATION
    )


def test_data_that_cannot_be_used_are_refused(folder, capsys):
    from own_data.detection_data import check_splits, read_split

    args = ('--head', 'mask-rcnn', 'out.py')
    original = Path(ANNOTATIONS['train']).read_text()

    edit(lambda content: content['annotations'][0].pop('segmentation'))
    assert 'which this head needs: choose --head faster-rcnn or' in refusal(capsys, *args)
    splits = [read_split(n, *map(Path, args)) for n, (_, *args) in DETECTION.items()]
    check_splits(*splits, with_masks=False, box_heads=[])
    Path(ANNOTATIONS['train']).write_text(original)

    edit(lambda content: content['annotations'].clear())
    assert 'has no object of its categories' in refusal(capsys, *args)
    Path(ANNOTATIONS['train']).write_text(original)

    edit(lambda content: content['categories'].reverse())
    assert 'differ: another order; their order decides the labels' in refusal(capsys, *args)
    Path(ANNOTATIONS['train']).write_text(original)

    edit(lambda content: content['categories'][0].update(name='disc'))
    assert 'differ: only train has disc; only val has circle;' in refusal(capsys, *args)
    Path(ANNOTATIONS['train']).write_text(original)

    edit(lambda content: content['annotations'][0].pop('bbox'))
    assert 'annotation 1 has no bbox' in refusal(capsys, *args)
    Path(ANNOTATIONS['train']).write_text(original[:100])
    assert 'not a complete JSON file' in refusal(capsys, *args)
    Path(ANNOTATIONS['train']).write_text(original)

    edit(
        lambda content: [
            entry.update(image_id=f'{entry["id"]}') for entry in content['annotations']
        ]
    )
    assert 'has objects, but none on its images: image_id of the annotations' in refusal(
        capsys, *args
    )
    Path(ANNOTATIONS['train']).write_text(original)

    Path('data/shapes/train/000003.png').unlink()
    assert '1 of 12 images listed by .* are not in data/shapes/train, such as 000003'.replace(
        '.*', ANNOTATIONS['train']
    ) in refusal(capsys, *args)
    Path('data/shapes/train/000003.png').write_bytes(b'')
    assert 'are empty, such as data/shapes/train/000003.png' in refusal(capsys, *args)


@pytest.mark.parametrize(
    ('name', 'text', 'message'),
    [
        ('a.xml', '<annotation/>', 'is Pascal VOC (XML), not COCO JSON; to convert it: pip'),
        ('labels/a.txt', '0 0.5 0.5 1 1', 'is YOLO (txt), not COCO JSON'),
        ('data.yaml', '', 'is YOLO (txt), not COCO JSON'),
        ('a.csv', '', 'is CSV, not COCO JSON; to convert it: the columns'),
        ('a.json', '{"shapes": []}', 'is LabelMe, not COCO JSON; to convert it: pip install lab'),
        ('a.json', '{"a": 1}', 'has no images and no categories: it must be in COCO format'),
        ('labels/a.json', '{"shapes": []}', 'is LabelMe, not COCO JSON'),
        (
            'labels/a.json',
            '{"a": 1}',
            'labels is a folder, not a JSON file in COCO format: give a file',
        ),
        (
            'labels/a.png',
            '',
            'labels is a folder, not a JSON file in COCO format: it holds no annot',
        ),
        ('a.pdf', '', 'is no annotation file: give a JSON file in COCO format'),
    ],
)
def test_other_formats_are_told_how_to_convert(name, text, message, folder, capsys):
    path = Path(name)
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    given = path.parent if '/' in name else path
    data = DETECTION | dict(train=('--train', given, 'data/shapes/train'))
    assert message in refusal(capsys, '--head', 'fcos', 'out.py', data=data)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (('--head', 'upernet', 'out.py'), '--head upernet is not for detection: choose one of'),
        (('--head', 'fcos', 'out.txt'), 'must end in .py, got out.txt'),
        (('--head', 'fcos', '--gpus', '-1', 'out.py'), '--gpus must be at least 0'),
        (('--head', 'fcos', '--batch', '0', 'out.py'), '--batch at least 1'),
        (('--head', 'fcos', 'data/shapes/train/000001.png/out.py'), 'is a file: choose another'),
        (('--head', 'fcos', '--weights', 'hf://x', 'out.py'), 'is not of the form hf://owner/name'),
    ],
)
def test_bad_calls_are_one_sentence(args, message, folder, capsys):
    assert message in refusal(capsys, *args)


def test_existing_configs_are_kept_without_force(folder, capsys):
    args = ('--head', 'fcos', 'out.py')
    Path('out.py').write_text('mine')
    assert 'out.py exists: choose another name, or pass --force' in refusal(capsys, *args)
    assert Path('out.py').read_text() == 'mine'
    new_config(*args, '--force')
    assert 'FCOS' in Path('out.py').read_text()


def shrink(steps: object) -> None:
    """Replaces the sizes of all transforms by small ones."""
    if isinstance(steps, dict):
        for key in ('scale', 'crop_size', 'img_scale', 'size'):
            if key in steps:
                steps[key] = (64, 64)
        if 'scales' in steps:
            steps['scales'] = [(64, 64)]
    for part in steps.values() if isinstance(steps, dict) else steps:
        if isinstance(part, (dict, list)):
            shrink(part)


@pytest.mark.parametrize('head', ['retinanet', 'segformer'])
def test_written_configs_train(head, folder):
    out = folder / 'out.py'
    out.write_text(write_text(head, 'atto', 0, 4, out, 'none'))
    cfg = Config.fromfile(out)
    shrink(cfg.train_dataloader)
    if 'size' in cfg.model.data_preprocessor:
        cfg.model.data_preprocessor.size = (64, 64)
    assert cfg.model.backbone.init_cfg is None
    assert cfg.default_hooks.setup.from_scratch
    cfg.train_dataloader.update(num_workers=0, persistent_workers=False)
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=3)
    cfg.merge_from_dict(dict(work_dir='run', val_cfg=None, val_dataloader=None, val_evaluator=None))
    cfg.default_hooks.logger = dict(type='LoggerHook', interval=1)
    cfg.default_hooks.checkpoint = None
    cfg.log_processor = dict(by_epoch=False)
    runner = Runner.from_cfg(cfg)
    runner.train()
    # Not from scalars.json: all runners of one process write into the file of the first one.
    losses = runner.message_hub.get_scalar('train/loss').data[0]
    assert len(losses) == 3
    assert all(0 < loss < 100 for loss in losses)
