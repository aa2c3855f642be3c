"""`ftray stop`."""

from __future__ import annotations

from ftray.run import DONE, find_run
from ftray.sweeps.sweep import sweep_named

__all__ = ["run"]


def run(name: str, storage_path: str, experiment: str | None) -> None:
    """Ask a run, or a sweep, to stop."""
    sweep = sweep_named(name, storage_path) if experiment is None else None
    found = sweep or find_run(name, experiment, storage_path)
    what = "Run" if sweep is None else "Sweep"
    if found.status() in DONE:
        print(f"{what} '{found.name}' is {found.status()} already.")
        return
    found.stop()
    step = "at its next step" if sweep is None else "with the trials that run"
    print(f"{what} '{found.name}' was asked to stop {step}.")
