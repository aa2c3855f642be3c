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
from docarray.documents import TextDoc
from docarray.documents.legacy import LegacyDocument
from docarray.documents.mesh import VerticesAndFaces
from docarray.documents.point_cloud import PointsAndColors
from docarray.typing import NdArray

from ftray.config import CsvOptions
from ftray.data.cleaning import guessed_kind, scores_as_numbers, stripped
from ftray.data.columns import Kind, Layout, resolve, role_of, roles_like
from ftray.data.loading import Loaded, load_rows
from ftray.data.teacher import teacher_scores
from ftray.data.values import TEXTS, Values, is_thing, typed_address
from ftray.errors import DataError
from ftray.words import counted

if TYPE_CHECKING:
    from ftray.data.readers import Records

__all__ = [
    "LabelledText",
    "ScoredPair",
    "TextDistillation",
    "TextItem",
    "TextNegatives",
    "TextPair",
    "TextTriplet",
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

NESTED = ("chunks", "matches", "tags", "scores", "embedding")
"""Fields of docarray's own documents that are no columns, unless they hold a text or a number."""

CONTENT = ("text", "bytes_", "blob", "tensor", "tensors", "url", "uri")
"""Fields that hold what a document is, in one form or another; the first that is set counts."""


class LabelledText(BaseDoc):  # type: ignore[misc]
    """A text and its label."""

    text: str
    label: str


class TextPair(BaseDoc):  # type: ignore[misc]
    """A query and a document that is relevant to it."""

    query: str
    document: str


class TextTriplet(BaseDoc):  # type: ignore[misc]
    """A query, a document that is relevant to it, and one that is not."""

    query: str
    document: str
    negative: str


class TextNegatives(BaseDoc):  # type: ignore[misc]
    """A query, a document that is relevant to it, and several that are not."""

    query: str
    document: str
    negatives: list[str]


class TextDistillation(BaseDoc):  # type: ignore[misc]
    """The same, with a teacher's score of the document and of each negative."""

    query: str
    document: str
    negatives: list[str]
    score: list[float]


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

    The fields' names tell their roles, as a table's columns do (`names.TELLING`); `TextDoc` has
    `text`. What a dict field `tags` holds counts as fields too, `finetuner_label` as the label; a
    text with `matches` is a query, and its matches are relevant to it, unless they are tagged
    `finetuner_label` -1; two `chunks` with the tag `finetuner_score` are a scored pair, and beside
    a text of the document's own its relevant and its negative document, with their margin: so
    Finetuner's documents are read, as `docarray.documents.legacy.LegacyDocument` holds them now.
    The documents' own ids become the column `id` if every document was given one; ids that
    docarray drew at random are left away, for they differ from run to run.

    Args:
        docs: a DocList or DocVec, of our classes, `docarray.documents.TextDoc` or a user's own.

    Returns:
        The kind of records, and string columns: item and label, query and document (with
        negatives, and with scores of float64), or item; with id where there is one.

    Raises:
        DataError: fields that tell no role, or a value that is not a text.
    """
    source = f"a DocList of {counted(len(docs), 'document')}"
    values = Values(TEXTS, CsvOptions())
    loaded = load_documents(docs, partial(resolve, source=source), source=source, values=values)
    table = stripped(loaded.table)
    kind = loaded.layout.kind
    if kind is None:
        kind, table, _ = guessed_kind(table, loaded.layout)
    elif kind in ("scored", "distillation"):
        table = scores_as_numbers(table, loaded.layout, lambda row: f"{source}, index {row}")
    if kind == "distillation":
        table = teacher_scores(table, loaded.layout, source)
    return kind, table


def load_documents(
    docs: Any,
    choose: Callable[[Sequence[str]], Layout],
    *,
    source: str,
    values: Values,
    size: int | None = None,
) -> Loaded:
    """Documents for `read_records`: rows not yet cleaned, and a kind that may be undecided.

    A document inside a document stands for what it holds: its text, bytes, tensor or address. Two
    `chunks` without a score, a text and an image, are a pair, as Finetuner has them for CLIP.
    """
    if not len(docs):
        raise DataError(f"{source} has no rows.")
    stacked = isinstance(docs, DocVec)
    docs = list(docs)  # DocVec.to_doc_list would empty the user's
    fields = _fields(docs[0])
    given = all("id" in doc.model_fields_set for doc in docs)
    if given and not (stacked and all(RANDOM_ID.fullmatch(doc.id) for doc in docs)):
        fields.insert(0, "id")
    rows, notes = _rows(docs, fields), []
    if _inner(docs[0], "matches"):
        rows, notes = _matched(docs, fields), _left_out(docs)
    elif len(_inner(docs[0], "chunks")) == 2 and not docs[0].text:
        rows = _chunked(docs, source, scored=SCORE in _tags(docs[0]))
    elif len(_inner(docs[0], "chunks")) == 2 and SCORE in _tags(docs[0]):
        rows = _synthesised(docs, source)
    loaded = load_rows(rows, choose, source=source, unit="index", values=values, size=size)
    return replace(loaded, notes=(*loaded.notes, *notes))


def holds_things(docs: Any) -> bool:
    """Whether a field of the first document is an image or another thing by its type."""
    for doc in list(docs)[:1]:
        fields = [name for name in type(doc).model_fields if name != "embedding"]
        held = [content(getattr(doc, name)) for name in fields]
        return any(is_thing(value) or typed_address(value) for value in held)
    return False


def _fields(doc: Any) -> list[str]:
    """The fields that are columns; the id is asked for separately.

    Of the fields that hold a document's content in several forms, as an image's address and its
    pixels, there is one; a text and an image in one document are two things.
    """
    names = [name for name in type(doc).model_fields if _is_plain(doc, name)]
    held = [name for name in CONTENT if name in names and _is_set(getattr(doc, name))]
    own = "text" if isinstance(doc, TextDoc | LegacyDocument) else None
    if own in held:
        held = [own]
    forms = [name for name in held if name != "text"]
    dropped = {name for name in CONTENT[1:] if name not in forms[:1]}
    if "text" not in held and forms:
        dropped.add("text")
    return [name for name in names if name not in dropped]


def _is_plain(doc: Any, name: str) -> bool:
    value = getattr(doc, name, None)
    return name != "id" and (name not in NESTED or isinstance(value, str | int | float))


def _is_set(value: Any) -> bool:
    return value is not None and not (isinstance(value, str | bytes) and not value)


def content(value: Any) -> Any:
    """What a document stands for: its bytes, tensor, address or text; other values as they are."""
    if isinstance(value, list | tuple | DocList) and len(value) and isinstance(value[0], BaseDoc):
        return [content(one) for one in value]
    if not isinstance(value, BaseDoc):
        return value
    if isinstance(value, VerticesAndFaces):
        return _off(value)
    if isinstance(value, PointsAndColors):
        return value.points
    for name in CONTENT:
        inner = getattr(value, name, None)
        if _is_set(inner):
            return content(inner)
    return None


def _off(mesh: VerticesAndFaces) -> bytes:
    """A mesh as an .off file."""
    vertices = np.asarray(mesh.vertices, np.float64).tolist()
    faces = np.asarray(mesh.faces, np.int64).tolist()
    lines = ["OFF", f"{len(vertices)} {len(faces)} 0"]
    lines += [" ".join(map(repr, vertex)) for vertex in vertices]
    lines += [" ".join(map(str, (len(face), *face))) for face in faces]
    return "\n".join(lines).encode()


def _rows(docs: Any, fields: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for index, doc in enumerate(docs):
        tags = {TAGS.get(name, name): value for name, value in _tags(doc).items()}
        held = {name: content(getattr(doc, name)) for name in fields if hasattr(doc, name)}
        yield index, tags | held


def _matched(docs: Any, fields: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """A query and each document that is relevant to it."""
    for index, doc in enumerate(docs):
        ident = {"id": doc.id} if "id" in fields else {}
        for match in filter(_is_relevant, _inner(doc, "matches")):
            yield index, {**ident, "query": content(doc), "document": content(match)}


def _chunked(docs: Any, source: str, *, scored: bool) -> Iterator[tuple[int, dict[str, Any]]]:
    """Two things and their score; or a text and what it describes, whichever stands first."""
    for index, doc in enumerate(docs):
        chunks, tags = _inner(doc, "chunks"), _tags(doc)
        if len(chunks) != 2 or (SCORE in tags) != scored:
            expected = f"two chunks and {'the' if scored else 'no'} tag {SCORE} are expected"
            raise DataError(f"{source}, index {index}: {expected}, as the first document has.")
        first, second = map(content, chunks)
        if scored:
            yield index, {"query": first, "document": second, "score": tags[SCORE]}
        elif chunks[1].text and not chunks[0].text:
            yield index, {"query": second, "document": first}
        else:
            yield index, {"query": first, "document": second}


def _synthesised(docs: Any, source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """A query with a document, a negative and the margin between them, as Finetuner makes them."""
    for index, doc in enumerate(docs):
        chunks, tags = _inner(doc, "chunks"), _tags(doc)
        if len(chunks) != 2 or SCORE not in tags:
            raise DataError(
                f"{source}, index {index}: two chunks and the tag {SCORE} are expected, as the "
                "first document has."
            )
        document, negative = map(content, chunks)
        yield (
            index,
            {
                "query": doc.text,
                "document": document,
                "negative": negative,
                "score": tags[SCORE],
            },
        )


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
        "triplets": TextTriplet,
        "distillation": TextDistillation,
        "scored": ScoredPair,
        "items": TextItem,
    }
    cls = classes[records.kind]
    names = records.table.column_names
    if records.kind == "triplets" and len(roles_like(names, "negative")) > 1:
        cls = TextNegatives
    batches = (batch.to_pylist() for batch in records.table.to_batches())
    docs = [cls(**_fields_of(row, cls)) for rows in batches for row in rows]
    return DocList[cls](docs)


def _fields_of(row: Mapping[str, Any], cls: type[BaseDoc]) -> dict[str, Any]:
    """A row as the fields of a document; numbered columns are a list."""
    fields: dict[str, Any] = {}
    for name, value in row.items():
        role = role_of(name)
        field = "text" if role == "item" else role
        if role == "negative" and "negatives" in cls.model_fields:
            fields.setdefault("negatives", []).append(value)
        elif role == "score" and cls is TextDistillation:
            fields.setdefault("score", []).append(value)
        else:
            fields[field] = value
    return fields


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
