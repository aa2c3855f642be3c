"""Addresses to references: every file is looked for, and looked at, before anything is trained."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.compute as pc

from ftray.config import CsvOptions
from ftray.data.addresses import Things
from ftray.data.files import Files
from ftray.data.pictures import broken
from ftray.data.values import Values
from ftray.errors import DataError
from ftray.media import MARK, Blobs, Media, Modality, contents, reference
from ftray.words import counted

__all__ = ["Resolver"]

_SHA = "sha256:"
_DATA = re.compile(r"data:([^,]{0,200}),(.*)", re.DOTALL | re.IGNORECASE)
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
_SHOWN = 80


@dataclass
class _Column:
    """A column of things while its addresses become references.

    Attributes:
        cells: as they were read.
        place: a row's place in the source.
        name: the column's name.
        role: its role; modality: what it holds.
        found: reference of each address that is done.
        called: what the source calls contents that have no file, by address.
    """

    cells: pa.ChunkedArray
    place: Callable[[int], str]
    name: str
    role: str
    modality: Modality
    found: dict[str, str] = field(default_factory=dict)
    called: dict[str, str] = field(default_factory=dict)

    def refuse(self, cell: str, what: str) -> NoReturn:
        row = pc.index(self.cells, cell).as_py()
        raise DataError(f"{self.place(row)}: {what} (column '{self.name}').")

    def place_of(self, cell: str) -> str:
        return self.place(pc.index(self.cells, cell).as_py())


class Resolver:
    """Makes references of addresses.

    Args:
        files: where the files are.
        values: keeps contents.
        options: what is fetched, and kept in memory.
        place: a row's place in the source.
    """

    def __init__(
        self, files: Files, values: Values, options: CsvOptions, place: Callable[[int], str]
    ) -> None:
        self._files = files
        self._values = values
        self._options = options
        self._place = place
        self._names: dict[str, str] = {}  # what messages call contents that have no file
        self._sizes: dict[str, int] = {}
        self.notes: list[str] = []
        self.stable: dict[str, str] = {}
        """Reference to a file, to what stands for it in fingerprints: its name and its size."""
        self.names: dict[str, pa.ChunkedArray] = {}
        """What the source calls each row's thing, by role, where it has no file of its own."""

    def resolved(self, table: pa.Table, things: Things, names: Mapping[str, str]) -> pa.Table:
        """The table with references where addresses stood.

        Args:
            table: string columns by role.
            things: which of them hold what.
            names: the columns' names by role.

        Raises:
            DataError: for the first address without a file, with its row.
        """
        for number, role in enumerate(table.column_names):
            if role in things:
                column = _Column(
                    cells=table[role],
                    place=self._place,
                    name=names[role],
                    role=role,
                    modality=things[role],
                )
                cells = self._column(column)
                table = table.set_column(number, role, cells)
                self.notes.append(self._note(column, cells))
        return table

    def stable_table(self, table: pa.Table, things: Things) -> pa.Table:
        """The table with names and sizes of files for fingerprints, wherever the files lie."""
        for number, role in enumerate(table.column_names):
            if role in things and self.stable:
                cells = [self.stable.get(cell, cell) for cell in table[role].to_pylist()]
                table = table.set_column(number, role, pa.chunked_array([cells], pa.string()))
        return table

    def check(
        self, table: pa.Table, things: Things, names: Mapping[str, str], blobs: Blobs
    ) -> None:
        """Every image is one, and can be decoded.

        Raises:
            DataError: for the first that cannot, with its row.
        """
        for role, modality in things.items():
            if modality != "image":
                continue
            cells = pc.unique(table[role])
            images = [one for one in contents(cells.to_pylist(), blobs) if isinstance(one, Media)]
            sizes = [len(m.data) if m.data is not None else self._sizes[m.address] for m in images]
            found = broken(images, sizes)
            if found is not None:
                number, reason = found
                cell = cells[number].as_py()
                row = pc.index(table[role], cell).as_py()
                known = self._names.get(cell) or _file_name(images[number])
                called = f"the image '{known}'" if known else "the image"
                raise DataError(f"{self._place(row)}: {called} {reason} (column '{names[role]}').")

    def _note(self, column: _Column, cells: pa.ChunkedArray) -> str:
        count = len(pc.unique(cells))
        plurals = {"image": "images", "points": "point clouds", "features": "vectors"}
        what = plurals[column.modality] if count != 1 else plurals[column.modality][:-1]
        if column.modality == "image" and self._values.scaled:
            what += ", pixels from 0 to 1 taken as shares of 255"
        return f"column '{column.name}': {count:,} different {what}"

    def _column(self, column: _Column) -> pa.ChunkedArray:
        distinct = pc.unique(column.cells)
        addresses = {
            cell: cell[2:] if cell.startswith(MARK) else cell for cell in distinct.to_pylist()
        }
        local: dict[str, str] = {}
        web: dict[str, str] = {}
        for cell, address in addresses.items():
            if cell.startswith(MARK) and address.startswith(_SHA):
                column.found[cell] = cell
            elif address[:5].lower() == "data:":
                column.found[cell] = self._encoded(
                    column, cell, self._decoded(column, cell, address)
                )
            elif address[:7].lower() in ("http://", "https:/"):
                web[cell] = address
            else:
                local[cell] = self._path(column, cell, address)
        if web:
            self._fetch(column, web)
        if local:
            self._read(column, local)
        if column.called:
            names = [column.called.get(cell, column.found[cell][2:]) for cell in addresses]
            self.names[column.role] = _spread(names, distinct, column.cells)
        return _spread([column.found[cell] for cell in addresses], distinct, column.cells)

    def _decoded(self, column: _Column, cell: str, address: str) -> bytes:
        parts = _DATA.fullmatch(address)
        if parts is None or not parts[1].lower().endswith(";base64"):
            column.refuse(cell, "a data: address without ';base64,'")
        try:
            return base64.b64decode(unquote(parts[2]), validate=True)
        except (binascii.Error, ValueError):
            column.refuse(cell, "a data: address whose content is not base64")

    def _encoded(self, column: _Column, cell: str, data: bytes) -> str:
        where = f"{column.place_of(cell)}, '{column.name}'"
        done = self._values.encoded(data, column.role, where, taken_for=column.modality)
        if done is None:
            column.refuse(cell, "an address without content")
        return done

    def _path(self, column: _Column, cell: str, address: str) -> str:
        scheme = _SCHEME.match(address)
        if scheme is None:
            return address
        if scheme[1].lower() != "file":
            shown = address[:_SHOWN]
            column.refuse(cell, f"'{shown}' is no address that is read. Valid: files, and http(s)")
        parts = urlsplit(address)
        if parts.netloc not in ("", "localhost"):
            column.refuse(cell, f"'{address[:_SHOWN]}' is on another machine, '{parts.netloc}'")
        return unquote(parts.path)

    def _fetch(self, column: _Column, web: Mapping[str, str]) -> None:
        first, address = next(iter(web.items()))
        if not self._options.fetch_urls:
            column.refuse(
                first,
                f"'{address[:_SHOWN]}' is in the web: csv_options.fetch_urls = true fetches what "
                "is there, once, when the data is read",
            )
        from ftray.data.fetching import fetched  # urllib's HTTP, for this alone

        cells = {url: cell for cell, url in web.items()}
        for url, data in fetched(list(cells)):
            if isinstance(data, str):
                column.refuse(cells[url], f"'{url[:_SHOWN]}': {data}")
            column.found[cells[url]] = self._encoded(column, cells[url], data)
            column.called[cells[url]] = url
            self._names[column.found[cells[url]]] = url[:_SHOWN]
        self.notes.append(
            f"column '{column.name}': {counted(len(web), 'address', 'addresses')} fetched"
        )

    def _read(self, column: _Column, local: Mapping[str, str]) -> None:
        files = self._chosen(column, next(iter(local.values())))
        where = {cell: files.located(name) for cell, name in local.items()}
        places = list(where.values())
        sizes = dict(zip(places, files.sizes(places), strict=True))
        missing = [cell for cell, place in where.items() if sizes[place] is None]
        if missing:
            more = f"; {len(missing):,} of {len(local):,} files are missing" if missing[1:] else ""
            column.refuse(missing[0], f"there is no file '{local[missing[0]][:_SHOWN]}'{more}")
        for cell, place in where.items():
            if not sizes[place]:
                column.refuse(cell, f"the file '{local[cell][:_SHOWN]}' is empty")
        kept = files.lasting and not self._options.convert_to_blob
        if kept and (column.modality == "image" or self._stays(column)):
            for cell, place in where.items():
                column.found[cell] = done = reference(column.modality, place)
                self._sizes[place] = size = sizes[place] or 0
                self.stable[done] = f"{reference(column.modality, local[cell])}{MARK}{size}"
            return
        cells: dict[str, list[str]] = {}
        for cell, place in where.items():
            cells.setdefault(place, []).append(cell)
        for place, data in files.contents(list(cells)):
            done = self._encoded(column, cells[place][0], data)
            self._names[done] = local[cells[place][0]]
            column.found.update(dict.fromkeys(cells[place], done))
        column.called |= local

    def _stays(self, column: _Column) -> bool:
        """Whether points are read by the encoder, and not here."""
        return column.modality == "points" and not self._options.create_point_clouds

    def _chosen(self, column: _Column, first: str) -> Files:
        """Where the first file is: beside the source, or else in this process's folder."""
        elsewhere = self._files.elsewhere()
        if elsewhere is None or self._files.sizes([self._files.located(first)]) != [None]:
            return self._files
        if elsewhere.sizes([elsewhere.located(first)]) == [None]:
            return self._files
        self.notes.append(f"column '{column.name}': files are relative to the working directory")
        return elsewhere


def _spread(values: Sequence[str], distinct: pa.Array, cells: pa.ChunkedArray) -> pa.ChunkedArray:
    """A value for each cell; `values` has one for each of the `distinct` cells."""
    ordered = pa.array(values, cells.type)
    chunks = [ordered.take(pc.index_in(chunk, value_set=distinct)) for chunk in cells.chunks]
    return pa.chunked_array(chunks, ordered.type)


def _file_name(image: Media) -> str | None:
    return image.name if image.data is None else None
