"""Loads checkpoints through the methods of torch and mmengine: state dicts and ``init_cfg``."""

from __future__ import annotations

from collections.abc import Mapping

from mmengine.model import BaseModule, PretrainedInit, update_init_info
from torch import nn

from .loading import adopt_state_dict, check_strictly, load_checkpoint
from .sources import Source
from .target import Target


class AnyPretrainedInit(PretrainedInit):
    """mmengine's ``Pretrained`` initialisation, but with :func:`load_checkpoint`.

    Args:
        checkpoint: A source of :func:`load_checkpoint`.
        prefix: As in :func:`load_checkpoint`. Default: None.
        use_ema: As in :func:`load_checkpoint`. Default: True.
    """

    def __init__(
        self, checkpoint: Source, prefix: str | None = None, use_ema: bool = True, **kwargs
    ) -> None:
        super().__init__(checkpoint, prefix, **kwargs)
        self.use_ema = use_ema

    def __call__(self, module: nn.Module) -> None:
        load_checkpoint(module, self.checkpoint, prefix=self.prefix, use_ema=self.use_ema)
        update_init_info(module, init_info=self._get_init_info())


class LoadsAnyCheckpoint(BaseModule):
    """A module that loads checkpoints of any format, through ``init_cfg`` and as a state dict."""

    init_cfg: dict | list[dict] | None

    def checkpoint_target(self) -> Target:
        """Describes the model for the loading of checkpoints."""
        raise NotImplementedError(f'{type(self).__name__} must define checkpoint_target()')

    def init_weights(self) -> None:
        """Initialises the module with the entries of ``init_cfg``, ``Pretrained`` entries last.

        After an error, the module has all its old weights.

        Raises:
            ValueError, FileNotFoundError, TypeError, ImportError, OSError: As
                :func:`convnext_backbone.load_checkpoint`, for ``Pretrained`` entries.
        """
        init_cfg = self.init_cfg
        # An empty dict says nothing, as in mmengine.
        entries = [init_cfg] if isinstance(init_cfg, dict) and init_cfg else init_cfg or []
        kinds = ('Pretrained', PretrainedInit)
        self.init_cfg = [entry for entry in entries if entry['type'] not in kinds]
        self.init_cfg += [
            {**entry, 'type': AnyPretrainedInit} for entry in entries if entry['type'] in kinds
        ]
        state = self.state_dict() if len(entries) > 1 else {}
        before = {name: tensor.clone() for name, tensor in state.items()}
        try:
            super().init_weights()
        except Exception:
            # Entries before the one that failed have changed weights.
            for name, tensor in state.items():
                tensor.copy_(before[name])
            raise
        finally:
            self.init_cfg = init_cfg

    def load_state_dict(self, state_dict: Mapping, strict: bool = True, assign: bool = False):
        """Loads a state dict in any format, as ``nn.Module.load_state_dict``.

        With ``strict``, infinite and NaN values are an error, too, and after an error the module
        has all its old weights. Torch itself would copy first and compare names afterwards.

        Args:
            state_dict: The state dict.
            strict: Whether missing and unknown names are errors. Default: True.
            assign: As in torch. Default: False.

        Returns:
            The missing and the unexpected names, as torch.

        Raises:
            CheckpointError: If the state dict does not fit; a ValueError and a RuntimeError.
        """
        if strict and isinstance(state_dict, Mapping):  # else torch says what it wants
            check_strictly(self.checkpoint_target(), state_dict)
        return super().load_state_dict(state_dict, strict, assign)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args, **kwargs) -> None:
        """Translates other formats and refuses tensors that do not fit, before it copies any."""
        adopt_state_dict(self.checkpoint_target(), state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
