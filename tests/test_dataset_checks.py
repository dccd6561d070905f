"""Faults of generated datasets that the frameworks accept, or notice late."""

import json
import math
import shutil
from pathlib import Path

import mmcv
import numpy as np
import pytest
from helpers import REPO, make_shapes, run_tool
from mmengine.config import Config
from mmengine.registry import DATASETS, TRANSFORMS
from PIL import Image

from convnext_backbone.engine import image_checks, mask_checks
from convnext_backbone.engine.dataset_checks import check_datasets
from convnext_backbone.engine.evaluator_checks import check_evaluators

DETECTION = REPO / 'configs/demo/mask-rcnn_convnext-atto_fpn_shapes.py'
SEGMENTATION = REPO / 'configs/demo/upernet_convnext-atto_shapes.py'
CLASSIFICATION = REPO / 'configs/demo/convnext-atto_shapes.py'
TRAIN = 'data/shapes/annotations/instances_train.json'


@pytest.fixture(scope='module')
def generated(tmp_path_factory):
    folder = tmp_path_factory.mktemp('generated')
    make_shapes(folder, 6, 2, '--size', 32)
    images = ('--train', 24, '--val', 12, '--size', 32)
    run_tool('dataset_converters/make_shapes_folder.py', 'data/shapes_folder', *images, cwd=folder)
    return folder


