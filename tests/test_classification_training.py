"""Real runs of classifiers: every config, the command lines, and transfer to a detector."""

import pickle
import re

import cv2
import numpy as np
import pytest
import torch
from helpers import REPO, load_whole, make_shapes, run_tool
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, PARAM_SCHEDULERS, init_default_scope

from convnext_backbone import ConvNextForImageClassification

DEMO = REPO / 'configs/demo/convnext-atto_shapes.py'
CONFIGS = [DEMO, *sorted((REPO / 'configs/classification').glob('*.py'))]
# ConvNeXt, tables 1 and 5: parameters in millions, drop path.
PAPER = {'t': (28.6, 0.1), 's': (50, 0.4), 'b': (89, 0.5)}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with the generated shapes where the demo's config expects them."""
    folder = tmp_path_factory.mktemp('run')
    args = ('--train', 640, '--val', 120, '--size', 64)
    run_tool('dataset_converters/make_shapes_folder.py', 'data/shapes_folder', *args, cwd=folder)
    return folder


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_config_takes_a_step_on_its_own_data(path, folder):
    cfg = Config.fromfile(path)
    init_default_scope('mmengine')
    cfg.train_dataloader.dataset.data_root = str(folder / 'data/shapes_folder/train')
    # The large models need gigabytes; the next test checks their shapes.
    cfg.model.arch = 'atto'
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    model = MODELS.build(cfg.model)
    assert isinstance(model, ConvNextForImageClassification)
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    batch = [dataset[i] for i in (0, -1)]
    data = model.data_preprocessor(pseudo_collate(batch), training=True)
    loss = model.train()(**data, mode='loss')['loss']
    # Before training, all classes are equally probable.
    assert loss.item() == pytest.approx(np.log(model.num_labels), rel=0.15)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    head = model.classifier.weight.detach().clone()
    optim_wrapper.step()
    assert (model.classifier.weight != head).any()
    groups = {p: g['weight_decay'] for g in optim_wrapper.param_groups for p in g['params']}
    for name, p in model.named_parameters():
        assert groups[p] == (0.05 if p.ndim > 1 else 0), name


@pytest.mark.parametrize('size', PAPER)
def test_recipes_are_the_papers(size):
    cfg = Config.fromfile(REPO / f'configs/classification/convnext-{size}_in1k.py')
    parameters, drop_path_rate = PAPER[size]
    with torch.device('meta'):
        model = MODELS.build({**cfg.model, 'data_preprocessor': None})
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(parameters, rel=0.01)
    blocks = [layer for stage in model.convnext.encoder.stages for layer in stage.layers]
    assert blocks[-1].drop_path.drop_prob == pytest.approx(drop_path_rate)
    mixing = cfg.model.data_preprocessor
    assert (mixing.mixup_alpha, mixing.cutmix_alpha) == (0.8, 1.0)
    assert cfg.model.label_smoothing == 0.1
    assert cfg.auto_scale_lr.base_batch_size == 32 * cfg.train_dataloader.batch_size == 4096
    assert cfg.custom_hooks[0] == dict(type='EMAHook', momentum=pytest.approx(1 - 0.9999))

    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = dict(cfg.optim_wrapper.optimizer)
    assert optimizer.pop('type') == 'AdamW'
    optimizer = torch.optim.AdamW([parameter], **optimizer)
    assert (optimizer.defaults['betas'], optimizer.defaults['weight_decay']) == ((0.9, 0.999), 0.05)
    # Schedules count iterations; an epoch has three here.
    build_args = dict(optimizer=optimizer, epoch_length=3)
    schedulers = [PARAM_SCHEDULERS.build(s, default_args=build_args) for s in cfg.param_scheduler]
    rates = []
    for _ in range(3 * cfg.train_cfg.max_epochs):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    assert len(rates) == 900
    assert rates[0] < 1e-5
    # Linear warm-up for 20 epochs, then half a cosine.
    assert rates[30] == pytest.approx(4e-3 / 2, rel=0.05)
    assert rates[60] == max(rates) == pytest.approx(4e-3, rel=0.01)
    assert rates[480] == pytest.approx(4e-3 / 2, rel=0.01)
    assert rates[-1] < 2e-6


def accuracies(text):
    return [float(value) for value in re.findall(r'accuracy/top1: ([\d.]+)', text)]


@pytest.fixture(scope='module')
def trained(folder):
    """The demo with few small images; the larger layer scale avoids a slow start."""
    options = ['train_cfg.val_interval=3', 'model.layer_scale_init_value=0.1']
    options += ['train_dataloader.batch_size=8']
    output = run_tool('train.py', DEMO, '--work-dir', 'run', '--cfg-options', *options, cwd=folder)
    return folder, output


