"""`ftray stop`."""

from __future__ import annotations

from ftray.run import DONE, find_run

__all__ = ["run"]


def run(name: str, storage_path: str, experiment: str | None) -> None:
    """Ask a run to stop."""
    found = find_run(name, experiment, storage_path)
    if found.status() in DONE:
        print(f"Run '{found.name}' is {found.status()} already.")
        return
    found.stop()
    print(f"Run '{found.name}' was asked to stop at its next step.")
