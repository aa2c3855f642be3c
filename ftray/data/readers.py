"""Sources to records: a path, an Arrow table, Python lists, a DocList, a BEIR folder.

`read_records` finds out what a source holds (texts with labels, pairs of texts, pairs with a score,
or texts alone), checks every row, and says in `Records.notes` what it detected and what a user
should know.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from ftray.config import CsvOptions
from ftray.data.cleaning import (
    check_cells,
    conflicts,
    drawn_rows,
    fingerprint,
    guessed_kind,
    score_conflicts,
    scores_as_numbers,
    stripped,
    summary,
)
from ftray.data.columns import Kind, Layout, resolve
from ftray.data.csvfile import load_csv
from ftray.data.loading import (
    Choose,
    Loaded,
    Unit,
    load_json,
    load_parquet,
    load_rows,
    load_table,
)
from ftray.errors import DataError, nearest
from ftray.media import NO_BLOBS, Blobs
from ftray.words import counted

__all__ = ["CsvOptions", "Records", "read_records"]

_CSV = (".csv", ".tsv", ".txt")
_JSON = (".json", ".jsonl", ".ndjson")
_ACCEPTED = (
    f"a path ({', '.join((*_CSV, '.parquet', *_JSON))}, or a BEIR folder), a pyarrow.Table, "
    "a list of dicts, of (a, b) or (a, b, score) tuples or of texts, or a docarray DocList"
)


@dataclass(frozen=True, kw_only=True)
class Records:
    """What a source holds, cleaned.

    Args:
        kind: `labelled` (texts with labels), `pairs` (a query and a document relevant to it),
            `scored` (two texts and how alike they are), or `items` (texts alone).
        table: string columns without nulls: item and label; query and document; or item. Scored
            pairs have query, document, and score, a column of finite float64. Also `id` where the
            source has ids of its own: a column named id or _id, or DocList documents that were all
            given an id. Of pairs, it is the query's id.
        source: the path or the object, for messages.
        notes: what was detected, and what a user should know.
        fingerprint: 16 hex digits of the SHA-256 of kind and cells; equal cells from another file
            format have the same.
        unit: what `positions` counts: lines, rows and records from 1, the index of a list from 0.
        positions: where each row stands in the source; None = they count on from the first.
        blobs: contents of things that are no texts and lie in no file; see `ftray.media`.
    """

    kind: Kind
    table: pa.Table
    source: str
    notes: tuple[str, ...]
    fingerprint: str
    unit: Unit = "row"
    positions: pa.ChunkedArray | None = None
    blobs: Blobs = NO_BLOBS

    def place(self, row: int) -> str:
        """Where row `row` of the table came from, as `train.csv, line 17`."""
        return _place(self.source, self.unit, self.positions, row)


def read_records(
    source: Any,
    *,
    columns: Mapping[str, str] | None = None,
    csv_options: CsvOptions | Mapping[str, Any] | None = None,
    where: str = "train_data",
) -> Records:
    """Read a source; records that were read before are returned as they are.

    Of `csv_options`, `size` (the first rows), `sampling_rate` (a share of these, drawn with a fixed
    seed), `is_labeled` and `label_conflicts` hold for every source, `encoding` for JSON too.
    Of a BEIR folder the judged pairs are read: qrels/train.tsv, else the only .tsv there.

    Args:
        source: a path (.csv, .tsv, .txt, .parquet, .json, .jsonl, .ndjson, or a BEIR folder), a
            pyarrow.Table, a list of dicts, of (a, b) or (a, b, score) tuples or of texts, or a
            docarray DocList.
        columns: our names (item, label, query, document, score, id) to the source's column names.
            Without it, names decide (`columns.TELLING`).
        csv_options: how to read; what is left away is detected.
        where: the setting the source was given in, for messages.

    Raises:
        DataError: for anything that cannot be read, with its place.
    """
    if isinstance(source, Records):
        return source
    options = _options(csv_options)
    named = bool(columns)
    if isinstance(source, str) and "://" in source:
        raise DataError(f"{where}: '{source}' is an address: data is read from local files only.")
    name = _describe(source)
    choose = partial(resolve, given=columns, is_labeled=options.is_labeled, source=name)
    if isinstance(source, str | os.PathLike):
        loaded = _load_path(Path(source).expanduser(), choose, options, named=named, where=where)
    else:
        loaded = _load_object(source, choose, options, name=name, where=where)
    return _records(loaded, options, name)


def _options(given: CsvOptions | Mapping[str, Any] | None) -> CsvOptions:
    if isinstance(given, CsvOptions):
        return given
    try:
        return CsvOptions.model_validate(dict(given or {}))
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            known = nearest(key, CsvOptions.model_fields)
            raise DataError(f"csv_options: there is no option '{key}'.{known}") from None
        raise DataError(f"csv_options.{key} = {first['input']!r}: {first['msg']}.") from None


def _describe(source: Any) -> str:
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    if isinstance(source, pa.Table):
        return f"a table of {counted(source.num_rows, 'row')}"
    if _is_doclist(source):
        return f"a DocList of {counted(len(source), 'document')}"
    if isinstance(source, list | tuple):
        return f"a list of {counted(len(source), 'record')}"
    return f"a {type(source).__name__}"


def _is_doclist(source: Any) -> bool:
    """Whether `source` is of docarray, which is not imported for the question (2.7 s)."""
    docarray = sys.modules.get("docarray")
    return docarray is not None and isinstance(source, docarray.DocList | docarray.DocVec)


def _load_path(
    path: Path, choose: Choose, options: CsvOptions, *, named: bool, where: str
) -> Loaded:
    source, ending = os.fspath(path), path.suffix.lower()
    if path.is_dir():
        return _load_folder(path, where=where, named=named)
    if not path.is_file():
        folder = path.parent
        known = (*_CSV, ".parquet", *_JSON)
        others = []
        if folder.is_dir():
            others = [p.name for p in folder.iterdir() if p.suffix.lower() in known or p.is_dir()]
        there = nearest(path.name, others).replace(" Valid:", " There are:")
        if not folder.is_dir():
            there = f" Nor is there '{folder}'."
        raise DataError(f"{where}: there is no file '{source}'.{there}")
    if ending not in (*_CSV, ".parquet", *_JSON):
        valid = ", ".join((*_CSV, ".parquet", *_JSON))
        what = f"its ending '{ending}'" if ending else "a file without an ending"
        raise DataError(f"{where}: '{source}' cannot be read by {what}. Valid: {valid}.")
    if path.stat().st_size == 0:
        raise DataError(f"{source} is empty.")
    if ending in _CSV:
        return load_csv(path, options, choose, source=source, named=named)
    if ending in _JSON:
        encoding = options.encoding or "utf-8"
        loaded = load_json(path, choose, source=source, encoding=encoding, size=options.size)
        return _unused(loaded, options, "JSON", ("header", "delimiter"))
    loaded = load_parquet(path, choose, source=source)
    return _unused(loaded, options, "Parquet", ("header", "delimiter", "encoding"))


def _unused(loaded: Loaded, options: CsvOptions, what: str, names: Sequence[str]) -> Loaded:
    """Say which options have no meaning for this source."""
    given = [name for name in names if getattr(options, name) is not None]
    if not given:
        return loaded
    note = f"csv_options.{', '.join(given)}: without meaning for {what}"
    return replace(loaded, notes=(*loaded.notes, note))


def _load_folder(path: Path, *, where: str, named: bool) -> Loaded:
    from ftray.data.beir import is_beir, read_folder  # it reads nothing else

    if not is_beir(path):
        raise DataError(
            f"{where}: '{path}' is a folder, but not a BEIR folder, which holds corpus.jsonl, "
            "queries.jsonl and qrels/*.tsv. Else give a file."
        )
    if named:
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


def _load_object(
    source: Any, choose: Choose, options: CsvOptions, *, name: str, where: str
) -> Loaded:
    if isinstance(source, pa.Table):
        return load_table(source, choose, source=name)
    if _is_doclist(source):
        from ftray.data.documents import load_documents  # imports docarray, and so torch

        return load_documents(source, choose, source=name, size=options.size)
    if not isinstance(source, list | tuple):
        hint = ""
        if type(source).__module__.startswith("pandas"):
            hint = " Of a DataFrame, give pyarrow.Table.from_pandas(frame)."
        raise DataError(
            f"{where}: a {type(source).__name__} cannot be read. Valid: {_ACCEPTED}.{hint}"
        )
    if not source:
        raise DataError(f"{where}: the list is empty.")
    return load_rows(enumerate(source), choose, source=name, unit="index", size=options.size)


def _records(loaded: Loaded, options: CsvOptions, source: str) -> Records:
    """Clean, decide what is undecided, check, draw the sample, and say what there is."""
    notes = [*loaded.notes, *loaded.layout.notes]
    table = stripped(loaded.table if options.size is None else loaded.table.slice(0, options.size))
    positions = loaded.positions
    check_cells(table, loaded.layout, partial(_place, source, loaded.unit, positions))
    kind = loaded.layout.kind
    if kind == "scored":
        place = partial(_place, source, loaded.unit, positions)
        table = scores_as_numbers(table, loaded.layout, place)
    if kind is None:
        kind, table, note = guessed_kind(table, loaded.layout)
        notes.append(note)
    if options.sampling_rate is not None:
        rows = drawn_rows(table.num_rows, options.sampling_rate)
        notes.append(f"{len(rows):,} of {table.num_rows:,} rows drawn (sampling_rate)")
        if positions is None:
            numbers = np.arange(table.num_rows) + (loaded.unit != "index")
            positions = pa.chunked_array([numbers])
        table, positions = table.take(rows), positions.take(rows)
    notes += summary(table, kind)
    find_conflicts = {"labelled": conflicts, "scored": score_conflicts}.get(kind)
    if find_conflicts is not None:
        place = partial(_place, source, loaded.unit, positions)
        notes += find_conflicts(table, place, allowed=options.label_conflicts == "keep")
    return Records(
        kind=kind,
        table=table,
        source=source,
        notes=tuple(notes),
        fingerprint=fingerprint(kind, table),
        unit=loaded.unit,
        positions=positions,
        blobs=loaded.blobs,
    )


def _place(source: str, unit: Unit, positions: pa.ChunkedArray | None, row: int) -> str:
    if positions is not None:
        return f"{source}, {unit} {positions[row].as_py()}"
    return f"{source}, {unit} {row + (unit != 'index')}"
