"""What is to be found by whom: relevance is exactly what the data states."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from ftray.data.readers import read_records
from ftray.data.relevance import RetrievalSet
from ftray.data.retrieval import read_beir, retrieval_set
from ftray.errors import DataError

CORPUS = (
    '{"_id": "d1", "title": "Cards", "text": "arrive by mail"}\n'
    '{"_id": "d2", "title": "", "text": "Call us"}\n'
    '{"_id": "q3", "text": "Call us"}\n'
)
QUERIES = (
    '{"_id": "q1", "text": "when"}\n{"_id": "q2", "text": "idle"}\n{"_id": "q3", "text": "how"}\n'
)
QRELS = "query-id\tcorpus-id\tscore\nq3\tq3\t1\nq1\td2\t2\nq1\td1\t1\nq3\td1\t0\n"


def labelled(*rows: str) -> list[dict[str, str]]:
    """`text:label` or `text:label:id` as records."""
    names = ("text", "label", "id")
    return [dict(zip(names, row.split(":"), strict=False)) for row in rows]


def found(data: RetrievalSet) -> dict[str, dict[str, float]]:
    """Query text to relevant document texts and grades."""
    texts = data.document_texts.to_pylist()
    result = {}
    for query, text in enumerate(data.query_texts.to_pylist()):
        documents, grades = data.relevant(query)
        assert (np.diff(documents) > 0).all()
        result[text] = {texts[d]: float(g) for d, g in zip(documents, grades, strict=True)}
    return result


def beir(folder: Path, files: Mapping[str, str] | None = None) -> Path:
    contents = {"corpus.jsonl": CORPUS, "queries.jsonl": QUERIES, "qrels/test.tsv": QRELS}
    (folder / "qrels").mkdir(exist_ok=True)
    for name, content in (contents | dict(files or {})).items():
        (folder / name).write_text(content)
    return folder


# Labels


def test_labelled_queries_look_for_their_label_among_themselves() -> None:
    data = retrieval_set(labelled("a:x", "b:x", "c:y"))
    assert found(data) == {"a": {"a": 1, "b": 1}, "b": {"a": 1, "b": 1}, "c": {"c": 1}}
    assert data.own_document.tolist() == [0, 1, 2]
    assert data.groups.tolist() == [0, 0, 1] and len(data.group_starts) == 3
    assert "queries without a relevant document besides themselves: 1" in data.notes


def test_a_text_under_two_labels_is_relevant_to_both_without_closure() -> None:
    data = retrieval_set(labelled("a:x", "both:x", "both:y", "b:y"))
    assert found(data) == {
        "a": {"a": 1, "both": 1},
        "both": {"a": 1, "both": 1, "b": 1},
        "b": {"both": 1, "b": 1},
    }


def test_the_same_text_twice_is_one_query_and_one_document() -> None:
    data = retrieval_set(labelled("a:x", "b:y", "a:x", "c:x"))
    assert data.query_texts.to_pylist() == data.document_texts.to_pylist() == ["a", "b", "c"]
    assert data.query_ids == ["0", "1", "2"]


def test_labelled_index_is_searched_by_label() -> None:
    data = retrieval_set(labelled("a:x", "q:z"), labelled("a:x", "d:x", "e:y"))
    assert found(data) == {"a": {"a": 1, "d": 1}, "q": {}}
    assert data.own_document.tolist() == [-1, -1]
    assert "queries without a relevant document: 1" in data.notes


def test_own_document_needs_ids_of_their_own_on_both_sides() -> None:
    queries = labelled("a:x:7", "b:x:8")
    both = retrieval_set(queries, labelled("d:x:9", "a:x:7"))
    assert both.own_document.tolist() == [1, -1]
    assert both.query_ids == ["7", "8"] and both.document_ids == ["9", "7"]
    one_side = retrieval_set(queries, labelled("d:x", "a:x"))
    assert one_side.own_document.tolist() == [-1, -1]


def test_equal_ids_of_different_texts_are_said() -> None:
    data = retrieval_set(labelled("a:x:1"), labelled("other:x:1"))
    assert any("the id of a document: 1, 1 of them with another text" in n for n in data.notes)


def test_the_same_path_or_object_is_the_same_data_set(tmp_path: Path) -> None:
    path = tmp_path / "test.csv"
    path.write_text("text,label\na,x\nb,x\n")
    roundabout = tmp_path / "." / ".." / tmp_path.name / "test.csv"
    assert retrieval_set(path, str(roundabout)).own_document.tolist() == [0, 1]
    rows = labelled("a:x", "b:x")
    assert retrieval_set(rows, rows).own_document.tolist() == [0, 1]
    assert retrieval_set(rows, labelled("a:x", "b:x")).own_document.tolist() == [-1, -1]


def test_columns_name_the_query_data_and_a_labelled_index() -> None:
    queries = [{"satz": "a", "art": "x", "mehr": "-"}]
    index = [{"satz": "b", "art": "x", "mehr": "-"}]
    names = {"item": "satz", "label": "art"}
    assert found(retrieval_set(queries, index, columns=names)) == {"a": {"b": 1}}
    pairs = [{"frage": "q", "antwort": "d"}]
    data = retrieval_set(
        pairs,
        [{"stelle": "d", "seite": "1", "buch": "B"}],
        columns={"query": "frage", "document": "antwort"},
        index_columns={"item": "stelle"},
    )
    assert found(data) == {"q": {"d": 1}}


def test_an_index_is_read_whole() -> None:
    index = labelled("d:x", "e:x", "f:x")
    data = retrieval_set(labelled("a:x", "b:x"), index, csv_options={"size": 1})
    assert found(data) == {"a": {"d": 1, "e": 1, "f": 1}}


# Pairs


def test_pairs_look_for_exactly_their_documents() -> None:
    pairs = [("q1", "d1"), ("q1", "d2"), ("q2", "d2"), ("q2", "d2")]
    data = retrieval_set(pairs, csv_options={"is_labeled": False})
    assert found(data) == {"q1": {"d1": 1, "d2": 1}, "q2": {"d2": 1}}
    assert data.own_document.tolist() == [-1, -1]
    assert data.document_ids == ["0", "1"]


@pytest.mark.parametrize(
    "index",
    [
        ["d0", "d2", "d1"],
        [("x", "d0"), ("y", "d2"), ("z", "d1"), ("z", "d2")],
        [{"text": t, "label": label} for t, label in (("d0", "a"), ("d2", "b"), ("d1", "a"))],
    ],
)
def test_pairs_look_for_their_documents_in_any_index_of_texts(index: list[object]) -> None:
    data = retrieval_set([("q1", "d1"), ("q2", "d2")], index)
    assert data.document_texts.to_pylist() == ["d0", "d2", "d1"]
    assert found(data) == {"q1": {"d1": 1}, "q2": {"d2": 1}}


def test_pairs_with_ids_know_their_own_document() -> None:
    pairs = [{"id": "7", "query": "t", "document": "u"}]
    index = [{"id": "8", "text": "u"}, {"id": "7", "text": "t"}]
    assert retrieval_set(pairs, index).own_document.tolist() == [1]


def test_ids_that_are_not_those_of_the_queries_are_not_used() -> None:
    pairs = [
        {"id": "7", "query": "q1", "document": "d"},
        {"id": "7", "query": "q2", "document": "d"},
    ]
    data = retrieval_set(pairs)
    assert data.query_ids == ["0", "1"]
    assert any("are not those of its queries" in note for note in data.notes)


def test_a_document_that_the_index_lacks_is_named_with_its_row(tmp_path: Path) -> None:
    path = tmp_path / "test.csv"
    path.write_text("query,answer\nq1,d1\n\nq2,lost\nq3,gone\n")
    with pytest.raises(DataError) as caught:
        retrieval_set(path, ["d1"])
    assert f"{path}, line 4: the document 'lost' is not in the index" in str(caught.value)
    assert "2 of 3 pairs lack theirs" in str(caught.value)


# Errors


@pytest.mark.parametrize(
    ("queries", "index", "message"),
    [
        (["a", "b"], None, "holds texts alone, which do not say what is relevant"),
        (labelled("a:x"), ["a"], "holds items, but a list of 1 record has labels"),
        (labelled("a:x"), labelled("b:y"), "no label of a list of 1 record stands in"),
        (
            labelled("a:x:1", "b:x:1"),
            None,
            "index 1: the id '1' stands for another text at a list of 2 records, index 0.",
        ),
        (labelled("a:x"), 3, "index_data: a int cannot be read"),
        (3, None, "query_data: a int cannot be read"),
    ],
)
def test_what_cannot_be_judged_is_an_error(queries: object, index: object, message: str) -> None:
    with pytest.raises(DataError) as caught:
        retrieval_set(queries, index)
    assert message in str(caught.value)


# BEIR


def test_beir_folder_is_read_as_it_is(tmp_path: Path) -> None:
    data = retrieval_set(beir(tmp_path))
    assert data.query_ids == ["q1", "q3"]
    assert data.document_texts.to_pylist() == ["Cards arrive by mail", "Call us", "Call us"]
    assert [data.relevant(0)[0].tolist(), data.relevant(0)[1].tolist()] == [[0, 1], [1.0, 2.0]]
    assert data.relevant(1)[0].tolist() == [2]
    assert data.own_document.tolist() == [-1, 2]
    assert "queries without a judgement, left out: 1" in data.notes


@pytest.mark.parametrize(
    "qrels",
    ["q1\td2\t1\n", "q1 0 d2 1\n", "q1\tQ0\td2\t1\n", "query-id\tcorpus-id\tscore\nq1\td2\t1\n"],
)
def test_qrels_of_beir_and_trec_are_read(tmp_path: Path, qrels: str) -> None:
    assert found(read_beir(beir(tmp_path, {"qrels/test.tsv": qrels}))) == {"when": {"Call us": 1}}


def test_the_only_qrels_is_taken_whatever_its_name(tmp_path: Path) -> None:
    (beir(tmp_path) / "qrels" / "test.tsv").rename(tmp_path / "qrels" / "dev.tsv")
    assert len(read_beir(tmp_path).query_ids) == 2
    (tmp_path / "qrels" / "train.tsv").write_text(QRELS)
    with pytest.raises(DataError, match=r"holds dev.tsv, train.tsv. Valid: test.tsv"):
        read_beir(tmp_path)


def test_queries_judged_without_anything_relevant_are_kept_and_counted(tmp_path: Path) -> None:
    data = read_beir(beir(tmp_path, {"qrels/test.tsv": "q1\td1\t1\nq2\td1\t0\n"}))
    assert found(data) == {"when": {"Cards arrive by mail": 1}, "idle": {}}
    assert "queries without a relevant document: 1" in data.notes


def test_a_beir_corpus_can_be_the_index_of_pairs(tmp_path: Path) -> None:
    data = retrieval_set([("how", "Call us")], beir(tmp_path))
    assert found(data) == {"how": {"Call us": 1}}
    assert data.document_ids == ["d1", "d2"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"qrels/test.tsv": "q1\td9\t1\n"}, "line 1: the relevant document 'd9' is not in corpus"),
        ({"qrels/test.tsv": "q9\td1\t1\n"}, "line 1: the query 'q9' is not in queries.jsonl"),
        ({"qrels/test.tsv": "q1\td1\t1\nq1\td2\tyes\n"}, "line 2: the grade 'yes' is not a number"),
        ({"qrels/test.tsv": "q1\td1\t1\nq1\td1\t2\n"}, "line 2: query 'q1' and document 'd1' have"),
        ({"qrels/test.tsv": "q1\td1\n"}, "line 1: 2 columns. Valid: query-id, corpus-id, score"),
        ({"qrels/test.tsv": "query-id\tcorpus-id\tscore\n"}, "has no judgements"),
        ({"qrels/test.tsv": "q1\td1\t0\n"}, "all judgements are 0"),
        ({"corpus.jsonl": CORPUS + CORPUS}, "line 4: the _id 'd1' also stands at line 1"),
        ({"corpus.jsonl": '{"_id": "d1"}\n'}, "line 1: a BEIR record is an object with _id and"),
        ({"corpus.jsonl": "{\n"}, "line 1: not valid JSON"),
        (
            {"corpus.jsonl": '{"_id": "d", "text": "a\\u0000"}\n'},
            "line 1: a text with the character",
        ),
        ({"queries.jsonl": ""}, "queries.jsonl is empty"),
    ],
)
def test_mistakes_in_a_beir_folder_are_placed(
    tmp_path: Path, files: dict[str, str], message: str
) -> None:
    with pytest.raises(DataError) as caught:
        read_beir(beir(tmp_path, files))
    assert message in str(caught.value)


def test_a_beir_folder_brings_its_own_index(tmp_path: Path) -> None:
    beir(tmp_path)
    with pytest.raises(DataError, match="index_data: the BEIR folder"):
        retrieval_set(tmp_path, ["a"])
    with pytest.raises(DataError, match="columns: the BEIR folder"):
        retrieval_set(tmp_path, columns={"item": "text"})
    (tmp_path / "corpus.jsonl").unlink()
    with pytest.raises(DataError, match=r"is not a BEIR folder: 'corpus.jsonl' is missing"):
        retrieval_set(tmp_path)


# As a whole


def test_the_fingerprint_is_that_of_the_content() -> None:
    one = retrieval_set(labelled("a:x", "b:x", "c:y"))
    assert one.fingerprint == retrieval_set(labelled("a:x", "b:x", "c:y")).fingerprint
    assert one.fingerprint != retrieval_set(labelled("a:x", "b:y", "c:y")).fingerprint
    records = read_records(labelled("a:x", "b:x", "c:y"))
    assert one.fingerprint == retrieval_set(records).fingerprint


def test_relevance_is_that_of_a_plain_double_loop() -> None:
    rng = np.random.default_rng(3)
    queries = [(f"t{rng.integers(40)}", f"l{rng.integers(8)}") for _ in range(80)]
    index = [(f"t{rng.integers(60)}", f"l{rng.integers(9)}") for _ in range(120)]
    records = [[{"text": t, "label": name} for t, name in side] for side in (queries, index)]
    expected = {
        text: {d: 1.0 for d, name in index if (text, name) in set(queries)} for text, _ in queries
    }
    assert found(retrieval_set(*records)) == expected


@pytest.mark.skipif("FTRAY_DATA" not in os.environ, reason="FTRAY_DATA is not set")
def test_banking77_and_medquad_have_their_known_sizes() -> None:
    data = Path(os.environ["FTRAY_DATA"])
    test, train = (data / "banking77" / name for name in ("test.csv", "train.csv"))
    banking = retrieval_set(test, train)
    assert (len(banking.group_starts), len(banking.query_ids)) == (78, 3_079)
    medquad = retrieval_set(data / "medquad")
    assert (len(medquad.query_ids), len(medquad.document_ids)) == (1_000, 2_022)
    assert (np.diff(medquad.group_starts) == 1).all()
    assert (medquad.own_document == -1).all()
