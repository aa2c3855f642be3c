"""What the page says of a run besides its curves and results: facts, data, environment, log."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from ftray.report.contents import Contents, Steps
from ftray.report.figures import number
from ftray.words import counted

__all__ = ["clock", "data", "environment", "facts", "log", "span"]

LOG_LINES = 40
LONGEST_LOG_LINE = 2000


def facts(contents: Contents) -> Iterable[tuple[str, str]]:
    """What was run, on what, when, and what came of it: labels and values."""
    config = contents.config
    live = contents.facts.get("model") or {}
    model = str(live.get("name") or config.get("model") or "not known")
    yield "Model", model + (f" (an object, {live.get('fingerprint')})" if live else "")
    licence = contents.facts.get("license")
    yield "Licence", f"{licence} (the model's)" if licence else "not known"
    if config.get("loss"):
        yield "Loss", _named(config["loss"], config.get("loss_options"))
    if config.get("miner"):
        yield "Miner", _named(config["miner"], config.get("miner_options"))
    yield "Epochs", _epochs_words(contents)
    if config.get("batch_size"):
        micro = config.get("micro_batch_size")
        yield "Batch", f"{config['batch_size']} rows" + (f", {micro} texts a time" if micro else "")
    if config.get("optimizer"):
        rate = config.get("learning_rate")
        options = {"learning_rate": rate, **(config.get("optimizer_options") or {})}
        yield "Optimizer", _named(config["optimizer"], options)
    started = contents.started
    if started is not None:
        precision = started.hardware.get("precision", "")
        yield "Where", ", ".join(filter(None, [started.where, started.device, str(precision)]))
    if contents.steps.tokens:
        yield "Tokens", _tokens(contents.steps)
    yield from _when(contents)
    if contents.status in ("FINISHED", "STOPPED") and contents.ended is not None:
        yield "Artifact", _artifact(contents)
    yield "Run directory", contents.path


def _tokens(steps: Steps) -> str:
    words = f"{steps.tokens:,}"
    if steps.processed:
        words += f", {steps.tokens / steps.processed:.0%} of what was computed"
    return words + (f", {steps.tokens / steps.wall_s:,.0f} a second" if steps.wall_s > 0 else "")


def _when(contents: Contents) -> Iterable[tuple[str, str]]:
    times = contents.times
    begun = times.get("started_s", times.get("created_s"))
    if begun is None:
        return
    yield "Started", clock(begun)
    ended = times.get("ended_s")
    if ended is not None:
        yield "Ended", f"{clock(ended)}, after {span(ended - begun)}"
    else:
        yield "So far", span(contents.written_s - begun)


def _epochs_words(contents: Contents) -> str:
    planned = contents.config.get("epochs")
    if contents.started is not None:
        planned = contents.started.epochs
    done = len({event.epoch for event in contents.epochs})
    words = f"{done} of {planned}" if planned is not None and planned != done else str(done)
    return f"{words}, {counted(contents.step, 'step')}"


def _artifact(contents: Contents) -> str:
    ended, best = contents.ended, contents.best
    if ended is None:
        return ""
    words = f"weights of step {ended.artifact_step:,}"
    if ended.artifact_weights:
        words += f", {ended.artifact_weights}"
    if best is not None and best.monitor:
        words += f": the best {best.monitor}, {number(best.value)}"
    return words


def _named(name: Any, options: Any) -> str:
    given = {k: v for k, v in (options or {}).items() if v is not None}
    inside = ", ".join(f"{k}={_short(v)}" for k, v in given.items())
    return f"{name} ({inside})" if inside else str(name)


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def data(contents: Contents) -> Iterable[dict[str, str]]:
    """Each data source: name, size, source, fingerprint."""
    given = contents.facts.get("data")
    evaluated = _evaluated_sources(contents.config.get("callbacks") or [])
    for name, known in (given if isinstance(given, Mapping) else {}).items():
        sizes = [
            counted(known[key], *words)
            for key, words in {
                "rows": ("row",),
                "queries": ("query", "queries"),
                "documents": ("document",),
                "pairs": ("scored pair",),
            }.items()
            if known.get(key)
        ]
        yield {
            "name": str(name),
            "size": ", ".join(sizes),
            "source": str(known.get("source") or evaluated.get(name, "")),
            "fingerprint": str(known.get("fingerprint") or ""),
        }


def _evaluated_sources(callbacks: Iterable[Any]) -> dict[str, str]:
    """What each evaluation was given as data, by its name."""
    found = {}
    for entry in callbacks:
        options = entry.get("EvaluationCallback") if isinstance(entry, Mapping) else None
        if isinstance(options, Mapping):
            given = [options.get("query_data"), options.get("index_data")]
            name = str(options.get("caption") or "evaluation")
            found[name] = ", ".join(str(data) for data in given if data)
    return found


def environment(facts: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Machine, versions, command and commit: labels and values; and when the run was continued."""
    found = facts.get("environment")
    known = dict(found) if isinstance(found, Mapping) else {}
    versions = known.pop("versions", None) or {}
    command = known.pop("command", None)
    for name, value in known.items():
        if value is not None:
            yield name.replace("_", " "), str(value)
    if command:
        yield "command", " ".join(map(str, command)) if isinstance(command, list) else str(command)
    for name, version in versions.items():
        yield name, str(version or "not installed")
    for attempt in facts.get("resumed") or []:
        changed = attempt.get("config") or {}
        text = yaml.safe_dump(changed, default_flow_style=True, width=1000).strip()
        words = f"{clock(attempt.get('started_s', 0.0))}" + (f", with {text}" if changed else "")
        yield "continued", words


def log(contents: Contents) -> dict[str, Any]:
    """The last lines of the log, and how many come before them."""
    lines = contents.logs.rstrip("\n").split("\n") if contents.logs else []
    tail = [
        line if len(line) <= LONGEST_LOG_LINE else line[:LONGEST_LOG_LINE] + "…"
        for line in lines[-LOG_LINES:]
    ]
    return {"lines": tail, "left_out": len(lines) - len(tail)}


def clock(time_s: float) -> str:
    """A moment in local time, with its zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(time_s)).strip()


def span(seconds: float) -> str:
    """A duration: `12 s`, `2 min 47 s`, `3 h 05 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{max(0.0, seconds):.1f} s" if whole < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
