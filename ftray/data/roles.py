"""Which column is what where some hold no texts: by their names, and then by what they hold.

A column named as an image beside one named as its text is a pair of them, whatever their order:
the text is the query, the image the document, as one searches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from ftray.data.addresses import SAMPLE, Named, Things, looks_like_address
from ftray.data.cleaning import guessed_kind, guessed_three
from ftray.data.columns import ROLES_OF, Kind, Layout, judges_in, role_of
from ftray.data.names import TELLING, first_of
from ftray.data.values import SCORE_ROLES, TEXTS, is_plain_role
from ftray.media import MARK, Modality

__all__ = ["CAPTION_NAMES", "FILE_NAMES", "THING_NAMES", "decided", "implied", "named_things"]
__all__ += ["oriented"]

THING_NAMES = (
    *("image", "images", "img", "photo", "picture", "image_path", "img_path", "image_file"),
    *("image_name", "image_uri", "image_url", "image_bytes", "mesh", "point_cloud", "points"),
    *("features", "vector"),
)
"""Columns that hold things and no texts, whatever else there is."""

FILE_NAMES = (
    *("path", "file", "file_name", "filename", "file_path", "filepath", "uri", "url"),
    *("blob", "bytes", "bytes_", "tensor", "tensors"),
)
"""Columns that may be no more than where a text comes from."""

CAPTION_NAMES = ("text", "caption", "title", "name", "description", "sentence", "alt", "alt_text")
"""The text of an image, the first of these that there is."""

_OTHERS: dict[str, Modality] = {
    "mesh": "points",
    "point_cloud": "points",
    "points": "points",
    "features": "features",
    "vector": "features",
}
"""What the `THING_NAMES` name that are not of images."""

_LABEL_CHARS = 50


def implied(
    names: Sequence[str],
    given: Mapping[str, str] | None,
    modalities: frozenset[Modality] | None,
    *,
    is_labeled: bool | None,
) -> dict[str, str | tuple[str, ...]]:
    """The user's mapping, and what the names of columns of things add to it.

    Args:
        names: the source's column names.
        given: roles to columns.
        modalities: what the model takes; None = not known.
        is_labeled: whether the user says that there are labels.
    """
    told = dict(given or {})
    said: dict[str, str | tuple[str, ...]] = {**told}
    free = [name for name in names if name not in told.values()]
    chosen = told.keys() - {"id"}
    if modalities == TEXTS or chosen & {"item", *SCORE_ROLES} or len(chosen) > 1:
        return said
    thing = _thing(free, modalities)
    texts = modalities is None or "text" in modalities
    caption = first_of(free, CAPTION_NAMES) if texts else None
    if chosen & {"query", "document"}:
        (role,) = chosen
        other = thing or (caption if _thing([told[role]], modalities) else None)
        return {**said, **({"document" if role == "query" else "query": other} if other else {})}
    if thing is None or (chosen <= {"negative"} and _named_pair(free)):
        return said
    if chosen - {"negative"}:
        return {**said, "item": thing}
    if caption is not None and not is_labeled:
        judges = judges_in(free, {role: (told[role],) for role in chosen})
        return {"query": caption, "document": thing, **judges, **said}
    if chosen:
        return said
    label = first_of(free, TELLING["label"])
    if label is not None:
        return {**said, "item": thing, "label": label}
    alone = len([name for name in free if name.lower() not in TELLING["id"]]) != 2
    return {**said, "item": thing} if alone else said


def _thing(names: Sequence[str], modalities: frozenset[Modality] | None) -> str | None:
    """The column of things; one that is named as a file only where it is the only possibility."""
    found = first_of(names, THING_NAMES)
    if found is not None:
        return found
    takes_things = modalities is not None and modalities != TEXTS
    if takes_things or first_of(names, (*CAPTION_NAMES, *TELLING["item"])) is None:
        return first_of(names, FILE_NAMES)
    return None


def named_things(layout: Layout, modalities: frozenset[Modality] | None) -> Named:
    """The columns that are no texts by their names, whatever their cells look like, by role.

    There are none where the model is not known, or takes texts alone.

    Returns:
        What each holds; None = one of the things that the model takes.
    """
    found: Named = {}
    for role, column in layout.columns.items():
        if role_of(role) == "negative":  # it holds what the document holds
            column = layout.columns["document"]
        name = column.lower()
        if modalities is None or modalities == TEXTS or is_plain_role(role):
            continue
        if name in FILE_NAMES:
            found[role] = None
        elif name in THING_NAMES and (held := _OTHERS.get(name, "image")) in modalities:
            found[role] = held
    return found


def _named_pair(names: Sequence[str]) -> bool:
    """Whether names tell a query and a document already."""
    return all(first_of(names, TELLING[role]) is not None for role in ("query", "document"))


def oriented(
    table: pa.Table, layout: Layout, given: Mapping[str, str] | None
) -> tuple[pa.Table, Layout]:
    """Two columns the other way round, where what they hold tells so and no name does.

    Items hold the things and labels the texts; queries hold the texts and documents the things.
    """
    roles = _two(table)
    if roles not in (("item", "label"), ("query", "document")) or _told(layout, roles, given):
        return table, layout
    first, second = (_are_things(table[role]) for role in roles)
    wrong = (False, True) if roles[0] == "item" else (True, False)
    if (first, second) != wrong:
        return table, layout
    turned = dict(zip(roles, reversed(roles), strict=True))
    columns = {role: layout.columns[turned.get(role, role)] for role in layout.columns}
    swapped = {name: table[turned.get(name, name)] for name in table.column_names}
    return pa.table(swapped), replace(layout, columns=columns)


def _two(table: pa.Table) -> tuple[str, ...]:
    return tuple(name for name in table.column_names if role_of(name) not in ("id", "score"))


def _told(layout: Layout, roles: Sequence[str], given: Mapping[str, str] | None) -> bool:
    named = any(layout.columns[role].lower() in TELLING[role] for role in roles)
    return named or bool(set(given or ()) & set(roles))


def _are_things(column: pa.ChunkedArray) -> bool:
    sample = column.slice(0, SAMPLE)
    both = pc.or_(looks_like_address(sample), pc.starts_with(sample, MARK))
    return bool(pc.all(both).as_py())


def decided(
    table: pa.Table, layout: Layout, things: Things, modalities: frozenset[Modality] | None
) -> tuple[Kind, pa.Table, Layout, Things, str]:
    """The kind of two or three columns whose names tell nothing.

    Things beside texts are labelled for a model without texts, and pairs for one that takes both;
    where the model is not known, texts that come again are labels. Two columns of things are pairs.

    Returns:
        The kind, the table, layout and things by the roles' names, and what to say about it.
    """
    if "third" in table.column_names:
        kind, table, layout, note = guessed_three(table, layout)
        turned = dict(zip(("first", "second", "third"), ROLES_OF[kind], strict=True))
        return kind, table, layout, {turned[role]: held for role, held in things.items()}, note
    if not things:
        found, table, note = guessed_kind(table, layout)
        return found, table, layout, {}, note
    kind, sources = _kind_of(table, things, modalities)
    roles = dict(zip(ROLES_OF[kind], sources, strict=True))
    rest = {name: name for name in table.column_names if name not in sources}
    order = {**roles, **rest}
    columns = {role: layout.columns[source] for role, source in order.items()}
    note = (
        f"columns {', '.join(repr(columns[role]) for role in roles)} were taken for "
        f"{', '.join(roles)}; csv_options.is_labeled = {str(kind == 'pairs').lower()} if they are "
        "not, or name them with `columns`"
    )
    return (
        kind,
        pa.table({role: table[source] for role, source in order.items()}),
        replace(layout, kind=kind, columns=columns),
        {role: things[source] for role, source in roles.items() if source in things},
        note,
    )


def _kind_of(
    table: pa.Table, things: Things, modalities: frozenset[Modality] | None
) -> tuple[Kind, tuple[str, str]]:
    """The kind, and which of `first` and `second` has its first and its second role."""
    if len(things) == 2:
        return "pairs", ("first", "second")
    thing, text = ("first", "second") if "first" in things else ("second", "first")
    labelled = "text" not in modalities if modalities is not None else _repeats(table[text])
    return ("labelled", (thing, text)) if labelled else ("pairs", (text, thing))


def _repeats(cells: pa.ChunkedArray) -> bool:
    """Whether cells look like labels: short, and half of them come again."""
    short = pc.mean(pc.utf8_length(cells)).as_py() <= _LABEL_CHARS
    return bool(short and 2 * len(pc.unique(cells)) <= len(cells))
