"""What users call from Python."""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ftray.config import CsvOptions, FitConfig, validated
from ftray.errors import ConfigError, RunExistsError, RunNotFoundError, StorageError
from ftray.events import Log
from ftray.record.environment import environment
from ftray.record.facts import callback_facts, check_same, data_facts, plain
from ftray.record.names import fresh_name
from ftray.record.reader import RecordReader
from ftray.record.session import RunSession
from ftray.record.storage import Storage
from ftray.run import Run, find_run, find_runs, remove_run

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ftray.events import Event, FitEnded
    from ftray.models.text import TextEncoder
    from ftray.training.job import Job

__all__ = [
    "delete_run",
    "encode",
    "evaluate",
    "fit",
    "get_model",
    "get_run",
    "list_callbacks",
    "list_models",
    "list_runs",
    "read_texts",
]

UNFINISHED = ("control", "events", "logs.txt", "run.yaml", "status.json")
"""What may stand in a folder where a run was cut off before it was on record."""
DATA_FIELDS = ("train_data", "eval_data")


def fit(
    config: FitConfig | None = None,
    /,
    *,
    listeners: Sequence[Callable[[Event], None]] | None = None,
    **fields: Any,
) -> Run:
    """Fine-tune a model and return the finished run.

    Args:
        config: a `FitConfig`; or give its fields by name.
        listeners: called with every event, and closed at the end where they have a method
            `close`; one that raises is left out from then on. None shows the run on the console.
        **fields: the fields of `FitConfig`: model, train_data, loss, epochs, batch_size, callbacks,
            num_workers, … (`help(ftray.FitConfig)` lists all).

    Returns:
        The run; its status is FINISHED, or STOPPED if it was asked to stop.

    Raises:
        FtrayError: for anything that cannot work, before training starts where it can be known.
        RunFailedError: if the run failed.
        KeyboardInterrupt: after Ctrl-C, once the run is closed as STOPPED.
        SystemExit: with code 143 after SIGTERM, once the run is closed as STOPPED.
    """
    if config is not None and fields:
        raise ConfigError("Give a FitConfig or its fields, not both")
    config = config or validated(fields)
    if listeners is None:
        from ftray.report.console import RunConsole

        listeners = [RunConsole()]
    place = _place(config)
    storage = place.storage
    from ftray.training.job import prepare

    job = prepare(config, storage.uri)
    facts = _facts(config, job)
    if place.resumed:
        check_same(RecordReader(storage).config(), facts, storage.uri)
    session = RunSession(storage, config.model, listeners)
    with closing(session):
        if config.num_workers == 0:  # it takes seconds, and nothing is on record yet
            session.show(Log(message=f"Loading the model {config.model}"))
        train = _trainer(job, session)
        with session.stop.on_signals(session.say):
            _take(place, config)
            return _run(job, session, train, facts, resumed=place.resumed)


def _run(
    job: Job,
    session: RunSession,
    train: Callable[[], FitEnded],
    facts: dict[str, Any],
    *,
    resumed: bool,
) -> Run:
    name = session.storage.name
    try:
        session.open(facts, resumed=resumed)
        session.say(f"Run '{name}' in {session.storage.uri}")
        for note in job.notes:
            session.say(note)
        ended = train()
        if ended.status == "STOPPED":
            session.say(f"To go on: the same again with run_name: {name} and resume: auto")
        session.finish(ended)
    except KeyboardInterrupt:
        session.interrupted()
        raise
    except BaseException as error:
        session.fail(error)
        raise
    if session.stop.signal is not None:  # heard too late to stop anything, it still counts
        if session.stop.signal.name == "SIGTERM":
            raise SystemExit(143)
        raise KeyboardInterrupt
    return Run(session.storage)


def _trainer(job: Job, session: RunSession) -> Callable[[], FitEnded]:
    """What trains.

    In this process the model is loaded here, so that no run is on record if it cannot be; on Ray
    the workers load it.
    """
    if job.config.num_workers == 0:
        import torch

        from ftray.runtime.local import LocalRuntime, local_device
        from ftray.training.loop import Loop

        device = local_device(job.config.device)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device = 'cuda', but torch sees no GPU here: 'cpu', or 'auto'")
        return Loop(job, LocalRuntime(device, job.evaluations, session.emit, session.stop)).run
    from ftray.cluster.trainer import fit_on_ray

    return lambda: fit_on_ray(job, session)