@pytest.fixture
def folder(generated, tmp_path, monkeypatch):
    """A copy of both datasets, as the working folder."""
    shutil.copytree(generated, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def edit(change):
    """Applies a function to the content of the training annotations."""

    def fault(cfg):
        content = json.loads(Path(TRAIN).read_text())
        content = change(content) or content
        Path(TRAIN).write_text(json.dumps(content))

    return fault


def options(**changes):
    """Changes settings; a double underscore stands for a dot."""
    return lambda cfg: cfg.merge_from_dict({k.replace('__', '.'): v for k, v in changes.items()})


def first(part, **changes):
    """Changes the first image or annotation; None removes a key."""

    def change(content):
        for key, value in changes.items():
            content[part][0].pop(key)
            if value is not None:
                content[part][0][key] = value

    return edit(change)


def without_iscrowd(cfg):
    path = Path(cfg.val_dataloader.dataset.data_root, cfg.val_dataloader.dataset.ann_file)
    content = json.loads(path.read_text())
    for entry in content['annotations']:
        del entry['iscrowd']
    path.write_text(json.dumps(content))


def write_mask(change):
    """Changes the values in the first training mask in place."""

    def fault(cfg):
        path = Path('data/shapes/masks/train/000001.png')
        mask = np.array(Image.open(path))
        change(mask)
        Image.fromarray(mask).save(path)

    return fault


def spoil_mask(name):
    """Gives all pixels of a training mask a value without a class."""
    path = Path('data/shapes/masks/train', f'{name}.png')
    Image.fromarray(np.full((32, 32), 9, np.uint8)).save(path)


@pytest.mark.parametrize('path', [DETECTION, SEGMENTATION, CLASSIFICATION], ids=lambda p: p.stem)
def test_generated_data_have_no_fault(path, folder):
    assert check_datasets(Config.fromfile(path)) == []


@pytest.mark.parametrize(
    ('path', 'fault', 'error', 'message'),
    [
        (
            DETECTION,
            lambda cfg: Path(TRAIN).unlink(),
            FileNotFoundError,
            'no annotation file .*train.json: check data_root',
        ),
        (
            DETECTION,
            lambda cfg: Path(TRAIN).write_text(Path(TRAIN).read_text()[:200]),
            ValueError,
            'not a complete JSON file',
        ),
        (DETECTION, edit(lambda c: [c]), ValueError, 'has no images and no categories'),
        (DETECTION, edit(lambda c: c.pop('images') and c), ValueError, 'no images: it must be in'),
        (DETECTION, edit(lambda c: c.update(images=[])), ValueError, 'lists no images'),
        (
            DETECTION,
            edit(lambda c: c.update(annotations=[])),
            ValueError,
            '0 annotations, but none of the classes',
        ),
        (DETECTION, first('images', width=None), ValueError, 'an image without width'),
        (DETECTION, first('images', id=2), ValueError, 'uses an image id twice'),
        (DETECTION, first('images', height=0), ValueError, 'without a file name or a size'),
        (DETECTION, first('images', file_name=''), ValueError, 'without a file name or a size'),
        (DETECTION, first('annotations', id=2), ValueError, 'without an id of their own'),
        (DETECTION, first('annotations', id=None), ValueError, 'without an id of their own'),
        (
            DETECTION,
            first('annotations', segmentation=[[1, 2, 3]]),
            ValueError,
            'the segmentation of annotation 1 must be',
        ),
        (
            DETECTION,
            first('annotations', segmentation=dict(size=[2, 2])),
            ValueError,
            'the segmentation of annotation 1 must be',
        ),
        (
            DETECTION,
            edit(lambda c: c['categories'].append(dict(id=9, name='circle'))),
            ValueError,
            "several categories 'circle': merge or rename",
        ),
        (
            DETECTION,
            first('images', file_name='absent.png'),
            FileNotFoundError,
            '1 of 6 files listed by .* such as data/shapes/train/absent.png: check',
        ),
        (DETECTION, first('annotations', bbox=None), ValueError, 'annotation 1 has no bbox'),
        (DETECTION, first('annotations', bbox=[1, 2]), ValueError, r'width, height\], got \[1, 2'),
        (DETECTION, first('annotations', bbox=[1, 2, 3, math.nan]), ValueError, 'got .*nan'),
        (
            DETECTION,
            edit(lambda c: c['categories'][0].pop('name') and c),
            ValueError,
            'a category with',
        ),
        (
            DETECTION,
            lambda cfg: Path('data/shapes/train/000003.png').write_bytes(b''),
            ValueError,
            '1 of 6 files .* are empty, such as data/shapes/train/000003.png: write them again',
        ),
        (DETECTION, first('annotations', area=None), ValueError, 'annotation 1 has no area'),
        (DETECTION, first('annotations', area='12'), ValueError, "annotation 1 .* got '12'"),
        (DETECTION, first('annotations', iscrowd='0'), ValueError, "annotation 1 .* got '0'"),
        *(
            (
                DETECTION,
                first('annotations', segmentation=mask),
                ValueError,
                r'1 of \d+ annotations have no segmentation, or none .* annotation 1: choose',
            )
            for mask in ([], [[]], [[1, 2, 3, 4]])
        ),
        (DETECTION, first('images', file_name=3), ValueError, 'without a file name or a size'),
        (DETECTION, first('annotations', area=math.nan), ValueError, 'annotation 1 .* got nan'),
        *(
            (
                DETECTION,
                first(part, **{key: [1]}),
                ValueError,
                rf'of {part} whose {key} is neither .* \[1\]',
            )
            for part, key in (
                *(('images', 'id'), ('categories', 'id'), ('annotations', 'id')),
                *(('annotations', 'image_id'), ('annotations', 'category_id')),
            )
        ),
        (
            DETECTION,
            first('categories', id=2),
            ValueError,
            'uses the category id 2 twice: each needs its own',
        ),
        *(
            (
                DETECTION,
                first('annotations', segmentation=dict(size=[32, 32], counts=counts)),
                ValueError,
                'the segmentation of annotation 1 must be',
            )
            for counts in (3, None, ['a'], [-1])
        ),
        (
            DETECTION,
            first('annotations', segmentation=dict(size=[16, 32], counts=[512])),
            ValueError,
            r'the mask of annotation 1 has the size \[16, 32\], but image 1 has \[height, width\] '
            r'= \[32, 32\]: write',
        ),
        *(
            (
                DETECTION,
                first('annotations', segmentation=dict(size=[32, 32], counts=counts)),
                ValueError,
                'run lengths of annotation 1 are damaged, their sum is not the 1024 pixels',
            )
            for counts in ([50, 50], [2000], '', 'abc', 'PPY')
        ),
        (
            DETECTION,
            without_iscrowd,
            ValueError,
            'instances_val.json: annotation 1 has no iscrowd, which the evaluation needs: add',
        ),
        *(
            (
                DETECTION,
                first('images', file_name=name),
                ValueError,
                '1 of 6 files listed by .* are folders, such as data/shapes/train/',
            )
            for name in ('.', '../val')
        ),
        (
            DETECTION,
            options(train_dataloader__dataset__filter_cfg__min_size=33),
            ValueError,
            r"leaves none of 6 images .* it is {'filter_empty_gt': True, 'min_size': 33}: set",
        ),
        (
            DETECTION,
            options(train_dataloader__dataset__data_prefix='train/'),
            TypeError,
            r"data_prefix must be a dict, such as dict\(img='train/'\).*, got 'train/'",
        ),
        (
            DETECTION,
            lambda cfg: cfg.train_dataloader.dataset.pop('data_prefix'),
            ValueError,
            r"data_prefix needs img, .*, got {'img_path': '.*'}",
        ),
        (
            DETECTION,
            options(val_evaluator__ann_file=TRAIN),
            ValueError,
            r'val_evaluator\.ann_file is .*instances_train\.json, but val_dataloader reads '
            r'.*instances_val\.json: .* set val_evaluator\.ann_file',
        ),
        (
            DETECTION,
            lambda cfg: cfg.update(test_evaluator=[dict(type='mmdet.CocoMetric', ann_file=TRAIN)]),
            ValueError,
            r'test_evaluator\[0\]\.ann_file is .*instances_train\.json',
        ),
        (
            DETECTION,
            lambda cfg: Path('data/shapes/train/000003.png').write_text('a,b'),
            ValueError,
            '1 of 6 files listed by .* are no images, such as data/shapes/train/000003.png: write',
        ),
        (
            SEGMENTATION,
            lambda cfg: Path('data/shapes/val/000002.png').write_text('a,b'),
            ValueError,
            '1 of 2 files listed by .* are no images, such as data/shapes/val/000002.png: write',
        ),
        (
            DETECTION,
            edit(lambda c: c['categories'][0].update(name='disc')),
            ValueError,
            'no category circle, it has disc, square, triangle: set metainfo.classes',
        ),
        (
            DETECTION,
            edit(lambda c: c['categories'].reverse()),
            ValueError,
            'another order .* to triangle, square, circle',
        ),
        (
            DETECTION,
            options(train_dataloader__dataset__metainfo__classes='circle'),
            ValueError,
            "tuple of names, got 'circle'",
        ),
        (
            DETECTION,
            options(train_dataloader__dataset__metainfo__classes=('circle', 'square')),
            ValueError,
            'the classes of train and val differ, circle, square and circle, square, triangle',
        ),
        (
            DETECTION,
            options(model__roi_head__mask_head__num_classes=80),
            ValueError,
            'model.roi_head.mask_head.num_classes is 80, but the datasets have 3',
        ),
        (
            DETECTION,
            options(val_evaluator__ann_file='none.json'),
            FileNotFoundError,
            'no annotation file none.json: check ann_file of the evaluator',
        ),
        (
            SEGMENTATION,
            lambda cfg: shutil.rmtree('data/shapes/train'),
            FileNotFoundError,
            'data/shapes/train',
        ),
        (
            SEGMENTATION,
            options(train_dataloader__dataset__img_suffix='.jpg'),
            FileNotFoundError,
            'no images in data/shapes/train.*check data_root, data_prefix and the suffixes',
        ),
        (
            SEGMENTATION,
            lambda cfg: Path('data/shapes/masks/val/000002.png').unlink(),
            FileNotFoundError,
            '1 of 2 files .* such as data/shapes/masks/val/000002.png',
        ),
        (
            SEGMENTATION,
            options(model__decode_head__num_classes=3),
            ValueError,
            'model.decode_head.num_classes is 3, but the datasets have 4',
        ),
        (
            SEGMENTATION,
            write_mask(lambda mask: mask.fill(7)),
            ValueError,
            '1 of 6 masks .* neither 0 to 3 for the 4 classes nor 255 .* such as 7 in '
            'data/shapes/masks/train/000001.png: write such values, or set metainfo.classes and '
            'num_classes of all heads to the classes of the masks$',
        ),
        (
            SEGMENTATION,
            write_mask(lambda mask: mask.fill(4)),
            ValueError,
            'such as 4 in .*; or, if 0 means no class, set reduce_zero_label=True in the datasets',
        ),
        (
            SEGMENTATION,
            lambda cfg: Path('data/shapes/masks/train/000001.png').write_text('a,b'),
            ValueError,
            'cannot read the mask data/shapes/masks/train/000001.png .*: write it again',
        ),
        (
            SEGMENTATION,  # mmseg would read 256 as 0
            lambda cfg: Image.fromarray(np.full((32, 32), 256, np.uint16)).save(
                'data/shapes/masks/train/000001.png'
            ),
            ValueError,
            'the mask data/shapes/masks/train/000001.png has values above 255, of which mmseg',
        ),
        (
            SEGMENTATION,
            lambda cfg: shutil.copy('data/shapes/train/000001.png', 'data/shapes/masks/train'),
            ValueError,
            r'masks/train/000001.png has several channels, an array of shape \(32, 32, 3\)',
        ),
        (
            CLASSIFICATION,
            lambda cfg: shutil.rmtree('data/shapes_folder/val'),
            FileNotFoundError,
            "'data/shapes_folder/val' is not a folder: set it",
        ),
        (
            CLASSIFICATION,
            options(model__num_labels=1000),
            ValueError,
            'model.num_labels is 1000, but the datasets have 3 classes',
        ),
    ],
)
def test_faults_are_found_before_training(path, fault, error, message, folder):
    cfg = Config.fromfile(path)
    fault(cfg)
    with pytest.raises(error, match=message):
        check_datasets(cfg)


def test_wrapped_datasets_are_checked(folder):
    cfg = Config.fromfile(DETECTION)
    inner = cfg.train_dataloader.dataset
    repeated = dict(type='RepeatDataset', times=2, dataset=inner)
    cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[inner, repeated])
    assert check_datasets(cfg) == []
    repeated['dataset'] = inner | dict(ann_file='none.json')
    cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[inner, repeated])
    with pytest.raises(FileNotFoundError, match=r'no annotation file data/shapes/none\.json'):
        check_datasets(cfg)


