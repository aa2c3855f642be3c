"""`ftray report`."""

from __future__ import annotations

import json

from ftray.run import find_run
from ftray.sweeps.sweep import sweep_named

__all__ = ["run"]


def run(name: str, storage_path: str, experiment: str | None, as_json: bool) -> None:
    """Print the path of the report of a run, or of a sweep."""
    sweep = sweep_named(name, storage_path) if experiment is None else None
    found = sweep or find_run(name, experiment, storage_path)
    path = found.report()
    if as_json:
        print(json.dumps({"name": found.name, "status": found.status(), "report": path}))
    else:
        print(path)
