"""What users call from Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftray.config import CsvOptions, FitConfig, validated
from ftray.errors import ConfigError
from ftray.experiment import Experiment, confirmed, find_experiment, find_experiments
from ftray.launch.drive import fit_here
from ftray.launch.signature import signature_of
from ftray.run import Run, find_run, find_runs, remove_run

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ftray.events import Event
    from ftray.models.base import Encoder

__all__ = [
    "delete_experiment",
    "delete_run",
    "encode",
    "evaluate",
    "fit",
    "get_experiment",
    "get_model",
    "get_run",
    "list_callbacks",
    "list_experiments",
    "list_models",
    "list_runs",
    "read_texts",
]


def fit(
    config: FitConfig | None = None,
    /,
    *,
    listeners: Sequence[Callable[[Event], None]] | None = None,
    wait: bool = True,
    **fields: Any,
) -> Run:
    """Fine-tune a model and return the run.

    Args:
        config: a `FitConfig`; or give its fields by name.
        listeners: called with every event, and closed at the end where they have a method
            `close`; one that raises is left out from then on. None shows the run on the console.
        wait: False returns as soon as the run is on record: a child process trains on, also after
            this script has ended. It has this process's environment variables, folder and import
            path, and a copy of the callbacks. `run.wait()`, `run.stop()`, `run.stream_logs()` work
            from here and from any other process; what libraries print is kept in `output.txt` of
            the run directory (in a temporary file that the log names, if that is not a local one).
        **fields: the fields of `FitConfig`: model, train_data, loss, epochs, batch_size, callbacks,
            num_workers, … (`help(ftray.FitConfig)` lists all).

    Returns:
        The run. With `wait` its status is FINISHED, or STOPPED if it was asked to stop.

    Raises:
        FtrayError: for anything that cannot work, before training starts where it can be known.
        RunFailedError: if the run failed; without `wait`, the record alone says so.
        KeyboardInterrupt: after Ctrl-C, once the run is closed as STOPPED.
        SystemExit: with code 143 after SIGTERM, once the run is closed as STOPPED.
    """
    if config is not None and fields:
        raise ConfigError("Give a FitConfig or its fields, not both")
    config = config or validated(fields)
    if not wait:
        if listeners is not None:
            raise ConfigError(
                "wait = False: the child process that trains cannot call listeners here. Leave "
                "them out, and ask the run: stream_logs(), history(), metrics()"
            )
        from ftray.launch.detach import fit_detached

        return fit_detached(config)
    if listeners is None:
        from ftray.report.console import RunConsole

        listeners = [RunConsole()]
    return fit_here(config, listeners)


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
        confirm: True deletes; None asks.

    Returns:
        Whether it was deleted.

    Raises:
        RunNotFoundError: if there is no such run.
        FtrayError: while the run goes on, or if nobody can be asked.
    """
    run = get_run(name, experiment_name, storage_path)
    if confirm is None:
        confirm = confirmed(f"Delete {run.path} with its artifact and checkpoints?")
    if confirm:
        remove_run(run)
    return confirm


def list_experiments(storage_path: str = "runs") -> list[Experiment]:
    """All experiments that have a run, by name; `fit(experiment_name=...)` makes them."""
    return find_experiments(storage_path)


def get_experiment(name: str = "default", storage_path: str = "runs") -> Experiment:
    """The runs of an `experiment_name`.

    Raises:
        ExperimentNotFoundError: if it has no run, with the nearest name.
    """
    return find_experiment(name, storage_path)


def delete_experiment(
    name: str, storage_path: str = "runs", *, confirm: bool | None = None
) -> bool:
    """Delete an experiment: all its runs, with their checkpoints and artifacts.

    Args:
        name: the experiment's name.
        storage_path: under which folder or URI.
        confirm: True deletes; None asks.

    Returns:
        Whether it was deleted.

    Raises:
        ExperimentNotFoundError: if it has no run.
        FtrayError: while one of its runs goes on, if its folder holds other things than runs, or
            if nobody can be asked; nothing is deleted then.
    """
    return get_experiment(name, storage_path).delete(confirm=confirm)


def get_model(name: str | Path, *, device: str = "auto", max_length: int | None = None) -> Encoder:
    """A model to encode with.

    Args:
        name: an artifact (`run.artifact_id`), a registry name, a folder or its URI, or a hub id.
        device: "auto", "cpu" or "cuda".
        max_length: longest text in tokens; None keeps the model's own limit.

    Raises:
        ModelError: if it cannot be found or loaded.
    """
    from ftray.models.registry import load_encoder
    from ftray.runtime.local import local_device

    return load_encoder(str(name), device=local_device(device), max_length=max_length)


def encode(
    model: Encoder | str | Path,
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
        role: "query" or "document", for models with prompts or with two towers.
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
    model: Encoder | str | Path,
    query_data: Any,
    index_data: Any = None,
    *,
    limit: int = 20,
    distance: str = "cosine",
    metrics: Mapping[str, Any] | Sequence[str] | None = None,
    query_sample_size: int | None = None,
    query_role: str | None = None,
    index_role: str | None = None,
    batch_size: int = 32,
    max_length: int | None = None,
    exclude_self: bool = True,
    columns: Mapping[str, str] | None = None,
    csv_options: Mapping[str, Any] | CsvOptions | None = None,
) -> dict[str, float]:
    """Metrics of a model, in this process; the options are EvaluationCallback's.

    Retrieval metrics at `limit`; `spearman` and `pearson` for scored pairs. `query_role` and
    `index_role` are its `model` and `index_model`: the tower for queries, and for the index.

    Raises:
        FtrayError: for data or a model that cannot be used.
    """
    from ftray.callbacks.evaluation import EvaluationCallback
    from ftray.evaluation.encode import check_towers
    from ftray.runtime.local import LocalRuntime
    from ftray.training.evaluate import evaluate as run_evaluation

    callback = EvaluationCallback(
        query_data,
        index_data,
        limit=limit,
        distance=distance,
        metrics=metrics,
        query_sample_size=query_sample_size,
        model=query_role,
        index_model=index_role,
        batch_size=batch_size,
        exclude_self=exclude_self,
        columns=columns,
        csv_options=csv_options,
    )
    spec = callback.prepare(0)
    encoder = get_model(model, max_length=max_length) if isinstance(model, str | Path) else model
    check_towers(spec, encoder)
    runtime = LocalRuntime(encoder.device, [spec], lambda event: None, lambda: None)
    done = run_evaluation(
        spec, 0, encoder, runtime, layout="bucketed", on_progress=lambda *progress: None
    )
    return done.metrics


def list_models() -> list[str]:
    """Names that `model=` knows; any Hugging Face id or folder works as well."""
    from ftray.models.catalogue import MODELS

    return sorted(MODELS)


def list_callbacks() -> list[str]:
    """Names of the callbacks, as YAML files give them."""
    from ftray.callbacks.registry import CALLBACKS

    return sorted(CALLBACKS)


fit.__signature__ = signature_of(fit)  # type: ignore[attr-defined]