def test_what_is_left_out_is_a_warning(folder):
    def change(content):
        content['categories'].append(dict(id=9, name='star'))
        content['annotations'][0]['category_id'] = 9
        content['annotations'][1]['image_id'] = 99
        content['annotations'][2]['bbox'] = [20, 20, 40, 4]
        content['annotations'][3]['bbox'] = [2, 2, 0.5, 4]

    edit(change)(None)
    total = len(json.loads(Path(TRAIN).read_text())['annotations'])
    left_out, unlisted, empty, outside = check_datasets(Config.fromfile(DETECTION))
    assert f'1 of {total} annotations are left out, their categories are not' in left_out
    assert left_out.endswith('star')
    assert f'1 of {total} annotations are left out, their images are not listed' in unlisted
    assert 'such as annotation 2 of image 99' in unlisted
    assert 'no area or are narrower than a pixel, such as annotation 4' in empty
    assert 'annotations reach outside their image, such as annotation 3' in outside
    # The test set need not have objects.
    content = json.loads(Path(TRAIN).read_text())
    del content['annotations']
    Path('data/shapes/annotations/instances_val.json').write_text(json.dumps(content))
    cfg = Config.fromfile(DETECTION)
    cfg.test_dataloader.dataset.data_prefix.img = 'train/'
    assert check_datasets(cfg, ['test']) == []


