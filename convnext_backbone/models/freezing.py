"""What the log says about frozen parameters."""

from __future__ import annotations

import logging
from dataclasses import dataclass


@dataclass(frozen=True)
class FrozenInOneLine:
    """A filter of a logger: one line instead of mmengine's warning about each frozen parameter.

    Args:
        title: Class of the model.
        names: The model's own names of its frozen parameters.
    """

    title: str
    names: tuple[str, ...]

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrites the warning about the first parameter and drops those about the others."""
        name, is_about_frozen, _ = record.getMessage().partition(' is skipped since its requires_')
        if not is_about_frozen or not name.endswith(self.names):
            return True
        first = self.names[0]
        place = name.removesuffix(first).strip('.')
        record.msg, record.args = (
            (
                f'{self.title}{f" ({place})" if place else ""}: {len(self.names)} parameters are '
                'frozen, the optimiser leaves them out'
            ),
            (),
        )
        return name.endswith(first)
