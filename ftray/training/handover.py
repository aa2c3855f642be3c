"""Trained states that go from one run to another: how PBT's better trials help the others."""

from __future__ import annotations

import json
from pathlib import Path

from ftray.record.storage import Storage
from ftray.training.checkpoint import FOLDER, latest_checkpoint, remove_checkpoints

__all__ = ["hand_on", "take_over"]

SOURCE = "source.json"


def hand_on(run: Storage, folder: Path) -> None:
    """Copy the newest checkpoint of a run into a folder.

    Args:
        run: the run directory, which has one.
        folder: an empty one.
    """
    newest = latest_checkpoint(run)
    assert newest is not None
    place = folder / newest
    place.mkdir()
    run.download(f"{FOLDER}/{newest}", place)
    (folder / SOURCE).write_text(json.dumps({"run": run.name, "checkpoint": newest}))


def take_over(run: Storage, folder: Path) -> tuple[str, ...]:
    """Put what another run handed on in the place of a run's own checkpoints.

    The best checkpoint of the other stays with the other: what it was measured at is on its record.

    Args:
        run: the run directory.
        folder: as `hand_on` filled it. If the run itself did, nothing is to be done.

    Returns:
        A line for the log, or none.
    """
    source = json.loads((folder / SOURCE).read_text())
    if source["run"] == run.name:
        return ()
    name = source["checkpoint"]
    state = folder / name / "state.json"
    position = {**json.loads(state.read_text()), "best": None, "points": []}
    state.unlink()
    run.delete(f"{FOLDER}/{name}/state.json")
    run.upload(folder / name, f"{FOLDER}/{name}")
    run.write_text(f"{FOLDER}/{name}/state.json", json.dumps(position))  # now it is valid
    remove_checkpoints(run, {name})
    return (f"Weights and optimizer are those of {source['run']}, {name}",)
