"""Contract 7: the metrics are the field's.

Oracle, where the definitions coincide, is pytrec_eval (trec_eval's own C code):

| metric | oracle |
|---|---|
| precision_at_k | `P_k` |
| recall_at_k | `recall_k` |
| hit_at_k | `success_k` |
| ndcg_at_k | `ndcg_cut_k` |
| reciprocal_rank | `recip_rank`, 0 where that rank is beyond k |
| average_precision | `map_cut_k` where R ≤ k, else a formula below |
| r_precision | `Rprec` where R ≤ k, else `P_k` |
| f1_score_at_k | harmonic mean of `P_k` and `recall_k` |
| dcg_at_k | a formula below; `ndcg_cut_k` binds it to its ideal |

trec_eval gets all scores and orders them by its own tie rule; ours come from an `ExactIndex` search
that is cut at k. The rule for ties is thus part of the comparison. Mutations of the code, applied
here, must each make it fail.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import pytrec_eval

from ftray.errors import ConfigError, DataError
from ftray.evaluation import metrics, search

TOLERANCE = 1e-9
SEEDS = range(40)


@dataclass
class Case:
    """Random scores and judgements of Q queries over N documents."""

    ids: list[str]
    coarse: np.ndarray  # (Q, N) few distinct values: many ties
    fine: np.ndarray  # (Q, N) differences that float32 cannot see
    qrels: list[dict[int, int]]  # document position → grade
    groups: np.ndarray  # (Q,)
    returned: np.ndarray  # (Q,) how many documents the query's ranking holds at the most
    own: np.ndarray | None

    @property
    def scores(self) -> np.ndarray:
        return self.coarse + self.fine


def make_case(seed: int) -> Case:
    rng = np.random.default_rng(seed)
    q, n = int(rng.integers(5, 30)), int(rng.integers(1, 120))
    levels = int(rng.integers(2, 9))
    coarse = rng.integers(-levels, levels, (q, n)) / 8
    # Only beside scores of ±1 and more are these lost in float32, whatever the rounding.
    fine = np.where(np.abs(coarse) >= 0.5, rng.choice([0.0, 1e-10], (q, n)), 0.0)
    fine = fine.astype(np.float32).astype(np.float64)
    groups = rng.integers(0, 8, q)
    qrels: list[dict[int, int]] = []
    for _ in range(8):
        judged = rng.permutation(n)[: rng.integers(0, rng.choice([2, 6, n]) + 1)]
        qrels.append({int(d): int(rng.integers(0, 4)) for d in judged})
    qrels[0] = {int(d): 0 for d in range(min(3, n))}  # judged, nothing relevant
    qrels[1] = {}  # not judged at all
    returned = np.where(rng.random(q) < 0.3, rng.integers(0, 8, q), n)
    own = np.where(rng.random(q) < 0.6, rng.integers(0, n, q), -1) if seed % 2 else None
    ids = [f"d{i}" for i in rng.permutation(n)]
    return Case(ids, coarse, fine, qrels, groups, returned, own)


def ranking(case: Case, k: int) -> np.ndarray:
    """`(Q, k)` found by an index whose dot products are exactly the case's scores."""
    q = len(case.coarse)
    index = search.ExactIndex(2 * q, "dot")
    index.add(case.ids, np.concatenate([case.coarse, case.fine]).T)
    queries = np.concatenate([np.eye(q), np.eye(q)], axis=1)
    _, ranked = index.search(queries, k, case.own)
    return np.where(np.arange(k) < case.returned[:, None], ranked, -1)


def judge(case: Case, ranked: np.ndarray) -> metrics.Judged:
    rows = [sorted(group.items()) for group in case.qrels]
    pairs = np.array([pair for row in rows for pair in row], np.int64).reshape(-1, 2)
    starts = np.cumsum([0, *map(len, rows)])
    return metrics.judge(ranked, case.groups, starts, pairs[:, 0], pairs[:, 1], case.own)


def relevance(case: Case, q: int) -> dict[int, int]:
    """The query's judgements, without its own document."""
    own = -1 if case.own is None else case.own[q]
    return {d: g for d, g in case.qrels[case.groups[q]].items() if d != own}


