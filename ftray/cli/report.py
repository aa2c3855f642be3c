"""`ftray report`."""

from __future__ import annotations

import json

from ftray.run import find_run

__all__ = ["run"]


def run(name: str, storage_path: str, experiment: str | None, as_json: bool) -> None:
    """Print the path of the run's report."""
    found = find_run(name, experiment, storage_path)
    path = found.report()
    if as_json:
        print(json.dumps({"name": found.name, "status": found.status(), "report": path}))
    else:
        print(path)
