"""Which columns hold images, points or features, and which only texts.

What was no string in the source is marked already. A string is an address if its column is named
as one of things, if it looks like one (`_LOOKS`) and so do the others of its column, or if all of
these are names of files that are there; if the model takes no texts, every string of an item, a
query or a document is one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

import pyarrow as pa
import pyarrow.compute as pc

from ftray.data.cleaning import quoted
from ftray.data.columns import Layout
from ftray.data.pictures import IMAGE_SUFFIXES, POINT_SUFFIXES, modality_of_address
from ftray.data.values import TEXTS, is_plain_role
from ftray.errors import DataError
from ftray.media import MARK, Modality, modalities_of

__all__ = [
    "SAMPLE",
    "Named",
    "Things",
    "all_addresses",
    "looks_like_address",
    "noun_of",
    "things_in",
    "unread_addresses",
]

Things = dict[str, Modality]
"""The roles whose columns hold no texts, and what they hold."""

Named = dict[str, Modality | None]
"""The roles whose columns hold no texts by their names; None = what they hold is not said."""

UNDECIDED = ("first", "second", "third")
"""Roles of columns that may be anything, labels and scores too."""

Place = Callable[[int], str]

SAMPLE = 1000
"""So many cells tell whether a column's strings are addresses."""
_LOOKED_FOR = 100
"""So many cells are looked for as files, where nothing else tells."""
_SUFFIXES = "|".join(suffix[1:] for suffix in (*IMAGE_SUFFIXES, *POINT_SUFFIXES))
_LOOKS = (
    rf"(?i)^(?:data:[a-z]+/[a-z0-9.+-]+;base64,|file://.|https?://[^\s]+\.(?:{_SUFFIXES})"
    rf"(?:[?#][^\s]*)?$|[^\n\r]*[^\s]\.(?:{_SUFFIXES})$)"
)


def looks_like_address(cells: pa.Array | pa.ChunkedArray) -> pa.BooleanArray:
    """Whether each cell looks like the address of an image or of points."""
    return pc.match_substring_regex(cells, _LOOKS)


def all_addresses(cells: Sequence[str]) -> bool:
    """Whether all cells look like addresses."""
    return bool(pc.all(looks_like_address(pa.array(cells, pa.string()))).as_py())


def unread_addresses(table: pa.Table, names: Mapping[str, str]) -> list[str]:
    """What to say of columns of texts that all look like addresses; `names` are the columns'."""
    columns = [role for role in table.column_names if not is_plain_role(role)]
    looks = {role: pc.all(looks_like_address(table[role].slice(0, SAMPLE))) for role in columns}
    return [
        f"column '{names.get(role, role)}' looks like addresses of images or points, but the model "
        "takes texts: they are read as texts"
        for role, all_do in looks.items()
        if all_do.as_py()
    ]


def noun_of(
    cells: pa.ChunkedArray, modalities: frozenset[Modality] | None, *, role: str = "item"
) -> str:
    """What one cell of a column is called, by those that are not empty.

    Args:
        cells: strings and nulls.
        modalities: what the model takes; None = not known.
        role: of the column; where it is undecided, cells may be labels.
    """
    filled = cells.filter(pc.fill_null(pc.greater(pc.binary_length(cells), 0), False))
    held: set[Modality | None] = {*modalities_of(filled)}
    if modalities != TEXTS and held == {"text"}:
        looks = looks_like_address(filled.slice(0, SAMPLE))
        always = modalities is not None and "text" not in modalities and role not in UNDECIDED
        if always or pc.all(looks).as_py():
            held = {modality_of_address(filled[0].as_py(), modalities)}
    nouns = {"image": "image", "points": "point cloud", "features": "vector"}
    return next((nouns[one] for one in held if one in nouns), "text")


def things_in(
    table: pa.Table,
    layout: Layout,
    modalities: frozenset[Modality] | None,
    *,
    named: Named,
    exist: Callable[[Sequence[str]], bool],
    place: Place,
    source: str,
) -> Things:
    """The columns that hold something else than texts.

    Args:
        table: string columns without empty cells, by role.
        layout: their names.
        modalities: what the model takes; None = not known.
        named: the roles whose columns hold things by their names.
        exist: whether there are files of these names.
        place: a row's place in the source.
        source: for messages.

    Raises:
        DataError: for a column of several modalities, with the row; for things that the model does
            not take; for labels and items that are exchanged.
    """
    roles = [role for role in table.column_names if not is_plain_role(role)]
    things: Things = {}
    for role in roles:
        only_things = modalities is not None and "text" not in modalities
        always = role in named or (only_things and role not in UNDECIDED)
        modality = _held(
            table[role], modalities, always, named.get(role), layout.columns[role], place
        )
        if modality is not None:
            things[role] = modality
    if not things and modalities is not None and modalities != TEXTS:
        things = _by_existence(table, roles, modalities, exist)
        if not things and layout.kind is None and "text" not in modalities:
            raise _no_things(table, layout, modalities, source)
    if "label" in table.column_names and modalities != TEXTS:
        _check_label(table, layout, source)
    return things