class _Place(NamedTuple):
    """A run directory, whether it is there, and whether it holds a run to continue."""

    storage: Storage
    exists: bool
    resumed: bool


def _place(config: FitConfig) -> _Place:
    """Where the run is to be; refuses a place where it cannot."""
    root = Storage(config.storage_path)
    _check_folder(root)
    experiment = root.under(config.experiment_name)
    if config.run_name is None:
        if config.resume == "must":
            raise ConfigError("resume = 'must' needs the run_name of the run to continue")
        return _Place(experiment.under(fresh_name(experiment.exists)), False, False)
    storage = experiment.under(config.run_name)
    record = RecordReader(storage)
    if storage.exists() and config.resume == "never":
        raise _exists(storage)
    if record.exists():
        _check_idle(record)
        return _Place(storage, True, True)
    if config.resume == "must":
        raise RunNotFoundError(f"resume = 'must', but there is no run {storage.uri}")
    if any(name not in UNFINISHED for name in storage.names() if not name.startswith(".")):
        raise RunExistsError(f"The folder {storage.uri} holds other things than a run")
    return _Place(storage, storage.exists(), False)


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


def _take(place: _Place, config: FitConfig) -> None:
    """Make the directory, unless somebody has been there since we looked."""
    if place.exists:
        if _place(config).resumed != place.resumed:
            raise _exists(place.storage)
    elif not place.storage.create(exclusive=True):
        raise _exists(place.storage)
    place.storage.check_writable()


def _check_folder(root: Storage) -> None:
    """Refuse a local storage_path that cannot become a folder, before anything is read."""
    if not root.is_local:
        return
    place = Path(root.root)
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise StorageError(f"storage_path '{root.uri}' cannot be a folder: '{place}' is a file")
    if not os.access(place, os.W_OK | os.X_OK):
        raise StorageError(f"storage_path '{root.uri}': '{place}' cannot be written to")


def _exists(storage: Storage) -> RunExistsError:
    return RunExistsError(
        f"The run {storage.uri} exists. Give another run_name, or none for a fresh one; "
        "resume: auto continues a run that was stopped or cut off."
    )


def _facts(config: FitConfig, job: Job) -> dict[str, Any]:
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
    return {
        "run": job.run_uri,
        "config": {**values, "batch_size": job.batch_size, "sampler": job.sampler},
        "reproducible": all(exact for _, exact in found.values()),
        "data": plain(job.provenance)[0],
        "environment": environment(),
    }


def get_run(name: str, experiment_name: str | None = None, storage_path: str = "runs") -> Run:
    """The run of a name, or of the path of its directory.

    Raises:
        RunNotFoundError: with the nearest name.
    """
    return find_run(name, experiment_name, storage_path)


def list_runs(experiment_name: str | None = None, storage_path: str = "runs") -> list[Run]:
    """All runs on record, oldest first."""
    return find_runs(experiment_name, storage_path)


def delete_run(
    name: str,
    experiment_name: str | None = None,
    storage_path: str = "runs",
    *,
    confirm: bool | None = None,
) -> bool:
    """Delete a run with its checkpoints and artifact.

    Args:
        name: the run's name, or the path of its directory.
        experiment_name: where to look; None looks in all experiments.
        storage_path: under which folder or URI.
        confirm: True deletes; None asks on the terminal.

    Returns:
        Whether it was deleted.

    Raises:
        RunNotFoundError: if there is no such run.
        FtrayError: while the run goes on.
    """
    run = get_run(name, experiment_name, storage_path)
    if confirm is None:
        answer = input(f"Delete {run.path} with its artifact and checkpoints? [y/N] ")
        confirm = answer.strip().lower() in ("y", "yes")
    if confirm:
        remove_run(run)
    return confirm


def get_model(
    name: str | Path, *, device: str = "auto", max_length: int | None = None
) -> TextEncoder:
    """A model to encode with.

    Args:
        name: an artifact (`run.artifact_id`), a registry name, a folder, or a hub id.
        device: "auto", "cpu" or "cuda".
        max_length: longest text in tokens; None keeps the model's own limit.

    Raises:
        ModelError: if it cannot be found or loaded.
    """
    from ftray.models.registry import load_encoder
    from ftray.runtime.local import local_device

    text = str(name)
    if "://" in text:
        with Storage(text).local_copy("") as folder:
            return load_encoder(str(folder), device=local_device(device), max_length=max_length)
    return load_encoder(text, device=local_device(device), max_length=max_length)


