"""Other forms of inference on a CPU: ``deploy()``, frozen peers, ONNX Runtime and OpenVINO.

Only what is measured is imported: ``pip install 'convnext-backbone[onnx,peers]' openvino``.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable

import torch
from measuring import DTYPES, Case, make_step
from peers import PEERS, build_ours

Step = Callable[[], object]


def deployed(case: Case) -> Step:
    """This package's ``deploy()``."""
    model, images = build_ours(case.arch).eval().deploy(DTYPES[case.dtype]), case.images('nchw')
    return lambda: model(images)


def frozen(peer: str, case: Case) -> Step:
    """A peer under ``torch.compile``, its weights frozen, converted and packed beforehand."""
    model = torch.compile(PEERS[peer](case.arch).eval(), options={'freezing': True})
    return make_step(model, case.images('nchw'), case)


def onnx_runtime(case: Case) -> Step:
    """This package's model, exported to ONNX, under ONNX Runtime.

    Raises:
        ValueError: For another dtype than float32.
    """
    if case.dtype != 'fp32':
        raise ValueError('on CPUs, ONNX Runtime has no products in half precision')
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        exported(case), options, providers=['CPUExecutionProvider']
    )
    images = {'images': case.images('nchw').numpy()}
    return lambda: session.run(None, images)


def openvino(case: Case) -> Step:
    """The same exported model under OpenVINO.

    Raises:
        ValueError: If the processor has no products in the dtype.
    """
    import openvino

    core = openvino.Core()
    precision = {'fp32': 'f32', 'bf16': 'bf16', 'fp16': 'f16'}[case.dtype]
    if case.dtype != 'fp32' and case.dtype.upper() not in core.get_property(
        'CPU', 'OPTIMIZATION_CAPABILITIES'
    ):
        raise ValueError(f'OpenVINO has no {case.dtype} on this processor')
    settings = {
        'INFERENCE_PRECISION_HINT': precision,
        'INFERENCE_NUM_THREADS': torch.get_num_threads(),
        'PERFORMANCE_HINT': 'LATENCY',
    }
    model = core.compile_model(core.read_model(io.BytesIO(exported(case))), 'CPU', settings)
    images = case.images('nchw').numpy()
    return lambda: model(images)


def exported(case: Case) -> bytes:
    """This package's model in ONNX."""
    program = torch.onnx.export(
        build_ours(case.arch).eval(),
        (case.images('nchw'),),
        input_names=['images'],
        dynamo=True,
        verbose=False,
    )
    return program.model_proto.SerializeToString()


def make_runtimes(peers: list[str]) -> dict[str, Callable[[Case], Step]]:
    """What builds each form, by name. Peers count as compiled; the other forms are of our model."""
    return {
        'ours, deployed': deployed,
        'ours, ONNX Runtime': onnx_runtime,
        'ours, OpenVINO': openvino,
        **{f'{peer}, frozen': functools.partial(frozen, peer) for peer in peers},
    }
