"""What `run.yaml` says of a run, in values that YAML holds, and what of it a resume must keep."""

from __future__ import annotations

import inspect
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel

from ftray.errors import ConfigError
from ftray.words import counted

__all__ = ["SAME_ON_RESUME", "callback_facts", "check_same", "data_facts", "plain"]

SAME_ON_RESUME = (
    "model model_artifact model_options output_dim freeze lora preprocess_fn collate_fn "
    "augmentation columns csv_options val_split loss loss_options miner miner_options epochs "
    "batch_size sampler num_items_per_class max_length optimizer optimizer_options loss_optimizer "
    "loss_optimizer_options learning_rate scheduler scheduler_options max_grad_norm ema_decay "
    "precision seed"
).split()
DATA = "_data"  # how the options end that take data: train_data, query_data, index_data


def plain(value: Any) -> tuple[Any, bool]:
    """A value as YAML holds it, and whether the value can be had back from that.

    numpy scalars become Python's, paths text, tuples lists, our option models mappings. Anything
    else becomes the path of its class: it tells what was there, not how to make it again.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool):
        return value, True
    if isinstance(value, str):
        return str.__str__(value), True
    if isinstance(value, int | float):
        return (int(value) if isinstance(value, int) else float(value)), True
    if isinstance(value, os.PathLike):
        return str(value), True
    if isinstance(value, BaseModel):
        return plain(value.model_dump())
    if isinstance(value, Mapping):
        entries = {str(key): plain(entry) for key, entry in value.items()}
        return {key: entry for key, (entry, _) in entries.items()}, _all(entries.values())
    if isinstance(value, list | tuple):
        items = [plain(item) for item in value]
        return [item for item, _ in items], _all(items)
    return _class_path(value), False


def _all(found: Any) -> bool:
    return all(exact for _, exact in found)


def _class_path(value: Any) -> str:
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def data_facts(given: Any) -> tuple[str | None, bool]:
    """Data as its path; what has no path as a description, which cannot be read again."""
    if given is None or isinstance(given, str | os.PathLike):
        return (None if given is None else str(given)), True
    rows = f" of {counted(len(given), 'record')}" if hasattr(given, "__len__") else ""
    return f"a {type(given).__name__}{rows}", False


def callback_facts(
    callbacks: Sequence[object], given: Sequence[object], known: Mapping[str, type]
) -> tuple[list[Any], bool]:
    """Callbacks as a configuration names them, and whether they can be had back from that.

    Args:
        callbacks: the objects, with their options as they are resolved.
        given: the same as they were given, with their data.
        known: our own classes by name; these become `{name: {option: value}}` with all options.
            A user's own class becomes its class path.
    """
    names = {cls: name for name, cls in known.items()}
    found: list[tuple[Any, bool]] = []
    for callback, source in zip(callbacks, given, strict=True):
        if type(callback) not in names:
            found.append((_class_path(type(callback)), False))
            continue
        options = {
            option: data_facts(getattr(source, option)) if option.endswith(DATA) else plain(value)
            for option, value in _options(callback).items()
        }
        values = {option: value for option, (value, _) in options.items()}
        found.append(({names[type(callback)]: values}, _all(options.values())))
    return [entry for entry, _ in found], _all(found)


def _options(callback: object) -> dict[str, Any]:
    """What a callback was made with: its attributes that bear the names of its options."""
    options: dict[str, Any] = {}
    for name, parameter in inspect.signature(type(callback)).parameters.items():
        if not hasattr(callback, name):
            continue  # another name of an option, such as minimum_delta
        if parameter.kind is parameter.VAR_KEYWORD:
            options.update(getattr(callback, name))
        else:
            options[name] = getattr(callback, name)
    return options


def check_same(
    before: Mapping[str, Any], now: Mapping[str, Any], run: str, but: Collection[str] = ()
) -> None:
    """Refuse to continue a run with other data, other callbacks or other mathematics.

    Args:
        before: the content of `run.yaml`.
        now: what would be written there for a fresh run.
        run: the run's path, for messages.
        but: options that may differ.

    Raises:
        ConfigError: with what the run was started with, and what was given.
    """
    was, given = before.get("config", {}), now["config"]
    for name in [name for name in SAME_ON_RESUME if name not in but]:
        now_it_is = given[name]
        if name == "csv_options" and name in was:
            now_it_is = _known(was[name], now_it_is)
        if name in was and was[name] != now_it_is:
            raise _other(run, f"{name} = {was[name]!r}", repr(given[name]))
    models = [side.get("model", {}).get("fingerprint") for side in (before, now)]
    if models[0] != models[1]:
        raise ConfigError(
            f"The model object is not the one that the run {run} was started with: its fingerprint "
            f"was {models[0]}, and is {models[1]} now"
        )
    _check_same_callbacks(was.get("callbacks", []), given["callbacks"], run)
    data, given_data = before.get("data", {}), now["data"]
    for name in dict.fromkeys((*data, *given_data)):
        if name not in given_data:
            raise ConfigError(f"The run {run} was started with {name}, which is missing now")
        if name not in data:
            raise ConfigError(f"The run {run} was started without {name}")
        if data[name].get("fingerprint") != given_data[name].get("fingerprint"):
            raise ConfigError(
                f"{name} is not what the run {run} was started with: data has changed"
            )


def _known(was: Any, now: Any) -> Any:
    """Of options that are all on record, those that there were when the run was started."""
    if isinstance(was, Mapping) and isinstance(now, Mapping) and set(was) < set(now):
        return {name: now[name] for name in was}
    return now


def _check_same_callbacks(was: Sequence[Any], given: Sequence[Any], run: str) -> None:
    names, given_names = ([_callback_name(entry) for entry in side] for side in (was, given))
    if names != given_names:
        listed = ", ".join(given_names) or "none"
        raise _other(run, f"callbacks = {', '.join(names) or 'none'}", listed)
    for place, (entry, given_entry) in enumerate(zip(was, given, strict=True)):
        if isinstance(entry, str) or isinstance(given_entry, str):
            continue
        ((name, options),), (given_options,) = entry.items(), given_entry.values()
        for option in options:
            if option.endswith(DATA) or option not in given_options:
                continue  # data is compared by its fingerprint, wherever it lies now
            if options[option] != given_options[option]:
                old = f"callbacks[{place}]: {name}: {option} = {options[option]!r}"
                raise _other(run, old, repr(given_options[option]))


def _callback_name(entry: Any) -> str:
    """Without the module: a script is `__main__` in one process and a module in another."""
    return str(entry if isinstance(entry, str) else next(iter(entry))).rsplit(".", 1)[-1]


def _other(run: str, before: str, now: str) -> ConfigError:
    return ConfigError(
        f"The run {run} was started with {before}, not {now}: a run continues with what it began "
        "with"
    )
