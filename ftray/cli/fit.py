"""`ftray fit`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from rich.console import Console

from ftray.config import load_config

__all__ = ["run"]


def run(config: str, overrides: Sequence[str], as_json: bool) -> None:
    """Fit, then print the metrics; with JSON the log goes to standard error."""
    loaded = load_config(config, overrides)
    from ftray.api import fit
    from ftray.report.console import RunConsole

    console = Console(file=sys.stderr if as_json else sys.stdout, highlight=False)
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
