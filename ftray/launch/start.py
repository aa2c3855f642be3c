"""A fit made ready: mistakes found, data read, nothing written yet."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftray.collector import collector_paused
from ftray.config import FitConfig, is_live
from ftray.errors import ConfigError
from ftray.launch.places import MODEL, Place, find_place
from ftray.record.environment import environment
from ftray.record.facts import callback_facts, check_same, data_facts, plain
from ftray.record.reader import RecordReader
from ftray.record.storage import Storage

if TYPE_CHECKING:
    from ftray.models.live import LiveModel
    from ftray.training.job import Job

__all__ = ["Start", "job_of", "made_ready"]

DATA_FIELDS = ("train_data", "eval_data")


@dataclass(frozen=True, kw_only=True)
class Start:
    """What it takes to start a run, in this process or in another.

    Attributes:
        place: where the run is to be.
        job: what is trained.
        facts: what `run.yaml` holds.
        model_copy: folder with the weights of a model object, to be kept with the run; or None.
    """

    place: Place
    job: Job
    facts: dict[str, Any]
    model_copy: Path | None


def job_of(config: FitConfig) -> Job:
    """The job of a fit that is not to be run itself: its data are for others.

    Raises:
        FtrayError: for whatever the user got wrong.
    """
    with _copied_model(config) as live, collector_paused():
        nowhere = Place(Storage(config.storage_path), exists=False, resumed=False)
        return _job(config, live, nowhere)


@contextmanager
def made_ready(
    config: FitConfig,
    *,
    known: Job | None = None,
    may_differ: Collection[str] = (),
    notes: Sequence[str] = (),
) -> Iterator[Start]:
    """Find the place, copy a model object, read the data, check all that can be checked.

    A copy of a model object lies in a temporary folder, which is there until the context ends.

    Args:
        config: what the user wants.
        known: a job with the same data and callbacks, which are then taken from it.
        may_differ: options that a resumed run need not keep.
        notes: more lines for the log.

    Raises:
        FtrayError: for whatever the user got wrong.
    """
    place = find_place(config)
    config = _as_recorded(config, place)
    with _copied_model(config) as live:
        with collector_paused():
            job = _job(config, live, place, known)
            job = replace(job, run_id=_run_id(place), notes=(*job.notes, *notes))
        facts = _facts(config, job, live)
        if place.resumed:
            check_same(RecordReader(place.storage).config(), facts, place.storage.uri, may_differ)
        copy = None if live is None else live.folder
        yield Start(place=place, job=job, facts=facts, model_copy=copy)


def _as_recorded(config: FitConfig, place: Place) -> FitConfig:
    """With the batch size that was found when the run was started, if it is to be found."""
    if config.batch_size != "auto" or not place.resumed:
        return config
    known = RecordReader(place.storage).config().get("config", {}).get("batch_size", "auto")
    return config.model_copy(update={"batch_size": known})


def _run_id(place: Place) -> str:
    """Eight letters; those of the run that is resumed, if it has any."""
    known = RecordReader(place.storage).config().get("run_id") if place.resumed else None
    return str(known or uuid.uuid4().hex[:8])


def _job(config: FitConfig, live: LiveModel | None, place: Place, known: Job | None = None) -> Job:
    from ftray.training.job import prepare

    if live is None:
        return prepare(config, place.storage.uri, known=known)
    named = config.model_copy(update={"model": str(live.folder)})
    return _of_copy(prepare(named, place.storage.uri, live.module, known), live, place)


@contextmanager
def _copied_model(config: FitConfig) -> Iterator[LiveModel | None]:
    if not is_live(config.model):
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="ftray-", ignore_cleanup_errors=True) as folder:
        yield _copy(config, Path(folder))


def _copy(config: FitConfig, folder: Path) -> LiveModel:
    from ftray.models.base import Encoder
    from ftray.models.live import copy_object

    module: Any = config.model
    if isinstance(module, Encoder):
        raise ConfigError(
            f"model: the {type(module).__name__} object was loaded by ftray: give the name or the "
            f"folder that it was loaded from, '{module.name}'"
        )
    return copy_object(module, folder, config.preprocess_fn, config.collate_fn)


def _of_copy(job: Job, live: LiveModel, place: Place) -> Job:
    """The job for the copy that the run directory will hold, named as the object is."""
    note = f"{live.note}; kept in {MODEL}/"
    return replace(
        job,
        config=job.config.model_copy(update={"model": live.name}),
        model=place.storage.under(MODEL).uri,
        notes=(note, *job.notes),
    )


def _facts(config: FitConfig, job: Job, live: LiveModel | None) -> dict[str, Any]:
    """What `run.yaml` holds: the configuration as it was resolved, and where it ran."""
    from ftray.callbacks.registry import CALLBACKS, resolve_callbacks

    options = [n for n in FitConfig.model_fields if n not in (*DATA_FIELDS, "callbacks")]
    given = resolve_callbacks(config.callbacks)  # the job's are copies without their data
    found = {
        **{name: data_facts(getattr(config, name)) for name in DATA_FIELDS},
        **{name: plain(getattr(config, name)) for name in options},
        "callbacks": callback_facts(job.callbacks, given, CALLBACKS),
    }
    values = {name: found[name][0] for name in FitConfig.model_fields}
    model = {} if live is None else {"name": live.name, "fingerprint": live.fingerprint}
    return {
        "run": job.run_uri,
        "run_id": job.run_id,
        "config": {**values, "batch_size": job.batch_size, "sampler": job.sampler},
        **({"model": model} if model else {}),
        "reproducible": all(exact for _, exact in found.values()),
        "license": job.licence,
        "data": plain(job.provenance)[0],
        "environment": environment(),
    }
