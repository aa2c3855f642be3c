"""Several negatives for a query, and a teacher's scores of them, from every kind of source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ftray.config import FitConfig
from ftray.data.dataset import TrainSet, train_set
from ftray.data.evaluation import evaluation_data
from ftray.data.plan import make_plan
from ftray.data.readers import Records, read_records
from ftray.data.relevance import RetrievalSet
from ftray.errors import ConfigError, DataError
from ftray.media import modalities_of
from ftray.training.matching import check_fit, choose_sampler
from tests.data.pictured import encoded

ROWS = [
    ("how do I close it?", "in the menu", ["we open at nine", "cards come by mail", "no"]),
    ("when do you open?", "at nine", ["cards come by mail", "in the menu", "never"]),
    ("where is my card?", "in the mail", ["at nine", "in the menu", "who knows?"]),
]
MARGINS = [[1.5, 2.0, 3.25], [0.5, -1.0, 4.0], [2.0, 2.5, 0.0]]
SCORES = [[9.5, 8.0, 7.5, 6.25], [3.0, 2.5, 4.0, -1.0], [2.0, 0.0, -0.5, 2.0]]
"""The same as `MARGINS`, with a score of the document before those of the negatives."""
NEGATIVES = ("negative", "negative_2", "negative_3")


def flat(names: tuple[str, ...], scores: list[list[float]] | None = None) -> list[dict[str, Any]]:
    """A column for each text, and for each score."""
    rows = [(query, document, *negatives) for query, document, negatives in ROWS]
    if scores is not None:
        rows = [(*row, *own) for row, own in zip(rows, scores, strict=True)]
    return [dict(zip(names, row, strict=True)) for row in rows]


def nested(**more: list[Any]) -> list[dict[str, Any]]:
    """Lists of negatives, as FlagEmbedding has them."""
    rows = [{"query": query, "pos": [pos], "neg": neg} for query, pos, neg in ROWS]
    return [row | {name: own[i] for name, own in more.items()} for i, row in enumerate(rows)]


def cells(records: Records) -> list[tuple[str, str, list[str]]]:
    found = records.table.select(["query", "document", *NEGATIVES]).to_pylist()
    return [(row["query"], row["document"], [row[name] for name in NEGATIVES]) for row in found]


def learnt(rows: Any, **options: Any) -> TrainSet:
    return train_set(read_records(rows, **options))


@pytest.mark.parametrize(
    "names",
    [
        ("negative", "negative_1", "negative_2"),
        ("negative_1", "negative_2", "negative_10"),
        ("negative1", "negative2", "negative3"),
        ("hard_negative_1", "hard_negative_2", "hard_negative_3"),
        ("neg_0", "neg_1", "neg_2"),
    ],
    ids=" ".join,
)
def test_numbered_columns_are_negatives_in_the_order_of_their_numbers(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    frame = pd.DataFrame(flat(("anchor", "positive", *names)))
    path = tmp_path / "t.csv"
    frame[[names[2], "positive", names[0], "anchor", names[1]]].to_csv(path, index=False)
    records = read_records(path)
    assert (records.kind, cells(records)) == ("triplets", ROWS)
    assert records.notes[-1] == "3 triplets with 3 negatives each"
    shown = ", ".join(f"'{name}'" for name in names)
    assert records.notes[0].endswith(f"document = 'positive', negatives = {shown}")


def sources(tmp_path: Path) -> dict[str, Any]:
    from datasets import Dataset
    from docarray import BaseDoc, DocList

    class Row(BaseDoc):  # type: ignore[misc]
        query: str
        pos: list[str]
        neg: list[str]

    rows = nested()
    lines = tmp_path / "t.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "t.parquet")
    return {
        "columns": flat(("query", "document", "negative_1", "negative_2", "negative_3")),
        "jsonl": lines,
        "parquet": tmp_path / "t.parquet",
        "table": table,
        "large lists": table.set_column(2, "neg", table["neg"].cast(pa.large_list(pa.string()))),
        "list of dicts": rows,
        "DataFrame": pd.DataFrame(rows),
        "Dataset": Dataset.from_list(rows),
        "DocList": DocList[Row]([Row(**row) for row in rows]),
        "one positive": [{**row, "pos": row["pos"][0]} for row in rows],
        "plural": [{"query": q, "positive": p, "negatives": n} for q, p, n in ROWS],
        "singular": [{"query": q, "positive": p, "negative": n} for q, p, n in ROWS],
    }


def test_every_source_gives_the_same_negatives(tmp_path: Path) -> None:
    found = {name: read_records(source) for name, source in sources(tmp_path).items()}
    for name, records in found.items():
        assert (records.kind, cells(records)) == ("triplets", ROWS), name
    assert len({records.fingerprint for records in found.values()}) == 1


def test_one_negative_in_lists_is_a_triplet_as_any() -> None:
    lists = read_records([{"query": q, "pos": [p], "neg": n[:1]} for q, p, n in ROWS])
    plain = read_records([(q, p, n[0]) for q, p, n in ROWS], csv_options={"header": False})
    assert lists.fingerprint == plain.fingerprint
    assert lists.notes[-1] == "3 triplets"


def test_each_positive_is_a_row_with_the_place_of_its_record() -> None:
    rows = [
        {"query": "q", "pos": ["a", "b"], "neg": ["x", "y"]},
        {**nested()[0], "neg": ["z", "w"]},
    ]
    for source in (rows, pa.Table.from_pylist(rows)):
        records = read_records(source)
        table = records.table.to_pydict()
        assert (table["document"], table["negative"]) == (
            ["a", "b", ROWS[0][1]],
            ["x", "x", "z"],
        )
        assert "2 rows with 3 documents in lists: each document is a row of its own" in (
            records.notes
        )
    assert [read_records(rows).place(row)[-7:] for row in range(3)] == [
        "index 0",
        "index 0",
        "index 1",
    ]
    pairs = read_records([{"query": "q", "pos": ["a", "b"]}, {"query": "r", "pos": ["c"]}])
    assert (pairs.kind, pairs.table["document"].to_pylist()) == ("pairs", ["a", "b", "c"])


@pytest.mark.parametrize("counts", [(3, 2, 3), (2, 3, 3), (1, 2, 3)])
def test_ragged_rows_are_cut_to_the_fewest_and_it_is_said(counts: tuple[int, ...]) -> None:
    rows = [{**row, "neg": row["neg"][:n]} for row, n in zip(nested(), counts, strict=True)]
    fewest, longer = min(counts), sum(n > min(counts) for n in counts)
    for source in (rows, pa.Table.from_pylist(rows)):
        data = learnt(source)
        texts = data.texts.to_pylist()
        assert [[texts[i] for i in row[2:]] for row in data.rows] == [
            negatives[:fewest] for _, _, negatives in ROWS
        ]
        are = "is" if fewest == 1 else "are"
        note = f"{longer} of 3 rows have more negatives than the others: of each the first {fewest}"
        assert f"{note} {are} taken" in data.notes


FORMATS: dict[str, Any] = {
    "margins in lists": nested(score=MARGINS),
    "scores in lists": nested(score=SCORES),
    "scores of each": nested(
        pos_scores=[[own[0]] for own in SCORES], neg_scores=[own[1:] for own in SCORES]
    ),
    "margins in columns": flat(
        ("query", "document", *NEGATIVES, "score_1", "score_2", "score_3"), MARGINS
    ),
    "scores in columns": flat(
        ("query", "document", *NEGATIVES, "score_1", "score_2", "score_3", "score_4"), SCORES
    ),
    "scores of each in columns": flat(
        ("query", "document", *NEGATIVES, "document_score", *(f"neg_score_{i}" for i in (1, 2, 3))),
        SCORES,
    ),
    "margins beside lists": [
        row | {f"score_{i}": one for i, one in enumerate(own)}
        for row, own in zip(nested(), MARGINS, strict=True)
    ],
}


@pytest.mark.parametrize("form", FORMATS)
def test_teachers_scores_come_in_many_forms(form: str, tmp_path: Path) -> None:
    rows = FORMATS[form]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    files: list[Any] = [rows, path, pa.Table.from_pylist(rows)]
    if not isinstance(next(iter(rows[0].values())), list) and "neg" not in rows[0]:
        pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
        files.append(tmp_path / "t.csv")
    for source in files:
        records = read_records(source)
        assert (records.kind, cells(records)) == ("distillation", ROWS)
        said = "3 triplets with 3 negatives each and a teacher's margins from -1 to 4"
        assert records.notes[-1] == said
        data = train_set(records)
        assert (data.kind, data.rows.shape, data.negatives) == ("distillation", (3, 5), 3)
        assert data.scores is not None and data.scores.dtype == np.float64
        margins = data.scores[:, :1] - data.scores[:, 1:]
        np.testing.assert_array_equal(margins, MARGINS)


def test_one_margin_is_a_score_of_the_document_and_nought_for_its_negative() -> None:
    rows = [
        {"query": q, "document": d, "negative": n[0], "score": m[0]}
        for (q, d, n), m in zip(ROWS, MARGINS, strict=True)
    ]
    data = learnt(rows)
    assert data.scores is not None
    assert data.scores.tolist() == [[1.5, 0.0], [0.5, 0.0], [2.0, 0.0]]
    assert data.notes[-1] == "3 triplets with a teacher's margins from 0.5 to 2"
    lists = learnt(
        [{**row, "negative": [row["negative"]], "score": [row["score"]]} for row in rows]
    )
    assert lists.scores is not None and lists.scores.tolist() == data.scores.tolist()
    several = learnt(nested(score=MARGINS))
    assert several.scores is not None and several.scores[0].tolist() == [0, -1.5, -2.0, -3.25]
    own = learnt(nested(score=SCORES))
    assert own.scores is not None and own.scores.tolist() == SCORES


def test_each_positive_has_its_own_score() -> None:
    row = {
        "query": "q",
        "pos": ["a", "b"],
        "neg": ["x", "y"],
        "pos_scores": [3.0, 2.0],
        "neg_scores": [1.0, 0.5],
    }
    data = learnt([row, {**row, "query": "r", "pos": ["c"], "pos_scores": [7]}])
    assert data.scores is not None
    assert data.scores.tolist() == [[3, 1, 0.5], [2, 1, 0.5], [7, 1, 0.5]]


def test_scores_are_cut_with_their_negatives() -> None:
    for scores, more in ((MARGINS, 0), (SCORES, 1)):
        rows = nested(score=scores)
        rows[1] = {**rows[1], "neg": rows[1]["neg"][:2], "score": rows[1]["score"][: 2 + more]}
        data = learnt(rows)
        assert data.scores is not None and data.rows.shape == (3, 4)
        margins = data.scores[:, :1] - data.scores[:, 1:]
        assert margins.tolist() == [own[:2] for own in MARGINS]


def test_finetuners_synthesised_documents_are_read() -> None:
    from docarray import DocList
    from docarray.documents.legacy import LegacyDocument as Document

    docs = [
        Document(
            text=query,
            chunks=[Document(text=document), Document(text=negatives[0])],
            tags={"finetuner_score": margins[0]},
        )
        for (query, document, negatives), margins in zip(ROWS, MARGINS, strict=True)
    ]
    data = learnt(DocList(docs))
    texts = data.texts.to_pylist()
    assert data.kind == "distillation" and data.scores is not None
    assert [[texts[i] for i in row] for row in data.rows] == [[q, d, n[0]] for q, d, n in ROWS]
    assert data.scores.tolist() == [[1.5, 0.0], [0.5, 0.0], [2.0, 0.0]]
    docs[1].chunks.pop()
    with pytest.raises(DataError, match="index 1: two chunks and the tag finetuner_score"):
        learnt(DocList(docs))


@pytest.mark.parametrize("rows", [nested(), nested(score=SCORES)], ids=["triplets", "scores"])
def test_documents_come_back_out(rows: list[dict[str, Any]]) -> None:
    from ftray.data.documents import doclist_to_table, records_to_doclist

    records = read_records(rows)
    docs = records_to_doclist(records)
    back = read_records(docs)
    assert (back.fingerprint, back.kind) == (records.fingerprint, records.kind)
    kind, table = doclist_to_table(docs)
    assert kind == records.kind and table.equals(records.table)


def test_user_names_lists_or_what_numbered_columns_begin_with() -> None:
    names = ("a", "b", "bad_1", "bad_2", "bad_3")
    told = {"query": "a", "document": "b", "negative": "bad"}
    records = read_records(flat(names), columns=told)
    assert (records.kind, cells(records)) == ("triplets", ROWS)
    one = read_records(flat(names), columns={**told, "negative": "bad_2"})
    assert one.table["negative"].to_pylist() == [negatives[1] for _, _, negatives in ROWS]
    assert "negative_2" not in one.table.column_names
    lists = [{"a": q, "b": d, "c": n, "m": m} for (q, d, n), m in zip(ROWS, MARGINS, strict=True)]
    told = {"query": "a", "document": "b", "negative": "c"}
    assert read_records(lists, columns=told).kind == "triplets"
    assert read_records(lists, columns={**told, "score": "m"}).kind == "distillation"
    scored = nested(score=MARGINS)
    assert read_records(scored, columns={"score": "score"}).kind == "distillation"
    told = {"query": "query", "document": "pos"}
    assert read_records(scored, columns=told).kind == "pairs"
    assert read_records(scored, columns={**told, "negative": "neg"}).kind == "triplets"


def test_vectors_are_one_thing_and_lists_of_vectors_are_several() -> None:
    vector = [0.1, 0.2, 0.3]
    features = frozenset({"features"})
    row = {"query": vector, "document": vector, "negative": vector[::-1]}
    one = read_records([row, row], modalities=features)  # type: ignore[arg-type]
    assert "negative_2" not in one.table.column_names
    several = {"query": vector, "document": vector, "negatives": [vector[::-1], [1.0, 2.0, 3.0]]}
    for source in ([several, several], pa.Table.from_pylist([several, several])):
        records = read_records(source, modalities=features)  # type: ignore[arg-type]
        assert "negative_2" in records.table.column_names
        assert modalities_of(records.table["negative_2"]) == {"features"}


def test_images_may_be_negatives(tmp_path: Path) -> None:
    both = frozenset({"text", "image"})
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(encoded(number))
    lines = [
        "text,image,negative_1,negative_2",
        "a cat,0.png,1.png,2.png",
        "a dog,1.png,3.png,0.png",
    ]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    paths = [
        {"text": text, "image": {"bytes": encoded(own), "path": None}}
        | {"neg": [{"bytes": encoded(one), "path": None} for one in others]}
        for text, own, others in (("a cat", 0, (1, 2)), ("a dog", 1, (3, 0)))
    ]
    table = pa.Table.from_pylist(paths)
    pixels = np.random.default_rng(0).integers(0, 255, (2, 8, 8, 3)).astype(np.uint8)
    tensors = table.set_column(1, "image", pa.FixedShapeTensorArray.from_numpy_ndarray(pixels))
    for source in (tmp_path / "t.csv", paths, table, tensors):
        records = read_records(source, modalities=both)  # type: ignore[arg-type]
        assert records.kind == "triplets"
        data = train_set(records)
        assert data.modalities == ({"text"}, *[{"image"}] * 3)
    told = read_records(
        tmp_path / "t.csv",
        columns={"negative": "negative_2"},
        modalities=both,  # type: ignore[arg-type]
    )
    assert told.kind == "triplets" and "negative_2" not in told.table.column_names


A = {"query": "a", "document": "b"}


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (
            [{**A, "neg": ["c"]}, {**A, "neg": []}],
            {},
            "index 1: the list of 'neg' is empty. Every row needs one negative or more.",
        ),
        ([{**A, "neg": ["c"]}, {**A, "neg": "c"}], {}, "index 1: 'neg' holds a str, but others"),
        ([{**A, "neg": ["c"]}, {**A, "neg": None}], {}, "index 1: 'neg' holds nothing, but others"),
        (
            pa.Table.from_pylist([{**A, "neg": None}, {**A, "neg": ["c"]}]),
            {},
            "row 1: 'neg' holds nothing, but others a list",
        ),
        ([{**A, "neg": ["c"]}, A], {}, "index 1: there is no 'neg', but the first record has"),
        (
            [{**A, "neg": ["c", " "]}],
            {},
            "index 0: the negative is empty (column 'neg[1]'). Every row needs a query and a "
            "document and a negative.",
        ),
        (
            [{**A, "neg_1": ["c"], "neg_2": "d"}],
            {},
            "index 0: 'neg_1' holds a list beside other columns of the role negative",
        ),
        (
            [{**A, "neg": ["c", "d"], "score": 1.0}],
            {},
            "index 0: 1 score for 2 negatives. Valid: a margin for each negative, or a score of",
        ),
        (
            [{**A, "neg": ["c", "d"], "score": [1, 2]}, {**A, "neg": ["c", "d"], "score": [1] * 3}],
            {},
            "index 1: 3 scores for 2 negatives",
        ),
        (
            [{**A, "neg": "c", "neg_2": "d", "score": 1.0}],
            {},
            "1 score ('score') for 2 negatives. Valid: a margin for each negative (the document's",
        ),
        (
            [{**A, "neg": ["c"], "pos_scores": [1], "neg_scores": [1, 2]}],
            {},
            "index 0: 2 scores for 1 negative. Valid: a score of each negative",
        ),
        (
            [{"query": "a", "pos": ["b", "c"], "neg": ["d"], "score": [1]}],
            {},
            "index 0: 2 documents, and scores for one: give a list of document_score",
        ),
        (
            [{"query": "a", "pos": ["b"], "neg": ["d"], "pos_scores": [1, 2], "neg_scores": [1]}],
            {},
            "index 0: 2 scores for 1 document.",
        ),
        (
            [{**A, "neg": ["c"], "score": ["high"]}],
            {},
            "index 0: the score 'high' is not a number (column 'score[0]')",
        ),
        ([{**A, "neg": ["c"], "score": [float("nan")]}], {}, "index 0: the score is empty"),
        (
            [{**A, "neg": "c", "m": 1}],
            {"columns": {"score": "m", "document_score": "m"}},
            "one column of a list of 1 record stands for two roles",
        ),
        (
            [{**A, "neg": "c", "m": 1, "n": 2}],
            {"columns": {"score": "m", "document_score": "n"}},
            "columns: document_score, score do not go together",
        ),
        (
            [{**A, "m": 1, "n": 2}],
            {"columns": {"document_score": "m", "negative_score": "n"}},
            "is document_score beside a query, a document and its negatives. Name them all",
        ),
        ([A], {"columns": {"negative": "bad"}}, "has no column 'bad' for negative."),
        (
            [{**A, "neg": ["c", "d"]}, {"query": "a", "document": "d", "neg": ["e", "f"]}],
            {"csv_options": {"label_conflicts": "error"}},
            "index 0: 'd' is the negative of 'a', but its document at a list of 2 records, index 1",
        ),
        (
            [{**A, "neg": "c", "score": 1}, {**A, "neg": "c", "score": 2.5}],
            {"csv_options": {"label_conflicts": "error"}},
            "index 1: the triplet 'a', 'b', 'c' has the margin 2.5, but 1 at a list of 2 records, "
            "index 0. Triplets with different margins: 1.",
        ),
    ],
)
def test_mistakes_are_placed(rows: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        read_records(rows, **options)
    assert message in str(caught.value)


def test_rows_are_one_only_if_their_negatives_and_scores_are() -> None:
    first = {**A, "neg": ["c", "d"], "score": [1, 2]}
    others = [{**first, "neg": ["d", "c"]}, {**first, "score": [1, 3]}, {**first}]
    records = read_records([first, *others])
    assert "rows that repeat an earlier one: 1" in records.notes
    assert "1 triplet with different margins: 'a', 'b', 'c', 'd' (1 / 2, 1 / 3)" in records.notes
    assert len(train_set(records)) == 3


@pytest.mark.parametrize("roles_differ", [False, True])
def test_items_of_a_step_lead_back_to_rows_and_scores(roles_differ: bool) -> None:
    data = learnt(nested(score=SCORES))
    picked = np.array([2, 0])
    step = data.step_rows(picked, roles_differ=roles_differ)
    assert step.columns.shape == step.text_ids.shape == (2, 5)
    assert step.scores.tolist() == [SCORES[2], SCORES[0]]
    texts = data.texts.to_pylist()
    for row, places in zip(data.rows[picked], step.columns, strict=True):
        roles = ("query", *["document"] * 4) if roles_differ else ("",) * 5
        items = [step.texts[place] for place in places]
        assert items == [(role, texts[i]) for role, i in zip(roles, row, strict=True)]
    assert set(step.label_items.tolist()) == set(step.columns[:, :2].ravel().tolist())


def test_split_keeps_negatives_and_scores_with_their_pairs() -> None:
    rows = [
        {"query": f"q{i // 2}", "document": f"d{i}", "neg": [f"n{i}", f"m{i}"], "score": [i, i + 1]}
        for i in range(40)
    ]
    whole = learnt(rows)
    train, val = whole.split(0.25, 0)
    assert len(val) == 10 and not set(train.groups.tolist()) & set(val.groups.tolist())
    for part in (train, val):
        assert part.scores is not None and part.scores.shape == (len(part), 3)
        texts = part.texts.to_pylist()
        for row, scores in zip(part.rows, part.scores, strict=True):
            number = int(texts[row[1]][1:])
            assert [texts[i] for i in row[2:]] == [f"n{number}", f"m{number}"]
            assert scores.tolist() == [0, -number, -number - 1]


def test_a_plan_needs_no_other_negatives() -> None:
    data = learnt([{"query": "q", "document": f"d{i}", "neg": ["x", "y"]} for i in range(6)])
    assert data.n_groups == 1
    given = {"groups": data.groups, "batch_size": 3, "items_per_class": 4, "seed": 0}
    plan = make_plan("pairs", rows=data.rows[:, :2], negatives=False, **given)  # type: ignore[arg-type]
    assert plan.steps_per_epoch == 2


def test_evaluation_searches_documents_and_all_negatives() -> None:
    for rows in (nested(), nested(score=MARGINS)):
        data = evaluation_data(rows)
        assert isinstance(data, RetrievalSet)
        every = {text for _, document, negatives in ROWS for text in (document, *negatives)}
        assert set(data.document_texts.to_pylist()) == every
        texts = data.document_texts.to_pylist()
        assert [texts[i] for i in data.relevant(0)[0].tolist()] == ["in the menu"]


def config(**given: Any) -> FitConfig:
    return FitConfig(model="m", train_data="d", **given)


def test_losses_and_samplers_that_fit() -> None:
    several, taught = learnt(nested()), learnt(nested(score=MARGINS))
    for loss in ("TripletMarginLoss", "InfoNCE", "MultipleNegativesRankingLoss"):
        check_fit(config(loss=loss), several)
        with pytest.raises(
            ConfigError, match=rf"{loss} does not learn from these\. .*MarginMSELoss"
        ):
            check_fit(config(loss=loss), taught)
    for loss in ("MarginMSELoss", "DistillKLDivLoss"):
        check_fit(config(loss=loss), taught)
        assert choose_sampler(config(loss=loss), taught) == "random"
    both = {"losses": [{"loss": "MarginMSELoss"}, {"loss": "InfoNCE"}]}
    assert choose_sampler(config(loss="MultipleLosses", loss_options=both), taught) == "pairs"
    with pytest.raises(ConfigError, match="and no loss was given"):
        check_fit(config(), taught)
    with pytest.raises(ConfigError, match="CosineSimilarityLoss does not learn from these"):
        check_fit(config(loss="CosineSimilarityLoss"), taught)
    with pytest.raises(ConfigError, match="teacher's scores: 'pairs' or 'random'"):
        check_fit(config(loss="MarginMSELoss", sampler="class"), taught)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (nested(), "holds triplets without scores"),
        ([("a", "b c"), ("d", "e f")], "holds pairs"),
        ([("a", "b", 0.5), ("c", "d", 1.0)], "holds scored pairs, which have no negatives"),
        ([{"text": "a", "label": "b"}, {"text": "c", "label": "d"}], "is labelled"),
    ],
)
def test_distillation_needs_scores_of_negatives(rows: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_fit(config(loss="MarginMSELoss"), learnt(rows))
    assert "learns from a teacher's scores of a document and of its negatives" in str(caught.value)
    assert said in str(caught.value)
