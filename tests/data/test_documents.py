"""docarray documents in and out."""

from __future__ import annotations

from typing import Any

import pytest
from docarray import BaseDoc, DocList, DocVec
from docarray.documents import TextDoc
from docarray.documents.legacy import LegacyDocument

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


def test_reading_leaves_stacked_documents_as_they_are() -> None:
    docs = DocVec[LabelledText]([LabelledText(text="a", label="x")])
    first = read_records(docs)
    assert first.table.column_names == ["item", "label"], "ids drawn at random are none"
    assert read_records(docs).table == first.table and len(docs) == 1
    given = DocVec[LabelledText]([LabelledText(id="d1", text="a", label="x")])
    assert read_records(given).table["id"].to_pylist() == ["d1"]


def legacy(**fields: Any) -> LegacyDocument:
    return LegacyDocument(**fields)


def test_the_tags_of_finetuners_documents_are_fields() -> None:
    docs = DocList[LegacyDocument](
        [
            legacy(text="a", tags={"finetuner_label": 3}),
            legacy(text="b", tags={"finetuner_label": 4}),
        ]
    )
    records = read_records(docs)
    assert records.table.to_pylist() == [{"item": "a", "label": "3"}, {"item": "b", "label": "4"}]
    assert not any("matches" in note for note in records.notes)
    own = DocList[LegacyDocument]([legacy(text="a", tags={"topic": "x", "n": [1]})])
    mapped = read_records(own, columns={"item": "text", "label": "topic"})
    assert mapped.table.to_pylist() == [{"item": "a", "label": "x"}]
    with pytest.raises(DataError, match="index 1: there is no 'label', but the first record has"):
        read_records(DocList[LegacyDocument]([docs[0], legacy(text="b")]))


def test_matches_are_relevant_unless_they_are_tagged_otherwise() -> None:
    def matches(*tagged: tuple[str, Any]) -> DocList:
        return DocList[LegacyDocument](
            [
                legacy(text=t, tags={} if tag is None else {"finetuner_label": tag})
                for t, tag in tagged
            ]
        )

    docs = DocList[LegacyDocument](
        [
            legacy(id="q1", text="a", matches=matches(("m1", 1), ("m2", "-1"), ("m3", None))),
            legacy(id="q2", text="b", matches=matches(("m4", -1))),
            legacy(id="q3", text="c", matches=matches(("m1", "shoes"))),
        ]
    )
    records = read_records(docs)
    assert records.kind == "pairs"
    assert [tuple(row.values()) for row in records.table.to_pylist()] == [
        ("a", "m1", "q1"),
        ("a", "m3", "q1"),
        ("c", "m1", "q3"),
    ]
    assert "documents without a relevant match, left out: 1" in records.notes
    assert "matches tagged -1, left out: 2" in records.notes


def test_two_chunks_with_a_score_are_a_scored_pair() -> None:
    def chunks(*texts: str) -> DocList:
        return DocList[LegacyDocument]([legacy(text=text) for text in texts])

    docs = DocList[LegacyDocument](
        [
            legacy(chunks=chunks("a", "b"), tags={"finetuner_score": "0.5"}),
            legacy(chunks=chunks("c", "d"), tags={"finetuner_score": 1}),
        ]
    )
    records = read_records(docs)
    assert records.kind == "scored"
    assert records.table["score"].to_pylist() == [0.5, 1.0]
    docs[1].chunks = chunks("c")
    with pytest.raises(DataError, match="index 1: two chunks and the tag finetuner_score"):
        read_records(docs)


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
