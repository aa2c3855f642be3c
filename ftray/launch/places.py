"""Where a run is to be: found, refused, and taken."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

from ftray.config import FitConfig
from ftray.errors import ConfigError, RunExistsError, RunNotFoundError, StorageError
from ftray.record.names import fresh_name
from ftray.record.reader import RecordReader
from ftray.record.storage import Storage

__all__ = ["MODEL", "OUTPUT", "Place", "find_place", "take"]

MODEL = "model"
"""The copy of a model object, from which the run starts."""
OUTPUT = "output.txt"
"""What the libraries of a run in the background print."""
UNFINISHED = ("control", "events", "logs.txt", OUTPUT, "run.yaml", "status.json")
"""What may stand in a folder where a run was cut off before it was on record."""


class Place(NamedTuple):
    """A run directory, whether it is there, and whether it holds a run to continue."""

    storage: Storage
    exists: bool
    resumed: bool


def find_place(config: FitConfig) -> Place:
    """Where the run is to be; makes nothing.

    Raises:
        FtrayError: for a place where it cannot be.
    """
    experiment = Storage(config.storage_path).under(config.experiment_name)
    _check_folder(experiment.under(config.run_name) if config.run_name else experiment, config)
    if config.run_name is None:
        if config.resume == "must":
            raise ConfigError("resume = 'must' needs the run_name of the run to continue")
        return Place(experiment.under(fresh_name(experiment.exists)), False, False)
    storage = experiment.under(config.run_name)
    record = RecordReader(storage)
    if storage.exists() and config.resume == "never":
        raise _exists(storage)
    if record.exists():
        _check_idle(record)
        return Place(storage, True, True)
    if config.resume == "must":
        raise RunNotFoundError(f"resume = 'must', but there is no run {storage.uri}")
    if any(name not in UNFINISHED for name in storage.names() if not name.startswith(".")):
        raise RunExistsError(f"The folder {storage.uri} holds other things than a run")
    return Place(storage, storage.exists(), False)


def take(place: Place, config: FitConfig) -> None:
    """Make the directory, unless somebody has been there since we looked.

    Raises:
        RunExistsError: if somebody has.
        StorageError: if it cannot be made or written to.
    """
    if place.exists:
        if find_place(config).resumed != place.resumed:
            raise _exists(place.storage)
    elif not place.storage.create(exclusive=True):
        raise _exists(place.storage)
    place.storage.check_writable()


def _check_idle(record: RecordReader) -> None:
    """Refuse to continue a run that goes on, or has nothing left to do."""
    status, uri = record.status(), record.storage.uri
    if status["status"] == "FINISHED":
        raise RunExistsError(f"The run {uri} is FINISHED: there is nothing to continue")
    if status["status"] in ("CREATED", "STARTED"):
        ago = max(0.0, time.time() - status["seen_s"])
        raise RunExistsError(
            f"The run {uri} is running (process {status['pid']} on {status['host']}, last sign "
            f"{ago:.0f} s ago): stop it first, or give another run_name"
        )


def _check_folder(storage: Storage, config: FitConfig) -> None:
    """Refuse a local place that cannot become a folder, before anything is read."""
    if not storage.is_local:
        return
    root, place = Storage(config.storage_path), Path(storage.root)
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        key = "storage_path"
        if len(place.parts) > len(Path(root.root).parts):
            key = (
                "run_name" if str(place) == storage.root and config.run_name else "experiment_name"
            )
        given = root.uri if key == "storage_path" else getattr(config, key)
        raise StorageError(f"{key} '{given}' cannot be a folder: '{place}' is a file")
    if not os.access(place, os.W_OK | os.X_OK):
        raise StorageError(f"storage_path '{root.uri}': '{place}' cannot be written to")


def _exists(storage: Storage) -> RunExistsError:
    return RunExistsError(
        f"The run {storage.uri} exists. Give another run_name, or none for a fresh one; "
        "resume: auto continues a run that was stopped or cut off."
    )
