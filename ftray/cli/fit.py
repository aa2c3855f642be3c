"""`ftray fit`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout

from rich.console import Console

from ftray.config import load_config

__all__ = ["run"]


def run(config: str, overrides: Sequence[str], as_json: bool) -> None:
    """Fit, then print the metrics; with JSON all the rest goes to standard error."""
    loaded = load_config(config, overrides)
    from ftray.api import fit
    from ftray.report.console import RunConsole

    log = sys.stderr if as_json else sys.stdout
    console = Console(file=log, highlight=False)
    with redirect_stdout(log):  # also what users' callbacks and libraries print
        done = fit(loaded, listeners=[RunConsole(console)])
    if as_json:
        summary = {
            "name": done.name,
            "path": done.path,
            "status": done.status(),
            "artifact": done.artifact_id,
            "metrics": done.metrics(),
        }
        print(json.dumps(summary))
        return
    if any(done.metrics().values()):
        done.display_metrics()
    console.print(f"Artifact: {done.artifact_id}")
    console.print(f"Run:      {done.path} ({done.status()})")
