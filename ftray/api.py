"""What users call from Python."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftray.config import CsvOptions, FitConfig, validated
from ftray.errors import ConfigError, RunFailedError
from ftray.experiment import Experiment, confirmed, find_experiment, find_experiments
from ftray.launch.drive import fit_here
from ftray.launch.signature import signature_of
from ftray.run import Run, find_run, find_runs, remove_run
from ftray.sweeps.config import SweepConfig, validated_sweep
from ftray.sweeps.sweep import Sweep, find_sweep, find_sweeps

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ftray.events import Event
    from ftray.launch.submit import SubmittedRun
    from ftray.models.base import Encoder

__all__ = [
    "delete_experiment",
    "delete_run",
    "describe_models",
    "encode",
    "evaluate",
    "fit",
    "get_experiment",
    "get_model",
    "get_run",
    "get_sweep",
    "list_callbacks",
    "list_experiments",
    "list_model_options",
    "list_models",
    "list_runs",
    "list_sweeps",
    "submit",
    "sweep",
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


def submit(
    config: FitConfig | None = None,
    /,
    *,
    address: str | None = None,
    working_dir: str | os.PathLike[str] | None = None,
    runtime_env: Mapping[str, Any] | None = None,
    shared: Sequence[str | os.PathLike[str]] = (),
    max_upload_mb: float = 200.0,
    python: str | None = None,
    wait: bool = False,
    **fields: Any,
) -> SubmittedRun:
    """Fine-tune a model as a job of a Ray cluster; returns when the run is on record.

    Local files that the fit names (data, the files that data names, a model's folder) are taken
    along, and so are objects. `storage_path` must be seen by both sides: see docs/jobs.md.

    Args:
        config: a `FitConfig`; or give its fields by name.
        address: of the cluster's dashboard, as http://host:8265. None takes
            RAY_API_SERVER_ADDRESS, an http address in RAY_ADDRESS, or this machine's.
        working_dir: a folder of your code, which the job and its workers are to see.
        runtime_env: Ray's: `env_vars`, `pip`, `py_modules` …
        shared: folders that the cluster sees under the same paths: what lies there is neither
            taken along nor read here.
        max_upload_mb: how much may be taken along, in MiB.
        python: what runs Python on the cluster's head. None is `python`, and this interpreter if
            the cluster is on this machine.
        wait: True waits until the run is done, as `fit` does; Ctrl-C ends the waiting alone.
        **fields: the fields of `FitConfig`.

    Returns:
        The run, with `job_id`, `job_status()`, `job_logs()`, `stream_job_logs()` beside the rest.

    Raises:
        FtrayError: for anything that cannot work; nothing is on record then.
        RunFailedError: if the job ends before the run is on record, with what it printed last; with
            `wait`, if the run failed.
    """
    if config is not None and fields:
        raise ConfigError("Give a FitConfig or its fields, not both")
    from ftray.launch.submit import JobOptions
    from ftray.launch.submit import submit as submit_job

    options = JobOptions(
        address=address,
        working_dir=working_dir,
        runtime_env=runtime_env,
        shared=shared,
        max_upload_mb=max_upload_mb,
        python=python,
    )
    run = submit_job(config or validated(fields), options)
    if wait and run.wait().status() == "FAILED":
        raise RunFailedError(f"Run '{run.name}' failed: {run.details}")
    return run


def sweep(
    config: FitConfig | SweepConfig | Mapping[str, Any],
    space: Mapping[str, Any] | None = None,
    *,
    say: Callable[[str], None] | None = None,
    **options: Any,
) -> Sweep:
    """Try values of a fit's fields, on Ray Tune, and compare the runs.

    Args:
        config: what all trials share: a `FitConfig`, or its fields; or a whole `SweepConfig`.
        space: what is varied: dotted names of fields to domains, as in
            `{"learning_rate": {"loguniform": [1e-5, 1e-3]}}`; those of `ray.tune` are taken too.
            See `ftray.sweeps.space`.
        say: takes lines about trials; None prints them.
        **options: the other fields of `SweepConfig`: metric, mode, num_samples, search, scheduler,
            stop, time_budget_s, … (`help(ftray.SweepConfig)` lists all).

    Returns:
        The sweep; `sweep.best` is the best run.

    Raises:
        FtrayError: for anything that cannot work, before a trial begins where it can be known.
        RunFailedError: if no trial came to an end.
        KeyboardInterrupt: after Ctrl-C, once the sweep is closed as STOPPED.
        SystemExit: with code 143 after SIGTERM, likewise.
    """
    from ftray.launch.sweep import sweep_here

    if isinstance(config, SweepConfig):
        if space is not None or options:
            raise ConfigError("Give a SweepConfig or its fields, not both")
        return sweep_here(config, say or _print)
    fit_values = (
        {name: getattr(config, name) for name in config.model_fields_set}
        if isinstance(config, FitConfig)
        else dict(config)
    )
    values = {"fit": fit_values, **({} if space is None else {"space": dict(space)}), **options}
    return sweep_here(validated_sweep(values), say or _print)


def _print(line: str) -> None:
    print(line, flush=True)


def get_sweep(name: str, storage_path: str = "runs") -> Sweep:
    """The sweep of a name, or of the path of its folder.

    Raises:
        RunNotFoundError: with the nearest name.
    """
    return find_sweep(name, storage_path)


def list_sweeps(storage_path: str = "runs") -> list[Sweep]:
    """All sweeps on record, by name."""
    return find_sweeps(storage_path)


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


def get_model(
    name: str | Path,
    select_model: str | None = None,
    *,
    device: str = "auto",
    max_length: int | None = None,
    model_options: Mapping[str, Any] | None = None,
    module: Any = None,
    preprocess_fn: Callable[..., Any] | None = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
) -> Encoder:
    """A model to encode with.

    Args:
        name: an artifact (`run.artifact_id`), a registry name, a folder or its URI, or a hub id.
        select_model: one tower of a model that has two: "text" or "image" ("clip-text" and
            "clip-vision" are the same), or "query" or "document". None takes the whole model, in
            which what a thing is decides which tower it goes through.
        device: "auto", "cpu" or "cuda".
        max_length: longest text in tokens; None keeps the model's own limit.
        model_options: see `list_model_options`; an artifact has those that it was trained with.
        module: for the artifact of a torch.nn.Module of your own: a module of that class.
        preprocess_fn: what makes its inputs; see `ftray.models.module.ModuleParts`.
        collate_fn: what makes a batch of them.

    Raises:
        ModelError: if it cannot be found or loaded.
        ConfigError: for options that the model does not have, or a tower; with the nearest one.
    """
    from ftray.models.functions import check_functions
    from ftray.models.registry import load_encoder
    from ftray.models.selection import selected
    from ftray.runtime.local import local_device

    check_functions(preprocess_fn, collate_fn, has_module=module is not None)
    parts = None
    if module is not None:
        from ftray.models.module import ModuleParts

        parts = ModuleParts(module=module, preprocess_fn=preprocess_fn, collate_fn=collate_fn)
    encoder = load_encoder(
        str(name),
        device=local_device(device),
        max_length=max_length,
        options=model_options,
        module=parts,
    )
    return encoder if select_model is None else selected(encoder, select_model)


def encode(
    model: Encoder | str | Path,
    data: Any,
    *,
    role: str = "",
    batch_size: int = 32,
    on_progress: Callable[[int, int], None] | None = None,
) -> npt.NDArray[np.float32] | Any:
    """Embeddings of texts, images, or whatever else the model takes.

    Args:
        model: what `get_model` gives or takes.
        data: a list of texts, of images (paths, bytes, PIL, arrays) or of other things, anything
            `train_data` may be (its first column), or a DocList. What strings are, the model
            decides; one that takes texts and images takes those for images that name image files.
        role: "query" or "document", for models with prompts or with two towers.
        batch_size: items at a time.
        on_progress: called with (items done, items in all).

    Returns:
        `(N, D)` float32 in the order given; for a DocList a copy of it with `.embedding` set.

    Raises:
        FtrayError: for data or a model that cannot be used.
    """
    from ftray.data.inputs import read_contents
    from ftray.evaluation.encode import encode_texts

    encoder = get_model(model) if isinstance(model, str | Path) else model
    items, names = read_contents(data, modalities=encoder.modalities)
    vectors = encode_texts(
        encoder,
        items,
        role=role,
        batch_size=batch_size,
        data_workers=_data_workers(encoder),
        on_progress=on_progress,
    )
    if type(data).__module__.startswith("docarray"):
        from ftray.data.documents import with_embeddings

        return with_embeddings(data, names, vectors)
    return vectors


def _data_workers(encoder: Encoder) -> int:
    """How many processes decode."""
    from ftray.models.ahead import AUTO_WORKERS

    return 0 if encoder.modalities <= {"text"} else AUTO_WORKERS


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
    from ftray.media import MODALITIES
    from ftray.runtime.local import LocalRuntime
    from ftray.training.evaluate import evaluate as run_evaluation
    from ftray.training.matching import check_takes

    encoder = get_model(model, max_length=max_length) if isinstance(model, str | Path) else model
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
    modalities = encoder.modalities if len(encoder.modalities) < len(MODALITIES) else None
    spec = callback.prepare(0, modalities=modalities)
    check_towers(spec, encoder)
    check_takes(encoder.name, encoder.modalities, [spec])
    runtime = LocalRuntime(encoder.device, [spec], lambda event: None, lambda: None)
    done = run_evaluation(
        spec,
        0,
        encoder,
        runtime,
        layout="bucketed",
        on_progress=lambda *progress: None,
        data_workers=_data_workers(encoder),
    )
    return done.metrics


def list_models(task: str | None = None) -> list[str]:
    """Names that `model=` knows; any Hugging Face id, folder or module works as well.

    Args:
        task: "text-to-text", "image-to-image", "text-to-image", "mesh-to-mesh" or "any"; None
            lists all.

    Raises:
        ConfigError: for a task that no model has.
    """
    from ftray.models.listing import listed_models

    return sorted(row["name"] for row in listed_models(task))


def list_model_options(name: str | None = None) -> dict[str, list[dict[str, Any]]]:
    """What `model_options` may hold: name, type, required, default and description of each option.

    Args:
        name: of a model; None takes all registered ones.

    Raises:
        ModelError: if there is no such model.
    """
    from ftray.models.listing import listed_options

    return {each: listed_options(each) for each in ([name] if name else list_models())}


def describe_models(task: str | None = None) -> None:
    """Show the registered models, of a task or all, a table for each task.

    Raises:
        ConfigError: for a task that no model has.
    """
    from ftray.models.listing import listed_models
    from ftray.report.tables import models_sheets, show

    for sheet in models_sheets(listed_models(task)):
        show(sheet)


def list_callbacks() -> list[str]:
    """Names of the callbacks, as YAML files give them."""
    from ftray.callbacks.registry import CALLBACKS

    return sorted(CALLBACKS)


fit.__signature__ = signature_of(fit)  # type: ignore[attr-defined]
submit.__signature__ = signature_of(submit)  # type: ignore[attr-defined]
