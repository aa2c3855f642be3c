"""`ftray sweep`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout

from ftray.sweeps.config import load_sweep
from ftray.sweeps.sweep import Sweep

__all__ = ["run", "show_sweep"]


def run(config: str, overrides: Sequence[str], resume: bool, as_json: bool) -> None:
    """Sweep, then print the trials; with JSON all the rest goes to standard error."""
    more = ["resume=auto"] if resume else []
    loaded = load_sweep(config, [*overrides, *more])
    from ftray.api import sweep

    log = sys.stderr if as_json else sys.stdout
    with redirect_stdout(log):
        done = sweep(loaded, say=lambda line: print(line, file=log, flush=True))
    show_sweep(done, as_json)


def show_sweep(sweep: Sweep, as_json: bool) -> None:
    """Print the trials of a sweep, and where the best one is."""
    best = sweep.best if sweep.state.best is not None else None
    if as_json:
        facts = {"name": sweep.name, "path": sweep.path, "status": sweep.status()}
        facts |= {"metric": sweep.metric, "mode": sweep.mode, "details": sweep.state.details}
        found = {} if best is None else {"best": best.path, "artifact": best.artifact_id}
        print(json.dumps({**facts, **found, "trials": sweep.to_arrow().to_pylist()}, default=str))
        return
    sweep.display()
    for number, reason in sweep.errors.items():
        print(f"Trial {number} failed: {reason}")
    print(f"Status:   {sweep.status()} {sweep.state.details}".rstrip())
    if best is not None:
        print(f"Best:     {best.path}")
        print(f"Artifact: {best.artifact_id}")
