"""`ftray delete`."""

from __future__ import annotations

from ftray.experiment import confirmed
from ftray.run import find_run, remove_run

__all__ = ["run"]


def run(name: str, yes: bool, storage_path: str, experiment: str | None) -> None:
    """Delete a run, unless whoever is asked says no."""
    found = find_run(name, experiment, storage_path)
    if yes or confirmed(f"Delete {found.path} with its artifact and checkpoints?"):
        remove_run(found)
        print(f"Deleted {found.path}")
    else:
        print("Nothing was deleted.")
