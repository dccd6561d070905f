"""The image classifier, to pre-train a backbone or to use a classification checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ..checkpoint import LoadsAnyCheckpoint, Target
from ..checkpoint.names import Name
from .base import initialize
from .checks import check_finite, check_init_cfg
from .losses import (
    MULTI_LABEL,
    PROBLEM_TYPES,
    REGRESSION,
    SINGLE_LABEL,
    check_labels,
    classification_loss,
    infer_problem_type,
)
from .model import ConvNextModel


@MODELS.register_module()
class ConvNextForImageClassification(LoadsAnyCheckpoint, BaseModel):
    """ConvNeXt or ConvNeXt V2 with a linear layer on the pooled features.

    The names in the state dict are those of Hugging Face's ``ConvNextForImageClassification``.
    Checkpoints of classifiers in any format of
    :data:`convnext_backbone.checkpoint.formats.FORMATS` load with their head, completely or not at
    all.

    Args:
        arch: As in :class:`ConvNextBase`. Default: ``'tiny'``.
        num_labels: Number of logits; with 0 there is no linear layer. Default: 1000.
        problem_type: ``'regression'``, ``'single_label_classification'`` or
            ``'multi_label_classification'``. Default: None, inferred as in Hugging Face: one logit
            means regression; several mean single-label classification if the labels are int32,
            int64 or unknown, else multi-label classification.
        label_smoothing: Share of each label that is spread over all classes in the loss of
            single-label classification, in [0, 1]. Default: 0.
        data_preprocessor: As in mmengine's ``BaseModel``. Default: None, which stacks the images.
        init_cfg: As in :class:`ConvNextBase`. Default: None.
        **model_args: Other arguments of :class:`ConvNextModel`, such as ``drop_path_rate``.

    Raises:
        ValueError: If an argument has a wrong value; the message says which values are allowed.
        TypeError: If an argument has the wrong type.
    """

    def __init__(
        self,
        arch: str | Mapping = 'tiny',
        num_labels: int = 1000,
        problem_type: str | None = None,
        label_smoothing: float = 0.0,
        data_preprocessor: dict | nn.Module | None = None,
        init_cfg: dict | list[dict] | None = None,
        **model_args,
    ) -> None:
        check_init_cfg(init_cfg)
        super().__init__(data_preprocessor or dict(type='ImgDataPreprocessor'), init_cfg)
        if not isinstance(num_labels, int) or isinstance(num_labels, bool):
            raise TypeError(f'num_labels must be an integer, got {num_labels!r}')
        if num_labels < 0:
            raise ValueError(f'num_labels must not be negative, got {num_labels}')
        if problem_type not in (None, *PROBLEM_TYPES):
            raise ValueError(
                f'problem_type must be one of {", ".join(PROBLEM_TYPES)} or None, '
                f'got {problem_type!r}'
            )
        check_finite('label_smoothing', label_smoothing)
        if label_smoothing is None or not 0 <= label_smoothing <= 1:
            raise ValueError(f'label_smoothing must be in [0, 1], got {label_smoothing}')
        self.num_labels = num_labels
        self.problem_type = problem_type
        self.label_smoothing = label_smoothing
        self.convnext = ConvNextModel(arch, **model_args)
        self.classifier: nn.Module = nn.Identity()
        if num_labels:
            self.classifier = nn.Linear(self.convnext.hidden_size, num_labels)
        self.classifier.apply(initialize)

    def forward(
        self,
        inputs: Tensor,
        data_samples: Sequence[BaseDataElement] | Tensor | None = None,
        mode: str = 'tensor',
    ) -> Tensor | dict[str, Tensor] | list[BaseDataElement]:
        """Computes logits, their loss, or predictions.

        Args:
            inputs: Normalised images of shape ``(N, num_channels, H, W)``.
            data_samples: One data sample per image, with a ``gt_label``: a class index, a number or
                a vector of ``num_labels`` numbers. If all samples have a ``gt_score``, the
                probability of each class, it is the target instead (mixed images). Can also be one
                tensor with the labels of the batch. Default: None, no labels.
            mode: ``'tensor'`` (default), ``'loss'`` or ``'predict'``.

        Returns:
            For ``'tensor'``, the logits, ``(N, num_labels)``, or with ``num_labels=0`` the pooled
            features. For ``'loss'``, ``dict(loss=...)``. For ``'predict'``, the data samples, or
            new ones, with ``pred_score``, ``(num_labels,)``: probabilities, or the outputs of a
            regression. Classification also sets ``pred_label``: the most probable class, ``(1,)``,
            or for multi-label classification all classes with a probability of at least 0.5.

        Raises:
            ValueError: If the mode is unknown, if labels are missing, have another shape or are
                out of range, or if there is no linear layer for logits; also as
                :meth:`ConvNextModel.forward`.
            TypeError: If the labels have another dtype than the problem type needs; also as
                :meth:`ConvNextModel.forward`.
        """
        if mode not in ('tensor', 'loss', 'predict'):
            raise ValueError(f'mode must be tensor, loss or predict, got {mode!r}')
        if mode != 'tensor' and not self.num_labels:
            raise ValueError(
                f'mode {mode!r} needs logits, but the model was built with num_labels=0: '
                'build it with a positive num_labels'
            )
        logits = self.classifier(self.convnext(inputs).pooler_output)
        if mode == 'tensor':
            return logits
        if mode == 'predict':
            return self._predict(logits, data_samples)
        if data_samples is None:
            raise ValueError("mode 'loss' needs data_samples with labels, got None")
        return dict(loss=self._loss(logits, data_samples))

    def checkpoint_target(self) -> Target:
        """Describes the model for the loading of checkpoints."""
        pooled = self.convnext.checkpoint_target()
        head = self.classifier.state_dict()
        return replace(
            pooled,
            name=type(self).__name__,
            tensors=pooled.tensors | {Name('head', leaf).native: t for leaf, t in head.items()},
            key_prefix='convnext.',
        )

    def _loss(self, logits: Tensor, data_samples: Sequence[BaseDataElement] | Tensor) -> Tensor:
        scores = _stack(data_samples, 'gt_score')
        labels = _stack(data_samples, 'gt_label') if scores is None else scores
        if labels is None:
            raise ValueError("mode 'loss' needs a gt_score or a gt_label in every data sample")
        labels = labels.to(logits.device)
        if scores is None:
            problem_type = rule = self.problem_type or infer_problem_type(self.num_labels, labels)
        else:
            # Probabilities are checked like multi-label targets.
            problem_type, rule = self.problem_type or SINGLE_LABEL, MULTI_LABEL
        labels = check_labels(labels, len(logits), self.num_labels, rule)
        return classification_loss(logits, labels, problem_type, self.label_smoothing)

    def _predict(
        self, logits: Tensor, data_samples: Sequence[BaseDataElement] | Tensor | None
    ) -> list[BaseDataElement]:
        labels = None if data_samples is None else _stack(data_samples, 'gt_label')
        problem_type = self.problem_type or infer_problem_type(self.num_labels, labels)
        if data_samples is None or isinstance(data_samples, Tensor):
            data_samples = [BaseDataElement() for _ in logits]
        for sample, row in zip(data_samples, logits, strict=True):
            if problem_type == REGRESSION:
                sample.pred_score = row
            elif problem_type == SINGLE_LABEL:
                sample.pred_score = row.softmax(dim=0)
                sample.pred_label = row.argmax(dim=0, keepdim=True)
            else:
                sample.pred_score = row.sigmoid()
                sample.pred_label = torch.nonzero(sample.pred_score >= 0.5).flatten()
        return list(data_samples)


def _stack(data_samples: Sequence[BaseDataElement] | Tensor, name: str) -> Tensor | None:
    """Returns one field of all samples as a tensor; None if it is not in all of them."""
    if isinstance(data_samples, Tensor):
        return data_samples if name == 'gt_label' else None
    if not data_samples or not all(name in sample for sample in data_samples):
        return None
    values = [torch.as_tensor(sample.get(name)) for sample in data_samples]
    shapes = {tuple(value.shape) for value in values}
    if len(shapes) > 1:
        raise ValueError(f'{name} must have one shape in all data samples, got {sorted(shapes)}')
    return torch.stack(values)
