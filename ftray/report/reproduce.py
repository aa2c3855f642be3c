"""The command that repeats a run, from its `run.yaml`; and what of the run cannot be had back."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from ftray.config import FitConfig

__all__ = ["Recipe", "recipe"]

DATA = ("train_data", "eval_data")
NOT_AGAIN = ("run_name", "resume")
"""Another run has a name of its own, and begins at the beginning."""
IN_MEMORY = re.compile(r"an? \w+( of [\d,]+ records?)?")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to repeat a run.

    Attributes:
        text: a YAML file for `ftray fit`, of every option that is not at its default.
        lost: what the file cannot hold, in words; empty if it is the whole run.
    """

    text: str
    lost: list[str]


def recipe(facts: Mapping[str, Any]) -> Recipe | None:
    """The recipe of a run; None where `run.yaml` has no configuration.

    Args:
        facts: the content of `run.yaml`.
    """
    config = facts.get("config")
    if not isinstance(config, Mapping) or not config:
        return None
    values = {k: v for k, v in config.items() if k not in NOT_AGAIN and not _is_default(k, v)}
    if values.get("csv_options"):
        values["csv_options"] = {k: v for k, v in values["csv_options"].items() if v is not None}
    if isinstance(values.get("callbacks"), list):
        values["callbacks"] = [_callback(entry) for entry in values["callbacks"]]
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=88)
    lost = [] if facts.get("reproducible", True) else list(_lost(facts, config))
    return Recipe(text=text, lost=lost)


def _is_default(name: str, value: Any) -> bool:
    field = FitConfig.model_fields.get(name)
    if field is None or field.is_required():
        return False
    default = field.get_default(call_default_factory=True)
    return bool(value == (default.model_dump() if hasattr(default, "model_dump") else default))


def _callback(entry: Any) -> Any:
    """A callback without the options that are at their defaults."""
    from ftray.callbacks.registry import CALLBACKS

    if not isinstance(entry, Mapping) or len(entry) != 1:
        return entry
    ((name, options),) = entry.items()
    if name not in CALLBACKS or not isinstance(options, Mapping):
        return entry
    defaults = {
        option: parameter.default
        for option, parameter in inspect.signature(CALLBACKS[name]).parameters.items()
    }
    empty = inspect.Parameter.empty
    return {name: {k: v for k, v in options.items() if v != defaults.get(k, empty)}}


def _lost(facts: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    found = False
    for where, what in _not_in_a_file(facts, config):
        found = True
        yield f"{where} was {what}"
    if not found:
        yield "some option was an object of Python"


def _not_in_a_file(
    facts: Mapping[str, Any], config: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    model = facts.get("model") or {}
    if model:
        fingerprint = model.get("fingerprint")
        yield "model", f"an object with the fingerprint {fingerprint}, of which model/ is a copy"
    for name in DATA:
        if _in_memory(config.get(name)):
            yield name, str(config[name])
    for number, entry in enumerate(config.get("callbacks") or []):
        if isinstance(entry, str):
            yield f"callbacks[{number}]", f"an object of the class {entry}"
        elif isinstance(entry, Mapping):
            for name, options in entry.items():
                for option, value in (options or {}).items():
                    if option.endswith("_data") and _in_memory(value):
                        yield f"{option} of {name}", str(value)


def _in_memory(value: Any) -> bool:
    """Whether this is how `run.yaml` describes data that had no path."""
    return isinstance(value, str) and IN_MEMORY.fullmatch(value) is not None