def trec(case: Case, k: int) -> dict[str, np.ndarray]:
    """pytrec_eval's values for every query. trec_eval orders and cuts, not we."""
    qrels, run = {}, {}
    own_top = ranking(case, 8)
    for q in range(len(case.coarse)):
        # Queries absent from qrels are not scored by trec_eval: give each one judgement of 0.
        qrels[str(q)] = {"unreturned": 0} | {case.ids[d]: g for d, g in relevance(case, q).items()}
        own = -1 if case.own is None else case.own[q]
        kept = range(len(case.ids))
        if case.returned[q] < len(case.ids):  # a short ranking is our own top, cut
            kept = [d for d in own_top[q] if d >= 0]
        run[str(q)] = {case.ids[d]: float(case.scores[q, d]) for d in kept if d != own}
    names = ["P", "recall", "map_cut", "ndcg_cut", "success"]
    wanted = {f"{name}.{k}" for name in names} | {"recip_rank", "Rprec"}
    found = pytrec_eval.RelevanceEvaluator(qrels, wanted).evaluate(run)
    assert len(found) == len(qrels)
    cut = {f"{name}_{k}": name for name in names}
    return {
        cut.get(key, key): np.array([found[str(q)][key] for q in range(len(qrels))])
        for key in found["0"]
    }


def trec_order(case: Case, q: int, k: int) -> list[int]:
    """Grades in trec_eval's order, for the formulas."""
    own = -1 if case.own is None else case.own[q]
    score = case.scores[q].astype(np.float32)
    order = [d for d in range(len(case.ids)) if d != own]
    order.sort(key=lambda d: (score[d], case.ids[d]), reverse=True)
    return [relevance(case, q).get(d, 0) for d in order[: min(k, case.returned[q])]]


def average_precision(grades: list[int], relevant: int, k: int) -> float:
    found = [rank for rank, grade in enumerate(grades, start=1) if grade > 0]
    precisions = [count / rank for count, rank in enumerate(found, start=1)]
    return sum(precisions) / min(relevant, k) if relevant else 0.0


def dcg(grades: list[int]) -> float:
    return sum(g / math.log2(rank + 1) for rank, g in enumerate(grades, start=1))


def expected(case: Case, k: int) -> dict[str, np.ndarray]:
    oracle = trec(case, k)
    queries = range(len(case.coarse))
    relevant = np.array([sum(g > 0 for g in relevance(case, q).values()) for q in queries])
    grades = [trec_order(case, q, k) for q in queries]
    ap = np.array([average_precision(grades[q], relevant[q], k) for q in queries])
    both = oracle["P"] + oracle["recall"]
    product = 2 * oracle["P"] * oracle["recall"]
    return {
        "average_precision": np.where(relevant <= k, oracle["map_cut"], ap),
        "dcg_at_k": np.array([dcg(row) for row in grades]),
        "f1_score_at_k": np.divide(product, both, out=np.zeros(len(both)), where=both > 0),
        "hit_at_k": oracle["success"],
        "ndcg_at_k": oracle["ndcg_cut"],
        "precision_at_k": oracle["P"],
        "r_precision": np.where(relevant <= k, oracle["Rprec"], oracle["P"]),
        "recall_at_k": oracle["recall"],
        "reciprocal_rank": np.where(oracle["recip_rank"] * k > 1 - 1e-9, oracle["recip_rank"], 0),
    }


def compare(case: Case, k: int, want: dict[str, np.ndarray]) -> metrics.Judged:
    judged = judge(case, ranking(case, k))
    got = metrics.per_query(judged, k)
    assert tuple(got) == metrics.METRICS
    for name in metrics.METRICS:
        assert got[name].dtype == np.float64
        np.testing.assert_allclose(got[name], want[name], rtol=0, atol=TOLERANCE, err_msg=name)
    means = metrics.mean_metrics(judged, k)
    assert means == pytest.approx({n: want[n].mean() for n in metrics.METRICS}, abs=TOLERANCE)
    return judged


