"""The errors a person can meet.

Every mistake of a user ends in one `FtrayError`: its message says what was given, where (file, row,
column, configuration key), what is allowed, and the nearest valid name. The command line prints
the message alone and exits with the class's `exit_code`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "ClusterError",
    "ConfigError",
    "DataError",
    "ExperimentNotFoundError",
    "FtrayError",
    "ModelError",
    "RunExistsError",
    "RunFailedError",
    "RunNotFoundError",
    "StorageError",
    "nearest",
]


class FtrayError(Exception):
    """Base of all errors that ftray raises on purpose."""

    exit_code = 2


class ConfigError(FtrayError):
    """A configuration key or value that cannot work."""


class DataError(FtrayError):
    """Data that cannot be read or cannot be trained on as asked."""


class ModelError(FtrayError):
    """A model that cannot be found or cannot be used as asked."""


class StorageError(FtrayError):
    """A storage path that cannot be read or written."""


class RunExistsError(FtrayError):
    """A run of that name is already on record; nothing of it is overwritten."""


class RunNotFoundError(FtrayError):
    """No run of that name is on record."""


class ExperimentNotFoundError(FtrayError):
    """No experiment of that name has a run on record."""


class ClusterError(FtrayError):
    """Ray, or the cluster behind it, cannot give what was asked for."""


class RunFailedError(FtrayError):
    """The run started and failed; its record says why."""

    exit_code = 1


def nearest(name: str, known: Iterable[str], *, limit: int = 3) -> str:
    """A sentence that helps after a misspelt name.

    Args:
        name: what was given.
        known: the valid names.
        limit: how many close names to offer at the most.

    Returns:
        `` Did you mean 'x'?`` where a close name exists, else the list of valid names
        (the first twelve). Starts with a space, so that it can follow a sentence.
    """
    names = sorted(set(known))
    folded = {candidate.lower(): candidate for candidate in names}
    close = (
        [folded[name.lower()]]
        if name.lower() in folded
        else [
            folded[match]
            for match in difflib.get_close_matches(name.lower(), list(folded), n=limit, cutoff=0.6)
        ]
        or [candidate for candidate in names if _shortened(name.lower(), candidate)][:limit]
    )
    if close:
        return " Did you mean " + " or ".join(f"'{candidate}'" for candidate in close) + "?"
    shown = ", ".join(f"'{candidate}'" for candidate in names[:12])
    more = f", and {len(names) - 12} more" if len(names) > 12 else ""
    return f" Valid: {shown}{more}." if shown else ""


def _shortened(name: str, candidate: str) -> bool:
    """Whether a name is a part of another, as `triplet`, or its initials, as `lr`."""
    initials = "".join(part[:1] for part in candidate.lower().split("_"))
    return (len(name) > 2 and name in candidate.lower()) or (len(name) > 1 and name == initials)
