"""Which column of a source is the text, the label, the query, the document, and so on.

A column's name tells its role (`names.TELLING`, whatever its case), or the user's `columns` does.
Two columns whose names tell nothing stay undecided here; the reader decides them by their content.
Beside a column named as a score they are the two texts of scored pairs, beside one named as a
negative the first two texts of triplets, and beside both these with a teacher's scores to distil.
Three columns without any names are decided so as well.

A role that may have several columns numbers them: `negative`, `negative_2`, `negative_3`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ftray.data.names import TELLING, first_of, listed, numbered_columns, one_of, several_of
from ftray.errors import DataError, nearest

__all__ = [
    "ROLES_OF",
    "Kind",
    "Layout",
    "MissingColumnError",
    "judges_in",
    "numbered_roles",
    "resolve",
    "role_of",
    "roles_like",
]

Kind = Literal["labelled", "pairs", "triplets", "distillation", "scored", "items"]

ROLES_OF: dict[Kind, tuple[str, ...]] = {
    "labelled": ("item", "label"),
    "pairs": ("query", "document"),
    "triplets": ("query", "document", "negative"),
    "distillation": ("query", "document", "negative", "score"),
    "scored": ("query", "document", "score"),
    "items": ("item",),
}
"""The columns of each kind of records, in order; all are texts but the score, a number.

There may be several negatives. To distil, there is a score of the document and of each negative.
"""

_UNNAMED = ["column 1", "column 2", "column 3"]
"""What the readers call the columns of a file without a header, and the places of a tuple."""

_JUDGING = frozenset({*TELLING["score"], *TELLING["label"]})
_JUDGES = ("negative", "score", "document_score", "negative_score")
_SEVERAL = ("negative", "score", "negative_score")
"""Roles that may have several columns."""
_NUMBER = re.compile(r"_\d+$")

Found = Mapping[str, tuple[str, ...]]
"""Roles to columns; most have one."""


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
        """The roles without the id; of numbered ones the first."""
        return tuple(role for role in self.columns if role != "id" and role_of(role) == role)


def role_of(name: str) -> str:
    """The role of a column of ours: `negative` of `negative_2`."""
    return _NUMBER.sub("", name)


def numbered_roles(role: str, count: int) -> tuple[str, ...]:
    """`negative`, `negative_2`, `negative_3`, for as many columns as there are."""
    return tuple(role if number == 1 else f"{role}_{number}" for number in range(1, count + 1))


def roles_like(names: Iterable[str], role: str) -> list[str]:
    """Those of our columns' names that are of a role, in their order."""
    return [name for name in names if role_of(name) == role]


def judges_in(names: Sequence[str], told: Found | None = None) -> dict[str, tuple[str, ...]]:
    """Which columns are negatives or scores by their names, by role.

    Beside negatives there may be several scores: numbered, or of the document and of the negatives.

    Args:
        names: of columns.
        told: what the user says of others; what is told is not looked for.
    """
    told = told or {}
    negatives = told.get("negative") or several_of(names, TELLING["negative"])
    found = {"negative": negatives} if negatives else {}
    if "score" in told:
        return found
    document = told.get("document_score") or one_of(names, TELLING["document_score"])
    others = told.get("negative_score") or several_of(names, TELLING["negative_score"])
    if negatives and document and others:
        return {**found, "document_score": document, "negative_score": others}
    find = several_of if negatives else one_of
    scores = find(names, TELLING["score"])
    return {**found, **({"score": scores} if scores else {})}


def resolve(
    names: Sequence[str],
    *,
    given: Mapping[str, str | tuple[str, ...]] | None = None,
    is_labeled: bool | None = None,
    source: str,
) -> Layout:
    """Find the role of each column.

    Args:
        names: the source's column names, in order.
        given: the user's mapping of roles to column names; the rest is found by name. A query and
            a document without scores or negatives are pairs, whatever else there is. A name that
            is no column stands for all that are numbered so: `bad` for `bad_1`, `bad_2`.
        is_labeled: what two columns without telling names are.
        source: the file or object, for messages.

    Raises:
        DataError: an unknown role or column, a name that occurs twice, names that contradict
            `is_labeled`, or columns whose roles cannot be told.
    """
    told = _spelled_out(names, given or {}, source)
    _check(names, told, source)
    ident = told["id"][0] if "id" in told else first_of(names, TELLING["id"])
    rest = [name for name in names if name != ident]
    roles = _roles(rest, told)
    kind, chosen = _named(roles, rest, source, told)
    judge = next((role for role in _JUDGES if role in told and role not in chosen), None)
    if judge is not None:
        raise _alone(judge, told, rest, source)
    if kind is None and len(rest) == 2:
        ordered = _in_order(rest, roles)
        if told.keys() & {"query", "document"}:
            kind, chosen = "pairs", _pair(*ordered)
        elif is_labeled is not None:
            kind = "labelled" if is_labeled else "pairs"
            chosen = {role: (name,) for role, name in zip(ROLES_OF[kind], ordered, strict=True)}
        elif not roles["item"]:
            return _undecided(ordered, ident)
    if kind is None and rest == _UNNAMED and not told and not is_labeled:
        return _undecided(rest, ident)
    if kind is None:
        kind, chosen = _single(roles, rest, source)
    taken = tuple(name for columns in chosen.values() for name in columns)
    if kind == "triplets" and not {"query", "document"} <= told.keys():
        _check_teacher(rest, source)
    if is_labeled is not None and kind != "items" and is_labeled != (kind == "labelled"):
        raise _contradicted(kind, taken, source)
    if ident:
        chosen = {**chosen, "id": (ident,)}
    ignored = tuple(name for name in rest if name not in taken)
    return Layout(
        kind=kind,
        columns={
            numbered: name
            for role, columns in chosen.items()
            for numbered, name in zip(numbered_roles(role, len(columns)), columns, strict=True)
        },
        ignored=ignored,
        notes=_notes(kind, chosen, ignored, told),
    )


