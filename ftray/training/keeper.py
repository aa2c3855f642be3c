"""What a run keeps on storage: checkpoints (newest, best, those in use) and the artifact."""

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
    amend_checkpoint,
    checkpoint_names,
    latest_checkpoint,
    load_weights,
    read_checkpoint,
    read_weights,
    remove_checkpoints,
    write_checkpoint,
)
from ftray.training.learner import Learner

__all__ = ["Keeper"]


class Keeper:
    """Writes and reads the trained state of one run. Only rank 0 writes.

    Kept are the newest checkpoint, the one before (a cluster may not know of the new one yet), the
    best, those whose evaluations are under way, what the cluster was told of last, and the ends of
    the last epochs, as many as a TrainingCheckpoint asks for.

    Args:
        storage: the run directory.
        learner: what is trained.
        tell: takes the events of saving and removing.
        last_epochs: how many ends of epochs to keep; None keeps all.
    """

    def __init__(
        self,
        storage: Storage,
        learner: Learner,
        tell: Callable[[Event], None],
        last_epochs: int | None = 0,
    ) -> None:
        self._storage = storage
        self._learner = learner
        self._tell = tell
        self._last_epochs = last_epochs
        self._needed: set[str] = set()
        self._committed = ""
        self._owed: set[str] = set()

    def newest(self) -> str | None:
        """Name of the newest complete checkpoint, or None."""
        return latest_checkpoint(self._storage)

    def restore(self, name: str) -> Position:
        """Load weights, loss, optimizer and schedule in place; returns where to go on."""
        position = read_checkpoint(self._storage, name, *self._trained)
        self._learner.load_schedule(position)
        return position

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        """The encoder's weights of a checkpoint, on the CPU."""
        return read_weights(self._storage, name)

    def save(self, position: Position) -> None:
        """Write a checkpoint, and remove those that nobody needs any more."""
        previous = self.newest()
        self._learner.save_schedule(position)
        name = write_checkpoint(self._storage, position, *self._trained)
        self._tell(
            CheckpointSaved(
                name=name,
                epoch=position.epoch,
                step=position.step,
                global_step=position.global_step,
                best=position.best is not None and position.best["name"] == name,
                metrics=dict(position.metrics),
            )
        )
        needed = _needed(position)
        # the checkpoint before is whole only with what it refers to
        keep = {name, previous or name, self._committed} | needed | self._needed
        self._needed = needed
        self._remove_all_but(keep | self._last())

    def stand(self, position: Position) -> None:
        """Make an earlier checkpoint the newest one: what came after it was discarded."""
        amend_checkpoint(self._storage, position)
        names = checkpoint_names(self._storage)
        self._needed = _needed(position)
        self._remove_all_but({name for name in names if name <= position.name} | self._needed)

    def owe(self, name: str) -> None:
        """Every rank: the cluster will be told of a checkpoint when its point is judged."""
        self._owed.add(name)

    def owes(self, name: str) -> bool:
        """Whether the cluster is still to be told of a checkpoint that is there."""
        return name in self._owed

    def settled(self, name: str) -> None:
        """Every rank: the cluster is told of a checkpoint."""
        self._owed.discard(name)
        self._committed = name

    def _last(self) -> set[str]:
        """The ends of the last epochs that are to be kept."""
        ends = [name for name in checkpoint_names(self._storage) if "-step-" not in name]
        if self._last_epochs is None:
            return set(ends)
        return set(ends[len(ends) - self._last_epochs :]) if self._last_epochs else set()

    def _remove_all_but(self, keep: set[str]) -> None:
        for gone in remove_checkpoints(self._storage, keep):
            self._tell(CheckpointRemoved(name=gone))

    @property
    def _trained(self) -> tuple[TextEncoder, StepLoss, torch.optim.Optimizer]:
        return self._learner.encoder, self._learner.loss, self._learner.optimizer

    def load_weights(self, name: str) -> None:
        """Every rank: load a checkpoint's weights into the encoder; the rest stays as it is."""
        load_weights(self._storage, name, self._learner.encoder)

    def write_artifact(self, facts: dict[str, Any]) -> None:
        """Write the artifact with the encoder's present weights."""
        write_artifact(self._storage, self._learner.encoder, {**facts, "ftray": __version__})


def _needed(position: Position) -> set[str]:
    """The checkpoints that a position refers to."""
    best = {position.best["name"], position.best.get("tied", "")} if position.best else set()
    names = {Position(epoch=p["next_epoch"], step=p["next_step"]).name for p in position.points}
    return best | names
