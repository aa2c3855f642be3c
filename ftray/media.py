"""Things to encode that are not texts: images, point clouds, vectors of features.

In tables all things are strings, so that duplicates, groups and fingerprints know one rule. A thing
that is no text stands there as a *reference*: the character U+0000, the letter of its modality, and
its address. The address is a file, or `sha256:` and the hash of its content, which then lies in a
`Blobs`. No text holds U+0000 (the readers refuse it), so none is ever taken for a reference.

Nothing is decoded here: that is done by the encoder's `collate`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ftray.errors import DataError

__all__ = ["MARK", "MODALITIES", "NO_BLOBS", "BlobBuilder", "Blobs", "Content", "Media"]
__all__ += [
    "Modality",
    "contents",
    "modalities_of",
    "modality_of",
    "reference",
    "shown",
    "sizes",
    "texts_of",
]

Modality = Literal["text", "image", "points", "features"]
"""What an encoder may take; "points" are point clouds and meshes, "features" vectors of numbers."""

MODALITIES: tuple[Modality, ...] = ("text", "image", "points", "features")
MARK = "\0"
_LETTERS: dict[Modality, str] = {"image": "i", "points": "p", "features": "f"}
_MODALITY_OF = {letter: modality for modality, letter in _LETTERS.items()}
_HASHED = "sha256:"
_SHOWN_DIGITS = 8
MEDIA_SIZE = 1 << 20
"""What a thing that is no text weighs beside texts, whose size is their length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Media:
    """Something to encode that is not a text.

    Attributes:
        modality: what it is.
        address: its file, or `sha256:…` of its content.
        data: its content as it lay in the data: an encoded image, the bytes of a file of points,
            or little-endian float32; None = it is to be read from the file.
    """

    modality: Modality
    address: str
    data: memoryview | bytes | None = None

    @property
    def name(self) -> str:
        """What messages and examples call it: its file, or a few digits of its hash."""
        return shown_cell(reference(self.modality, self.address))

    def __reduce__(self) -> tuple[Any, ...]:
        data = None if self.data is None else bytes(self.data)  # a memoryview cannot be pickled
        return partial(Media, modality=self.modality, address=self.address, data=data), ()

    @property
    def without_data(self) -> Media:
        """The same, with its content left behind."""
        return replace(self, data=None)

    def read(self) -> memoryview | bytes:
        """Its content.

        Raises:
            DataError: if its file cannot be read.
        """
        if self.data is not None:
            return self.data
        try:
            return Path(self.address).read_bytes()
        except OSError as error:
            raise DataError(
                f"The {self.modality} '{self.address}' cannot be read: {error.strerror}"
            ) from None


Content = str | Media
"""What an encoder takes: a text, or something else."""


class Blobs:
    """Contents that lie in no file of their own, by their address.

    Args:
        table: columns `address` (string) and `data` (large_binary); rows are distinct.
    """

    def __init__(self, table: pa.Table | None = None) -> None:
        self._table = table
        self._rows: dict[str, int] | None = None

    def __len__(self) -> int:
        return 0 if self._table is None else int(self._table.num_rows)

    def __getitem__(self, address: str) -> memoryview:
        """The content at an address.

        Raises:
            KeyError: if there is none.
        """
        if self._table is None:
            raise KeyError(address)
        if self._rows is None:
            addresses = self._table["address"].to_pylist()
            self._rows = {known: row for row, known in enumerate(addresses)}
        return memoryview(self._table["data"][self._rows[address]].as_buffer())

    def __contains__(self, address: object) -> bool:
        try:
            self[cast(str, address)]
        except KeyError:
            return False
        return True

    def __getstate__(self) -> dict[str, object]:
        return {"_table": self._table, "_rows": None}  # other processes make their own

    def joined(self, other: Blobs) -> Blobs:
        """Those of both."""
        if not len(self) or not len(other):
            return self if len(self) else other
        assert self._table is not None and other._table is not None
        new = pc.invert(pc.is_in(other._table["address"], value_set=self._table["address"]))
        return Blobs(pa.concat_tables([self._table, other._table.filter(new)]))


NO_BLOBS = Blobs()


class BlobBuilder:
    """Collects contents; equal ones are kept once."""

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._addresses: list[str] = []
        self._data: list[bytes | memoryview] = []
        self._chunks: list[pa.Array] = []
        self._pending = 0

    def add(self, modality: Modality, data: bytes | memoryview) -> str:
        """Keep a content, and return the reference to it."""
        address = _HASHED + hashlib.sha256(data).hexdigest()
        if address not in self._known:
            self._known.add(address)
            self._addresses.append(address)
            self._data.append(data)
            self._pending += len(data)
            if self._pending > 1 << 26:
                self._flush()
        return reference(modality, address)

    def _flush(self) -> None:
        self._chunks.append(pa.array(self._data, pa.large_binary()))
        self._data, self._pending = [], 0

    def finish(self) -> Blobs:
        """What was collected."""
        if not self._addresses:
            return NO_BLOBS
        self._flush()
        data = pa.chunked_array(self._chunks, pa.large_binary())
        return Blobs(pa.table({"address": pa.array(self._addresses), "data": data}))


def reference(modality: Modality, address: str) -> str:
    """What stands in a table for a thing that is no text."""
    return MARK + _LETTERS[modality] + address


def modality_of(cell: str) -> Modality:
    """What a cell of a table is."""
    return _MODALITY_OF[cell[1]] if cell.startswith(MARK) else "text"


def modalities_of(cells: pa.Array | pa.ChunkedArray) -> frozenset[Modality]:
    """What the cells of a table are."""
    first = pc.utf8_slice_codeunits(cells, 0, 2)
    return frozenset(modality_of(start) for start in pc.unique(first).to_pylist())


def texts_of(cells: pa.Array) -> pa.Array:
    """The texts among the cells."""
    return cells.filter(pc.invert(pc.starts_with(cells, MARK)))


def contents(cells: Iterable[str], blobs: Blobs) -> list[Content]:
    """What cells of a table stand for."""
    return [_content(cell, blobs) for cell in cells]


def _content(cell: str, blobs: Blobs) -> Content:
    if not cell.startswith(MARK):
        return cell
    address = cell[2:]
    data = blobs[address] if address.startswith(_HASHED) else None
    return Media(modality=modality_of(cell), address=address, data=data)


def shown(cells: pa.Array) -> pa.Array:
    """The cells as people read them: texts as they are, of others their names."""
    if not pc.any(pc.starts_with(cells, MARK)).as_py():
        return cells
    return pa.array([shown_cell(cell) for cell in cells.to_pylist()], cells.type)


def shown_cell(cell: str) -> str:
    """One cell as people read it: of a file its name, and that of its folder."""
    if not cell.startswith(MARK):
        return cell
    address = cell[2:]
    if address.startswith(_HASHED):
        return f"{modality_of(cell)} {address[len(_HASHED) :][:_SHOWN_DIGITS]}"
    return "/".join(Path(address).parts[-2:])


def sizes(cells: pa.Array | Sequence[str]) -> npt.NDArray[np.int64]:
    """How much each cell is to encode, `(n,)`: characters; one large number for all but texts."""
    array = cells if isinstance(cells, pa.Array) else pa.array(cells, pa.large_string())
    if not len(array):
        return np.zeros(0, np.int64)
    lengths = pc.utf8_length(array).to_numpy(zero_copy_only=False).astype(np.int64)
    media = pc.starts_with(array, MARK).to_numpy(zero_copy_only=False)
    return np.where(media, MEDIA_SIZE, lengths)