def test_of_many_images_some_are_looked_up(folder, monkeypatch):
    monkeypatch.setattr(image_checks, 'MAX_LOOKUPS', 2)
    Path('data/shapes/train/000002.png').unlink()
    assert check_datasets(Config.fromfile(DETECTION)) == []
    Path('data/shapes/train/000004.png').unlink()
    with pytest.raises(FileNotFoundError, match=r'1 of 2 files .* such as .*000004\.png'):
        check_datasets(Config.fromfile(DETECTION))


def test_masks_are_read_as_mmseg_reads_them(folder):
    cfg = Config.fromfile(SEGMENTATION)
    path = Path('data/shapes/masks/train/000001.png')
    # A palette stands for colours, but the values are classes; ignored pixels have none.
    values = np.array(Image.open(path))
    values[0] = 255
    palette = Image.fromarray(values)
    palette.putpalette(list(range(255, -1, -1)) * 3)
    palette.save(path)
    assert Image.open(path).mode == 'P'
    assert check_datasets(cfg) == []
    Image.fromarray(values.astype(np.uint16)).save(path)
    assert check_datasets(cfg) == []
    # With reduce_zero_label, 0 is no class and 4 is the last one.
    values[:2] = [[0], [4]]
    Image.fromarray(values).save(path)
    with pytest.raises(ValueError, match='such as 4 in'):
        check_datasets(cfg)
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].dataset.reduce_zero_label = True
    assert check_datasets(cfg) == []
    # The head decides which value is ignored.
    cfg = Config.fromfile(SEGMENTATION)
    cfg.model.decode_head.ignore_index = 4
    values[:2] = 4
    Image.fromarray(values).save(path)
    assert check_datasets(cfg) == []
    # Fewer classes than those of the dataset's type: the others become ignored.
    shutil.copy('data/shapes/masks/train/000002.png', path)
    cfg = Config.fromfile(SEGMENTATION)
    cfg.pop('model')
    for split in ('train', 'val', 'test'):
        dataset = cfg[f'{split}_dataloader'].dataset
        dataset.metainfo = dict(classes=('road', 'sidewalk'))
    with pytest.raises(ValueError, match='neither 0 to 1 for the 2 classes nor 255'):
        check_datasets(cfg)
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].dataset.type = 'CityscapesDataset'
        cfg[f'{split}_dataloader'].dataset.seg_map_suffix = '.png'
    assert check_datasets(cfg) == []