def _undecided(names: Sequence[str], ident: str | None) -> Layout:
    columns = dict(zip(("first", "second", "third"), names, strict=False))
    return Layout(kind=None, columns=columns | ({"id": ident} if ident else {}))


def _spelled_out(
    names: Sequence[str], given: Mapping[str, str | tuple[str, ...]], source: str
) -> dict[str, tuple[str, ...]]:
    """The user's mapping, with all columns of the names that stand for numbered ones."""
    told: dict[str, tuple[str, ...]] = {}
    for role, columns in given.items():
        if role not in TELLING:
            raise DataError(f"columns: there is no role '{role}'.{nearest(role, TELLING)}")
        wanted = (columns,) if isinstance(columns, str) else columns
        if len(wanted) == 1 and wanted[0] not in names and role in _SEVERAL:
            wanted = numbered_columns(names, wanted[0]) or wanted
        for column in wanted:
            if column not in names:
                raise MissingColumnError(
                    f"columns: {source} has no column '{column}' for {role}."
                    f"{nearest(column, names)}"
                )
        told[role] = tuple(wanted)
    return told


def _check(names: Sequence[str], told: Found, source: str) -> None:
    for name in names:
        if name and names.count(name) > 1:
            raise DataError(f"{source}: two columns have the name '{name}'.")
    used = [name for columns in told.values() for name in columns]
    if len(set(used)) < len(used):
        shown = {role: ", ".join(columns) for role, columns in told.items()}
        raise DataError(f"columns: one column of {source} stands for two roles: {shown}.")
    texts = set(told) - {"id"}
    apart = texts & {"item", "label"} and texts & {"query", "document", *_JUDGES}
    if apart or ("score" in texts and texts & {"document_score", "negative_score"}):
        raise DataError(
            f"columns: {', '.join(sorted(texts))} do not go together. Valid: item and label, query "
            "and document, these with a score, a negative, or both (the scores as score, or as "
            "document_score and negative_score), or item alone; each with or without id."
        )


def _roles(rest: Sequence[str], told: Found) -> dict[str, tuple[str, ...]]:
    """Role to columns, by the user's mapping first and by name second."""
    taken = {name for columns in told.values() for name in columns}
    free = [name for name in rest if name not in taken]
    single: set[str] = {"item", "label", "query", "document"}
    judged = True
    if {"item", "label"} <= told.keys() or {"query", "document"} <= told.keys():
        single, judged = set(), False
    elif told.keys() & {"query", "document", *_JUDGES}:
        # A free column named `text` may still be the other half of a pair.
        single -= {"label"}
    found: dict[str, tuple[str, ...]] = {}
    for role in single:
        found[role] = one_of(free, TELLING[role])
    judges = judges_in(free, told) if judged else {}
    blank = dict.fromkeys((*ROLES_OF["labelled"], *ROLES_OF["pairs"], *_JUDGES), ())
    return {**blank, **found, **judges, **told}


def _named(
    roles: Found, rest: Sequence[str], source: str, told: Found
) -> tuple[Kind | None, dict[str, tuple[str, ...]]]:
    """The kind that the names tell, with its columns; (None, {}) where they do not.

    A score found by its name makes no pair of a text and some other column; one that the user named
    does. So it is with a negative.
    """
    item, label, query, document = (roles[role] for role in ("item", "label", "query", "document"))
    if item and label and query and document:
        raise DataError(
            f"{source}: {listed((*item, *label))} could be item and label, and "
            f"{listed((*query, *document))} query and document. Say which with `columns`."
        )
    last = {role: roles[role] for role in _JUDGES if roles[role]}
    if query and document:
        return _joined(query, document, last)
    others = [name for name in rest if name not in label]
    if label:
        alone = (others[0],) if len(others) == 1 else ()
        text = item or query or document or alone
        return ("labelled", {"item": text, "label": label}) if text else (None, {})
    if item and (query or document):
        return _joined(query or item, document or item, last)
    others = [name for name in rest if not any(name in columns for columns in last.values())]
    if last and len(others) == 2 and (last.keys() <= told.keys() or not item):
        first, second = _in_order(others, roles)
        return _joined((first,), (second,), last)
    return None, {}


