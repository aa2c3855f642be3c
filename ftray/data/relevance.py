"""Relevance between queries and documents in its normal form.

Queries of equal label look for the same documents: these lists are kept once, by group.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ftray.data.cleaning import fingerprint
from ftray.media import NO_BLOBS, Blobs

__all__ = ["Relevance", "RetrievalSet", "Side", "assembled", "grouped", "lists_of", "sampled"]
__all__ += ["shared", "starts_of"]

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
        blobs: contents of things among the texts that are none and lie in no file; see
            `ftray.media`.
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
    blobs: Blobs = NO_BLOBS

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


def sampled(data: RetrievalSet, size: int) -> RetrievalSet:
    """The set with `size` of its queries, drawn by the data itself; the documents stay.

    The same data gives the same queries, always and everywhere, in the data's order. If there are
    no more than `size`, all stay.
    """
    count = len(data.query_ids)
    if size >= count:
        return data
    seed = int(data.fingerprint, 16)
    rows = np.sort(np.random.default_rng(seed).choice(count, size, replace=False))
    digest = hashlib.sha256(data.fingerprint.encode() + rows.tobytes())
    return replace(
        data,
        query_texts=data.query_texts.take(pa.array(rows)),
        query_ids=[data.query_ids[row] for row in rows],
        groups=data.groups[rows],
        own_document=data.own_document[rows],
        notes=(*data.notes, f"{size:,} of {count:,} queries sampled"),
        fingerprint=digest.hexdigest()[:16],
    )


@dataclass(frozen=True, kw_only=True)
class Side:
    """The distinct texts of one column, and the position of each row's text among them.

    `stable` is what stands for references to files in the fingerprint, see `Records`.
    """

    texts: pa.Array
    ids: list[str]
    rows: Numbers
    own_ids: dict[str, int]  # every id of the source to its text; empty where it has none
    notes: tuple[str, ...] = ()
    blobs: Blobs = NO_BLOBS
    stable: Mapping[str, str] = field(default_factory=dict)

    @property
    def stable_texts(self) -> pa.ChunkedArray:
        """The texts for the fingerprint, `(n,)`."""
        if not self.stable:
            return pa.chunked_array([self.texts])
        cells = [self.stable.get(cell, cell) for cell in self.texts.to_pylist()]
        return pa.chunked_array([pa.array(cells, self.texts.type)])


@dataclass(frozen=True, kw_only=True)
class Relevance:
    """As in `RetrievalSet`: the group of each query, and the documents of each group."""

    groups: Numbers
    starts: Numbers
    documents: Numbers
    grades: npt.NDArray[np.float32] | None = None  # None = 1 throughout


def lists_of(owners: Numbers, members: Numbers, count: int) -> list[Numbers]:
    """The distinct members of each owner, ascending."""
    width = int(members.max()) + 1
    pairs = np.unique(owners * width + members)
    return np.split(pairs % width, starts_of(pairs // width, count)[1:-1])


def starts_of(owners: Numbers, count: int) -> Numbers:
    """Where each owner's members begin, once they are in order of owners; and the end."""
    return np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=count))])


def shared(lists: Sequence[Numbers]) -> tuple[Numbers, list[Numbers]]:
    """The number of each list among the distinct lists, and these in order of appearance."""
    number: dict[bytes, int] = {}
    groups = np.array([number.setdefault(one.tobytes(), len(number)) for one in lists])
    _, firsts = np.unique(groups, return_index=True)
    return groups, [lists[i] for i in firsts]


def grouped(groups: Numbers, members: Sequence[Numbers]) -> Relevance:
    """Relevance from the group of each query and the documents of each group."""
    starts = np.concatenate([[0], np.cumsum([len(one) for one in members])])
    return Relevance(groups=groups, starts=starts, documents=np.concatenate(members))


def assembled(
    queries: Side,
    documents: Side,
    relevance: Relevance,
    own: Numbers,
    notes: tuple[str, ...],
    *,
    symmetric: bool = False,
) -> RetrievalSet:
    """The set, with what a user should know of it and a fingerprint of all of it."""
    grades = relevance.grades
    if grades is None:
        grades = np.ones(len(relevance.documents), np.float32)
    arrays = (relevance.groups, relevance.starts, relevance.documents, grades, own)
    digest = hashlib.sha256()
    for side in (queries, documents):
        table = pa.table({"text": side.stable_texts, "id": pa.array(side.ids, pa.string())})
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
        blobs=queries.blobs if same else queries.blobs.joined(documents.blobs),
    )


def _what_to_know(queries: Side, documents: Side, relevance: Relevance, own: Numbers) -> list[str]:
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
