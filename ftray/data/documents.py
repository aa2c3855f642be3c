"""docarray documents in and out: schemas of our own, and anybody's with telling field names.

Importing this module imports docarray, and so torch (2.7 s); the readers do it only for a DocList.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from docarray import BaseDoc, DocList, DocVec
from docarray.typing import NdArray

from ftray.data.cleaning import guessed_kind, scores_as_numbers, stripped
from ftray.data.columns import Kind, Layout, resolve
from ftray.data.loading import Loaded, load_rows
from ftray.errors import DataError
from ftray.words import counted

if TYPE_CHECKING:
    from ftray.data.readers import Records

__all__ = [
    "LabelledText",
    "ScoredPair",
    "TextItem",
    "TextPair",
    "doclist_to_table",
    "load_documents",
    "records_to_doclist",
    "with_embeddings",
]


LABEL, SCORE = "finetuner_label", "finetuner_score"
TAGS = {LABEL: "label"}
"""Finetuner's tags, and the names of ours."""

RANDOM_ID = re.compile(r"[0-9a-f]{32}")
"""Ids that docarray draws; a DocVec does not tell whether an id was given."""

NESTED = ("chunks", "matches", "tags", "scores", "tensor", "blob", "embedding")
"""Fields of docarray's own documents that are no columns, unless they hold a text or a number."""


class LabelledText(BaseDoc):  # type: ignore[misc]
    """A text and its label."""

    text: str
    label: str


class TextPair(BaseDoc):  # type: ignore[misc]
    """A query and a document that is relevant to it."""

    query: str
    document: str


class ScoredPair(BaseDoc):  # type: ignore[misc]
    """Two texts and how alike they are."""

    query: str
    document: str
    score: float


class TextItem(BaseDoc):  # type: ignore[misc]
    """A text, and its embedding once it was encoded."""

    text: str
    embedding: NdArray | None = None


def doclist_to_table(docs: Any) -> tuple[Kind, pa.Table]:
    """Documents to a table with our column names.

    The fields' names tell their roles, as a table's columns do (`columns.TELLING`); `TextDoc` has
    `text`. What a dict field `tags` holds counts as fields too, `finetuner_label` as the label; a
    text with `matches` is a query, and its matches are relevant to it, unless they are tagged
    `finetuner_label` -1; two `chunks` with the tag `finetuner_score` are a scored pair: so
    Finetuner's documents are read, as `docarray.documents.legacy.LegacyDocument` holds them now.
    The documents' own ids become the column `id` if every document was given one; ids that
    docarray drew at random are left away, for they differ from run to run.

    Args:
        docs: a DocList or DocVec, of our classes, `docarray.documents.TextDoc` or a user's own.

    Returns:
        The kind of records, and string columns: item and label, query and document (and score, of
        float64), or item; with id where there is one.

    Raises:
        DataError: fields that tell no role, or a value that is not a text.
    """
    source = f"a DocList of {counted(len(docs), 'document')}"
    loaded = load_documents(docs, partial(resolve, source=source), source=source)
    table = stripped(loaded.table)
    kind = loaded.layout.kind
    if kind is None:
        kind, table, _ = guessed_kind(table, loaded.layout)
    elif kind == "scored":
        table = scores_as_numbers(table, loaded.layout, lambda row: f"{source}, index {row}")
    return kind, table


def load_documents(
    docs: Any,
    choose: Callable[[Sequence[str]], Layout],
    *,
    source: str,
    size: int | None = None,
) -> Loaded:
    """Documents for `read_records`: rows not yet cleaned, and a kind that may be undecided."""
    if not len(docs):
        raise DataError(f"{source} has no rows.")
    stacked = isinstance(docs, DocVec)
    docs = list(docs)  # DocVec.to_doc_list would empty the user's
    fields = [name for name in type(docs[0]).model_fields if _is_plain(docs[0], name)]
    given = all("id" in doc.model_fields_set for doc in docs)
    if given and not (stacked and all(RANDOM_ID.fullmatch(doc.id) for doc in docs)):
        fields.insert(0, "id")
    rows, notes = _rows(docs, fields), []
    if _inner(docs[0], "matches"):
        rows, notes = _matched(docs, fields), _left_out(docs)
    elif len(_inner(docs[0], "chunks")) == 2 and SCORE in _tags(docs[0]):
        rows = _chunked(docs, source)
    loaded = load_rows(rows, choose, source=source, unit="index", size=size)
    return replace(loaded, notes=(*loaded.notes, *notes))


