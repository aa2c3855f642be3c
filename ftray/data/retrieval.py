"""What is to be found by whom: queries, documents, and which are relevant to which.

Relevance is exactly what the data states, without any transitive closure: documents of the same
label, the documents paired with the query, or the judgements of a BEIR folder.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ftray.data.beir import read_corpus, read_folder
from ftray.data.cleaning import fingerprint, quoted
from ftray.data.readers import CsvOptions, Records, read_records
from ftray.errors import DataError

__all__ = ["RetrievalSet", "is_folder", "is_same", "read_beir", "retrieval_set"]

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class RetrievalSet:
    """Queries `(Q,)`, documents `(N,)`, and relevance between them in `G` groups.

    Args:
        query_texts: distinct texts, a `large_string` array `(Q,)`; so are `document_texts` `(N,)`.
        query_ids: ids of the queries: their own, else the position as text; so `document_ids`.
        groups: the group of each query, `(Q,)`; queries of one group share their relevant
            documents.
        group_starts: where each group begins in the two arrays below, `(G + 1,)`.
        group_documents: positions of the relevant documents, sorted within each group. A query's
            own document is among them if it is relevant; whoever excludes it, excludes it here.
        group_grades: their grades: 1, or what the judgements say, always above 0.
        own_document: the position of each query's own document, -1 where there is none, `(Q,)`.
        symmetric: whether queries and documents are the same kind of text (labelled data), so
            that no prompt tells them apart.
        notes: what a user should know.
        fingerprint: 16 hex digits over texts, ids and relevance.
    """

    query_texts: pa.Array
    query_ids: list[str]
    document_texts: pa.Array
    document_ids: list[str]
    groups: Numbers
    group_starts: Numbers
    group_documents: Numbers
    group_grades: npt.NDArray[np.float32]
    own_document: Numbers
    symmetric: bool
    notes: tuple[str, ...]
    fingerprint: str

    def relevant(self, query: int) -> tuple[Numbers, npt.NDArray[np.float32]]:
        """Positions of the documents relevant to a query, ascending, and their grades."""
        group = self.groups[query]
        rows = slice(self.group_starts[group], self.group_starts[group + 1])
        return self.group_documents[rows], self.group_grades[rows]

    def findable(self, *, exclude_self: bool) -> int:
        """How many queries have a relevant document; with `exclude_self`, besides their own."""
        counts = np.diff(self.group_starts)[self.groups]
        if exclude_self:
            some = counts > 0
            first = self.group_documents[self.group_starts[self.groups[some]]]
            counts[some] -= (counts[some] == 1) & (first == self.own_document[some])
        return int((counts > 0).sum())


@dataclass(frozen=True, kw_only=True)
class _Side:
    """The distinct texts of one column, and the position of each row's text among them."""

    texts: pa.Array
    ids: list[str]
    rows: Numbers
    own_ids: dict[str, int]  # every id of the source to its text; empty where it has none
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Relevance:
    groups: Numbers
    starts: Numbers
    documents: Numbers
    grades: npt.NDArray[np.float32] | None = None  # None = 1 throughout


