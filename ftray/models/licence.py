"""The licence of a model, as its card states it. Nothing is fetched for the question."""

from __future__ import annotations

import json
import os
from typing import Any

import yaml

from ftray.errors import StorageError
from ftray.record.storage import Storage

__all__ = ["CARD", "read_card", "read_licence"]

CARD = "README.md"
FACTS = "ftray.json"


def read_licence(place: str) -> tuple[str | None, str]:
    """The licence of a model, and what to say about it.

    The card of a folder is its `README.md`; that of a hub id is looked for in the local cache
    alone. An artifact of ours carries on what was known of the model it began from.

    Args:
        place: what `locate_model` gives: a folder, its URI, or a hub id.

    Returns:
        The licence, None where it is not known, and one sentence; the sentence is empty for a hub
        id whose card is not in the cache (yet).
    """
    card = read_card(place)
    licence = _in_front_matter(card or "")
    if _is_folder(place):
        licence = _carried_on(_read(place, FACTS)) or licence
    elif card is None:
        return None, ""
    if licence is not None:
        return licence, f"The base model's licence: {licence}"
    if card is None:
        return None, "The base model's licence is not known: it comes without a card"
    return None, "The base model's licence is not stated in its card"


def read_card(place: str) -> str | None:
    """The card of a model, None where there is none; of a hub id, none that is not in the cache.

    Args:
        place: what `locate_model` gives.
    """
    return _read(place, CARD) if _is_folder(place) else _cached_card(place)


def _is_folder(place: str) -> bool:
    return "://" in place or os.path.isdir(place)


def _read(folder: str, name: str) -> str | None:
    try:
        return Storage(folder).read_bytes(name).decode("utf-8", errors="replace")
    except (OSError, StorageError):
        return None


def _cached_card(hub_id: str) -> str | None:
    from huggingface_hub import try_to_load_from_cache

    folder = os.environ.get("SENTENCE_TRANSFORMERS_HOME")  # where the model is loaded from, if set
    try:
        found = try_to_load_from_cache(hub_id, CARD, cache_dir=folder)
    except ValueError:  # not an id: loading the model says so
        return None
    return _read(os.path.dirname(found), CARD) if isinstance(found, str) else None


def _carried_on(facts: str | None) -> str | None:
    try:
        found = json.loads(facts or "{}")
    except ValueError:
        return None
    return _line(found.get("license")) if isinstance(found, dict) else None


def _in_front_matter(card: str) -> str | None:
    """The field `license` between the first two lines of dashes."""
    opening, *lines = card.splitlines() or [""]
    ends = [i for i, line in enumerate(lines) if line.strip() == "---"]
    if opening.strip() != "---" or not ends:
        return None
    try:
        fields = yaml.safe_load("\n".join(lines[: ends[0]]))
    except (yaml.YAMLError, ValueError):  # a date that is none is a ValueError
        return None
    if not isinstance(fields, dict):
        return None
    licence, name = _line(fields.get("license")), _line(fields.get("license_name"))
    return f"{licence} ({name})" if licence == "other" and name else licence


def _line(value: Any) -> str | None:
    """A field's value in one line; several licences are one text."""
    parts = value if isinstance(value, list) else [value]
    return ", ".join(" ".join(str(part).split()) for part in parts if part) or None