def _held(
    column: pa.ChunkedArray,
    modalities: frozenset[Modality] | None,
    always: bool,
    otherwise: Modality | None,
    name: str,
    place: Place,
) -> Modality | None:
    """What a column holds; None = texts.

    Args:
        column: cells.
        modalities: what the model takes.
        always: whether its strings are addresses, whatever they look like.
        otherwise: what an address is where neither its ending nor the model tells.
        name: of the column.
        place: a row's place.
    """
    marks = pc.starts_with(column, MARK)
    marked: frozenset[Modality] = frozenset()
    strings = column
    if pc.any(marks).as_py():  # else nothing is copied: there may be many millions of texts
        marked = modalities_of(column.filter(marks))
        strings = column.filter(pc.invert(marks))
    if len(marked) > 1:
        _mixed(column, name, place)
    if not len(strings):
        (modality,) = marked
        if modalities is not None and modality not in modalities:
            raise _not_taken(column, column[0].as_py(), modality, modalities, name, place)
        return modality
    if modalities == TEXTS and not marked:
        return None
    if not always:
        share = pc.mean(looks_like_address(strings.slice(0, SAMPLE))).as_py()
        if not marked and share <= 0.5:
            return None
        if not pc.all(looks_like_address(strings)).as_py():
            _mixed(column, name, place)
    kinds = {
        modality_of_address(one, modalities) or otherwise: one for one in reversed(_few(strings))
    }
    for kind, one in kinds.items():
        if kind is None:
            raise DataError(
                f"{place(pc.index(column, one).as_py())}: what {quoted(one)} is, neither its "
                f"ending tells nor the model (column '{name}'). Images end in "
                f"{', '.join(IMAGE_SUFFIXES)}; points in {', '.join(POINT_SUFFIXES)}."
            )
        if modalities is not None and kind not in modalities:
            raise _not_taken(column, one, kind, modalities, name, place)
    found = {*kinds, *marked} - {None}
    if len(found) > 1:
        _mixed(column, name, place)
    return next(iter(found))


def _not_taken(
    column: pa.ChunkedArray,
    cell: str,
    kind: Modality,
    modalities: frozenset[Modality],
    name: str,
    place: Place,
) -> DataError:
    taken = " and ".join(sorted(modalities))
    return DataError(
        f"{place(pc.index(column, cell).as_py())}: the column '{name}' holds an address of the "
        f"kind '{kind}', {quoted(cell)}, but the model takes {taken}."
    )


def _few(strings: pa.ChunkedArray) -> list[str]:
    """One address for each ending there is."""
    endings = pc.utf8_lower(pc.utf8_slice_codeunits(strings, -5))
    first = pc.index_in(pc.unique(endings), value_set=endings.combine_chunks())
    return [str(one) for one in strings.take(first).to_pylist()]


def _mixed(column: pa.ChunkedArray, name: str, place: Place) -> NoReturn:
    """Say which row is of another kind than the first."""
    cells = column.to_pylist()
    looks = looks_like_address(column).to_pylist()
    kinds = [_kind(cell, look) for cell, look in zip(cells, looks, strict=True)]
    other = next(row for row, kind in enumerate(kinds) if kind != kinds[0])
    hint = ""
    if "text" in (kinds[0], kinds[other]):
        hint = f" Addresses end in {', '.join((*IMAGE_SUFFIXES, *POINT_SUFFIXES))}."
    raise DataError(
        f"{place(other)}: {quoted(cells[other])} is of the kind '{kinds[other]}', but the column "
        f"'{name}' starts with the kind '{kinds[0]}' at {place(0)}. A column holds things of one "
        f"kind.{hint}"
    )


def _kind(cell: str, looks: bool) -> str:
    if cell.startswith(MARK):
        return next(iter(modalities_of(pa.array([cell]))))
    return (modality_of_address(cell, None) or "image") if looks else "text"


def _by_existence(
    table: pa.Table,
    roles: Sequence[str],
    modalities: frozenset[Modality],
    exist: Callable[[Sequence[str]], bool],
) -> Things:
    """The columns whose first cells are names of files that are there.

    For a model without texts the first one is enough, so that a later file that is missing is said
    with its row.
    """
    found: Things = {}
    for role in roles:
        cells = table[role].slice(0, _LOOKED_FOR if "text" in modalities else 1).to_pylist()
        modality = modality_of_address(cells[0], modalities)
        if modality is not None and exist(cells):
            found[role] = modality
    return found


def _no_things(
    table: pa.Table, layout: Layout, modalities: frozenset[Modality], source: str
) -> DataError:
    undecided = [role for role in UNDECIDED if role in table.column_names]
    names = " and ".join(f"'{layout.columns[role]}'" for role in undecided)
    cells = " and ".join(quoted(table[role][0].as_py()) for role in undecided)
    return DataError(
        f"{source}: the model takes {' and '.join(sorted(modalities))}, but neither of the columns "
        f"{names} holds addresses of files. The first row has {cells}."
    )


def _check_label(table: pa.Table, layout: Layout, source: str) -> None:
    """Labels are no addresses while the items are none."""
    labels, items = (table[role].slice(0, SAMPLE) for role in ("label", "item"))
    if not pc.all(looks_like_address(labels)).as_py():
        return
    if pc.any(pc.or_(looks_like_address(items), pc.starts_with(items, MARK))).as_py():
        return
    label, item = layout.columns["label"], layout.columns["item"]
    first = table["label"][0].as_py()
    raise DataError(
        f"{source}: the labels (column '{label}') are addresses, as {quoted(first)}, and the items "
        f"(column '{item}') are none: they are exchanged. Say {{item: {label}, label: {item}}} "
        "with `columns`."
    )
