"""`report.html` of a sweep: what was tried, which trial is best, and how they compare.

It is made from the record alone, like the page of a run (`ftray.report.page`): no script, nothing
from a network, and what users wrote is escaped.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from ftray import __version__
from ftray.errors import ConfigError
from ftray.record.storage import Storage
from ftray.report import about
from ftray.report.page import RELOAD_EVERY_S, REPORT, templates
from ftray.report.reproduce import IN_MEMORY, Recipe
from ftray.report.svg import standalone
from ftray.sweeps.config import SweepConfig
from ftray.sweeps.figures import (
    MANY,
    category_text,
    curves_picture,
    parallel_picture,
    varied_names,
)
from ftray.sweeps.record import FOLDER, SweepState, Trial, read_state, read_sweep_facts
from ftray.sweeps.space import Space, parse_space
from ftray.words import counted

__all__ = ["write_sweep_report"]

MOST_ROWS = 100
MOST_FAILURES = 20
NOT_AGAIN = ("name", "resume")
"""Another sweep has a name of its own, and begins at the beginning."""
ENDS = ("finished", "stopped", "interrupted", "failed", "running", "waiting")


def write_sweep_report(storage: Storage) -> str:
    """Write `sweep/report.html` into the folder of a sweep; returns its path or URI.

    Its figures are written beside it too: `parallel.svg` and `curves.svg`.

    Args:
        storage: the sweep's folder, which holds its trials.

    Raises:
        StorageError: if its record is damaged, or the page cannot be written.
    """
    values = _view(storage, read_state(storage), read_sweep_facts(storage))
    text = templates().get_template("sweep.html").render(reload_s=RELOAD_EVERY_S, **values)
    place = storage.under(FOLDER)
    for name, picture in values["pictures"].items():
        if picture is not None:
            svg = standalone(picture.svg).encode()
            place.write_bytes(f"{name}.svg", svg, content_type="image/svg+xml")
    place.write_bytes(REPORT, text.encode("utf-8", "replace"), content_type="text/html")
    return place.under(REPORT).uri


def _view(storage: Storage, state: SweepState, facts: Mapping[str, Any]) -> dict[str, Any]:
    """All values of the template, by name."""
    config: dict[str, Any] = facts.get("config") or {}
    trials, names = state.ordered(), varied_names(state)
    rows = [_row(storage, trial, names) for trial in trials[:MOST_ROWS]]
    failed = [trial for trial in state.trials if trial.outcome == "failed"]
    found = {
        "parallel": parallel_picture(state, _space_of(config)),
        "curves": curves_picture(state),
    }
    return {
        "sweep": {
            "name": storage.name,
            "status": state.status,
            "running": state.status == "STARTED",
            "details": state.details,
            "metric": state.metric,
            "mode": state.mode,
            "path": storage.uri,
        },
        "generator": f"ftray {__version__}",
        "written": about.clock(time.time()),
        "facts": list(_facts(storage, state, config)),
        "best": rows[0] if trials and trials[0].has_score else None,
        "varied": names,
        "rows": rows,
        "left_out": len(trials) - len(rows),
        "pictures": found,
        "pale": len(trials) > MANY,
        "any_stopped": any(trial.outcome == "stopped" for trial in trials),
        "failed": [_row(storage, trial, names) for trial in failed[:MOST_FAILURES]],
        "failed_count": len(failed),
        "handovers": [_handover(trial) for trial in state.trials if trial.history],
        "recipe": sweep_recipe(facts),
        "resume": _resume_command(storage, state),
        "environment": list(about.environment(facts)),
    }


def _space_of(config: Mapping[str, Any]) -> Space:
    """The domains; none where they were objects of `ray.tune`, which the record only names."""
    try:
        return parse_space(config.get("space") or {})
    except ConfigError:
        return {}


def _row(storage: Storage, trial: Trial, names: list[str]) -> dict[str, Any]:
    """A trial as the table shows it."""
    page = f"{trial.name}/{REPORT}"
    return {
        "name": trial.name,
        "link": f"../{page}" if storage.exists(page) else "",
        "score": trial.score,
        "values": [
            category_text(trial.values[name]) if name in trial.values else "–" for name in names
        ],
        "varies": _listed(trial.values),
        "epochs": len(trial.epochs),
        "outcome": trial.outcome,
        "reason": trial.reason,
    }


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {category_text(value)}" for name, value in values.items())


def _handover(trial: Trial) -> dict[str, Any]:
    """What a trial had under PBT until it took over from a better one, and what it has now."""
    steps = []
    for change in trial.history:
        words = _listed(change.get("values") or {})
        steps.append(f"until epoch {change.get('epoch', '?')}: {words}")
    return {"name": trial.name, "steps": steps, "now": _listed(trial.values)}


# ---------------------------------------------------------------- what it was


def _facts(
    storage: Storage, state: SweepState, config: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """What was tried, how, when, and how far it got: labels and values."""
    fit = config.get("fit") or {}
    yield "Model", str(fit.get("model", "not known"))
    better = "larger" if state.mode == "max" else "smaller"
    yield "Compared by", f"{state.metric}; {better} is better"
    yield "Trials", _counts(state)
    for name, domain in (config.get("space") or {}).items():
        yield "Varied", f"{name}: {_flow(domain)}"
    yield "Search", _with_options(config.get("search"), config.get("search_options"))
    if config.get("scheduler") not in (None, "none"):
        yield "Scheduler", _with_options(config["scheduler"], config.get("scheduler_options"))
    if config.get("stop"):
        yield "Stop", _flow(config["stop"])
    if config.get("time_budget_s"):
        yield "Time budget", about.span(config["time_budget_s"])
    if state.started_s:
        yield "Started", about.clock(state.started_s)
        if state.ended_s is not None:
            spent = about.span(state.ended_s - state.started_s)
            yield "Ended", f"{about.clock(state.ended_s)}, after {spent}"
        else:
            until = state.seen_s if state.status == "FAILED" else time.time()
            yield "So far", about.span(until - state.started_s)
    yield "Folder", storage.uri


def _counts(state: SweepState) -> str:
    found = [trial.outcome for trial in state.trials]
    parts = [f"{found.count(end)} {end}" for end in ENDS if end in found]
    return f"{len(found)}: {', '.join(parts)}" if parts else "none yet"


def _with_options(name: Any, options: Any) -> str:
    inside = ", ".join(f"{key}={value}" for key, value in (options or {}).items())
    return f"{name} ({inside})" if inside else str(name or "random")


def _flow(value: Any) -> str:
    """A value as YAML on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    return text.removesuffix("...\n").strip()


