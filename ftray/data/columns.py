"""Which column of a source is the text, the label, the query, the document, and so on.

A column's name tells its role (`TELLING`, case-insensitive), or the user's `columns` mapping does.
Two columns whose names tell nothing stay undecided here; the reader decides them by their content.
Beside a column named as a score they are the two texts of scored pairs, beside one named as a
negative the first two texts of triplets. Three columns without any names are decided so as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ftray.errors import DataError, nearest

__all__ = ["KNOWN_NAMES", "ROLES_OF", "TELLING", "Kind", "Layout", "MissingColumnError", "resolve"]

Kind = Literal["labelled", "pairs", "triplets", "scored", "items"]

ROLES_OF: dict[Kind, tuple[str, ...]] = {
    "labelled": ("item", "label"),
    "pairs": ("query", "document"),
    "triplets": ("query", "document", "negative"),
    "scored": ("query", "document", "score"),
    "items": ("item",),
}
"""The columns of each kind of records, in order; all are texts but the score, a number."""

_NUMBERED = ("sentence", "text")
_FIRST, _SECOND = ("1", "_1", "_a"), ("2", "_2", "_b")

TELLING: dict[str, tuple[str, ...]] = {
    "item": ("item", "text", "sentence", "content", "utterance"),
    "label": ("label", "class", "category", "intent", "target"),
    "query": ("query", "anchor", "question", *(f"{text}{n}" for text in _NUMBERED for n in _FIRST)),
    "document": (
        *("document", "answer", "positive", "passage", "doc"),
        *(f"{text}{n}" for text in _NUMBERED for n in _SECOND),
    ),
    "negative": ("negative", "hard_negative", "neg"),
    "score": ("score", "similarity", "similarity_score", "gold_score", "relatedness_score"),
    "id": ("id", "_id"),
}
"""The column names that tell a role; where a table has several, the first in this order counts."""

KNOWN_NAMES = frozenset(name for names in TELLING.values() for name in names)

_UNNAMED = ["column 1", "column 2", "column 3"]
"""What the readers call the columns of a file without a header, and the places of a tuple."""

_JUDGING = frozenset({*TELLING["score"], *TELLING["label"]})
_ROLES = tuple(role for role in TELLING if role != "id")


class MissingColumnError(DataError):
    """A mapping names a column that the source lacks."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The roles of a source's columns.

    Args:
        kind: what the records are; None = two or three columns that only their content can tell.
        columns: role to source column, `id` included where there is one. The roles of an
            undecided layout are `first` and `second`, and maybe `third`.
        ignored: columns that are not read.
        notes: what a user should know about the choice.
    """

    kind: Kind | None
    columns: dict[str, str]
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """The roles without the id."""
        return tuple(role for role in self.columns if role != "id")


def resolve(
    names: Sequence[str],
    *,
    given: Mapping[str, str] | None = None,
    is_labeled: bool | None = None,
    source: str,
) -> Layout:
    """Find the role of each column.

    Args:
        names: the source's column names, in order.
        given: the user's mapping of roles to column names; the rest is found by name. A query and
            a document without a score or a negative are pairs, whatever else there is.
        is_labeled: what two columns without telling names are.
        source: the file or object, for messages.

    Raises:
        DataError: an unknown role or column, a name that occurs twice, names that contradict
            `is_labeled`, or columns whose roles cannot be told.
    """
    given = dict(given or {})
    _check(names, given, source)
    ident = given.get("id") or _first(names, TELLING["id"])
    rest = [name for name in names if name != ident]
    roles = _roles(rest, given)
    kind, chosen = _named(roles, rest, source, given)
    judge = _judge(given)
    if judge and kind not in ("scored", "triplets"):
        raise DataError(
            f"columns: the {judge} '{given[judge]}' belongs to two texts, and the columns "
            f"{_listed(rest)} of {source} do not tell which. Name them as well, such as "
            f"{{query: …, document: …, {judge}: {given[judge]}}}."
        )
    if kind is None and len(rest) == 2:
        ordered = _in_order(rest, roles)
        if given.keys() & {"query", "document"}:
            kind, chosen = "pairs", ordered
        elif is_labeled is not None:
            kind, chosen = ("labelled" if is_labeled else "pairs"), ordered
        elif not roles["item"]:
            return _undecided(ordered, ident)
    if kind is None and rest == _UNNAMED and not given and not is_labeled:
        return _undecided(rest, ident)
    if kind is None:
        kind, chosen = _single(roles, rest, source)
    if is_labeled is not None and kind != "items" and is_labeled != (kind == "labelled"):
        raise _contradicted(kind, chosen, source)
    columns = dict(zip(ROLES_OF[kind], chosen, strict=True)) | ({"id": ident} if ident else {})
    ignored = tuple(name for name in rest if name not in chosen)
    return Layout(
        kind=kind,
        columns=columns,
        ignored=ignored,
        notes=_notes(kind, columns, ignored),
    )


def _undecided(names: Sequence[str], ident: str | None) -> Layout:
    columns = dict(zip(("first", "second", "third"), names, strict=False))
    return Layout(kind=None, columns=columns | ({"id": ident} if ident else {}))


def _check(names: Sequence[str], given: Mapping[str, str], source: str) -> None:
    for name in names:
        if name and names.count(name) > 1:
            raise DataError(f"{source}: two columns have the name '{name}'.")
    for role, column in given.items():
        if role not in TELLING:
            raise DataError(f"columns: there is no role '{role}'.{nearest(role, TELLING)}")
        if column not in names:
            raise MissingColumnError(
                f"columns: {source} has no column '{column}' for {role}.{nearest(column, names)}"
            )
    if len(set(given.values())) < len(given):
        raise DataError(f"columns: one column of {source} stands for two roles: {dict(given)}.")
    texts = set(given) - {"id"}
    apart = texts & {"item", "label"} and texts & {"query", "document", "negative", "score"}
    if apart or {"negative", "score"} <= texts:
        raise DataError(
            f"columns: {', '.join(sorted(texts))} do not go together. Valid: item and label, query "
            "and document, both with a score or with a negative, or item alone; each with or "
            "without id."
        )


def _roles(rest: Sequence[str], given: Mapping[str, str]) -> dict[str, str | None]:
    """Role to column, by the user's mapping first and by name second."""
    free = [name for name in rest if name not in given.values()]
    open_roles = set(_ROLES)
    if {"item", "label"} <= given.keys() or {"query", "document"} <= given.keys():
        open_roles = set()
    elif given.keys() & {"query", "document", "negative", "score"}:
        # A free column named `text` may still be the other half of a pair.
        open_roles = {"query", "document", "negative", "score", "item"}
        open_roles -= {"negative": {"score"}, "score": {"negative"}}.get(_judge(given), set())
    return {
        role: given.get(role) or (_first(free, TELLING[role]) if role in open_roles else None)
        for role in _ROLES
    }


