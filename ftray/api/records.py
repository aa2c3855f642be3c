"""What is on record: runs, experiments, sweeps."""

from __future__ import annotations

from ftray.experiment import Experiment, confirmed, find_experiment, find_experiments
from ftray.run import Run, find_run, find_runs, remove_run
from ftray.sweeps.sweep import Sweep, find_sweep, find_sweeps

__all__ = ["delete_experiment", "delete_run", "get_experiment", "get_run", "get_sweep"]
__all__ += ["list_experiments", "list_runs", "list_sweeps"]


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
