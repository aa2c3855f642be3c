"""Where the weights of a fit come from: `model`, or the artifact of an earlier fit of it."""

from __future__ import annotations

import json
import os
from typing import Any

from ftray.config import FitConfig, is_live
from ftray.errors import ConfigError, FtrayError, StorageError
from ftray.models.catalogue import ALIASES, MODELS
from ftray.models.kinds import FACTS
from ftray.models.registry import locate_model
from ftray.record.storage import Storage

__all__ = ["artifact_notes", "base_model", "parent_of", "starting_place"]


def starting_place(config: FitConfig) -> str:
    """Where the weights to begin with are, as `locate_model` gives it.

    With `model_artifact` they are the artifact's, and `model` is what it was made from: a fit that
    is continued has the name, and the metrics' prefix, of the fit before.

    Raises:
        ModelError: if there is no such model, or artifact.
        ConfigError: for an artifact of another model, or a folder that is none.
    """
    if config.model_artifact is None:
        return locate_model(config.model)
    if is_live(config.model):
        raise ConfigError(
            "model_artifact and a model object: the object brings its weights. Load those of the "
            "artifact into it, as in model=get_model(artifact, module=…).module"
        )
    artifact = config.model_artifact
    place = locate_model(artifact)
    base = _facts(place).get("base_model")
    if base is None:
        raise ConfigError(
            f"model_artifact = '{artifact}' is no artifact of a fit: its {FACTS} names no base "
            f"model. To begin with these weights, give model = '{artifact}'"
        )
    if not _is_same(config.model, str(base)):
        raise ConfigError(
            f"model = '{config.model}', but model_artifact = '{artifact}' was made from '{base}': "
            f"give model = '{base}', or leave model_artifact away and give model = '{artifact}'"
        )
    return place


def _is_same(name: str, base: str) -> bool:
    """Whether two names mean one model: a short name and its hub id, a path and its folder."""
    if name == base:
        return True
    try:
        return locate_model(name) == locate_model(base)
    except FtrayError:  # the base is on another machine, or gone
        return False


def base_model(config: FitConfig, place: str, run_uri: str) -> str:
    """What `ftray.json` calls the model that was trained: a folder is told by its whole path.

    Args:
        config: of the fit.
        place: where the weights to begin with are.
        run_uri: the run directory, which holds the copy of a model object.
    """
    name = str(config.model)
    if config.model_artifact is not None:
        return str(_facts(place).get("base_model", name))
    is_copy = place.startswith(f"{run_uri}/")
    if name in MODELS or name in ALIASES or is_copy or not os.path.isabs(place):
        return name
    return place


def parent_of(place: str) -> dict[str, str] | None:
    """What an artifact says of the one that it began from; None where that was none of ours.

    Args:
        place: where the weights to begin with are.

    Returns:
        `run`, its name, and `fingerprint`, that of its weights, as far as they are known.
    """
    facts = _facts(place)
    if "run" not in facts:
        return None
    parent = {"run": str(facts["run"]).rstrip("/").rsplit("/", 1)[-1]}
    return parent | {n: str(facts[n]) for n in ("fingerprint",) if n in facts}


def artifact_notes(config: FitConfig, place: str) -> list[str]:
    """What a run tells of `model_artifact`."""
    if config.model_artifact is None:
        return []
    parent = parent_of(place) or {}
    of = f" of the run '{parent['run']}'" if parent else ""
    return [f"It begins with the weights of {config.model_artifact}{of}; the optimizer begins anew"]


def _facts(place: str) -> dict[str, Any]:
    """The `ftray.json` of a folder or a URI; empty where there is none."""
    if "://" not in place and not os.path.isdir(place):
        return {}
    try:
        found = json.loads(Storage(place).read_text(FACTS))
    except (OSError, ValueError, StorageError):
        return {}
    return found if isinstance(found, dict) else {}