def _named(
    roles: Mapping[str, str | None], rest: Sequence[str], source: str, given: Mapping[str, str]
) -> tuple[Kind | None, tuple[str, ...]]:
    """The kind that the names tell, with its columns; (None, ()) where they do not.

    A score found by its name makes no pair of a text and some other column; one that the user named
    does. So it is with a negative.
    """
    item, label, query, document, negative, score = (roles[role] for role in _ROLES)
    if item and label and query and document:
        raise DataError(
            f"{source}: {_listed((item, label))} could be item and label, and "
            f"{_listed((query, document))} query and document. Say which with `columns`."
        )
    if negative and score and (query or document):
        raise DataError(
            f"{source}: {_listed((negative, score))} could be the negative of triplets, and the "
            "score of pairs. Say which with `columns`, such as {query: …, document: …, negative: "
            f"{negative}}}, or name query and document alone."
        )
    last = {"negative": negative} if negative else {"score": score} if score else {}
    if query and document:
        return _joined(query, document, last)
    if label:
        others = [name for name in rest if name != label]
        text = item or query or document or (others[0] if len(others) == 1 else None)
        return ("labelled", (text, label)) if text else (None, ())
    if item and (query or document):
        return _joined(query or item, document or item, last)
    others = [name for name in rest if name not in last.values()]
    if last and len(others) == 2 and (last.keys() <= given.keys() or not item):
        return _joined(*_in_order(others, roles), last)
    return None, ()


def _joined(query: str, document: str, last: Mapping[str, str]) -> tuple[Kind, tuple[str, ...]]:
    """Two columns with a third one, if any: a negative or a score."""
    kind: Kind = "triplets" if "negative" in last else "scored" if last else "pairs"
    return kind, (query, document, *last.values())


def _judge(given: Mapping[str, str]) -> str:
    """Which third column the user named, if any."""
    return next((role for role in ("negative", "score") if role in given), "")


def _in_order(rest: Sequence[str], roles: Mapping[str, str | None]) -> tuple[str, str]:
    """Two columns, the text or query first where one of the names tells."""
    first, second = rest
    turned = first == roles["document"] or second in (roles["query"], roles["item"])
    return (second, first) if turned else (first, second)


def _single(
    roles: Mapping[str, str | None], rest: Sequence[str], source: str
) -> tuple[Kind, tuple[str, ...]]:
    text = roles["item"] or (rest[0] if len(rest) == 1 else None)
    if text is None:
        raise DataError(
            f"{source}: the columns {_listed(rest)} do not tell which is the text. Say it with "
            "`columns`, such as {item: "
            + (rest[0] if rest else "text")
            + ", label: …}, or {query: …, document: …}, or these with score: … or negative: … too."
        )
    return "items", (text,)


def _notes(kind: Kind, columns: Mapping[str, str], ignored: Sequence[str]) -> tuple[str, ...]:
    taken = ", ".join(f"{role} = '{name}'" for role, name in columns.items())
    notes = [f"columns read: {taken}"]
    if ignored:
        notes.append(f"columns not read: {_listed(ignored)}")
    judging = [name for name in ignored if name.lower() in _JUDGING]
    if kind == "pairs" and judging:
        hint = ""
        if judging[0].lower() in TELLING["score"]:
            hint = f" (score: {judging[0]} in `columns` reads it)"
        notes.append(f"'{judging[0]}' is not read: every pair counts as relevant{hint}")
    return tuple(notes)


def _contradicted(kind: Kind, chosen: Sequence[str], source: str) -> DataError:
    other = ROLES_OF["pairs" if kind == "labelled" else "labelled"]
    mapping = ", ".join(f"{role}: {name}" for role, name in zip(other, chosen, strict=False))
    what = "scored pairs" if kind == "scored" else kind
    return DataError(
        f"{source}: csv_options.is_labeled is {kind != 'labelled'}, but the columns "
        f"{_listed(chosen)} are read as {what}. Name them with `columns`, such as {{{mapping}}}, "
        "or leave is_labeled away."
    )


def _first(names: Sequence[str], telling: Iterable[str]) -> str | None:
    folded = {name.lower(): name for name in reversed(names)}
    return next((folded[name] for name in telling if name in folded), None)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
