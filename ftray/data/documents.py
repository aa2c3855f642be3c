"""docarray documents in and out: schemas of our own, and anybody's with telling field names.

Importing this module imports docarray, and so torch (2.7 s); the readers do it only for a DocList.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
    `text`. The documents' own ids become the column `id` if every document was given one; ids that
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
    if isinstance(docs, DocVec):
        docs = docs.to_doc_list()
    fields = [name for name in type(docs[0]).model_fields if name != "id"]
    if all("id" in doc.model_fields_set for doc in docs):
        fields.insert(0, "id")
    return load_rows(_rows(docs, fields), choose, source=source, unit="index", size=size)


def _rows(docs: Any, fields: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for index, doc in enumerate(docs):
        yield index, {name: getattr(doc, name) for name in fields if hasattr(doc, name)}


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