def encode(
    model: TextEncoder | str | Path,
    data: Any,
    *,
    role: str = "",
    batch_size: int = 32,
    on_progress: Callable[[int, int], None] | None = None,
) -> npt.NDArray[np.float32] | Any:
    """Embeddings of texts.

    Args:
        model: what `get_model` gives or takes.
        data: a list of texts, anything `train_data` may be (its first column), or a DocList.
        role: "query" or "document", for models with prompts.
        batch_size: texts at a time.
        on_progress: called with (texts done, texts in all).

    Returns:
        `(N, D)` float32 in the order given; for a DocList a copy of it with `.embedding` set.

    Raises:
        FtrayError: for data or a model that cannot be used.
    """
    from ftray.evaluation.encode import encode_texts

    encoder = get_model(model) if isinstance(model, str | Path) else model
    texts = read_texts(data)
    vectors = encode_texts(
        encoder, texts, role=role, batch_size=batch_size, on_progress=on_progress
    )
    if type(data).__module__.startswith("docarray"):
        from ftray.data.documents import with_embeddings

        return with_embeddings(data, texts, vectors)
    return vectors


def read_texts(data: Any, *, columns: Mapping[str, str] | None = None) -> list[str]:
    """The texts of anything `encode` takes: one column, the items, or the queries of pairs."""
    if (
        isinstance(data, Sequence)
        and not isinstance(data, str)
        and all(isinstance(text, str) for text in data)
    ):
        return list(data)
    from ftray.data.readers import read_records

    records = read_records(data, columns=columns, where="data")
    texts: list[str] = records.table.column(0 if records.kind != "pairs" else "query").to_pylist()
    return texts


def evaluate(
    model: TextEncoder | str | Path,
    query_data: Any,
    index_data: Any = None,
    *,
    limit: int = 20,
    distance: str = "cosine",
    batch_size: int = 32,
    max_length: int | None = None,
    exclude_self: bool = True,
    columns: Mapping[str, str] | None = None,
    csv_options: Mapping[str, Any] | CsvOptions | None = None,
) -> dict[str, float]:
    """Retrieval metrics of a model, in this process; the options are EvaluationCallback's.

    Raises:
        FtrayError: for data or a model that cannot be used.
    """
    from ftray.callbacks.evaluation import EvaluationCallback
    from ftray.runtime.local import LocalRuntime
    from ftray.training.evaluate import evaluate as run_evaluation

    callback = EvaluationCallback(
        query_data,
        index_data,
        limit=limit,
        distance=distance,
        batch_size=batch_size,
        exclude_self=exclude_self,
        columns=columns,
        csv_options=csv_options,
    )
    spec = callback.prepare(0)
    encoder = get_model(model, max_length=max_length) if isinstance(model, str | Path) else model
    runtime = LocalRuntime(encoder.device, [spec], lambda event: None, lambda: None)
    done = run_evaluation(
        spec, 0, encoder, runtime, layout="bucketed", on_progress=lambda *progress: None
    )
    return done.metrics


def list_models() -> list[str]:
    """Names that `model=` knows; any Hugging Face id or folder works as well."""
    from ftray.models.registry import MODELS

    return sorted(MODELS)


def list_callbacks() -> list[str]:
    """Names of the callbacks, as YAML files give them."""
    from ftray.callbacks.registry import CALLBACKS

    return sorted(CALLBACKS)


class _Needed:
    """Stands in signatures for the default of a field that has none."""

    def __repr__(self) -> str:
        return "<needed>"


def _signature() -> inspect.Signature:
    """`fit` with every field of `FitConfig`, for help() and for notebooks."""
    own = inspect.signature(fit).parameters
    fields = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=_Needed()
            if field.is_required()
            else field.get_default(call_default_factory=True),
            annotation=field.annotation,
        )
        for name, field in FitConfig.model_fields.items()
    ]
    return inspect.Signature([own["config"], *fields, own["listeners"]], return_annotation=Run)


fit.__signature__ = _signature()  # type: ignore[attr-defined]
