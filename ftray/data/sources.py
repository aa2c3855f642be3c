"""From whatever a user gives to rows under our column names: paths, tables, objects."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ftray.config import CsvOptions
from ftray.data.beir import PARTS, is_like_beir, read_folder
from ftray.data.columns import Layout
from ftray.data.csvfile import load_csv
from ftray.data.files import LocalFiles
from ftray.data.huggingface import is_hf_dataset, load_hf_dataset
from ftray.data.lists import check_no_lists
from ftray.data.loading import Choose, Loaded, load_json, load_parquet, load_rows, load_table
from ftray.data.values import Values
from ftray.errors import DataError, nearest
from ftray.words import counted

if TYPE_CHECKING:
    from ftray.data.archives import Archive

__all__ = ["Request", "described", "load"]

_CSV = (".csv", ".tsv", ".txt")
_JSON = (".json", ".jsonl", ".ndjson")
_PARQUET = (".parquet",)
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
_FILES = (*_CSV, *_PARQUET, *_JSON, *_ARCHIVES)
_ACCEPTED = (
    f"a path ({', '.join(_FILES)}, a folder of images, or a BEIR folder), a pyarrow.Table, "
    "a pandas.DataFrame, a datasets.Dataset, a list of dicts, of (a, b) or (a, b, score) tuples, "
    "of texts or of images, or a docarray DocList"
)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be loaded, and how.

    Attributes:
        choose: column names to their roles, with the source's name for messages, and whether the
            source is known to hold images.
        options: how to read.
        values: makes cells, and keeps contents.
        named: whether the user names columns, so that a CSV file must have a header.
        where: the setting the source was given in, for messages.
    """

    choose: Callable[[Sequence[str], str, bool], Layout]
    options: CsvOptions
    values: Values
    named: bool
    where: str

    def chosen(self, source: str, *, of_things: bool = False) -> Choose:
        """How the columns of a source get their roles."""
        return lambda names: self.choose(names, source, of_things)


def load(source: Any, request: Request) -> Loaded:
    """The rows of any source.

    Raises:
        DataError: for anything that cannot be read, with its place.
    """
    if isinstance(source, str) and "://" in source:
        raise DataError(
            f"{request.where}: '{source}' is an address: data is read from local files only."
        )
    if isinstance(source, str | os.PathLike):
        return _load_path(Path(source).expanduser(), request)
    return _load_object(source, request, described(source))


