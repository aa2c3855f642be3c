"""What a run keeps on storage: checkpoints (newest, best, those in use) and the artifact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ftray import __version__
from ftray.events import CheckpointRemoved, CheckpointSaved, Event
from ftray.models.artifact import write_artifact
from ftray.record.storage import Storage
from ftray.training.checkpoint import (
    Position,
    Trained,
    amend_checkpoint,
    checkpoint_names,
    latest_checkpoint,
    load_weights,
    read_checkpoint,
    read_references,
    read_weights,
    remove_checkpoints,
    write_checkpoint,
)
from ftray.training.learner import Learner

__all__ = ["Keeper"]


class Keeper:
    """Writes and reads the trained state of one run. Only rank 0 writes.

    Kept are the newest checkpoint, the one before (a cluster may not know of the new one yet), the
    ends of the last epochs, as many as a TrainingCheckpoint asks for, and what any of these refers
    to: its best, and those whose evaluations are under way. Also what the cluster was told of last.

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
        self._committed = ""
        self._owed: set[str] = set()

    def newest(self) -> str | None:
        """Name of the newest complete checkpoint, or None."""
        return latest_checkpoint(self._storage)

    def restore(self, name: str) -> Position:
        """Load weights, loss, optimizer and schedule in place; returns where to go on."""
        position = read_checkpoint(self._storage, name, self._trained)
        self._learner.load_schedule(position)
        return position

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        """The encoder's weights of a checkpoint, on the CPU."""
        return read_weights(self._storage, name)

    def save(self, position: Position) -> None:
        """Write a checkpoint, and remove those that nobody needs any more."""
        previous = self.newest()
        self._learner.save_schedule(position)
        name = write_checkpoint(self._storage, position, self._trained)
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
        self._prune({name, previous or name}, position)

    def make_newest(self, position: Position) -> None:
        """Write what is known by now of the checkpoint where the run stands; later ones go.

        Either they were discarded, or there are none, and the last results are in.
        """
        names = checkpoint_names(self._storage)
        if position.name in names:
            amend_checkpoint(self._storage, position)
            earlier = [name for name in names if name < position.name]
            self._remove_all_but({*earlier, position.name})
            self._prune({position.name, *earlier[-1:]}, position)

    def _prune(self, newest: set[str], position: Position) -> None:
        targets = newest | self._last(position)
        keep = targets | {self._committed}
        for name in targets:
            keep |= read_references(self._storage, name)
        self._remove_all_but(keep)

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

    def _last(self, position: Position) -> set[str]:
        """The ends of the last epochs that are to be kept.

        Counted from the oldest step that is not judged yet: later ones may be discarded.
        """
        ends = [name for name in checkpoint_names(self._storage) if "-step-" not in name]
        if self._last_epochs is None:
            return set(ends)
        if self._last_epochs == 0:
            return set()
        unjudged = [
            Position(epoch=point["next_epoch"], step=point["next_step"]).name
            for point in position.points
        ]
        first = min(unjudged, default=position.name)
        judged = [name for name in ends if name <= first]
        return {*judged[-self._last_epochs :], *(name for name in ends if name > first)}

    def _remove_all_but(self, keep: set[str]) -> None:
        for gone in remove_checkpoints(self._storage, keep):
            self._tell(CheckpointRemoved(name=gone))

    @property
    def _trained(self) -> Trained:
        learner = self._learner
        return Trained(learner.encoder, learner.loss, learner.optimizers, learner.average)

    def load_weights(self, name: str) -> None:
        """Every rank: load a checkpoint's weights into the encoder; the rest stays as it is."""
        load_weights(self._storage, name, self._learner.encoder)

    def write_artifact(self, facts: dict[str, Any], *, to_onnx: bool = False) -> None:
        """Write the artifact with the encoder's present weights, and ONNX graphs if wanted.

        Raises:
            ModelError: if there can be no graphs; the artifact is there without them.
        """
        facts = {**facts, "ftray": __version__}
        write_artifact(self._storage, self._learner.encoder, facts, to_onnx=to_onnx)