def retrieval_set(
    query_data: Any,
    index_data: Any = None,
    *,
    columns: Mapping[str, str] | None = None,
    index_columns: Mapping[str, str] | None = None,
    csv_options: CsvOptions | Mapping[str, Any] | None = None,
) -> RetrievalSet:
    """Find out from data what is to be found by whom.

    The same text twice is one query, or one document; a text under two labels is relevant to both.

    - Labelled queries look for documents of the same label: in a labelled index, or, without one,
      among themselves; `own_document` is then the query itself.
    - Pairs look for the documents they are paired with: in an index of texts (of labelled texts or
      pairs: their texts or documents), or, without one, among the documents of all pairs.
    - A BEIR folder brings its own index and judgements (`read_beir`).

    Across different sources, `own_document` is set only by ids of their own.

    Args:
        query_data: anything that `read_records` reads, or records.
        index_data: the same, or a BEIR folder, whose corpus is taken. The same object or path as
            `query_data` is the same data set, as if it were left away.
        columns: roles to columns of the query data, and of a labelled index.
        index_columns: roles to columns of the index, instead.
        csv_options: how to read both; the index whole, without `size` and `sampling_rate`.

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
    queries = read_records(query_data, columns=columns, csv_options=csv_options, where="query_data")
    if queries.kind == "items":
        raise DataError(
            f"query_data: {queries.source} holds texts alone, which do not say what is relevant. "
            "Valid: texts with labels, pairs of query and document, or a BEIR folder."
        )
    labelled = queries.kind == "labelled"
    names = index_columns or (columns if labelled else None)
    index = None if alone else _read_index(index_data, names, csv_options)
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
    relevance = _Relevance(
        groups=np.arange(count),
        starts=_starts(queries, count),
        documents=documents[order],
        grades=read.grades[relevant][order],
    )
    sides = [
        _Side(
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
    return _assembled(sides[0], sides[1], relevance, _own_by_id(*sides), read.notes)


def is_folder(data: Any) -> bool:
    """Whether data is given as a folder."""
    return isinstance(data, str | os.PathLike) and Path(data).is_dir()


def is_same(query_data: Any, index_data: Any) -> bool:
    """Whether both are one object, or paths of one file."""
    paths = [data for data in (query_data, index_data) if isinstance(data, str | os.PathLike)]
    if len(paths) == 2:
        return Path(paths[0]).resolve() == Path(paths[1]).resolve()
    return query_data is index_data


def _read_index(data: Any, columns: Mapping[str, str] | None, csv_options: Any) -> Records:
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
    return read_records(data, columns=columns, csv_options=options, where="index_data")


def _side(records: Records, column: str) -> _Side:
    encoded = records.table[column].cast(pa.large_string()).combine_chunks().dictionary_encode()
    texts = encoded.dictionary
    rows = encoded.indices.to_numpy().astype(np.int64)
    numbered = [str(i) for i in range(len(texts))]
    if "id" not in records.table.column_names or column == "document":
        return _Side(texts=texts, ids=numbered, rows=rows, own_ids={})
    given = records.table["id"].to_pylist()
    own_ids: dict[str, int] = {}
    first_row: dict[str, int] = {}
    for row, (ident, text) in enumerate(zip(given, rows.tolist(), strict=True)):
        first_row.setdefault(ident, row)
        if own_ids.setdefault(ident, text) == text:
            continue
        if records.kind == "pairs":
            note = f"the ids of {records.source} are not those of its queries, and not used"
            return _Side(texts=texts, ids=numbered, rows=rows, own_ids={}, notes=(note,))
        raise DataError(
            f"{records.place(row)}: the id '{ident}' stands for another text at "
            f"{records.place(first_row[ident])}."
        )
    _, firsts = np.unique(rows, return_index=True)
    return _Side(texts=texts, ids=[given[row] for row in firsts], rows=rows, own_ids=own_ids)


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
    of_label = _lists(document_labels, documents.rows, len(names))
    groups, label_sets = _shared(_lists(queries.rows, query_labels, len(queries.texts)))
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
    relevance = _relevance(groups, members)
    return _assembled(queries, documents, relevance, own, notes, symmetric=True)


def _pairs(records: Records, index: Records | None) -> RetrievalSet:
    queries = _side(records, "query")
    if index is None:
        documents = _side(records, "document")
        targets = documents.rows
        own = np.full(len(queries.texts), -1)
    else:
        documents = _side(index, "item" if "item" in index.table.column_names else "document")
        targets = _targets(records, index, documents)
        own = _own_by_id(queries, documents)
    groups, members = _shared(_lists(queries.rows, targets, len(queries.texts)))
    notes = _notes(records, index)
    return _assembled(queries, documents, _relevance(groups, members), own, notes)


def _targets(records: Records, index: Records, documents: _Side) -> Numbers:
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


def _own_by_id(queries: _Side, documents: _Side) -> Numbers:
    own = np.full(len(queries.texts), -1)
    for ident, query in queries.own_ids.items():
        if own[query] < 0:
            own[query] = documents.own_ids.get(ident, -1)
    return own


def _lists(owners: Numbers, members: Numbers, count: int) -> list[Numbers]:
    """The distinct members of each owner, ascending."""
    width = int(members.max()) + 1
    pairs = np.unique(owners * width + members)
    return np.split(pairs % width, _starts(pairs // width, count)[1:-1])


def _starts(owners: Numbers, count: int) -> Numbers:
    return np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=count))])


def _shared(lists: Sequence[Numbers]) -> tuple[Numbers, list[Numbers]]:
    """The number of each list among the distinct lists, and these in order of appearance."""
    number: dict[bytes, int] = {}
    groups = np.array([number.setdefault(one.tobytes(), len(number)) for one in lists])
    _, firsts = np.unique(groups, return_index=True)
    return groups, [lists[i] for i in firsts]


def _relevance(groups: Numbers, members: Sequence[Numbers]) -> _Relevance:
    starts = np.concatenate([[0], np.cumsum([len(one) for one in members])])
    return _Relevance(groups=groups, starts=starts, documents=np.concatenate(members))


def _assembled(
    queries: _Side,
    documents: _Side,
    relevance: _Relevance,
    own: Numbers,
    notes: tuple[str, ...],
    *,
    symmetric: bool = False,
) -> RetrievalSet:
    grades = relevance.grades
    if grades is None:
        grades = np.ones(len(relevance.documents), np.float32)
    arrays = (relevance.groups, relevance.starts, relevance.documents, grades, own)
    digest = hashlib.sha256()
    for side in (queries, documents):
        texts = pa.chunked_array([side.texts])
        table = pa.table({"text": texts, "id": pa.array(side.ids, pa.string())})
        digest.update(fingerprint("items", table).encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    same = queries is documents
    return RetrievalSet(
        query_texts=queries.texts,
        query_ids=queries.ids,
        document_texts=documents.texts,
        document_ids=documents.ids,
        groups=relevance.groups,
        group_starts=relevance.starts,
        group_documents=relevance.documents,
        group_grades=grades,
        own_document=own,
        symmetric=symmetric,
        notes=(
            *notes,
            *queries.notes,
            *(() if same else documents.notes),
            *_what_to_know(queries, documents, relevance, own),
        ),
        fingerprint=digest.hexdigest()[:16],
    )


def _what_to_know(
    queries: _Side, documents: _Side, relevance: _Relevance, own: Numbers
) -> list[str]:
    """Counts, queries with nothing to find, and own documents that are known by their id."""
    notes = [f"queries: {len(queries.texts):,}, documents: {len(documents.texts):,}"]
    left = np.diff(relevance.starts)[relevance.groups]
    alone = int((left == 0).sum())
    if alone:
        notes.append(f"queries without a relevant document: {alone:,}")
    if queries is documents:
        single = int((left == 1).sum())
        if single:
            notes.append(f"queries without a relevant document besides themselves: {single:,}")
        return notes
    known = np.flatnonzero(own >= 0)
    if len(known):
        mine = queries.texts.take(pa.array(known)).to_pylist()
        theirs = documents.texts.take(pa.array(own[known])).to_pylist()
        differ = sum(a != b for a, b in zip(mine, theirs, strict=True))
        other = f", {differ:,} of them with another text" if differ else ""
        notes.append(
            f"queries with the id of a document: {len(known):,}{other}; exclude_self leaves that "
            "document out"
        )
    return notes
