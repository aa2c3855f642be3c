"""Scored pairs on the command line: what works, and what each mistake says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

TEXTS = ["the card is lost", "my card was lost", "send money", "open the app", "a code", "pin fee"]
ROWS = [(a, b, (3 * i + j) % 6) for i, a in enumerate(TEXTS) for j, b in enumerate(TEXTS) if i < j]
HEADER = "sentence1,sentence2,score"


@pytest.fixture
def write(folder: Path):
    """`write(name, header, rows)`: a CSV file in the current folder."""

    def call(name: str = "scored.csv", header: str = HEADER, rows: Any = ROWS) -> str:
        lines = [header, *(",".join(map(str, row)) for row in rows)]
        (folder / name).write_text("\n".join(lines) + "\n")
        return name

    return call


@pytest.fixture
def scored(config, write):
    """config.yaml of a fit on scored pairs."""

    def call(**fields: Any) -> Path:
        given = {"train_data": write(), "loss": "CosineSimilarityLoss", "batch_size": 8}
        return config(**{**given, "loss_options": {"score_range": [0, 5]}, **fields})

    return call


def evaluation(**options: Any) -> dict[str, Any]:
    return {"EvaluationCallback": {"query_data": "scored.csv", **options}}


# ---------------------------------------------------------------- what works


def test_a_fit_is_evaluated_shown_and_monitored(cli, scored):
    best = {"BestModelCheckpoint": {"monitor": "tiny_sts_spearman"}}
    callbacks = [evaluation(caption="sts"), best]
    done = cli("fit", scored(callbacks=callbacks, run_name="mine", epochs=2))
    assert done.code == 0, done
    assert "Evaluated sts before fine-tuning: 15 scored pairs in" in done.out
    assert "Metric: 'tiny_sts_spearman' before fine-tuning: " in done.out
    shown = cli("show", "mine")
    assert "sts" in shown.out and "15 scored pairs" in shown.out
    assert "Similarity metrics before and after" in shown.out
    facts = json.loads(cli("show", "mine", "--json").out)
    assert facts["metrics"]["after"].keys() == {"sts_pearson", "sts_spearman"}
    assert facts["facts"]["data"]["sts"]["pairs"] == 15
    assert facts["facts"]["config"]["sampler"] == "random"


def test_a_model_is_evaluated(cli, write, tiny_model):
    given = ("evaluate", tiny_model, "--query", write())
    table = cli(*given)
    assert table.code == 0 and "Similarity Metric" in table.out and "k = " not in table.out
    values = json.loads(cli(*given, "--json").out)
    assert values.keys() == {"pearson", "spearman"}
    assert f"{values['spearman']:.5f}" in table.out
    other = write("other.csv", "x,y,gold,rest", [(*row, "z") for row in ROWS])
    columns = ("--column", "score=gold", "--column", "query=x", "--column", "document=y")
    again = cli("evaluate", tiny_model, "--query", other, *columns, "--json")
    assert json.loads(again.out) == pytest.approx(values)


# ---------------------------------------------------------------- mistakes

OPTIONS = [
    ({"loss": ...}, "no loss was given: scored pairs need loss: CosineSimilarityLoss", "{query: …"),
    (
        {"loss": "SupConLoss", "loss_options": {}},
        "train_data (scored.csv) holds scored pairs",
        "SupConLoss does not learn from scores",
        "scored pairs need loss: CosineSimilarityLoss",
    ),
    ({"loss": "MultipleNegativesRankingLoss"}, "scored pairs need loss: CosineSimilarityLoss"),
    (
        {"loss_options": {}},
        "scored.csv: the scores run from 0 to 5, but CosineSimilarityLoss compares them with cosin",
        "loss_options: {score_range: [0, 5]}",
    ),
    (
        {"loss_options": {"score_range": [0, 4]}},
        "the scores run from 0 to 5, and loss_options.score_range is [0, 4]",
    ),
    (
        {"loss_options": {"score_range": [5, 0]}},
        "loss_options.score_range = [5, 0]: two numbers, the smaller one first",
    ),
    ({"loss_options": {"scor_range": [0, 5]}}, "Did you mean 'score_range'"),
    (
        {"sampler": "class"},
        "sampler = 'class', but train_data holds scored pairs, which have neither classes nor",
        "'random'",
    ),
    ({"sampler": "pairs"}, "sampler = 'pairs', but train_data holds scored pairs"),
    ({"csv_options": {"is_labeled": True}}, "is_labeled is True", "are read as scored pairs"),
    ({"columns": {"score": "scor"}}, "has no column 'scor' for score. Did you mean 'score'?"),
    (
        {"columns": {"query": "sentence1", "document": "sentence2"}},
        "CosineSimilarityLoss learns from scored pairs (query,document,score)",
        "holds pairs without scores",
        "{score: rating}",
    ),
    (
        {"callbacks": [evaluation(), {"EarlyStopping": {"monitor": "ndcg_at_k"}}]},
        "EarlyStopping monitors 'ndcg_at_k', which this run will never have",
        "pearson, spearman, train_loss",
    ),
    (
        {"callbacks": [evaluation(index_data="scored.csv")]},
        "index_data: query_data (scored.csv) holds scored pairs",
        "Leave index_data away",
    ),
    ({"callbacks": [evaluation(gather_examples=True)]}, "gather_examples", "run.per_query()"),
    ({"val_split": 0.01}, "val_split = 0.01 of 15 rows leaves one side without rows"),
]


@pytest.mark.parametrize("case", OPTIONS, ids=[case[1] for case in OPTIONS])
def test_options(refused, scored, case):
    message = refused("fit", scored(**case[0]))
    for part in case[1:]:
        assert part in message


def test_a_loss_for_scores_on_other_data(refused, scored, write, labelled_csv):
    message = refused("fit", scored(train_data=str(labelled_csv)))
    assert "CosineSimilarityLoss learns from scored pairs" in message
    assert "is labelled. Losses for labels are" in message
    message = refused("fit", scored(eval_data=str(labelled_csv)))
    assert "train_data is scored, but eval_data is labelled" in message
    pairs = write("pairs.csv", "query,document", [row[:2] for row in ROWS])
    message = refused("fit", scored(train_data=pairs))
    assert "holds pairs without scores. Losses for pairs are, among others, Multiple" in message


def test_validation_scores_must_fit_as_well(refused, scored, write):
    other = write("other.csv", rows=[("a", "b", 7), ("c", "d", 1)])
    message = refused("fit", scored(eval_data=other))
    assert "other.csv: the scores run from 1 to 7" in message


DATA = [
    ([*ROWS[:3], ("a b", "c d", "n/a")], "scored.csv, line 5: the score 'n/a' is not a number"),
    ([*ROWS[:3], ("a b", "c d", "nan")], "scored.csv, line 5: the score 'nan' is not finite"),
    ([*ROWS[:3], ("a b", "c d", "")], "scored.csv, line 5: the score is empty (column 'score')"),
]


@pytest.mark.parametrize("case", DATA, ids=[case[1] for case in DATA])
def test_scores_that_are_none(refused, scored, write, case):
    config = scored()
    write(rows=case[0])
    assert case[1] in refused("fit", config)


def test_evaluations_without_a_correlation(refused, write, tiny_model):
    given = ("evaluate", tiny_model, "--query")
    message = refused(*given, write("one.csv", rows=ROWS[:1]))
    assert "query_data: one.csv holds one scored pair" in message
    message = refused(*given, write("same.csv", rows=[(a, b, 1) for a, b, _ in ROWS]))
    assert "all 15 pairs of same.csv have the score 1" in message
    message = refused(*given, write(), "--index", "scored.csv")
    assert "nothing is searched" in message