@TRANSFORMS.register_module()
class Halved:
    def __call__(self, results):
        results['gt_seg_map'] = results['gt_seg_map'] // 2
        return results


def test_masks_that_an_own_step_changes_are_not_checked(folder):
    write_mask(lambda mask: mask.fill(6))(None)
    cfg = Config.fromfile(SEGMENTATION)
    with pytest.raises(ValueError, match='values that are neither'):
        check_datasets(cfg)
    cfg.train_dataloader.dataset.pipeline.insert(2, dict(type='Halved'))
    assert check_datasets(cfg) == []


def test_what_only_masks_and_evaluations_need_is_not_asked_of_others(folder):
    cfg = Config.fromfile(DETECTION)
    first('annotations', segmentation=dict(size=[64, 64], counts=[4096.0]))(cfg)
    first('annotations', iscrowd=None)(cfg)
    with pytest.raises(ValueError, match='the mask of annotation 1 has the size'):
        check_datasets(cfg)
    for split in ('train', 'val', 'test'):
        for step in cfg[f'{split}_dataloader'].dataset.pipeline:
            step.pop('with_mask', None)
    assert check_datasets(cfg) == []


def test_evaluators_may_read_other_annotations_of_the_same_images(folder):
    cfg = Config.fromfile(DETECTION)
    shutil.copy(cfg.val_evaluator.ann_file, 'relabelled.json')
    cfg.val_evaluator.ann_file = 'relabelled.json'
    assert check_datasets(cfg) == []


def test_of_many_masks_some_are_read(folder, monkeypatch):
    monkeypatch.setattr(mask_checks, 'MAX_MASKS', 2)
    cfg = Config.fromfile(SEGMENTATION)
    spoil_mask('000002')
    assert check_datasets(cfg) == []
    spoil_mask('000004')
    with pytest.raises(ValueError, match=r'1 of 2 masks .* such as 9 in .*000004\.png'):
        check_datasets(cfg)


