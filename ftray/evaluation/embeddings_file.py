"""Embeddings to a file, part by part: Parquet or NumPy.

What is written lies under another name until all of it is there, so that a file is whole or not
there at all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ftray.errors import ConfigError, DataError, StorageError

__all__ = ["FACTS", "EmbeddingsFile", "check_output", "ranges_in"]

FACTS = b"ftray"
"""The key in the metadata of a Parquet file: JSON that says how its embeddings were made."""
SUFFIXES = (".parquet", ".npy")
RANGES_SHAPE = "(2, D): the least and the largest value of each dimension"

Vectors = npt.NDArray[Any]


def check_output(output: str | Path, *, force: bool = False, setting: str = "output") -> Path:
    """Refuse a file that cannot be written; nothing is written yet.

    Args:
        output: where to.
        force: whether a file that is there may be replaced.
        setting: what the user calls it, for messages.

    Raises:
        ConfigError: if the name has another ending than .parquet or .npy, or for another `force`.
        StorageError: if it exists, or if its folder does not, or cannot be written to.
    """
    if not isinstance(force, bool):
        raise ConfigError(f"force = {force!r}: True or False")
    target = Path(output)
    if target.suffix not in SUFFIXES:
        raise ConfigError(f"{setting} {output}: a file that ends in .parquet or .npy")
    if target.exists() and not force:
        raise StorageError(
            f"'{output}' exists already; nothing is overwritten without force (--force)"
        )
    if target.is_dir():
        raise StorageError(f"'{output}' is a folder")
    if not target.parent.is_dir():
        raise StorageError(f"There is no folder '{target.parent}' for '{output}'")
    partial = _partial(target)
    try:
        partial.touch()
        partial.unlink()
    except OSError as error:
        raise _unwritten(target, error) from None
    return target


def ranges_in(path: str | Path) -> npt.NDArray[np.float32]:
    """The ranges that int8 codes of another file go by, `(2, D)`.

    Args:
        path: a Parquet file of int8 embeddings, or a .npy file of the ranges themselves.

    Raises:
        DataError: if it cannot be read, or holds none.
    """
    if Path(path).suffix == ".npy":
        return _ranges_in_npy(path)
    try:
        facts = json.loads((pq.read_schema(path).metadata or {}).get(FACTS, b"{}"))
    except (OSError, ValueError, pa.ArrowInvalid) as error:
        raise DataError(f"ranges: '{path}' cannot be read: {error}") from None
    if not facts.get("ranges"):
        raise DataError(f"ranges: '{path}' holds no int8 embeddings that ftray wrote")
    return np.asarray(facts["ranges"], np.float32)


def _ranges_in_npy(path: str | Path) -> npt.NDArray[np.float32]:
    """The ranges that a .npy file holds.

    Raises:
        DataError: if it cannot be read, or holds anything but two rows of numbers.
    """
    try:
        found = np.lib.format.open_memmap(path, mode="r")
    except OSError as error:
        raise DataError(f"ranges: '{path}' cannot be read: {error}") from None
    except (ValueError, EOFError):  # text, objects, or nothing at all
        raise DataError(f"ranges: '{path}' is no .npy file of numbers, {RANGES_SHAPE}") from None
    if found.dtype.kind not in "fiu" or found.ndim != 2 or len(found) != 2:
        held = f"{found.dtype} of shape {found.shape}"
        raise DataError(f"ranges: '{path}' holds {held}, not numbers, {RANGES_SHAPE}")
    return np.array(found, np.float32)


class EmbeddingsFile:
    """A file that is being written; leave its `with`, or close it, when all is added.

    Args:
        target: as `check_output` gave it.
        width: numbers of an embedding.
        dtype: of the numbers.
        facts: says how they were made, for the metadata of Parquet; called when the first part is
            there.

    Raises:
        StorageError: if it cannot be written, here and in every method.
    """

    def __init__(
        self, target: Path, *, width: int, dtype: Any, facts: Callable[[], Mapping[str, Any]]
    ) -> None:
        self._target, self._partial = target, _partial(target)
        self._width, self._dtype = width, np.dtype(dtype)
        self._facts = facts
        self._writer: pq.ParquetWriter | None = None
        self.count = 0
        try:
            self._file: IO[bytes] = self._partial.open("wb")
            if target.suffix == ".npy":
                self._write_header()
        except OSError as error:
            raise _unwritten(target, error) from None

    def add(
        self, vectors: Vectors, names: Sequence[str] = (), ids: Sequence[str] | None = None
    ) -> None:
        """Append embeddings.

        Args:
            vectors: `(n, width)`.
            names: of the things, `(n,)`; .npy has no place for them, nor for ids.
            ids: of the things, where the data has ids; then in every part.

        Raises:
            DataError: if some parts have ids, and others have none.
        """
        try:
            if self._target.suffix == ".npy":
                self._file.write(np.ascontiguousarray(vectors, self._dtype).tobytes())
            else:
                self._add_rows(vectors, names, ids)
        except (OSError, pa.ArrowException) as error:
            raise _unwritten(self._target, error) from None
        self.count += len(vectors)

    def _add_rows(self, vectors: Vectors, names: Sequence[str], ids: Sequence[str] | None) -> None:
        flat = pa.array(np.ascontiguousarray(vectors, self._dtype).reshape(-1))
        column = pa.FixedSizeListArray.from_arrays(flat, self._width)
        columns = {} if ids is None else {"id": pa.array(ids, pa.string())}
        columns |= {"item": pa.array(names, pa.string()), "embedding": column}
        table = pa.table(columns)
        if self._writer is not None and self._writer.schema.names != table.column_names:
            here, before = ("no ids", "some") if ids is None else ("ids", "none")
            raise DataError(
                f"data, items from {self.count:,} on of the stream: they have {here}, and those "
                f"before them {before}. Give all of them ids, or none"
            )
        if self._writer is None:
            facts = {FACTS: json.dumps(self._facts()).encode()}
            self._writer = pq.ParquetWriter(self._file, table.schema.with_metadata(facts))
        self._writer.write_table(table.replace_schema_metadata(self._writer.schema.metadata))

    def _write_header(self) -> None:
        """NumPy leaves room in it for a larger number of rows."""
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self.count, self._width),
        }
        np.lib.format.write_array_header_1_0(self._file, header)

    def finish(self) -> Path:
        """All is added: give the file its name."""
        try:
            if self._target.suffix == ".npy":
                self._file.seek(0)
                self._write_header()
            else:
                if self._writer is None:  # of no rows at all
                    self._add_rows(np.zeros((0, self._width), self._dtype), [], None)
                assert self._writer is not None
                self._writer.close()
            self._file.close()
            os.replace(self._partial, self._target)
        except (OSError, pa.ArrowException) as error:
            raise _unwritten(self._target, error) from None
        return self._target

    def __enter__(self) -> EmbeddingsFile:
        return self

    def __exit__(self, *error: object) -> None:
        """Drop what was not finished."""
        with suppress(OSError, ValueError):
            if self._writer is not None and self._writer.is_open:
                self._writer.close()
            self._file.close()
        with suppress(OSError):
            self._partial.unlink(missing_ok=True)


def _partial(target: Path) -> Path:
    return target.with_name(f".{target.name}.{os.getpid()}.tmp")


def _unwritten(target: Path, error: Exception) -> StorageError:
    reason = getattr(error, "strerror", None) or error
    return StorageError(f"'{target}' cannot be written: {reason}")
