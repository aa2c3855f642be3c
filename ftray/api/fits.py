"""Fitting, here, as a job of a cluster, and many times with other values."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ftray.config import FitConfig, validated
from ftray.errors import ConfigError, RunFailedError
from ftray.launch.drive import fit_here
from ftray.launch.signature import signature_of
from ftray.run import Run
from ftray.sweeps.config import SweepConfig, validated_sweep
from ftray.sweeps.sweep import Sweep

if TYPE_CHECKING:
    from ftray.events import Event
    from ftray.launch.submit import SubmittedRun

__all__ = ["fit", "list_callbacks", "submit", "sweep"]


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
        python: what runs Python on the cluster's head. None is `python`, or, with a loopback
            address, this interpreter if the head has it under the same path.
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


def list_callbacks() -> list[str]:
    """Names of the callbacks, as YAML files give them."""
    from ftray.callbacks.registry import CALLBACKS

    return sorted(CALLBACKS)


fit.__signature__ = signature_of(fit)  # type: ignore[attr-defined]
submit.__signature__ = signature_of(submit)  # type: ignore[attr-defined]
