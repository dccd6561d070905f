"""Models under ONNX Runtime on a CPU: run, quantise to int8, and measure what that costs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor

ROUNDS = 15


class OnnxModel:
    """Runs a model with as many threads as torch has.

    Args:
        path: File of ONNX whose input is named images.
    """

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(
            path, options, providers=['CPUExecutionProvider']
        )

    def __call__(self, images: Tensor) -> list[Tensor]:
        maps = self.session.run(None, {'images': images.numpy()})
        return [torch.from_numpy(m) for m in maps]


class Calibration(CalibrationDataReader):
    """Gives one image after the other, as the quantiser wants them."""

    def __init__(self, images: list[Tensor]) -> None:
        self.images: Iterator[Tensor] = iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self.images, None)
        return None if image is None else {'images': image[None].numpy()}


def quantize(source: Path, out: Path, kind: str, calibration: list[Tensor]) -> None:
    """Writes a model whose products are in int8.

    Weights have 7 bits: without VNNI, processors add pairs of products in 16 bits, and 8 bits would
    overflow there. Each channel has its own scale.

    Args:
        source: Model in float32.
        out: File for the quantised model.
        kind: ``'dynamic'``: the matrix products, with ranges found while the model runs.
            Convolutions would make it several times slower. ``'static'``: matrix products and
            convolutions, with ranges from images.
        calibration: The images for ``'static'``, each ``(3, H, W)``.
    """
    common = dict(per_channel=True, reduce_range=True, weight_type=QuantType.QInt8)
    prepared = source.with_name('prepared.onnx')
    # Its optimisation would turn products into Gemm, which stays in float32.
    quant_pre_process(source, prepared, skip_optimization=True, skip_symbolic_shape=True)
    if kind == 'dynamic':
        quantize_dynamic(prepared, out, op_types_to_quantize=['MatMul'], **common)
    else:
        quantize_static(
            *(prepared, out, Calibration(calibration)),
            op_types_to_quantize=['MatMul', 'Conv'],
            activation_type=QuantType.QUInt8,
            **common,
        )


def measure(source: Path, quantized: Path, names: list[str], images: list[Tensor]) -> None:
    """Prints the error of each map of a quantised model, its speed and its size.

    Args:
        source: Model in float32.
        quantized: The quantised model.
        names: The names of the maps.
        images: Images, each ``(C, H, W)``.
    """
    models = [OnnxModel(path) for path in (source, quantized)]
    # Of all images: the squares of the maps, and of their difference; the product of the maps.
    sums = np.zeros((len(names), 4))
    for image in images:
        for i, (exact, found) in enumerate(zip(*(m(image[None]) for m in models), strict=True)):
            exact, found = exact.double().flatten(), found.double().flatten()
            error = found - exact
            sums[i] += exact @ exact, found @ found, error @ error, exact @ found
    print(f'int8 against float32, {len(images)} images:')
    for name, (exact, found, error, product) in zip(names, sums, strict=True):
        relative, cosine = (error / exact) ** 0.5, product / (exact * found) ** 0.5
        print(f'  {name}: relative error {relative:.1e}, cosine {cosine:.5f}')
    old, new = fastest(models, images[0][None])
    threads = torch.get_num_threads()
    size = '{:.1f} MB instead of {:.1f} MB'.format(
        *(path.stat().st_size / 1e6 for path in (quantized, source))
    )
    print(
        f'  {new * 1e3:.1f} ms instead of {old * 1e3:.1f} ms ({new / old:.2f}) for one image, '
        f'fastest of {ROUNDS} rounds, {threads} threads; {size}'
    )


def fastest(models: list[OnnxModel], images: Tensor) -> list[float]:
    """The least seconds of each model. They run in turn, so that other load affects all of them."""
    times: list[list[float]] = [[] for _ in models]
    for _ in range(ROUNDS):
        for model, own in zip(models, times, strict=True):
            started = time.perf_counter()
            model(images)
            own.append(time.perf_counter() - started)
    return [min(own) for own in times]
