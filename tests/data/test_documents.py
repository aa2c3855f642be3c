"""docarray documents in and out."""

from __future__ import annotations

import pytest
from docarray import BaseDoc, DocList, DocVec
from docarray.documents import TextDoc

from ftray.data.documents import (
    LabelledText,
    TextItem,
    TextPair,
    doclist_to_table,
    records_to_doclist,
)
from ftray.data.readers import read_records
from ftray.errors import DataError


class Ticket(BaseDoc):
    utterance: str
    intent: int | None
    channel: str = "mail"


class Foreign(BaseDoc):
    foo: str
    bar: str


@pytest.mark.parametrize(
    "docs",
    [
        DocList[LabelledText]([LabelledText(text="a b", label="x")]),
        DocList[TextPair]([TextPair(query="a", document="b")]),
        DocList[TextItem]([TextItem(text="a")]),
    ],
)
def test_our_documents_survive_the_way_to_records_and_back(docs: DocList) -> None:
    back = records_to_doclist(read_records(docs))
    assert type(back) is type(docs)
    assert [doc.model_dump(exclude={"id"}) for doc in back] == [
        doc.model_dump(exclude={"id"}) for doc in docs
    ]


def test_own_classes_are_read_by_their_field_names() -> None:
    docs = DocList[Ticket]([Ticket(utterance="where is it ", intent=3)])
    kind, table = doclist_to_table(docs)
    assert (kind, table.to_pylist()) == ("labelled", [{"item": "where is it", "label": "3"}])


def test_text_docs_are_items_also_without_a_declared_type() -> None:
    for docs in (DocList[TextDoc]([TextDoc(text="a")]), DocList([TextDoc(text="a")])):
        kind, table = doclist_to_table(docs)
        assert (kind, table.to_pylist()) == ("items", [{"item": "a"}])


def test_stacked_documents_are_read() -> None:
    docs = DocVec[LabelledText]([LabelledText(text="a", label="x")])
    assert read_records(docs).kind == "labelled"


def test_given_ids_are_kept_and_random_ones_are_not() -> None:
    given = DocList[TextItem]([TextItem(id="d1", text="a"), TextItem(id="d2", text="b")])
    records = read_records(given)
    assert records.table["id"].to_pylist() == ["d1", "d2"]
    assert [doc.id for doc in records_to_doclist(records)] == ["d1", "d2"]
    random = DocList[TextItem]([TextItem(text="a"), TextItem(text="b")])
    assert read_records(random).table.column_names == ["item"]
    mixed = DocList[TextItem]([TextItem(id="d1", text="a"), TextItem(text="b")])
    assert read_records(mixed).table.column_names == ["item"]


def test_size_and_fingerprint_are_those_of_other_sources() -> None:
    docs = DocList[TextItem]([TextItem(text=f"text {i}") for i in range(10)])
    options = {"size": 3}
    texts = [f"text {i}" for i in range(3)]
    assert read_records(docs, csv_options=options).fingerprint == read_records(texts).fingerprint


def test_columns_map_the_fields_of_foreign_classes() -> None:
    docs = DocList[Foreign]([Foreign(foo="a", bar="b")])
    records = read_records(docs, columns={"query": "bar", "document": "foo"})
    assert records.table.to_pylist() == [{"query": "b", "document": "a"}]


def test_mistakes_are_placed() -> None:
    docs = DocList[Ticket]([Ticket(utterance="a", intent=1), Ticket(utterance="b", intent=None)])
    with pytest.raises(DataError, match=r"a DocList of 2 documents, index 1: the label is empty"):
        read_records(docs)
    with pytest.raises(DataError, match=r"a DocList of 0 documents has no rows"):
        read_records(DocList[TextItem]())
    with pytest.raises(DataError, match=r"no column 'txt' for item. Did you mean 'text'"):
        read_records(DocList[TextItem]([TextItem(text="a")]), columns={"item": "txt"})
