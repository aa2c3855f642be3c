"""Counts, shares and durations in words."""

from __future__ import annotations

__all__ = ["about", "brief_seconds", "counted", "percent"]

MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86400


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """`1 row`, `2,000 rows`; nouns that do not take an s give their plural."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def percent(part: int, whole: int) -> str:
    """`3.1 %`; a share too small for that is `less than 0.1 %`, never 0."""
    share = 100 * part / whole
    return f"{share:.1f} %" if share >= 0.05 or not part else "less than 0.1 %"


def brief_seconds(seconds: float) -> str:
    """`0.035 s`, `2.1 s`, `14 s`: two digits that matter."""
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"


def about(seconds: float) -> str:
    """A duration as somebody who waits wants it: `40 seconds`, `3 minutes`, `2.5 hours`."""
    if seconds < 1.5 * MINUTE_S:
        return counted(max(round(seconds), 1), "second")
    if seconds < 2 * HOUR_S:
        return counted(round(seconds / MINUTE_S), "minute")
    if seconds < 2 * DAY_S:
        return f"{round(seconds / HOUR_S, 1):g} hours"
    return f"{round(seconds / DAY_S, 1):g} days"
