"""`ftray fit`."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout

from rich.console import Console

from ftray.config_file import load_config
from ftray.errors import RunNotFoundError
from ftray.report.command import command
from ftray.run import Run, find_run

__all__ = ["run", "shortest_name"]


def run(config: str, overrides: Sequence[str], detach: bool, as_json: bool) -> None:
    """Fit, then print the metrics; with JSON all the rest goes to standard error.

    With `detach` another process fits, and what is printed is how to follow it.
    """
    loaded = load_config(config, overrides)
    from ftray.api import fit
    from ftray.report.console import RunConsole

    log = sys.stderr if as_json else sys.stdout
    console = Console(file=log, highlight=False)
    with redirect_stdout(log):  # also what users' callbacks and libraries print
        if detach:
            done = fit(loaded, wait=False)
        else:
            done = fit(loaded, listeners=[RunConsole(console)])
    if detach:
        _print_started(done, as_json)
    elif as_json:
        print(json.dumps({**_facts(done), "metrics": done.metrics()}))
    else:
        if any(done.metrics().values()):
            done.display_metrics()
        console.print(f"Artifact: {done.artifact_id}")
        console.print(f"Run:      {done.path} ({done.status()})")


def _facts(run: Run) -> dict[str, str]:
    status, artifact = run.status(), run.artifact_id
    return {"name": run.name, "path": run.path, "status": status, "artifact": artifact}


def _print_started(run: Run, as_json: bool) -> None:
    if as_json:
        print(json.dumps(_facts(run)))
        return
    name = shlex.quote(shortest_name(run))
    print(f"Run '{run.name}' goes on in the background: {run.path}")
    print(f"Follow it:  {command()} logs -f {name}")
    print(f"Stop it:    {command()} stop {name}")


def shortest_name(run: Run) -> str:
    """What the other verbs find the run by, from this folder: its name, or else its path."""
    try:
        found = find_run(run.name)
    except RunNotFoundError:
        return run.path
    return run.name if found.path == run.path else run.path
