"""`ftray sweep`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout

from ftray.sweeps.config import load_sweep

__all__ = ["run"]


def run(config: str, overrides: Sequence[str], resume: bool, as_json: bool) -> None:
    """Sweep, then print the trials; with JSON all the rest goes to standard error."""
    more = ["resume=auto"] if resume else []
    loaded = load_sweep(config, [*overrides, *more])
    from ftray.api import sweep

    log = sys.stderr if as_json else sys.stdout
    with redirect_stdout(log):
        done = sweep(loaded, say=lambda line: print(line, file=log, flush=True))
    if as_json:
        table = done.to_arrow().to_pylist()
        facts = {"name": done.name, "path": done.path, "status": done.status()}
        best = {"best": done.best.path, "artifact": done.best.artifact_id}
        print(json.dumps({**facts, **best, "metric": done.metric, "trials": table}, default=str))
        return
    done.display()
    for number, reason in done.errors.items():
        print(f"Trial {number} failed: {reason}")
    print(f"Best:     {done.best.path}")
    print(f"Artifact: {done.best.artifact_id}")
