"""What is to be found by whom: queries, documents, and which are relevant to which.

Relevance is exactly what the data states, without any transitive closure: documents of the same
label, the documents paired with the query, or the judgements of a BEIR folder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ftray.data.beir import is_like_beir, read_corpus, read_folder
from ftray.data.cleaning import fingerprint, quoted
from ftray.data.columns import roles_like
from ftray.data.readers import CsvOptions, Records, read_records
from ftray.data.relevance import (
    Relevance,
    RetrievalSet,
    Side,
    assembled,
    grouped,
    lists_of,
    shared,
    starts_of,
)
from ftray.errors import DataError
from ftray.media import Modality

__all__ = ["is_folder", "is_same", "read_beir", "retrieval_set"]

Numbers = npt.NDArray[np.int64]


def retrieval_set(
    query_data: Any,
    index_data: Any = None,
    *,
    columns: Mapping[str, str] | None = None,
    index_columns: Mapping[str, str] | None = None,
    csv_options: CsvOptions | Mapping[str, Any] | None = None,
    modalities: frozenset[Modality] | None = None,
) -> RetrievalSet:
    """Find out from data what is to be found by whom.

    The same text twice is one query, or one document; a text under two labels is relevant to both.

    - Labelled queries look for documents of the same label: in a labelled index, or, without one,
      among themselves; `own_document` is then the query itself.
    - Pairs and triplets look for the documents they are paired with: in an index of texts (of
      labelled texts or pairs: their texts or documents), or, without one, among the documents of
      all pairs, and the negatives of all triplets.
    - A BEIR folder brings its own index and judgements (`read_beir`).

    Across different sources, `own_document` is set only by ids of their own.

    Args:
        query_data: anything that `read_records` reads, or records.
        index_data: the same, or a BEIR folder, whose corpus is taken. The same object or path as
            `query_data` is the same data set, as if it were left away.
        columns: roles to columns of the query data, and of a labelled index.
        index_columns: roles to columns of the index, instead.
        csv_options: how to read both; the index whole, without `size` and `sampling_rate`.
        modalities: what the model takes; None = not known.

    Raises:
        DataError: queries with neither labels nor pairs, an index that does not go with them,
            a relevant document that the index lacks, or nothing relevant at all.
    """
    alone = index_data is None or is_same(query_data, index_data)
    if is_folder(query_data):
        if columns or not alone:
            what = "columns" if columns else "index_data"
            raise DataError(f"{what}: the BEIR folder '{query_data}' brings its own.")
        return read_beir(query_data)
    queries = read_records(
        query_data,
        columns=columns,
        csv_options=csv_options,
        modalities=modalities,
        where="query_data",
    )
    if queries.kind == "items":
        raise DataError(
            f"query_data: {queries.source} holds texts alone, which do not say what is relevant. "
            "Valid: texts with labels, pairs of query and document, or a BEIR folder."
        )
    labelled = queries.kind == "labelled"
    names = index_columns or (columns if labelled else None)
    index = None if alone else _read_index(index_data, names, csv_options, modalities)
    return _labelled(queries, index) if labelled else _pairs(queries, index)


def read_beir(folder: str | os.PathLike[str]) -> RetrievalSet:
    """A BEIR folder with qrels/test.tsv, or with the only qrels there is.

    Queries and documents are the folder's own, also where two of them have the same text, so that
    metrics are those of others. As in BEIR's evaluation, a document with the query's id is the
    query's own.

    Raises:
        DataError: with file and line.
    """
    read = read_folder(folder, prefer="test")
    relevant = read.grades > 0
    queries, documents = read.queries[relevant], read.documents[relevant]
    if not len(queries):
        raise DataError(f"{folder}: all judgements are 0, so that no query has anything to find.")
    order = np.lexsort((documents, queries))
    count = len(read.query_ids)
    relevance = Relevance(
        groups=np.arange(count),
        starts=starts_of(queries, count),
        documents=documents[order],
        grades=read.grades[relevant][order],
    )
    sides = [
        Side(
            texts=pa.array(texts, pa.large_string()),
            ids=ids,
            rows=np.arange(len(ids)),
            own_ids={name: i for i, name in enumerate(ids)},
        )
        for ids, texts in (
            (read.query_ids, read.query_texts),
            (read.document_ids, read.document_texts),
        )
    ]
    return assembled(sides[0], sides[1], relevance, _own_by_id(*sides), read.notes)


def is_folder(data: Any) -> bool:
    """Whether data is given as a folder of BEIR's; there are others, of images."""
    return isinstance(data, str | os.PathLike) and is_like_beir(Path(data))


def is_same(query_data: Any, index_data: Any) -> bool:
    """Whether both are one object, or paths of one file."""
    paths = [data for data in (query_data, index_data) if isinstance(data, str | os.PathLike)]
    if len(paths) == 2:
        return Path(paths[0]).resolve() == Path(paths[1]).resolve()
    return query_data is index_data