def test_accuracy_rises(trained):
    _, output = trained
    # By chance, a third of the classes would be right; the standard error of 120 images is 4 %.
    assert max(accuracies(output)) > 50


def test_saved_weights_give_the_same_accuracy(trained):
    folder, train_output = trained
    output = run_tool(
        *('test.py', DEMO, 'run/epoch_10.pth', '--work-dir', 'tested', '--out', 'predictions.pkl'),
        cwd=folder,
    )
    assert accuracies(output) == accuracies(train_output)[-1:]
    predictions = pickle.loads((folder / 'predictions.pkl').read_bytes())
    assert len(predictions) == 120
    hits = [p['pred_label'].item() == p['gt_label'].item() for p in predictions]
    assert 100 * np.mean(hits) == pytest.approx(accuracies(output)[0])


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ('model.arch=nano', 'does not fit the model of the config'),
        (
            'test_dataloader.dataset.metainfo.classes=[square,circle,triangle]',
            'trained on the classes circle, square, triangle, the test set has square, circle',
        ),
    ],
)
def test_a_checkpoint_of_another_model_or_classes_is_refused(trained, option, message):
    folder, _ = trained
    with pytest.raises(AssertionError, match=message) as caught:
        run_tool('test.py', DEMO, 'run/epoch_10.pth', '--cfg-options', option, cwd=folder)
    assert 'Traceback' not in str(caught.value)


def test_training_resumes_with_averaged_weights(folder):
    """EMA evaluates and saves the average; resuming loads both kinds of weights."""
    config = folder / 'averaged.py'
    config.write_text(
        f'_base_ = {str(DEMO)!r}\n'
        'custom_hooks = [dict(type="EMAHook", momentum=0.1)]\n'
        'default_hooks = dict(checkpoint=dict(interval=1))\n'
        'train_dataloader = dict(batch_size=160)\n'
    )
    for epochs, resume in ((1, []), (2, ['--resume'])):
        output = run_tool(
            *('train.py', config, '--work-dir', 'averaged', *resume),
            *('--cfg-options', f'train_cfg.max_epochs={epochs}'),
            cwd=folder,
        )
    assert 'resumed epoch: 1' in output
    saved = load_whole(folder / 'averaged/epoch_2.pth')
    source = {k.removeprefix('module.'): v for k, v in saved['ema_state_dict'].items()}
    assert source.pop('steps') == 8
    assert source.keys() == saved['state_dict'].keys()
    assert any(not torch.equal(source[k], v) for k, v in saved['state_dict'].items())


def test_classify_prints_the_right_classes(trained):
    folder, _ = trained
    images = [
        next((folder / f'data/shapes_folder/val/{name}').glob('*.png'))
        for name in ('circle', 'square', 'triangle')
    ]
    output = run_tool('demo/classify.py', *images, '--checkpoint', 'run/epoch_10.pth', cwd=folder)
    lines = output.splitlines()
    blocks = [lines[lines.index(str(image)) :][:4] for image in images]
    model = load_trained(folder)
    for image, (_, *rows) in zip(images, blocks, strict=True):
        pixels = torch.from_numpy(cv2.imread(str(image))[..., ::-1].copy()).permute(2, 0, 1)
        mean, std = torch.tensor([[123.675, 116.28, 103.53], [58.395, 57.12, 57.375]])
        normalized = (pixels - mean[:, None, None]) / std[:, None, None]
        probabilities = model(normalized[None])[0].softmax(dim=0)
        expected = [
            f'  {probabilities[i]:6.1%}  {("circle", "square", "triangle")[i]}'
            for i in probabilities.argsort(descending=True)
        ]
        assert rows == expected
    output = run_tool(
        *('demo/classify.py', images[0], '--checkpoint', 'run/epoch_10.pth'),
        *('--config', DEMO, '--topk', 1),
        cwd=folder,
    )
    assert [line for line in output.splitlines() if line.startswith('  ')] == blocks[0][1:2]


def load_trained(folder):
    model = ConvNextForImageClassification('atto', num_labels=3).eval()
    saved = load_whole(folder / 'run/epoch_10.pth')
    model.load_state_dict(saved['state_dict'], strict=True)
    return model


def test_transfer_compares_two_starts(trained):
    folder, _ = trained
    make_shapes(folder, 8, 2)
    output = run_tool(
        *('analysis_tools/transfer.py', 'run/epoch_10.pth', '--work-dir', 'transfer'),
        *('--seeds', 1, '--epochs', 1),
        cwd=folder,
    )
    # Once to check the file before the first training, once for the pre-trained start.
    assert output.count('ConvNextBackbone: loaded 124 tensors') == 2
    table = output[output.index('generated shapes') :]
    for kind in ('box', 'mask'):
        for start in ('random', 'pre-trained'):
            assert re.search(rf'{kind} mAP +│ {start} +│ [\d.-]+ +│ [\d.-]+', table)
