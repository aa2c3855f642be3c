"""Scored pairs: which columns they are, what scores may be, and what becomes of the rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from docarray import DocList
from hypothesis import given, settings
from hypothesis import strategies as st

from ftray.data.dataset import TrainSet, train_set
from ftray.data.documents import ScoredPair, doclist_to_table, records_to_doclist
from ftray.data.evaluation import evaluation_data
from ftray.data.plan import RandomPlan, make_plan
from ftray.data.readers import Records, read_records
from ftray.data.relevance import RetrievalSet
from ftray.data.scored import PairSet
from ftray.errors import ConfigError, DataError

quick = settings(max_examples=60, deadline=None, derandomize=True)

ROWS = [("a cat sits", "a cat sat", 4.5), ("a dog", "the moon", 0.0), ("a tree", "a bush", 2.75)]


def written(folder: Path, content: str, name: str = "train.csv") -> Path:
    path = folder / name
    path.write_text(content)
    return path


def refused(source: Any, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_records(source, **options)
    return str(caught.value)


def rows(records: Records) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in records.table.to_pylist()]


def dicts(first: str = "query", second: str = "document", third: str = "score") -> list[Any]:
    return [dict(zip((first, second, third), row, strict=True)) for row in ROWS]


# ---------------------------------------------------------------- which columns


@pytest.mark.parametrize(
    "header",
    [
        "sentence1,sentence2,score",
        "Sentence_A,Sentence_B,relatedness_score",
        "text_a,text_b,similarity",
        "a,b,score",
        "a,gold_score,b",
        "query,document,similarity_score",
        "question,other,score",
        "text,answer,score",
        "sentence1,sentence2,label,score",
        "_id,sentence1,sentence2,score,genre",
    ],
)
def test_names_tell_scored_pairs(tmp_path: Path, header: str) -> None:
    cells = ["0.5" if "sco" in name or name == "similarity" else name for name in header.split(",")]
    records = read_records(written(tmp_path, f"{header}\n{','.join(f'{c}' for c in cells)}\n"))
    assert records.kind == "scored"
    assert records.table.column_names[:3] == ["query", "document", "score"]
    assert records.table["score"].type == pa.float64()
    assert records.table["score"].to_pylist() == [0.5]


def test_the_second_text_is_the_one_whose_name_says_so() -> None:
    records = read_records([{"answer": "b", "other": "a", "score": 1}])
    assert rows(records) == [("a", "b", 1.0)]


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        ("text,label,score", "labelled"),
        ("text,score", "items"),
        ("title,text,score", "items"),
        ("sentence1,sentence2,rating", "pairs"),
        ("sentence1,sentence2,label", "pairs"),
    ],
)
def test_other_data_stays_what_it_was(tmp_path: Path, header: str, kind: str) -> None:
    cells = ",".join("0.5" if name in ("score", "rating") else name for name in header.split(","))
    records = read_records(written(tmp_path, f"{header}\n{cells}\n"))
    assert records.kind == kind
    ignored = header.rsplit(",", 1)[-1]
    assert any(note.startswith("columns not read:") and ignored in note for note in records.notes)


def test_columns_name_the_score_and_the_texts_are_found() -> None:
    named = dicts("sentence1", "sentence2", "label")
    assert rows(read_records(named, columns={"score": "label"})) == ROWS
    assert rows(read_records(dicts("x", "y", "z"), columns={"score": "z"})) == ROWS
    assert rows(read_records(dicts("text", "y", "z"), columns={"score": "z"})) == ROWS
    turned = read_records(dicts("x", "y", "z"), columns={"score": "z", "query": "y"})
    assert rows(turned)[0] == ("a cat sat", "a cat sits", 4.5)


def test_two_texts_named_without_a_score_are_pairs() -> None:
    given = {"query": "query", "document": "document"}
    records = read_records(dicts(), columns=given)
    assert records.kind == "pairs"
    assert read_records(dicts(), columns={**given, "score": "score"}).kind == "scored"


def test_a_score_that_belongs_to_no_two_texts_is_an_error() -> None:
    row = {"one": "a", "two": "b", "three": "c", "gold": 1}
    message = refused([row], columns={"score": "gold"})
    assert "the score 'gold' belongs to two texts" in message
    assert "{query: …, document: …, score: gold}" in message
    assert "do not go together" in refused([row], columns={"score": "gold", "item": "one"})


def test_is_labeled_against_a_score_is_an_error() -> None:
    message = refused(dicts(), csv_options={"is_labeled": True})
    assert "is_labeled is True" in message and "are read as scored pairs" in message
    assert read_records(dicts(), csv_options={"is_labeled": False}).kind == "scored"


# ---------------------------------------------------------------- sources


def test_every_source_gives_the_same_records(tmp_path: Path) -> None:
    lines = "".join(f"{a},{b},{score}\n" for a, b, score in ROWS)
    table = pa.Table.from_pylist(dicts())
    pq.write_table(table, tmp_path / "train.parquet")
    docs = DocList[ScoredPair]([ScoredPair(**row) for row in dicts()])
    sources = [
        written(tmp_path, f"query,document,score\n{lines}"),
        written(tmp_path, f"a;b;score\n{lines.replace(',', ';')}", "semicolon.csv"),
        written(tmp_path, "\n".join(map(json.dumps, dicts())), "train.jsonl"),
        written(tmp_path, "\n".join(map(json.dumps, ROWS)), "lists.jsonl"),
        tmp_path / "train.parquet",
        table,
        table.set_column(2, "score", table["score"].cast(pa.float32())),
        table.set_column(2, "score", table["score"].cast(pa.decimal128(5, 2))),
        dicts(),
        ROWS,
        [(a, b, np.float32(score)) for a, b, score in ROWS],
        docs,
    ]
    read = [read_records(source) for source in sources]
    assert [rows(records) for records in read] == [ROWS] * len(sources)
    assert {records.fingerprint for records in read} == {read[0].fingerprint}
    assert "3 scored pairs with scores from 0 to 4.5" in read[0].notes


def test_another_score_is_another_fingerprint() -> None:
    other = [*ROWS[:2], (*ROWS[2][:2], 2.5)]
    assert read_records(ROWS).fingerprint != read_records(other).fingerprint
    minus_zero = [ROWS[0], (*ROWS[1][:2], -0.0), ROWS[2]]
    assert read_records(ROWS).fingerprint == read_records(minus_zero).fingerprint


def test_documents_survive_the_way_to_records_and_back() -> None:
    docs = DocList[ScoredPair]([ScoredPair(**row) for row in dicts()])
    back = records_to_doclist(read_records(docs))
    assert type(back) is type(docs)
    assert [(doc.query, doc.document, doc.score) for doc in back] == ROWS
    kind, table = doclist_to_table(docs)
    assert (kind, table["score"].to_pylist()) == ("scored", [4.5, 0.0, 2.75])


def test_tuples_of_four_texts_are_no_records() -> None:
    message = refused([("a", "b", "c", "d")])
    assert "tuple of 4 is not a record" in message and "or of two and a number" in message
    assert "a tuple of 2, but the first record has 3" in refused([ROWS[0], ("a", "b")])


# ---------------------------------------------------------------- scores


@pytest.mark.parametrize(
    ("score", "message"),
    [
        ("high", "'high' is not a number (column 'gold_score')."),
        ("nan", "'nan' is not finite (column 'gold_score')."),
        ("-inf", "'-inf' is not finite"),
        ("1e999", "'1e999' is not finite"),
        ("true", "'true' is not a number"),
        ('"3,5"', "'3,5' is not a number (column 'gold_score'). Decimals are written with a point"),
        ("", "the score is empty (column 'gold_score'). Every row needs a query and a document"),
    ],
)
def test_what_is_no_score_is_placed(tmp_path: Path, score: str, message: str) -> None:
    path = written(tmp_path, f"a,b,gold_score\nc d,e f,1\n\ng h,i j,{score}\nk l,m n,?\n")
    refusal = refused(path)
    assert f"{path}, line 4: the score" in refusal
    assert message in refusal


def test_what_is_no_score_is_placed_in_other_sources(tmp_path: Path) -> None:
    frame = {"a": ["c", "d"], "b": ["e", "f"], "score": [1.0, float("nan")]}
    pq.write_table(pa.table(frame), tmp_path / "train.parquet")
    assert "row 2: the score 'nan' is not finite" in refused(tmp_path / "train.parquet")
    assert "index 1: the score 'x' is not a number" in refused([ROWS[0], ("a", "b", "x")])
    assert "index 1: the score is empty" in refused([ROWS[0], ("a", "b", None)])
    lists = pa.table({**frame, "score": [[1.0], [2.0]]})
    assert "score must be numbers" in refused(lists)


@quick
@given(score=st.floats(allow_nan=False, allow_infinity=False))
def test_scores_are_read_exactly(score: float) -> None:
    for source in ([("a", "b", score)], pa.table({"a": ["a"], "b": ["b"], "score": [score]})):
        assert read_records(source).table["score"].to_pylist() == [score]


# ---------------------------------------------------------------- rows


def test_equal_rows_are_one_and_a_pair_with_two_scores_is_kept_and_said() -> None:
    data = train_set(read_records([*ROWS, ROWS[0], ("a dog", "the moon", 1.5)]))
    assert (data.kind, len(data)) == ("scored", 4)
    assert data.scores is not None and data.scores.tolist() == [4.5, 0.0, 2.75, 1.5]
    assert "rows that repeat an earlier one: 1" in data.notes
    assert "1 pair with two scores or more: 'a dog', 'the moon' (0, 1.5)" in data.notes


def test_two_scores_can_be_an_error(tmp_path: Path) -> None:
    path = written(tmp_path, "a,b,score\nc d,e,1\nf g,h,1\nc d,e,2\n")
    message = refused(path, csv_options={"label_conflicts": "error"})
    assert (
        f"{path}, line 4: the pair 'c d', 'e' has the score 2, but 1 at {path}, line 2" in message
    )


cell = st.sampled_from("abcdefgh")
triples = st.lists(st.tuples(cell, cell, st.sampled_from([0, 0.5, 1])), min_size=2, max_size=20)


def back(data: TrainSet) -> list[tuple[str, str, float]]:
    assert data.scores is not None
    texts = data.texts.to_pylist()
    return [
        (texts[a], texts[b], score)
        for (a, b), score in zip(data.rows.tolist(), data.scores.tolist(), strict=True)
    ]


@quick
@given(given_rows=triples)
def test_rows_are_the_distinct_ones_and_steps_bear_their_scores(given_rows: Any) -> None:
    data = train_set(read_records(given_rows))
    assert back(data) == list(dict.fromkeys(given_rows))
    picked = np.arange(len(data))[::-1]
    step = data.step_rows(picked, roles_differ=True)
    texts = [text for _, text in step.texts]
    assert len(set(texts)) == len(texts) and {role for role, _ in step.texts} == {""}
    found = [(texts[a], texts[b]) for a, b in step.columns]
    assert [(*pair, s) for pair, s in zip(found, step.scores, strict=True)] == back(data)[::-1]


def test_steps_of_other_data_have_no_scores() -> None:
    data = train_set(read_records([("a", "b"), ("c", "d")]))
    assert data.scores is None
    assert data.step_rows(np.arange(2), roles_differ=False).scores.shape == (0,)


@quick
@given(given_rows=triples, share=st.sampled_from([0.2, 0.5]))
def test_split_parts_no_group_and_keeps_scores(given_rows: Any, share: float) -> None:
    data = train_set(read_records(given_rows))
    try:
        train, val = data.split(share, seed=0)
    except DataError:
        return  # too few groups
    assert sorted(back(train) + back(val)) == sorted(back(data))
    words = [{text for row in back(part) for text in row[:2]} for part in (train, val)]
    assert not words[0] & words[1]


def test_a_plan_of_scored_pairs_needs_no_two_groups() -> None:
    data = train_set(read_records([("a", "b", 1), ("a", "c", 0), ("b", "c", 0.5)]))
    options: dict[str, Any] = {"batch_size": 2, "items_per_class": 2, "seed": 0}
    given_: dict[str, Any] = {"rows": data.rows, "groups": data.groups, **options}
    plan = make_plan("random", negatives=False, **given_)
    assert isinstance(plan, RandomPlan)
    assert sorted(np.concatenate([plan.rows(0, step) for step in range(2)])) == [0, 1, 2]
    with pytest.raises(DataError, match="at least two are needed"):
        make_plan("random", **given_)


# ---------------------------------------------------------------- to evaluate with


def test_scored_queries_are_a_pair_set_with_every_row() -> None:
    data = evaluation_data([*ROWS, ROWS[0], ("the moon", "a dog", 3)])
    assert isinstance(data, PairSet)
    texts = data.texts.to_pylist()
    assert len(set(texts)) == len(texts) == 6
    assert [(texts[a], texts[b]) for a, b in data.pairs][1:] == [
        *[row[:2] for row in ROWS[1:]],
        ROWS[0][:2],
        ("the moon", "a dog"),
    ]
    assert data.scores.tolist() == [4.5, 0, 2.75, 4.5, 3]
    assert "6 distinct texts" in data.notes


def test_other_queries_are_a_retrieval_set() -> None:
    given_ = {"query": "query", "document": "document"}
    assert isinstance(evaluation_data(dicts(), columns=given_), RetrievalSet)
    labelled = [{"text": "a", "label": "x"}, {"text": "b", "label": "x"}]
    found = evaluation_data(labelled, labelled)
    assert isinstance(found, RetrievalSet) and found.own_document.tolist() == [0, 1]


def test_an_index_has_no_place_beside_scores() -> None:
    with pytest.raises(ConfigError, match=r"index_data: .* nothing is searched"):
        evaluation_data(ROWS, ROWS)


def test_scored_pairs_serve_as_an_index_of_documents() -> None:
    found = evaluation_data([("a cat sits", "a cat sat")], ROWS, columns=None)
    assert isinstance(found, RetrievalSet)
    assert found.document_texts.to_pylist() == ["a cat sat", "the moon", "a bush"]


def test_scores_that_nothing_can_correlate_with_are_an_error() -> None:
    with pytest.raises(DataError, match="holds one scored pair"):
        evaluation_data(ROWS[:1])
    with pytest.raises(DataError, match=r"all 2 pairs of .* have the score 1"):
        evaluation_data([("a", "b", 1), ("c", "d", 1)])
