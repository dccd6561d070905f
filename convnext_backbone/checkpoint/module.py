"""The doors of mmengine and torch through which any checkpoint enters a model."""

from __future__ import annotations

from mmengine.model import PretrainedInit

from .loading import AnyPretrainedInit, adopt_state_dict


class LoadsAnyCheckpoint:
    """Goes before ``BaseModule`` among the bases of a model that loads any known checkpoint.

    The model describes itself by a method ``checkpoint_target()``, which returns a
    :class:`~convnext_backbone.checkpoint.audit.Target`.
    """

    def init_weights(self) -> None:
        """Initialises as ``init_cfg`` says, ``Pretrained`` entries last.

        Raises:
            ValueError, FileNotFoundError, TypeError, ImportError, OSError: As
                :func:`convnext_backbone.load_checkpoint`, for ``Pretrained`` entries.
        """
        init_cfg = self.init_cfg
        entries = [init_cfg] if isinstance(init_cfg, dict) else init_cfg or []
        kinds = ('Pretrained', PretrainedInit)
        self.init_cfg = [entry for entry in entries if entry['type'] not in kinds]
        self.init_cfg += [
            {**entry, 'type': AnyPretrainedInit} for entry in entries if entry['type'] in kinds
        ]
        try:
            super().init_weights()
        finally:
            self.init_cfg = init_cfg

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args, **kwargs) -> None:
        """Translates foreign names and refuses what does not fit, before anything is copied."""
        adopt_state_dict(self.checkpoint_target(), state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
