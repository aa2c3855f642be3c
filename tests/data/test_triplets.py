"""Triplets from every kind of source, in any order of columns; and what they become."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ftray.config import FitConfig
from ftray.data.dataset import TrainSet, train_set
from ftray.data.evaluation import evaluation_data
from ftray.data.readers import Records, read_records
from ftray.data.relevance import RetrievalSet
from ftray.errors import ConfigError, DataError
from ftray.training.matching import check_fit, choose_sampler

ROWS = [
    ("how do I close it?", "you close the account in the menu", "we open at nine"),
    ("when do you open?", "we open at nine", "cards are sent by mail"),
    ("how do I close it?", "close it in the menu", "we open at nine"),
    ("where is my card?", "cards are sent by mail", "you close the account in the menu"),
]


def csv(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def cells(records: Records) -> list[tuple[str, ...]]:
    columns = (records.table[name].to_pylist() for name in ("query", "document", "negative"))
    return list(zip(*columns, strict=True))


def named(names: tuple[str, str, str]) -> list[dict[str, str]]:
    return [dict(zip(names, row, strict=True)) for row in ROWS]


def learnt(rows: list[tuple[str, str, str]] = ROWS, **options: Any) -> TrainSet:
    return train_set(read_records(rows, **options))


NAMES = [
    ("anchor", "positive", "negative"),
    ("query", "document", "negative"),
    ("question", "answer", "hard_negative"),
    ("Query", "Passage", "Neg"),
    ("sentence", "positive", "negative"),
]


@pytest.mark.parametrize("names", NAMES, ids=" ".join)
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_names_tell_triplets_in_any_order(
    names: tuple[str, str, str], order: tuple[int, ...], tmp_path: Path
) -> None:
    rows = [[row[i] for i in order] for row in ROWS]
    header = ",".join(names[i] for i in order)
    path = csv(tmp_path / "t.csv", [header, *(",".join(f'"{c}"' for c in row) for row in rows)])
    records = read_records(path)
    assert (records.kind, cells(records)) == ("triplets", ROWS)
    assert records.notes[-1] == "4 triplets"


def sources(tmp_path: Path) -> dict[str, Any]:
    from docarray import BaseDoc, DocList

    class Triplet(BaseDoc):  # type: ignore[misc]
        anchor: str
        positive: str
        negative: str

    rows = named(("anchor", "positive", "negative"))
    lines = tmp_path / "t.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "t.parquet")
    tabs = tmp_path / "t.tsv"
    tabs.write_text("".join("\t".join(row) + "\n" for row in ROWS), encoding="utf-8")
    return {
        "jsonl": lines,
        "parquet": tmp_path / "t.parquet",
        "table": table,
        "list of dicts": rows,
        "list of tuples": list(ROWS),
        "DocList": DocList[Triplet]([Triplet(**row) for row in rows]),
        "no header": tabs,
    }


def test_every_source_gives_the_same_triplets(tmp_path: Path) -> None:
    found = {name: read_records(source) for name, source in sources(tmp_path).items()}
    for name, records in found.items():
        assert (records.kind, cells(records)) == ("triplets", ROWS), name
    assert len({records.fingerprint for records in found.values()}) == 1


def test_documents_come_back_out() -> None:
    from ftray.data.documents import records_to_doclist

    docs = records_to_doclist(read_records(ROWS))
    assert [(doc.query, doc.document, doc.negative) for doc in docs] == ROWS
    assert cells(read_records(docs)) == ROWS


def test_third_column_without_a_name_is_told_by_what_it_holds(tmp_path: Path) -> None:
    lines = [",".join(f'"{cell}"' for cell in row) for row in ROWS]
    texts = read_records(csv(tmp_path / "texts.csv", lines))
    assert any(
        "taken for query, document, negative (the third holds texts)" in n for n in texts.notes
    )
    scored = [f'"{a}","{b}",{n / 4}' for n, (a, b, _) in enumerate(ROWS)]
    records = read_records(csv(tmp_path / "scores.csv", scored), csv_options={"header": False})
    assert (records.kind, records.table["score"].to_pylist()) == ("scored", [0, 0.25, 0.5, 0.75])
    assert any("query, document, score (the third holds numbers)" in note for note in records.notes)
    with pytest.raises(DataError, match=r"line 2: the score '0,5' is not a number .*'column 3'"):
        broken = [scored[0], '"a","b","0,5"', *scored[2:]]
        read_records(csv(tmp_path / "broken.csv", broken), csv_options={"header": False})


def test_user_names_the_negative() -> None:
    rows = named(("a", "b", "c"))
    records = read_records(rows, columns={"query": "a", "document": "b", "negative": "c"})
    assert (records.kind, cells(records)) == ("triplets", ROWS)
    assert cells(read_records(rows, columns={"negative": "c"})) == ROWS
    pairs = read_records(named(NAMES[0]), columns={"query": "anchor", "document": "positive"})
    assert pairs.kind == "pairs" and "columns not read: 'negative'" in pairs.notes


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"a": "b", "c": "d"}], {"columns": {"negative": "a"}}, "the negative 'a' belongs to two"),
        ([("a", "b", "c"), ("d", "e", " ")], {}, "index 1: the third text is empty"),
        ([{"query": "a", "positive": "b", "neg": ""}], {}, "index 0: the negative is empty"),
        ([("a", "b", "c"), ("d", "e")], {}, "a tuple of 2, but the first record has 3"),
        (named(NAMES[0]), {"csv_options": {"is_labeled": True}}, "are read as triplets"),
        (
            [("a", "b", "c"), ("x", "y", "z"), ("a", "c", "d")],
            {"csv_options": {"label_conflicts": "error"}},
            "index 0: 'c' is the negative of 'a', but its document at",
        ),
    ],
)
def test_mistakes_are_placed(rows: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        read_records(rows, **options)
    assert message in str(caught.value)


def test_text_both_ways_is_said() -> None:
    rows = [("a", "b", "c"), ("x", "y", "z"), ("a", "c", "d"), ("e", "f", "c")]
    note = "1 text both document and negative of one query: 'c' of 'a'"
    assert read_records(rows).notes[-1] == note


def test_negatives_connect_nothing() -> None:
    data = learnt()
    assert (data.kind, data.rows.shape) == ("triplets", (4, 3))
    assert data.groups.tolist() == [0, 1, 0, 2] and data.n_groups == 3
    texts = data.texts.to_pylist()
    assert [tuple(texts[i] for i in row) for row in data.rows] == ROWS
    assert len(learnt([*ROWS, ROWS[1], (*ROWS[1][:2], "another")])) == 5


@pytest.mark.parametrize("roles_differ", [False, True])
def test_items_of_a_step_lead_back_to_the_rows(roles_differ: bool) -> None:
    data = learnt([*ROWS, ("we open at nine", "yes", "how do I close it?")])
    step = data.step_rows(np.arange(5), roles_differ=roles_differ)
    texts = data.texts.to_pylist()
    for row, places in zip(data.rows, step.columns, strict=True):
        items = [step.texts[place] for place in places]
        roles = ("query", "document", "document") if roles_differ else ("", "", "")
        assert items == [(role, texts[i]) for role, i in zip(roles, row, strict=True)]
    assert len(set(step.texts)) == len(step.texts)
    groups = dict(zip(step.label_items.tolist(), step.labels.tolist(), strict=True))
    for places, group in zip(step.columns, data.groups, strict=True):
        assert {groups[place] for place in places[:2].tolist()} == {group}
    assert set(groups) == set(step.columns[:, :2].ravel().tolist())


def test_split_keeps_negatives_with_their_pairs() -> None:
    rows = [(f"q{i // 2}", f"d{i}", f"n{i}") for i in range(40)]
    train, val = learnt(rows).split(0.25, 0)
    texts = train.texts.to_pylist()
    both = [tuple(texts[i] for i in row) for part in (train, val) for row in part.rows]
    assert sorted(both) == sorted(rows) and len(val) == 10
    assert not set(train.groups.tolist()) & set(val.groups.tolist())


def test_evaluation_searches_documents_and_negatives() -> None:
    data = evaluation_data([*ROWS, ("what else?", "nothing", "an odd one")])
    assert isinstance(data, RetrievalSet)
    texts = data.document_texts.to_pylist()
    assert set(texts) == {text for row in ROWS for text in row[1:]} | {"nothing", "an odd one"}
    queries = data.query_texts.to_pylist()
    found = {
        query: {texts[i] for i in data.relevant(number)[0].tolist()}
        for number, query in enumerate(queries)
    }
    assert found["how do I close it?"] == {ROWS[0][1], ROWS[2][1]}
    assert found["what else?"] == {"nothing"}
    assert len(evaluation_data(ROWS, ["x", *texts]).document_texts) == len(texts) + 1  # type: ignore[union-attr]


def config(**given: Any) -> FitConfig:
    return FitConfig(model="m", train_data="d", **given)


def test_losses_and_samplers_that_fit() -> None:
    data = learnt()
    for loss in ("TripletMarginLoss", "InfoNCE", "MultipleNegativesRankingLoss", "CLIPLoss"):
        check_fit(config(loss=loss), data)
        own = loss == "TripletMarginLoss"  # it takes the negatives of the row, and no others
        assert choose_sampler(config(loss=loss), data) == ("random" if own else "pairs")
    pairs = learnt([row[:2] for row in ROWS])  # type: ignore[misc]
    assert choose_sampler(config(loss="TripletMarginLoss"), pairs) == "pairs"
    for loss in ("SupConLoss", "ContrastiveLoss", "ArcFaceLoss", "SigLIPLoss"):
        with pytest.raises(ConfigError, match=f"{loss} does not learn from given negatives"):
            check_fit(config(loss=loss), data)
    with pytest.raises(ConfigError, match="holds triplets without scores"):
        check_fit(config(loss="CosineSimilarityLoss"), data)
    with pytest.raises(ConfigError, match=r"picks triplets, but train_data .* leave miner out"):
        check_fit(config(loss="TripletMarginLoss", miner="TripletMarginMiner"), data)
    with pytest.raises(ConfigError, match="holds triplets: 'pairs' or 'random'"):
        check_fit(config(loss="InfoNCE", sampler="class"), data)