def described(source: Any) -> str:
    """What messages call a source."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    if isinstance(source, pa.Table):
        return f"a table of {counted(source.num_rows, 'row')}"
    if _is_frame(source):
        return f"a DataFrame of {counted(len(source), 'row')}"
    if is_hf_dataset(source) and hasattr(source, "num_rows") and not isinstance(source, dict):
        return f"a Dataset of {counted(source.num_rows, 'row')}"
    if _is_doclist(source):
        return f"a DocList of {counted(len(source), 'document')}"
    if isinstance(source, list | tuple):
        return f"a list of {counted(len(source), 'record')}"
    return f"a {type(source).__name__}"


def _is_doclist(source: Any) -> bool:
    """Whether `source` is of docarray, which is not imported for the question (2.7 s)."""
    docarray = sys.modules.get("docarray")
    return docarray is not None and isinstance(source, docarray.DocList | docarray.DocVec)


def _is_frame(source: Any) -> bool:
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(source, pandas.DataFrame)


def _load_path(path: Path, request: Request) -> Loaded:
    source = os.fspath(path)
    if path.is_dir():
        return _load_folder(path, request)
    if not path.is_file():
        raise _no_file(path, request.where)
    if path.name.lower().endswith(_ARCHIVES):
        if not path.stat().st_size:
            raise DataError(f"{source} is empty.")
        return _load_archive(path, request)
    loaded = _load_file(path, request, source=source)
    return replace(loaded, files=LocalFiles(path.parent))


def _no_file(path: Path, where: str) -> DataError:
    folder = path.parent
    others = []
    if folder.is_dir():
        others = [p.name for p in folder.iterdir() if p.name.lower().endswith(_FILES) or p.is_dir()]
    there = nearest(path.name, others).replace(" Valid:", " There are:")
    if not folder.is_dir():
        there = f" Nor is there '{folder}'."
    return DataError(f"{where}: there is no file '{os.fspath(path)}'.{there}")


def _load_file(path: Path, request: Request, *, source: str, of_things: bool = False) -> Loaded:
    """A CSV, JSON or Parquet file."""
    ending, options = path.suffix.lower(), request.options
    if ending not in (*_CSV, *_PARQUET, *_JSON):
        valid = ", ".join(_FILES)
        what = f"its ending '{ending}'" if ending else "a file without an ending"
        raise DataError(f"{request.where}: '{source}' cannot be read by {what}. Valid: {valid}.")
    if path.stat().st_size == 0:
        raise DataError(f"{source} is empty.")
    choose = request.chosen(source, of_things=of_things)
    if ending in _CSV:
        return load_csv(path, options, choose, source=source, named=request.named)
    if ending in _JSON:
        loaded = load_json(
            path,
            choose,
            source=source,
            values=request.values,
            encoding=options.encoding or "utf-8",
            size=options.size,
        )
        return _unused(loaded, options, "JSON", ("header", "delimiter", "dialect"))
    loaded = load_parquet(path, choose, source=source, values=request.values, size=options.size)
    return _unused(loaded, options, "Parquet", ("header", "delimiter", "dialect", "encoding"))


def _unused(loaded: Loaded, options: CsvOptions, what: str, names: Sequence[str]) -> Loaded:
    """Say which options have no meaning for this source."""
    defaults = CsvOptions.model_fields
    given = [name for name in names if getattr(options, name) != defaults[name].default]
    if not given:
        return loaded
    note = f"csv_options.{', '.join(given)}: without meaning for {what}"
    return replace(loaded, notes=(*loaded.notes, note))


def _load_folder(path: Path, request: Request) -> Loaded:
    if is_like_beir(path):
        return _load_beir(path, request)
    from ftray.data.folders import caption_file, files_below, load_classes

    names, source = files_below(path), os.fspath(path)
    captions = caption_file(names)
    if captions is not None:
        inside = os.path.join(source, captions)
        loaded = _load_file(path / captions, request, source=inside, of_things=True)
        return replace(loaded, files=LocalFiles(path), source=inside)
    _check_unnamed(request, source)
    return load_classes(names, LocalFiles(path), source=source, where=request.where)


def _check_unnamed(request: Request, source: str) -> None:
    if request.named:
        raise DataError(f"columns: '{source}' holds class folders, which have no columns.")


def _load_archive(path: Path, request: Request) -> Loaded:
    from ftray.data.archives import open_archive
    from ftray.data.folders import caption_file, load_classes

    archive, source = open_archive(path), os.fspath(path)
    captions = caption_file(archive.names)
    if captions is not None:
        return _load_captions(archive, captions, request)
    _check_unnamed(request, source)
    return load_classes(archive.names, archive, source=source, where=request.where)


def _load_captions(archive: Archive, name: str, request: Request) -> Loaded:
    """The file of captions in an archive; it alone becomes a file, under a name of our own."""
    ((_, content),) = archive.contents([archive.located(name)])
    inside = os.path.join(os.fspath(archive.path), name)
    with tempfile.TemporaryDirectory(prefix="ftray-") as folder:
        file = Path(folder, "captions").with_suffix(Path(name).suffix)
        file.write_bytes(content)
        loaded = _load_file(file, request, source=inside, of_things=True)
    return replace(loaded, files=archive, source=inside)


def _load_beir(path: Path, request: Request) -> Loaded:
    if missing := [name for name in PARTS if not (path / name).exists()]:
        raise DataError(
            f"{request.where}: '{path}' is a folder, but not a BEIR folder, which holds "
            f"corpus.jsonl, queries.jsonl and qrels/*.tsv: '{missing[0]}' is missing. Else give a "
            "file."
        )
    if request.named:
        raise DataError(f"columns: '{path}' is a BEIR folder, whose fields have fixed names.")
    folder = read_folder(path, prefer="train")
    kept = folder.grades > 0
    table = pa.table(
        {
            "query": pa.array(folder.query_texts).take(pa.array(folder.queries[kept])),
            "document": pa.array(folder.document_texts).take(pa.array(folder.documents[kept])),
            "id": pa.array(folder.query_ids).take(pa.array(folder.queries[kept])),
        }
    )
    layout = Layout(kind="pairs", columns={name: name for name in table.column_names})
    return Loaded(layout=layout, table=table, unit="row", notes=folder.notes)


def _load_object(source: Any, request: Request, name: str) -> Loaded:
    choose, options, values = request.chosen(name), request.options, request.values
    size, where = options.size, request.where
    if isinstance(source, pa.Table):
        return load_table(source, choose, source=name, values=values, size=size)
    if _is_frame(source):
        return _load_frame(source, choose, values, name, size)
    if is_hf_dataset(source):
        return load_hf_dataset(source, choose, name=name, values=values, where=where, size=size)
    if _is_doclist(source):
        from ftray.data.documents import holds_things, load_documents  # docarray, and so torch

        choose = request.chosen(name, of_things=holds_things(source))
        return load_documents(source, choose, source=name, values=values, size=size)
    if hasattr(source, "__array__") and np.ndim(source) >= 2:
        source = list(source)
    if not isinstance(source, list | tuple):
        raise DataError(f"{where}: a {type(source).__name__} cannot be read. Valid: {_ACCEPTED}.")
    if not source:
        raise DataError(f"{where}: the list is empty.")
    return load_rows(enumerate(source), choose, source=name, unit="index", values=values, size=size)


def _load_frame(frame: Any, choose: Choose, values: Values, name: str, size: int | None) -> Loaded:
    """A DataFrame: its columns as Arrow takes them, or value by value, as images of PIL's."""
    frame = frame.rename(columns=str)
    layout = choose(list(frame.columns))
    frame = frame[list(layout.columns.values())]
    if not len(frame):
        raise DataError(f"{name} has no rows.")
    try:
        table = pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
        rows = enumerate(frame.to_dict("records"))
        return load_rows(
            rows, lambda _: layout, source=name, unit="index", values=values, size=size
        )
    loaded = load_table(table, lambda _: layout, source=name, values=values, size=size)
    check_no_lists(loaded.table, loaded.layout, name)  # as pandas reads them from a CSV file
    return loaded
