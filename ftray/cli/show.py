"""`ftray show`."""

from __future__ import annotations

import json
import time
from typing import Any

from rich.console import Console

from ftray.cli.sweep import show_sweep
from ftray.record.narrator import duration_words
from ftray.run import Run, find_run
from ftray.sweeps.sweep import sweep_named
from ftray.words import counted

__all__ = ["run"]


def run(name: str, storage_path: str, experiment: str | None, as_json: bool) -> None:
    """Show one run, or a sweep."""
    sweep = sweep_named(name, storage_path) if experiment is None else None
    if sweep is not None:
        show_sweep(sweep, as_json)
        return
    found = find_run(name, experiment, storage_path)
    metrics = found.metrics() if found.status() != "FAILED" else {"before": {}, "after": {}}
    if as_json:
        facts = {
            "name": found.name,
            "path": found.path,
            "status": found.status(),
            "details": found.details,
            "times": found.times,
            "metrics": metrics,
            "artifact": found.artifact_id,
            "facts": found.facts,
        }
        print(json.dumps(facts, default=str))
        return
    console = Console(highlight=False)
    for title, value in _lines(found):
        console.print(f"{title:<12} {value}", markup=False)
    if any(metrics.values()):
        found.display_metrics()


def _lines(run: Run) -> list[tuple[str, Any]]:
    config, times = run.config, run.times
    started = times.get("started_s", times.get("created_s", 0.0))
    ended = times.get("ended_s", time.time())
    data, licence = run.facts.get("data", {}), run.facts.get("license")
    lines = [
        ("Run", run.name),
        *([("Description", config["description"])] if config.get("description") else []),
        ("Status", run.status() + (f": {run.details}" if run.details else "")),
        ("Started", time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(started))),
        ("Took" if "ended_s" in times else "So far", duration_words(ended - started)),
        ("Model", _model(run)),
        *([("Licence", f"{licence} (the model's)")] if licence else []),
        ("Loss", f"{config.get('loss')} {config.get('loss_options') or ''}".strip()),
        ("Epochs", f"{config.get('epochs')}, batch {config.get('batch_size')}"),
    ]
    lines += [(name, _data(facts)) for name, facts in data.items()]
    steps = [n for n in run.history().column("global_step").to_pylist() if n is not None]
    lines.append(("Steps done", max(steps, default=0)))
    if run.status() in ("FINISHED", "STOPPED"):
        lines.append(("Artifact", run.artifact_id))
    lines.append(("Path", run.path))
    return lines


def _model(run: Run) -> str:
    live = run.facts.get("model")
    return run.model if live is None else f"{run.model} (an object, {live['fingerprint']})"


def _data(facts: dict[str, Any]) -> str:
    if "rows" in facts:
        return f"{counted(facts['rows'], 'row')} from {facts['source']}"
    if "pairs" in facts:
        return counted(facts["pairs"], "scored pair")
    queries = counted(facts["queries"], "query", "queries")
    return f"{queries} over {counted(facts['documents'], 'document')}"