@pytest.mark.parametrize("k", [1, 5, 20])
@pytest.mark.parametrize("seed", SEEDS)
def test_all_nine_agree_with_trec_eval(seed, k):
    case = make_case(seed)
    compare(case, k, expected(case, k))


def test_the_cases_hold_what_they_should():
    cases = [make_case(seed) for seed in SEEDS]
    judged = [judge(case, ranking(case, 10)) for case in cases]
    relevant = np.concatenate([j.relevant for j in judged])
    assert (relevant == 0).sum() > 50 and (relevant > 10).sum() > 50
    assert ((relevant > 0) & (relevant <= 10)).sum() > 100
    assert sum((case.returned == 0).sum() for case in cases) > 5
    assert {1.0, 2.0, 3.0} <= set(np.concatenate([j.gains.ravel() for j in judged]))
    own = [
        case.own[q] in case.qrels[case.groups[q]]
        for case in cases
        if case.own is not None
        for q in range(len(case.own))
    ]
    assert sum(own) > 30


# Mutations: each is a mistake that a ranking library has made, or could.


def ties_ascending(monkeypatch, case):
    real = search.tie_ranks
    monkeypatch.setattr(search, "tie_ranks", lambda ids: -real(ids))


def ties_by_position(monkeypatch, case):
    monkeypatch.setattr(search, "tie_ranks", lambda ids: np.arange(len(ids)))


def ties_by_number_instead_of_string(monkeypatch, case):
    def ranks(ids):
        return -np.array([int(name[1:]) for name in ids])

    monkeypatch.setattr(search, "tie_ranks", ranks)


def scores_in_float64(monkeypatch, case):
    monkeypatch.setattr(search.ExactIndex, "_as_score", lambda self, raw: raw)


def average_precision_over_found(monkeypatch, case):
    real = metrics._average_precision
    monkeypatch.setattr(
        metrics,
        "_average_precision",
        lambda hits, relevant: real(hits, hits.sum(axis=1).astype(np.float64)),
    )


def average_precision_over_all_relevant(monkeypatch, case):
    def over_all(hits, relevant):
        precision = hits.cumsum(axis=1) / np.arange(1, hits.shape[1] + 1)
        return metrics._ratio((precision * hits).sum(axis=1), relevant)

    monkeypatch.setattr(metrics, "_average_precision", over_all)


def precision_over_returned(monkeypatch, case):
    def over_returned(hits):
        returned = (ranking(case, hits.shape[1]) >= 0).sum(axis=1)
        return metrics._ratio(hits.sum(axis=1).astype(np.float64), returned)

    monkeypatch.setattr(metrics, "_precision", over_returned)


def discount_of_log2_rank(monkeypatch, case):
    def discounts(k):
        return 1 / np.maximum(1, np.log2(np.arange(1, k + 1)))

    monkeypatch.setattr(metrics, "_discounts", discounts)


def ideal_of_what_was_found(monkeypatch, case):
    real = metrics.judge

    def judged(*args):
        right = real(*args)
        found = -np.sort(-right.gains, axis=1)
        return metrics.Judged(gains=right.gains, relevant=right.relevant, ideal=found)

    monkeypatch.setattr(metrics, "judge", judged)


def r_precision_over_found(monkeypatch, case):
    real = metrics._r_precision
    monkeypatch.setattr(
        metrics,
        "_r_precision",
        lambda hits, relevant: real(hits, hits.sum(axis=1).astype(np.float64)),
    )


def own_document_counts_as_relevant(monkeypatch, case):
    real = metrics.judge
    monkeypatch.setattr(metrics, "judge", lambda *args: real(*args[:-1], None))


MUTATIONS = [
    ties_ascending,
    ties_by_position,
    ties_by_number_instead_of_string,
    scores_in_float64,
    average_precision_over_found,
    average_precision_over_all_relevant,
    precision_over_returned,
    discount_of_log2_rank,
    ideal_of_what_was_found,
    r_precision_over_found,
    own_document_counts_as_relevant,
]


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
def test_a_wrong_definition_is_noticed(mutate, monkeypatch):
    right = [(case, expected(case, 5)) for case in map(make_case, range(8))]
    for case, want in right:
        compare(case, 5, want)
    with pytest.raises(AssertionError):
        for case, want in right:
            with monkeypatch.context() as patch:
                mutate(patch, case)
                compare(case, 5, want)