def test_short_polygons_beside_others_are_a_warning(folder):
    edit(lambda content: content['annotations'][0]['segmentation'].append([1, 2, 3, 4]))(None)
    (warning,) = check_datasets(Config.fromfile(DETECTION))
    assert (
        'have polygons of fewer than three points, which mmdet leaves out, such as annotation 1'
        in warning
    )


def test_listed_sizes_are_compared_with_the_images(folder):
    def turned(path: Path, orientation: int) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        pixels = np.random.default_rng(0).integers(0, 256, (32, 40, 3), np.uint8)
        Image.fromarray(pixels).save(path, exif=exif)

    images = Path('data/shapes/train')
    first('images', file_name='a.jpg', width=40, height=32)(None)
    cfg = Config.fromfile(DETECTION)
    turned(images / 'a.jpg', 1)
    assert check_datasets(cfg) == []
    # mmcv turns the image, so that boxes that were made for 40x32 do not fit any more.
    turned(images / 'a.jpg', 6)
    assert mmcv.imread(str(images / 'a.jpg')).shape == (40, 32, 3)
    (warning,) = check_datasets(cfg)
    assert '1 of 6 images that were looked at are turned when they are read' in warning
    assert 'such as data/shapes/train/a.jpg, listed as 40x32; if boxes do not fit, set color_' in (
        warning
    )
    for split in ('train', 'val', 'test'):
        step = cfg[f'{split}_dataloader'].dataset.pipeline[0]
        assert step.type == 'LoadImageFromFile'
        step.color_type = 'color_ignore_orientation'
    assert check_datasets(cfg) == []
    # Listed as it is after turning.
    first('images', width=32, height=40)(None)
    assert check_datasets(Config.fromfile(DETECTION)) == []
    first('images', width=80, height=64)(None)
    (warning,) = check_datasets(Config.fromfile(DETECTION))
    assert '1 of 6 images that were looked at do not have the size that is listed' in warning
    assert 'such as data/shapes/train/a.jpg, listed as 80x64, but 40x32' in warning


def test_masks_of_listed_images_are_checked(folder):
    cfg = Config.fromfile(SEGMENTATION)
    Path('data/shapes/train.txt').write_text('000002\n000003\n')
    cfg.train_dataloader.dataset.ann_file = 'train.txt'
    spoil_mask('000001')
    assert check_datasets(cfg) == []
    spoil_mask('000003')
    with pytest.raises(ValueError, match=r'1 of 2 masks .* such as 9 in .*000003\.png'):
        check_datasets(cfg)


def test_evaluators_may_read_what_the_dataset_reads(folder):
    cfg = Config.fromfile(DETECTION)
    # Another spelling of the path, a metric of another kind, and none.
    same = Path(cfg.val_evaluator.ann_file).resolve()
    other = dict(type='CrowdHumanMetric', ann_file=TRAIN)
    cfg.val_evaluator = [
        dict(type='CocoMetric', ann_file=str(same)),
        other,
        dict(type='CocoMetric'),
    ]
    assert check_datasets(cfg) == []
    # Of several datasets, it is not known which one the file is for.
    cfg.val_evaluator = dict(type='CocoMetric', ann_file=TRAIN)
    inner = cfg.val_dataloader.dataset
    cfg.val_dataloader.dataset = dict(type='ConcatDataset', datasets=[inner])
    assert check_datasets(cfg) == []


def test_panoptic_datasets_are_judged_by_panoptic_metrics(folder):
    """Beside it, boxes and masks of instances are judged with a file of their own."""
    val = TRAIN.replace('train', 'val')
    dataset = DATASETS.build(
        dict(type='mmdet.CocoPanopticDataset', ann_file=val, data_prefix={}, lazy_init=True)
    )
    panoptic = dict(type='CocoPanopticMetric', ann_file=val)
    check_evaluators([panoptic, dict(type='CocoMetric', ann_file=TRAIN)], 'val', dataset)
    with pytest.raises(ValueError, match=r'val_evaluator\.ann_file is .*_train\.json, but val_dat'):
        check_evaluators(panoptic | dict(ann_file=TRAIN), 'val', dataset)