# ---------------------------------------------------------------- again


def _resume_command(storage: Storage, state: SweepState) -> str:
    """The command that goes on with a sweep; none where it came to its end, or goes on."""
    if state.status not in ("STOPPED", "FAILED"):
        return ""
    return f"ftray sweep sweep.yaml --resume --set {shlex.quote(f'name={storage.name}')}"


def sweep_recipe(facts: Mapping[str, Any]) -> Recipe | None:
    """A YAML file for `ftray sweep`, of all that is not at its default, and what it cannot hold.

    Args:
        facts: the content of `sweep.yaml`.
    """
    config = facts.get("config")
    if not isinstance(config, Mapping) or not config:
        return None
    lost = list(_lost(config))
    if not lost and not facts.get("reproducible", True):
        lost = ["some option was an object of Python"]
    kept = {k: v for k, v in config.items() if k not in NOT_AGAIN and v != _default(k)}
    text = yaml.safe_dump(_short(kept), sort_keys=False, allow_unicode=True, width=88)
    return Recipe(text=text, lost=lost)


def _default(name: str) -> Any:
    field = SweepConfig.model_fields.get(name)
    return None if field is None else field.get_default(call_default_factory=True)


def _lost(config: Mapping[str, Any]) -> Iterator[str]:
    """What was an object of Python when the sweep was made: the record names its class, no more."""
    fit = config.get("fit") or {}
    yield from _lost_data(fit, "fit.")
    for place, entry in enumerate(fit.get("callbacks") or []):
        where = f"fit.callbacks[{place}]"
        if _is_class_path(entry):
            yield f"{where} was an object of the class {entry}"
        elif isinstance(entry, Mapping):
            for name, options in entry.items():
                yield from _lost_data(options or {}, f"{where}.{name}.")
    for place, entry in enumerate(config.get("stop") or []):
        if _is_class_path(entry):
            yield f"stop[{place}] was an object of the class {entry}"
    for name, domain in (config.get("space") or {}).items():
        if _is_class_path(domain):
            yield f"space.{name} was an object of the class {domain}"


def _lost_data(options: Mapping[str, Any], where: str) -> Iterator[str]:
    for name, value in options.items():
        if name.endswith("_data") and value is not None:
            described = _described(value)
            if described != value or IN_MEMORY.fullmatch(described):
                yield f"{where}{name} was {described}"


def _is_class_path(entry: Any) -> bool:
    return isinstance(entry, str) and "." in entry


def _described(value: Any) -> str:
    """A path, or what data without one was."""
    if isinstance(value, str):
        return value
    return f"a list of {counted(len(value), 'record')}" if isinstance(value, list) else "data"


def _short(value: Any, name: str = "") -> Any:
    """The configuration without records of data in it, which may be thousands."""
    if name.endswith("_data") and value is not None:
        return _described(value)
    if isinstance(value, Mapping):
        return {key: _short(entry, str(key)) for key, entry in value.items()}
    if isinstance(value, list):
        return [_short(entry) for entry in value]
    return value