@pytest.mark.parametrize("seed", range(5))
def test_identities_with_one_relevant_document_per_query(seed):
    """What Finetuner's published numbers obey at k = 20 and R = 1."""
    rng = np.random.default_rng(seed)
    queries, k = 500, 20
    ranked = np.stack([rng.permutation(60)[:k] for _ in range(queries)])
    judged = metrics.judge(
        ranked, np.arange(queries), np.arange(queries + 1), rng.integers(0, 60, queries),
        np.ones(queries),
    )  # fmt: skip
    mean = metrics.mean_metrics(judged, k)
    hit_at_1 = metrics.mean_metrics(judged, 1)["hit_at_k"]
    assert 0 < hit_at_1 < mean["hit_at_k"] < 1
    same = [
        (mean["precision_at_k"], mean["hit_at_k"] / 20),
        (mean["f1_score_at_k"], mean["hit_at_k"] * 2 * 0.05 / 1.05),
        (mean["recall_at_k"], mean["hit_at_k"]),
        (mean["average_precision"], mean["reciprocal_rank"]),
        (mean["dcg_at_k"], mean["ndcg_at_k"]),
        (mean["r_precision"], hit_at_1),
    ]
    for left, right in same:
        assert abs(left - right) < 1e-12


def test_a_worked_example():
    """r = [0, 1, 0, 1, 0], R = 3."""
    judged = metrics.judge(
        np.array([[4, 0, 5, 2, 6]]), np.array([0]), np.array([0, 3]), np.array([0, 2, 9]),
        np.ones(3),
    )  # fmt: skip
    assert metrics.mean_metrics(judged, 5) == pytest.approx(
        {
            "average_precision": (1 / 2 + 2 / 4) / 3,
            "dcg_at_k": 1 / math.log2(3) + 1 / math.log2(5),
            "f1_score_at_k": 0.5,
            "hit_at_k": 1,
            "ndcg_at_k": 0.4981892,
            "precision_at_k": 0.4,
            "r_precision": 1 / 3,
            "recall_at_k": 2 / 3,
            "reciprocal_rank": 0.5,
        },
        abs=1e-7,
    )


def test_queries_without_relevant_documents_count_as_zero_and_can_be_counted():
    judged = metrics.judge(
        np.array([[0], [0]]), np.array([0, 1]), np.array([0, 1, 1]), np.array([0]), np.array([2])
    )
    assert judged.relevant.tolist() == [1, 0]
    assert metrics.mean_metrics(judged, 1) == {name: 0.5 for name in metrics.METRICS} | {
        "dcg_at_k": 1.0
    }


def test_no_judgements_at_all():
    judged = metrics.judge(
        np.array([[0, -1]]), np.array([0]), np.array([0, 0]), np.array([]), np.array([]),
        np.array([1]),
    )  # fmt: skip
    assert metrics.mean_metrics(judged, 2) == dict.fromkeys(metrics.METRICS, 0.0)


def test_what_cannot_be_judged_is_refused():
    one = (np.array([0]), np.array([0, 2]))
    with pytest.raises(ValueError, match="ascending"):
        metrics.judge(np.array([[0]]), *one, np.array([1, 0]), np.ones(2))
    with pytest.raises(ValueError, match="own document"):
        metrics.judge(np.array([[1]]), *one, np.array([0, 1]), np.ones(2), np.array([1]))
    judged = metrics.judge(np.array([[1]]), *one, np.array([0, 1]), np.ones(2))
    for k in (0, 2):
        with pytest.raises(ConfigError, match=f"k={k}"):
            metrics.per_query(judged, k)
    nobody = metrics.judge(np.empty((0, 1)), np.array([]), *one[1:], np.array([0, 1]), np.ones(2))
    with pytest.raises(DataError, match="no queries"):
        metrics.mean_metrics(nobody, 1)
