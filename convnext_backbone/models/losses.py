"""The three problem types of Hugging Face's classifiers: inference, checks of labels, losses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

REGRESSION = 'regression'
SINGLE_LABEL = 'single_label_classification'
MULTI_LABEL = 'multi_label_classification'
PROBLEM_TYPES = (REGRESSION, SINGLE_LABEL, MULTI_LABEL)


def infer_problem_type(num_labels: int, labels: Tensor | None = None) -> str:
    """Infers the problem type as Hugging Face does.

    Args:
        num_labels: Number of logits.
        labels: Labels of a batch. Default: None, unknown.

    Returns:
        ``'regression'`` for a single logit. For several, ``'single_label_classification'`` if the
        labels are int32, int64 or unknown, else ``'multi_label_classification'``.
    """
    if num_labels == 1:
        return REGRESSION
    if labels is None or labels.dtype in (torch.int32, torch.int64):
        return SINGLE_LABEL
    return MULTI_LABEL


def check_labels(labels: Tensor, num_samples: int, num_labels: int, problem_type: str) -> Tensor:
    """Checks the labels of a batch and converts them to the dtype and shape that the loss needs.

    Args:
        labels: Class indices ``(N,)`` or ``(N, 1)`` for single-label classification, otherwise
            numbers ``(N, num_labels)``; ``(N,)`` is allowed instead of ``(N, 1)``.
        num_samples: Number of images, N.
        num_labels: Number of logits.
        problem_type: One of ``PROBLEM_TYPES``.

    Returns:
        Class indices ``(N,)`` as int64, or numbers ``(N, num_labels)``.

    Raises:
        ValueError: If the labels have another shape, if class indices are not between 0 and
            num_labels - 1, or if multi-label targets are not in [0, 1].
        TypeError: If class indices are not int32 or int64, or if other labels are not floating
            point.
    """
    is_index = problem_type == SINGLE_LABEL
    if is_index and labels.dtype not in (torch.int32, torch.int64):
        raise TypeError(
            f'{problem_type} needs class indices as labels, of dtype int64 or int32, '
            f'got {labels.dtype}'
        )
    if not is_index and not labels.is_floating_point():
        raise TypeError(
            f'{problem_type} needs floating-point labels, got {labels.dtype}: convert them first'
        )
    columns = 1 if is_index else num_labels
    shapes = [(num_samples,), (num_samples, 1)] if columns == 1 else [(num_samples, columns)]
    if tuple(labels.shape) not in shapes:
        raise ValueError(
            f'{problem_type} with num_labels={num_labels} needs labels of shape '
            f'{" or ".join(map(str, shapes))} for {num_samples} images, '
            f'got shape {tuple(labels.shape)}'
        )
    if is_index:
        _check_range(labels, num_labels - 1, f'num_labels={num_labels}')
        return labels.flatten().long()
    if problem_type == MULTI_LABEL:
        _check_range(labels, 1, problem_type)
    return labels.reshape(num_samples, columns)


def _check_range(labels: Tensor, highest: int, reason: str) -> None:
    outside = labels[~((labels >= 0) & (labels <= highest))]
    if outside.numel():
        raise ValueError(
            f'labels must be between 0 and {highest} ({reason}), got {outside[0].item()}'
        )


def classification_loss(
    logits: Tensor, labels: Tensor, problem_type: str, label_smoothing: float = 0.0
) -> Tensor:
    """Computes Hugging Face's loss for a problem type.

    The losses are mean squared error (regression), cross entropy (single label) and binary cross
    entropy with logits (multi-label).

    Args:
        logits: ``(N, num_labels)``.
        labels: As :func:`check_labels` returns them; for single-label classification also
            probabilities of the classes, ``(N, num_labels)``.
        problem_type: One of ``PROBLEM_TYPES``.
        label_smoothing: Share of each label that is spread over all classes. Default: 0.

    Returns:
        The mean over the batch, a scalar.

    Raises:
        ValueError: If ``label_smoothing`` is used with another problem type than single-label
            classification.
    """
    if problem_type == SINGLE_LABEL:
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    if label_smoothing:
        raise ValueError(
            f'label_smoothing={label_smoothing} needs {SINGLE_LABEL}, but the problem type is '
            f'{problem_type}: set label_smoothing=0'
        )
    loss = F.mse_loss if problem_type == REGRESSION else F.binary_cross_entropy_with_logits
    return loss(logits, labels)