def _read_index(
    data: Any,
    columns: Mapping[str, str] | None,
    csv_options: Any,
    modalities: frozenset[Modality] | None,
) -> Records:
    if is_folder(data):
        if not (Path(data) / "corpus.jsonl").is_file():
            raise DataError(f"index_data: '{data}' is a folder without a BEIR corpus.jsonl.")
        ids, texts = read_corpus(data)
        table = pa.table({"item": texts, "id": ids})
        return Records(
            kind="items",
            table=table,
            source=os.fspath(data),
            notes=(),
            fingerprint=fingerprint("items", table),
        )
    options = dict(csv_options or {}) | {"size": None, "sampling_rate": None}
    return read_records(
        data, columns=columns, csv_options=options, modalities=modalities, where="index_data"
    )


def _side(records: Records, column: str) -> Side:
    """The distinct texts of a column; the documents of triplets are followed by the negatives."""
    names = [column]
    if column == "document":
        names += roles_like(records.table.column_names, "negative")
    chunks = (records.table[name].cast(pa.large_string()).chunks for name in names)
    cells = pa.chunked_array(list(chain.from_iterable(chunks)), pa.large_string())
    encoded = cells.combine_chunks().dictionary_encode()
    texts = encoded.dictionary
    rows = encoded.indices.to_numpy().astype(np.int64)
    plain = Side(
        texts=texts,
        ids=[str(i) for i in range(len(texts))],
        rows=rows,
        own_ids={},
        blobs=records.blobs,
        stable=records.stable,
    )
    if "id" not in records.table.column_names or column == "document":
        return plain
    given = records.table["id"].to_pylist()
    own_ids: dict[str, int] = {}
    first_row: dict[str, int] = {}
    for row, (ident, text) in enumerate(zip(given, rows.tolist(), strict=True)):
        first_row.setdefault(ident, row)
        if own_ids.setdefault(ident, text) == text:
            continue
        if records.kind in ("pairs", "triplets", "distillation"):
            note = f"the ids of {records.source} are not those of its queries, and not used"
            return replace(plain, notes=(note,))
        raise DataError(
            f"{records.place(row)}: the id '{ident}' stands for another text at "
            f"{records.place(first_row[ident])}."
        )
    _, firsts = np.unique(rows, return_index=True)
    return replace(plain, ids=[given[row] for row in firsts], own_ids=own_ids)


def _labelled(records: Records, index: Records | None) -> RetrievalSet:
    if index is not None and index.kind != "labelled":
        raise DataError(
            f"index_data: {index.source} holds {index.kind}, but {records.source} has labels. "
            "Its queries look for documents of the same label, so the index needs labels too."
        )
    found = records if index is None else index
    queries = _side(records, "item")
    documents = queries if index is None else _side(found, "item")
    names: dict[str, int] = {}
    query_labels, document_labels = (
        np.array([names.setdefault(name, len(names)) for name in side.table["label"].to_pylist()])
        for side in (records, found)
    )
    of_label = lists_of(document_labels, documents.rows, len(names))
    groups, label_sets = shared(lists_of(queries.rows, query_labels, len(queries.texts)))
    members = [
        of_label[labels[0]]
        if len(labels) == 1
        else np.unique(np.concatenate([of_label[label] for label in labels]))
        for labels in label_sets
    ]
    own = np.arange(len(queries.texts)) if index is None else _own_by_id(queries, documents)
    notes = _notes(records, index)
    if not any(len(one) for one in members):
        raise DataError(
            f"index_data: no label of {records.source} stands in {found.source}, so that no query "
            "has anything to find."
        )
    relevance = grouped(groups, members)
    return assembled(queries, documents, relevance, own, notes, symmetric=True)


def _pairs(records: Records, index: Records | None) -> RetrievalSet:
    queries = _side(records, "query")
    if index is None:
        documents = _side(records, "document")
        targets = documents.rows[: records.table.num_rows]
        own = np.full(len(queries.texts), -1)
    else:
        documents = _side(index, "item" if "item" in index.table.column_names else "document")
        targets = _targets(records, index, documents)
        own = _own_by_id(queries, documents)
    groups, members = shared(lists_of(queries.rows, targets, len(queries.texts)))
    notes = _notes(records, index)
    return assembled(queries, documents, grouped(groups, members), own, notes)


def _targets(records: Records, index: Records, documents: Side) -> Numbers:
    """The position in the index of each pair's document."""
    wanted = records.table["document"].cast(pa.large_string())
    found = pc.fill_null(pc.index_in(wanted, value_set=documents.texts), -1)
    targets: Numbers = found.to_numpy().astype(np.int64)
    missing = np.flatnonzero(targets < 0)
    if len(missing):
        row = int(missing[0])
        raise DataError(
            f"{records.place(row)}: the document {quoted(wanted[row].as_py())} is not in the index "
            f"({index.source}); {len(missing):,} of {len(wanted):,} pairs lack theirs. An index "
            "must hold every relevant document, with the same text."
        )
    return targets


def _notes(records: Records, index: Records | None) -> tuple[str, ...]:
    if index is None:
        return records.notes
    return (*records.notes, *(f"index: {note}" for note in index.notes))


def _own_by_id(queries: Side, documents: Side) -> Numbers:
    own = np.full(len(queries.texts), -1)
    for ident, query in queries.own_ids.items():
        if own[query] < 0:
            own[query] = documents.own_ids.get(ident, -1)
    return own
