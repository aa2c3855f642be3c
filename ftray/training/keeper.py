"""What a run keeps on storage: checkpoints (the newest two and the best) and the artifact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ftray import __version__
from ftray.events import CheckpointRemoved, CheckpointSaved, Event
from ftray.losses.base import StepLoss
from ftray.models.artifact import write_artifact
from ftray.models.text import TextEncoder
from ftray.record.storage import Storage
from ftray.training.checkpoint import (
    Position,
    latest_checkpoint,
    load_weights,
    read_checkpoint,
    remove_checkpoints,
    write_checkpoint,
)
from ftray.training.learner import Learner

__all__ = ["Keeper"]


class Keeper:
    """Writes and reads the trained state of one run. Only rank 0 writes.

    Args:
        storage: the run directory.
        learner: what is trained.
        tell: takes the events of saving and removing.
    """

    def __init__(
        self,
        storage: Storage,
        learner: Learner,
        tell: Callable[[Event], None],
    ) -> None:
        self._storage = storage
        self._learner = learner
        self._tell = tell

    def newest(self) -> str | None:
        """Name of the newest complete checkpoint, or None."""
        return latest_checkpoint(self._storage)

    def restore(self, name: str) -> Position:
        """Load weights, loss, optimizer and schedule in place; returns where to go on."""
        position = read_checkpoint(self._storage, name, *self._trained)
        self._learner.load_schedule(position)
        return position

    def save(self, position: Position, *, is_best: bool) -> None:
        """Write a checkpoint; keep it, the one before, and the best; remove the others.

        The one before stays because a cluster may not know of the new one yet.
        """
        previous = self.newest()
        self._learner.save_schedule(position)
        name = write_checkpoint(self._storage, position, *self._trained)
        self._tell(
            CheckpointSaved(
                name=name,
                epoch=position.epoch,
                step=position.step,
                global_step=position.global_step,
                best=is_best,
                metrics=dict(position.metrics),
            )
        )
        best = position.best["name"] if position.best else name
        for gone in remove_checkpoints(self._storage, {name, best, previous or name}):
            self._tell(CheckpointRemoved(name=gone))

    @property
    def _trained(self) -> tuple[TextEncoder, StepLoss, torch.optim.Optimizer]:
        return self._learner.encoder, self._learner.loss, self._learner.optimizer

    def write_artifact(self, position: Position, facts: dict[str, Any]) -> None:
        """Write the artifact: the best checkpoint's weights where there is one, else the last."""
        best = position.best
        if best is not None:
            load_weights(self._storage, best["name"], self._learner.encoder)
        write_artifact(
            self._storage,
            self._learner.encoder,
            {
                **facts,
                "global_step": best["global_step"] if best else position.global_step,
                "best": best,
                "ftray": __version__,
            },
        )
