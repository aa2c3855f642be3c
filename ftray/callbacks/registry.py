"""Callbacks by name, as a YAML file gives them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from ftray.callbacks.base import Callback
from ftray.callbacks.best_model import BestModelCheckpoint
from ftray.callbacks.early_stopping import EarlyStopping
from ftray.callbacks.evaluation import EvaluationCallback
from ftray.callbacks.tensorboard_logger import TensorBoardLogger
from ftray.callbacks.training_checkpoint import TrainingCheckpoint
from ftray.callbacks.wandb_logger import WandBLogger
from ftray.callbacks.wise_ft import WiSEFTCallback
from ftray.csv_options import is_yes_for_a_number
from ftray.errors import ConfigError, nearest

__all__ = ["CALLBACKS", "resolve_callbacks"]

CALLBACKS: dict[str, type[Callback]] = {
    "BestModelCheckpoint": BestModelCheckpoint,
    "EarlyStopping": EarlyStopping,
    "EvaluationCallback": EvaluationCallback,
    "TensorBoardLogger": TensorBoardLogger,
    "TrainingCheckpoint": TrainingCheckpoint,
    "WandBLogger": WandBLogger,
    "WiSEFTCallback": WiSEFTCallback,
}


def resolve_callbacks(given: list[Any]) -> list[Callback]:
    """Callback objects from objects, names, or one-key mappings `{name: {option: value}}`.

    They come in the order in which they are called, which does not hang on the order of the list
    but for callbacks of one kind (`Callback.order`).

    Raises:
        ConfigError: for an unknown name or option, with the nearest one.
    """
    found = [_resolve(entry, i) for i, entry in enumerate(given)]
    return sorted(found, key=lambda callback: callback.order)


def _resolve(entry: Any, place: int) -> Callback:
    if isinstance(entry, Callback):
        return entry
    if isinstance(entry, str):
        return _build(entry, {}, place)
    if isinstance(entry, Mapping) and len(entry) == 1:
        ((name, options),) = entry.items()
        if not isinstance(options, Mapping | None):
            raise ConfigError(
                f"callbacks[{place}]: {name}: options by name are expected, as in "
                f"{{EarlyStopping: {{patience: 2}}}}, not {options!r}"
            )
        return _build(str(name), dict(options or {}), place)
    if inspect.isclass(entry) and issubclass(entry, Callback):
        raise ConfigError(
            f"callbacks[{place}] is the class {entry.__name__}: an object is expected, as in "
            f"{entry.__name__}()"
        )
    raise ConfigError(
        f"callbacks[{place}] = {entry!r}: a callback object, a name, or a mapping "
        "such as {EarlyStopping: {patience: 2}} is expected"
    )


def _build(name: str, options: dict[str, Any], place: int) -> Callback:
    if name not in CALLBACKS:
        raise ConfigError(
            f"callbacks[{place}]: there is no callback '{name}'.{nearest(name, CALLBACKS)}"
        )
    cls = CALLBACKS[name]
    parameters = [*inspect.signature(cls.__init__).parameters.values()][1:]
    known = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    for option in options:
        if option not in known and len(known) == len(parameters):  # else the class judges it
            raise ConfigError(
                f"callbacks[{place}]: {name} has no option '{option}'.{nearest(option, known)}"
            )
    where = f"callbacks[{place}]: {name}: "
    try:
        return cls(**_of_their_kind(cls, options, where))
    except TypeError as error:
        raise ConfigError(where + str(error).replace(f"{name}.__init__() ", "")) from None
    except ConfigError as error:
        raise ConfigError(
            where + str(error).removeprefix(where).removeprefix(f"{name}: ")
        ) from None


def _of_their_kind(cls: type[Callback], options: dict[str, Any], where: str) -> dict[str, Any]:
    """The options as the annotations of `cls` say: a number that is a text becomes a number."""
    kinds = get_type_hints(cls.__init__)
    found: dict[str, Any] = {}
    for name, value in options.items():
        kind = kinds.get(name, Any)
        if is_yes_for_a_number(value, kind):
            raise ConfigError(f"{where}{name} = {value!r}: a number is expected, not yes or no")
        try:
            found[name] = TypeAdapter(kind).validate_python(value)
        except ValidationError as error:
            said = str(error.errors()[0]["msg"])
            raise ConfigError(f"{where}{name} = {value!r}: {said[:1].lower()}{said[1:]}") from None
    return found
