"""TrainingCheckpoint: the ends of the last epochs, each a checkpoint to continue from."""

from __future__ import annotations

from typing import ClassVar

from ftray.callbacks.base import Callback
from ftray.errors import ConfigError

__all__ = ["TrainingCheckpoint"]


class TrainingCheckpoint(Callback):
    """Keep the checkpoints of the last epochs.

    Without it a run keeps its newest two checkpoints, the best one, and those whose evaluations are
    under way. Each checkpoint lies in `checkpoints/` of the run directory, with all that training
    needs to go on from there.

    Args:
        last_k_epochs: how many; None keeps those of all epochs.

    Raises:
        ConfigError: for a number below 1.
    """

    order: ClassVar[int] = 80

    def __init__(self, last_k_epochs: int | None = 1) -> None:
        if last_k_epochs is not None and last_k_epochs < 1:
            raise ConfigError(
                f"TrainingCheckpoint: last_k_epochs = {last_k_epochs}: at least 1, or None (null "
                "in YAML) to keep the checkpoints of all epochs"
            )
        self.last_k_epochs = last_k_epochs
