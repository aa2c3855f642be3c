"""`ftray runs`."""

from __future__ import annotations

import json
import time
from typing import Any

from rich.console import Console
from rich.table import Table

from ftray.errors import StorageError
from ftray.run import Run, find_runs

__all__ = ["run"]


def run(storage_path: str, experiment: str | None, as_json: bool) -> None:
    """List runs, oldest first."""
    found = find_runs(experiment, storage_path)
    rows: list[dict[str, Any]] = [
        {
            "name": r.name,
            "experiment": r.experiment,
            "status": r.status(),
            "created_s": r.times.get("created_s", 0.0),
            **_configured(r),
            "path": r.path,
        }
        for r in found
    ]
    if as_json:
        print(json.dumps(rows))
        return
    if not rows:
        what = f"runs of the experiment '{experiment}'" if experiment else "runs"
        print(f"There are no {what} under '{storage_path}'.")
        return
    table = Table()
    for title in ("Run", "Experiment", "Status", "Created", "Model", "Loss"):
        table.add_column(title, no_wrap=title in ("Run", "Created"))
    for row in rows:
        created = time.strftime("%Y-%m-%d %H:%M", time.localtime(row["created_s"]))
        cells = (row["name"], row["experiment"], row["status"], created, row["model"], row["loss"])
        table.add_row(*(str(cell) for cell in cells))
    Console(highlight=False).print(table)


def _configured(run: Run) -> dict[str, Any]:
    """A run whose run.yaml is damaged is listed like the others."""
    try:
        return {"model": run.model, "loss": run.config.get("loss")}
    except StorageError:
        return {"model": None, "loss": None}
