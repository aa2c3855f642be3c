"""The names that tell a column's role, and columns found by them, numbered or not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

__all__ = ["KNOWN_NAMES", "TELLING", "first_of", "listed", "numbered_columns", "numbers_of"]
__all__ += ["one_of", "several_of"]

_NUMBERED = ("sentence", "text")
_FIRST, _SECOND = ("1", "_1", "_a"), ("2", "_2", "_b")

TELLING: dict[str, tuple[str, ...]] = {
    "item": ("item", "text", "sentence", "content", "utterance"),
    "label": ("label", "class", "category", "intent", "target"),
    "query": ("query", "anchor", "question", *(f"{text}{n}" for text in _NUMBERED for n in _FIRST)),
    "document": (
        *("document", "answer", "positive", "passage", "doc", "pos"),
        *(f"{text}{n}" for text in _NUMBERED for n in _SECOND),
    ),
    "negative": ("negative", "hard_negative", "neg", "negatives", "hard_negatives"),
    "score": (
        *("score", "similarity", "similarity_score", "gold_score", "relatedness_score"),
        "scores",
    ),
    "document_score": ("document_score", "positive_score", "pos_score", "pos_scores"),
    "negative_score": ("negative_score", "neg_score", "neg_scores"),
    "id": ("id", "_id"),
}
"""The column names that tell a role; where a table has several, the first in this order counts."""

KNOWN_NAMES = frozenset(name for names in TELLING.values() for name in names)

_NUMBER = re.compile(r"(?<=\D)\d+$")


def first_of(names: Sequence[str], telling: Iterable[str]) -> str | None:
    """The column whose name comes first among those that tell, whatever its case."""
    folded = {name.lower(): name for name in reversed(names)}
    return next((folded[name] for name in telling if name in folded), None)


def one_of(names: Sequence[str], telling: Iterable[str]) -> tuple[str, ...]:
    """The same as a tuple, which is empty where there is none."""
    name = first_of(names, telling)
    return () if name is None else (name,)


def several_of(names: Sequence[str], telling: Iterable[str]) -> tuple[str, ...]:
    """All columns of the first of some names that is there, alone or numbered."""
    return next((found for name in telling if (found := numbered_columns(names, name))), ())


def numbered_columns(names: Sequence[str], base: str) -> tuple[str, ...]:
    """The columns `bad`, `bad1`, `bad_2` and so on of the base `bad`, in the order of numbers."""
    form = re.compile(re.escape(base) + r"(?:_?(\d+))?", re.IGNORECASE)
    found = [(match, name) for name in names if (match := form.fullmatch(name))]
    return tuple(name for _, name in sorted(found, key=lambda one: int(one[0][1] or -1)))


def numbers_of(columns: Sequence[str]) -> list[int]:
    """The numbers of columns, -1 where there is none; of `bad`, `bad_2`, the first has 1."""
    found = [_NUMBER.search(name) for name in columns]
    numbers = [int(match[0]) if match else -1 for match in found]
    if len(numbers) > 1 and numbers[0] < 0:
        numbers[0] = numbers[1] - 1
    return numbers


def listed(names: Iterable[str]) -> str:
    """Names for a message."""
    return ", ".join(f"'{name}'" for name in names)