def _joined(
    query: tuple[str, ...], document: tuple[str, ...], last: Found
) -> tuple[Kind, dict[str, tuple[str, ...]]]:
    """Two columns with those of negatives and of scores, if any."""
    pair = {"query": query, "document": document}
    if "negative" not in last:
        scored = len(last.get("score", ())) == 1
        return ("scored", {**pair, "score": last["score"]}) if scored else ("pairs", pair)
    judged = {**pair, **last}
    both = {"document_score", "negative_score"} <= last.keys()
    return ("distillation" if both or "score" in last else "triplets"), judged


def _alone(judge: str, told: Found, rest: Sequence[str], source: str) -> DataError:
    """For a score or a negative that the user named, and that nothing is found to belong to."""
    column = ", ".join(told[judge])
    if judge in ("document_score", "negative_score") or len(told[judge]) > 1:
        return DataError(
            f"columns: '{column}' of {source} is {judge} beside a query, a document and its "
            "negatives. Name them all: {query: …, document: …, negative: …, and either score: …, "
            "or document_score: … and negative_score: …}."
        )
    return DataError(
        f"columns: the {judge} '{column}' belongs to two texts, and the columns {listed(rest)} of "
        f"{source} do not tell which. Name them as well, such as {{query: …, document: …, "
        f"{judge}: {column}}}."
    )


def _check_teacher(rest: Sequence[str], source: str) -> None:
    """Refuse the scores of documents without those of negatives, and the other way round."""
    halves = [
        ("document", one_of(rest, TELLING["document_score"])),
        ("negative", several_of(rest, TELLING["negative_score"])),
    ]
    for (half, found), (other, _) in zip(halves, reversed(halves), strict=True):
        if found:
            raise DataError(
                f"{source}: {listed(found)} holds a teacher's score of the {half}, and no column "
                f"that of the {other}. Name it with `columns`: {{{other}_score: …}}; or, to read "
                "no scores, the others alone: {query: …, document: …, negative: …}."
            )


def _pair(query: str, document: str) -> dict[str, tuple[str, ...]]:
    return {"query": (query,), "document": (document,)}


def _in_order(rest: Sequence[str], roles: Found) -> tuple[str, str]:
    """Two columns, the text or query first where one of the names tells."""
    first, second = rest
    turned = (first,) == roles["document"] or (second,) in (roles["query"], roles["item"])
    return (second, first) if turned else (first, second)


def _single(
    roles: Found, rest: Sequence[str], source: str
) -> tuple[Kind, dict[str, tuple[str, ...]]]:
    text = roles["item"] or (tuple(rest) if len(rest) == 1 else ())
    if not text:
        raise DataError(
            f"{source}: the columns {listed(rest)} do not tell which is the text. Say it with "
            "`columns`, such as {item: "
            + (rest[0] if rest else "text")
            + ", label: …}, or {query: …, document: …}, or these with score: … or negative: … too."
        )
    return "items", {"item": text}


def _notes(kind: Kind, columns: Found, ignored: Sequence[str], told: Found) -> tuple[str, ...]:
    taken = ", ".join(
        f"{role if len(names) == 1 else role + 's'} = {listed(names)}"
        for role, names in columns.items()
    )
    notes = [f"columns read: {taken}"]
    if ignored:
        notes.append(f"columns not read: {listed(ignored)}")
    judging = [name for name in ignored if name.lower() in _JUDGING]
    if kind == "pairs" and judging:
        hint = ""
        if judging[0].lower() in TELLING["score"]:
            hint = f" (score: {judging[0]} in `columns` reads it)"
        notes.append(f"'{judging[0]}' is not read: every pair counts as relevant{hint}")
    if kind == "triplets" and (scores := _named_as(ignored, *_JUDGES[1:])):
        notes.append(f"triplets without a teacher: the scores of {listed(scores)} are not read")
    if (
        "negative" in columns
        and "negative" not in told
        and (more := _named_as(ignored, "negative"))
    ):
        notes.append(
            f"only {listed(columns['negative'])} of the negatives are read, not {listed(more)}: "
            "columns of one name with numbers (negative_1, negative_2 …) are read together"
        )
    return tuple(notes)


def _named_as(names: Sequence[str], *roles: str) -> list[str]:
    """All columns whose names tell one of some roles, numbered or not."""
    bases = [base for role in roles for base in TELLING[role]]
    found = {name for base in bases for name in numbered_columns(names, base)}
    return [name for name in names if name in found]


def _contradicted(kind: Kind, chosen: Sequence[str], source: str) -> DataError:
    other = ROLES_OF["pairs" if kind == "labelled" else "labelled"]
    mapping = ", ".join(f"{role}: {name}" for role, name in zip(other, chosen, strict=False))
    what = {"scored": "scored pairs", "distillation": "triplets with scores"}.get(kind, kind)
    return DataError(
        f"{source}: csv_options.is_labeled is {kind != 'labelled'}, but the columns "
        f"{listed(chosen)} are read as {what}. Name them with `columns`, such as {{{mapping}}}, "
        "or leave is_labeled away."
    )