def _is_plain(doc: Any, name: str) -> bool:
    """Whether a field can be a column; the id is asked for separately."""
    value = getattr(doc, name, None)
    return name != "id" and (name not in NESTED or isinstance(value, str | int | float))


def _rows(docs: Any, fields: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for index, doc in enumerate(docs):
        tags = {TAGS.get(name, name): value for name, value in _tags(doc).items()}
        yield index, tags | {name: getattr(doc, name) for name in fields if hasattr(doc, name)}


def _matched(docs: Any, fields: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """A query and each document that is relevant to it."""
    for index, doc in enumerate(docs):
        ident = {"id": doc.id} if "id" in fields else {}
        for match in filter(_is_relevant, _inner(doc, "matches")):
            yield index, {**ident, "query": doc.text, "document": match.text}


def _chunked(docs: Any, source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Two texts and their score."""
    for index, doc in enumerate(docs):
        chunks, tags = _inner(doc, "chunks"), _tags(doc)
        if len(chunks) != 2 or SCORE not in tags:
            raise DataError(
                f"{source}, index {index}: two chunks and the tag {SCORE} are expected, as the "
                "first document has."
            )
        first, second = (chunk.text for chunk in chunks)
        yield index, {"query": first, "document": second, "score": tags[SCORE]}


def _left_out(docs: Any) -> list[str]:
    counts = [list(map(_is_relevant, _inner(doc, "matches"))) for doc in docs]
    alone = sum(not any(relevant) for relevant in counts)
    against = sum(relevant.count(False) for relevant in counts)
    notes = [f"documents without a relevant match, left out: {alone:,}"] if alone else []
    return notes + ([f"matches tagged -1, left out: {against:,}"] if against else [])


def _inner(doc: Any, name: str) -> Sequence[Any]:
    """The documents inside a document; none where there is no such field."""
    return getattr(doc, name, None) or ()


def _tags(doc: Any) -> Mapping[str, Any]:
    tags = getattr(doc, "tags", None)
    return tags if isinstance(tags, Mapping) else {}


def _is_relevant(match: Any) -> bool:
    try:
        return int(_tags(match).get(LABEL, 1)) > 0
    except (TypeError, ValueError):
        return True  # a class, not a judgement


def records_to_doclist(records: Records) -> Any:
    """Records as a DocList of our classes above, with their ids if any."""
    classes: dict[Kind, type[BaseDoc]] = {
        "labelled": LabelledText,
        "pairs": TextPair,
        "scored": ScoredPair,
        "items": TextItem,
    }
    cls = classes[records.kind]
    rows = records.table.rename_columns(
        ["text" if name == "item" else name for name in records.table.column_names]
    )
    docs = [cls(**row) for batch in rows.to_batches() for row in batch.to_pylist()]
    return DocList[cls](docs)


def with_embeddings(docs: Any, texts: Sequence[str], vectors: npt.NDArray[np.float32]) -> Any:
    """Copies of the documents with `.embedding` set, in the order given.

    Documents whose schema has no `embedding` become `TextItem`s.

    Args:
        docs: a DocList of N documents.
        texts: their texts, `(N,)`.
        vectors: their embeddings, `(N, D)`.
    """
    schema = docs.doc_type
    if "embedding" not in schema.model_fields:
        items = [
            TextItem(id=doc.id, text=text, embedding=vector)
            for doc, text, vector in zip(docs, texts, vectors, strict=True)
        ]
        return DocList[TextItem](items)
    copies = [doc.model_copy() for doc in docs]
    for copy, vector in zip(copies, vectors, strict=True):
        copy.embedding = vector
    return type(docs)(copies)
