"""Features of real image files, in memory and on disk."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SMALL, randomize, small_backbone
from PIL import Image

from convnext_backbone import ConvNextModel, FeatureExtractor
from convnext_backbone.extraction.pictures import principal_colours
from convnext_backbone.extraction.preprocessing import NORMALIZATIONS, normalization_of, read_image

TOOL = Path(__file__).parents[1] / 'tools' / 'extract_features.py'
MAPS = ('stage1', 'stage2', 'stage3', 'stage4')


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """The weights of a small classifier without its head."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('weights') / 'small.pth'
    torch.save(randomize(ConvNextModel(SMALL)).state_dict(), path)
    return path


def quarters(height=40, width=60):
    """An image whose four quarters differ, so that every flip and rotation shows."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = (250, 20, 20)
    pixels[height // 2 :, width // 2 :] = (20, 250, 20)
    pixels[: height // 2, width // 2 :] = (20, 20, 250)
    return pixels


@pytest.fixture
def run_tool(run_script):
    """Runs the tool; returns its exit status, its output and its errors."""
    return lambda *args: run_script(TOOL, *args, '--workers', '0')


@pytest.mark.parametrize('suffix', ['jpg', 'png', 'webp', 'tif'])
def test_orientation_is_applied(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to view
    Image.fromarray(quarters()).save(tmp_path / f'a.{suffix}', exif=exif, quality=95)
    pixels = np.asarray(read_image(tmp_path / f'a.{suffix}')).astype(int)
    turned = np.rot90(quarters(), -1)
    assert pixels.shape == turned.shape
    centres = [(15, 10), (15, 30), (45, 10), (45, 30)]
    assert max(abs(pixels[c] - turned[c]).max() for c in centres) < 12


@pytest.mark.parametrize(
    ('name', 'mode'),
    [('a.png', 'L'), ('a.png', 'RGBA'), ('a.webp', 'RGBA'), ('a.png', 'LA'), ('a.png', '1')],
)
def test_all_modes_become_rgb(tmp_path, name, mode):
    image = Image.fromarray(quarters()).convert(mode)
    image.save(tmp_path / name, **({'lossless': True} if name == 'a.webp' else {}))
    assert np.array_equal(read_image(tmp_path / name), image.convert('RGB'))


@pytest.mark.parametrize('suffix', ['png', 'tif'])
def test_16_bits_are_scaled(tmp_path, suffix):
    grey = np.asarray(Image.fromarray(quarters()).convert('L'))
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / f'a.{suffix}')
    pixels = np.asarray(read_image(tmp_path / f'a.{suffix}'))
    assert np.array_equal(pixels, np.repeat(grey[..., None], 3, axis=2))


def test_bad_images_are_told(tmp_path):
    (tmp_path / 'text.jpg').write_text('no image')
    Image.fromarray(quarters()).save(tmp_path / 'whole.png')
    (tmp_path / 'half.png').write_bytes((tmp_path / 'whole.png').read_bytes()[:100])
    Image.fromarray(np.ones((9, 9), np.float32)).save(tmp_path / 'float.tif')
    for name in ('text.jpg', 'half.png'):
        with pytest.raises(ValueError, match=f'{name} is not a readable image'):
            read_image(tmp_path / name)
    with pytest.raises(ValueError, match=r'float\.tif.*convert it to 8 or 16 bits'):
        read_image(tmp_path / 'float.tif')
    with pytest.raises(FileNotFoundError, match='no such image'):
        read_image(tmp_path / 'absent.png')


def test_maps_are_those_of_the_backbone(checkpoint):
    pixels = quarters(64, 96)
    (found,) = FeatureExtractor(SMALL, checkpoint, size=None)(pixels)
    backbone = small_backbone(out_features=MAPS).eval()
    backbone.load_state_dict(torch.load(checkpoint))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in NORMALIZATIONS['imagenet'])
    images = (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - mean) / std
    with torch.no_grad():
        expected = backbone(images[None])
    assert tuple(found.maps) == MAPS and list(found.strides.values()) == [4, 8, 16, 32]
    assert found.original_size == found.input_size == (64, 96)
    for actual, wanted in zip(found.maps.values(), expected, strict=True):
        torch.testing.assert_close(actual, wanted[0], atol=1e-5, rtol=1e-5)


def test_pooled_vectors_are_those_of_the_model(checkpoint):
    extractor = FeatureExtractor(None, checkpoint, pool=True, size=(64, 64))
    (found,) = extractor(quarters())
    model = ConvNextModel(SMALL).eval()
    model.load_state_dict(torch.load(checkpoint))
    images, _ = extractor.preprocessing.prepare(quarters())
    with torch.no_grad():
        expected = model(images[None]).pooler_output[0]
    torch.testing.assert_close(found.maps['pooled'], expected, atol=1e-5, rtol=1e-5)


def test_images_of_many_shapes_keep_their_order(checkpoint):
    extractor = FeatureExtractor(SMALL, checkpoint, size=None)
    images = [quarters(32 + 4 * (i % 3), 64) + np.uint8(i) for i in range(7)]
    together = extractor(images, batch_size=2)
    for image, found in zip(images, together, strict=True):
        (alone,) = extractor(image)
        assert found.original_size == image.shape[:2]
        for name, features in alone.maps.items():
            torch.testing.assert_close(found.maps[name], features, atol=1e-5, rtol=1e-5)


def test_sizes(checkpoint):
    def input_size(size):
        return FeatureExtractor(SMALL, checkpoint, size=size)(quarters())[0].input_size

    assert input_size(80) == (80, 120)
    assert input_size((64, 32)) == (64, 32)
    with pytest.raises(ValueError, match='20x20 pixels is smaller than the stride 32'):
        FeatureExtractor(SMALL, checkpoint, size=None)(quarters(20, 20))


def test_clip_is_normalised_as_clip(tmp_path, checkpoint):
    weights = torch.load(checkpoint)
    torch.save(weights, tmp_path / 'convnext_base.clip_laion2b.pth')
    extractor = FeatureExtractor(SMALL, tmp_path / 'convnext_base.clip_laion2b.pth')
    assert extractor.preprocessing.name == 'clip'
    assert extractor.preprocessing.mean == NORMALIZATIONS['clip'][0]
    torch.save({f'visual.{k}': v for k, v in weights.items()}, tmp_path / 'a.pth')
    assert FeatureExtractor(SMALL, tmp_path / 'a.pth').preprocessing.name == 'clip'
    assert FeatureExtractor(SMALL, checkpoint).preprocessing.name == 'imagenet'


@pytest.mark.parametrize(
    ('args', 'error', 'message'),
    [
        (dict(size='800'), TypeError, 'size must be the pixels'),
        (dict(size=0), ValueError, 'size must be positive'),
        (dict(normalization='coco'), ValueError, 'normalization must be one of'),
        (dict(pool=True, out_features=['stage1']), ValueError, 'leave out_features out'),
        (dict(out_features=['stage9']), ValueError, 'stage9'),
        *(
            (
                dict(device=device),
                ValueError,
                f"device '{device}' cannot be used .*: choose another",
            )
            for device in ('foo', 'meta', None)
        ),
    ],
)
def test_bad_arguments(checkpoint, args, error, message):
    with pytest.raises(error, match=message):
        FeatureExtractor(SMALL, checkpoint, **args)


def test_what_is_no_image(checkpoint):
    extractor = FeatureExtractor(SMALL, checkpoint)
    with pytest.raises(TypeError, match=r'got an array of shape \(9, 9\) in float64'):
        extractor(np.ones((9, 9)))
    with pytest.raises(TypeError, match='got int'):
        extractor([3])
    for shape in ((0, 60, 3), (60, 0, 3)):
        with pytest.raises(ValueError, match=f'an image of {shape[0]}x{shape[1]} pixels is empty'):
            extractor(np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match=r'1x5000 pixels would have 800x4000000 after resizing'):
        extractor(np.zeros((1, 5000, 3), np.uint8))


@pytest.mark.parametrize(
    ('batch_size', 'error'), [(-1, ValueError), (0, ValueError), ('2', TypeError)]
)
def test_bad_batches(checkpoint, batch_size, error):
    with pytest.raises(error, match='batch_size must be'):
        FeatureExtractor(SMALL, checkpoint)(quarters(), batch_size)


@pytest.fixture
def folder(tmp_path):
    """Three good images, two of them of one shape, and a bad one."""
    (tmp_path / 'images' / 'more').mkdir(parents=True)
    for name, shape in (('a.jpg', (40, 60)), ('b.png', (40, 60)), ('more/a.jpg', (60, 40))):
        Image.fromarray(quarters(*shape)).save(tmp_path / 'images' / name)
    (tmp_path / 'images' / 'bad.jpg').write_text('no image')
    return tmp_path


def test_the_tool_writes_resumes_and_reports(folder, checkpoint, run_tool):
    from safetensors.torch import load_file

    images, out = folder / 'images', folder / 'out'
    args = (images, '--checkpoint', checkpoint, '--size', 64, '--out-features', 'stage2', 'stage4')
    args = (*args, '--format', 'safetensors', '--out', out, '--visualize', '--batch-size', 2)
    code, text, errors = run_tool(*args)
    assert code == 1 and 'skipped bad.jpg' in errors and 'imagenet normalisation' in text
    content = load_file(out / 'more' / 'a.jpg.safetensors')
    (expected,) = FeatureExtractor(SMALL, checkpoint, out_features=['stage2', 'stage4'], size=64)(
        images / 'more' / 'a.jpg'
    )
    torch.testing.assert_close(content['stage4'], expected.maps['stage4'], atol=1e-5, rtol=1e-5)
    assert content['strides'].tolist() == [8, 32]
    assert content['original_size'].tolist() == [60, 40]
    assert content['input_size'].tolist() == [96, 64]
    assert content['mean'].tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert content['std'].tolist() == pytest.approx([0.229, 0.224, 0.225])
    with Image.open(out / 'pictures' / 'a.jpg.png') as picture:
        assert min(picture.size) > 300
    settings = json.loads((out / 'extraction.json').read_text())
    assert settings['preprocessing']['name'] == 'imagenet'

    # What is complete is not computed again.
    before = (out / 'a.jpg.safetensors').stat().st_mtime_ns
    (out / 'b.png.safetensors').unlink()
    code, text, _ = run_tool(*args)
    assert code == 1 and '2 of 4 images are done already' in text
    assert (out / 'a.jpg.safetensors').stat().st_mtime_ns == before
    assert (out / 'b.png.safetensors').is_file()
    # A missing picture is drawn, and the features are left as they are.
    (out / 'pictures' / 'a.jpg.png').unlink()
    code, text, _ = run_tool(*args)
    assert code == 1 and '2 of 4 images are done already' in text
    assert (out / 'pictures' / 'a.jpg.png').is_file()
    assert (out / 'a.jpg.safetensors').stat().st_mtime_ns == before
    # Other settings would mix two kinds of features in one folder.
    code, _, errors = run_tool(*args[:3], '--format', 'safetensors', '--out', out)
    assert code == 2 and 'choose another folder' in errors
    # The same file name, but other weights.
    other = folder / 'small.pth'
    shutil.copy(checkpoint, other)
    state_dict = torch.load(other, weights_only=True)
    state_dict['embeddings.layernorm.weight'] += 1
    torch.save(state_dict, other)
    code, _, errors = run_tool(*[other if arg == checkpoint else arg for arg in args])
    assert code == 2 and 'weights' in errors and 'choose another folder' in errors
    code, _, errors = run_tool(*args, '--device', 'nonsense')
    assert code == 2 and "device 'nonsense' cannot be used" in errors


def test_the_tool_writes_arrays(folder, checkpoint, run_tool):
    (folder / 'images' / 'bad.jpg').unlink()
    out = folder / 'out'
    args = (folder / 'images', '--checkpoint', checkpoint, '--out', out, '--format', 'memmap')
    assert 'needs one size for all images' in run_tool(*args)[2]
    args = (*args, '--size', 64, 64)
    assert run_tool(*args)[0] == 0
    names = json.loads((out / 'images.json').read_text())
    maps = np.load(out / 'stage3.npy', mmap_mode='r')
    assert names == ['a.jpg', 'b.png', 'more/a.jpg'] and len(maps) == 3
    (expected,) = FeatureExtractor(SMALL, checkpoint, size=(64, 64))(folder / 'images/b.png')
    np.testing.assert_allclose(maps[1], expected.maps['stage3'], atol=1e-5, rtol=1e-4)
    assert np.load(out / 'original_size.npy').tolist() == [[40, 60], [40, 60], [60, 40]]

    # An image that was not finished is computed again, the others are not.
    done = np.load(out / 'done.npy', mmap_mode='r+')
    done[1] = 0
    done.flush()
    np.load(out / 'stage3.npy', mmap_mode='r+')[:] = 7
    assert '2 of 3 images are done already' in run_tool(*args)[1]
    maps = np.load(out / 'stage3.npy')
    assert (maps[0] == 7).all() and abs(maps[1] - expected.maps['stage3'].numpy()).max() < 1e-4


@pytest.mark.parametrize('kind', ['npz', 'memmap'])
def test_without_good_images_the_folder_stays_free(kind, folder, checkpoint, run_tool):
    out = folder / 'out'
    args = ('--checkpoint', checkpoint, '--out', out, '--format', kind, '--size', 64, 64)
    code, text, errors = run_tool(folder / 'images/bad.jpg', *args)
    assert code == 1 and f'0 images are in {out}, 1 were skipped' in text
    assert 'skipped bad.jpg' in errors and not out.exists()
    # Other images and another size.
    assert run_tool(folder / 'images/a.jpg', *args[:-2], 32, 32)[0] == 0
    assert (out / 'extraction.json').is_file()


def test_names_that_collide_are_an_error(folder, checkpoint, run_tool):
    images, rest = folder / 'images', ('--checkpoint', checkpoint, '--out', folder / 'out')
    code, _, errors = run_tool(images / 'a.jpg', images / 'more' / 'a.jpg', *rest)
    assert code == 2 and 'would have the same name' in errors
    code, _, errors = run_tool(images / '*.gif', *rest)
    assert code == 2 and 'no images found' in errors


def test_principal_colours_find_the_parts_of_an_image():
    """Two halves that differ along one direction get two colours, whatever the direction."""
    direction = torch.randn(12, 1, 1)
    features = direction * torch.tensor([1.0, -1.0]).repeat_interleave(5).expand(8, 10)
    features = features + 1e-3 * torch.randn(12, 8, 10)
    colours = principal_colours(features)
    assert colours.shape == (8, 10, 3)
    red = colours[..., 0]
    assert abs(red[:, :5].mean() - red[:, 5:].mean()) > 0.9
    assert red[:, :5].std() < 0.05
    assert principal_colours(torch.randn(2, 4, 4)).shape == (4, 4, 3)


def test_maps_after_a_neck(tmp_path, folder):
    """Those of the neck on the maps of the backbone, normalised as the config says."""
    pytest.importorskip('mmdet')
    from mmengine.config import Config
    from mmengine.registry import MODELS, init_default_scope

    backbone = dict(type='ConvNextBackbone', arch=SMALL, out_indices=(0, 1, 2, 3))
    preprocessor = dict(
        type='DetDataPreprocessor', mean=[123.0, 117, 104], std=[58.0, 57, 57], bgr_to_rgb=True
    )
    model = dict(
        type='SingleStageDetector',
        data_preprocessor=preprocessor,
        backbone=backbone,
        neck=dict(type='FPN', in_channels=list(SMALL['hidden_sizes']), out_channels=8, num_outs=5),
        bbox_head=dict(type='RetinaHead', num_classes=2, in_channels=8),
    )
    config = Config(dict(default_scope='mmdet', model=model))
    config.dump(tmp_path / 'config.py')
    init_default_scope('mmdet')
    detector = randomize(MODELS.build(config.model)).eval()
    torch.save(dict(state_dict=detector.state_dict()), tmp_path / 'detector.pth')

    image = quarters(64, 128)
    extractor = FeatureExtractor.from_config(
        tmp_path / 'config.py', tmp_path / 'detector.pth', size=None
    )
    (found,) = extractor(image)
    data = dict(inputs=[torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)])
    with torch.no_grad():
        expected = detector.extract_feat(detector.data_preprocessor(data)['inputs'])
    assert found.strides == dict(level1=4, level2=8, level3=16, level4=32, level5=64)
    for actual, wanted in zip(found.maps.values(), expected, strict=True):
        torch.testing.assert_close(actual, wanted[0], atol=1e-4, rtol=1e-4)
    (tmp_path / 'damaged.pth').write_bytes((tmp_path / 'detector.pth').read_bytes()[:1000])
    with pytest.raises(ValueError, match=r'damaged\.pth is truncated or damaged'):
        FeatureExtractor.from_config(tmp_path / 'config.py', tmp_path / 'damaged.pth')
    model['neck'] = None
    Config(dict(default_scope='mmdet', model=model)).dump(tmp_path / 'none.py')
    with pytest.raises(ValueError, match='has no model with a neck'):
        FeatureExtractor.from_config(tmp_path / 'none.py', tmp_path / 'detector.pth')


@pytest.mark.parametrize(
    ('checkpoint', 'kind'),
    [
        ('/home/me/eclipse-workspace/convnext_tiny.pth', 'imagenet'),
        ('video_clips/convnext_tiny.pth', 'imagenet'),
        ('hf://timm/convnext_base.clip_laion2b', 'clip'),
        ('hf://laion/CLIP-convnext_base-laion400M-s13B-b51K', 'clip'),
        ('models/open_clip_pytorch_model.bin', 'clip'),
    ],
)
def test_clip_is_recognised_as_a_word(checkpoint, kind):
    assert normalization_of(checkpoint, '') == kind
