"""The command line that classifies images with a model folder of Hugging Face."""

import json

import cv2
import numpy as np
import pytest
import torch
from helpers import SMALL, randomize, run_tool
from hugging_face import read_model_folder
from transformers import ConvNextConfig
from transformers import ConvNextForImageClassification as Reference


def test_classify_follows_the_configs_of_hugging_face(tmp_path):
    config = ConvNextConfig(
        **SMALL,
        image_size=224,
        hidden_act='silu',
        id2label={0: 'cat', 1: 'dog', 2: 'emu'},
        label2id={'cat': 0, 'dog': 1, 'emu': 2},
    )
    model = randomize(Reference(config)).eval()
    model.save_pretrained(tmp_path / 'model')
    processor = dict(size=dict(shortest_edge=64), crop_pct=0.8, image_mean=[0.5] * 3)
    (tmp_path / 'model/preprocessor_config.json').write_text(json.dumps(processor))
    image = np.random.default_rng(0).integers(0, 256, (80, 100, 3), np.uint8)
    cv2.imwrite(str(tmp_path / 'image.png'), image)

    # The short side is already 64 / 0.8.
    pixels = torch.from_numpy(image[8:72, 18:82, ::-1].copy()).permute(2, 0, 1) / 255
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    with torch.no_grad():
        probabilities = model(((pixels - 0.5) / std)[None]).logits[0].softmax(dim=0)
    expected = [
        f'  {probabilities[i]:6.1%}  {config.id2label[i.item()]}'
        for i in probabilities.argsort(descending=True)
    ]
    assert 0.001 < probabilities.min() < 0.3
    output = run_tool('demo/classify.py', 'image.png', '--checkpoint', 'model', cwd=tmp_path)
    assert output.splitlines()[-3:] == expected


@pytest.mark.parametrize('described', [{'architectures': ['DetrForObjectDetection']}, {'a': 1}])
def test_other_models_of_hugging_face_are_refused(described, tmp_path):
    (tmp_path / 'config.json').write_text(json.dumps(described))
    with pytest.raises(ValueError, match=r'holds a .* by its config\.json, not a classifier'):
        read_model_folder(tmp_path)
