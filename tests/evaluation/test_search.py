"""ExactIndex finds what brute force finds, in trec_eval's order, ties at the cut included."""

from __future__ import annotations

import numpy as np
import pytest

from ftray.errors import ConfigError, DataError
from ftray.evaluation.search import ExactIndex
from ftray.evaluation.spec import DISTANCES


def brute_force(ids, vectors, queries, k, distance, exclude=None):
    """Score every pair in float64, round to float32, sort by (score, id) descending, cut."""
    vectors, queries = vectors.astype(np.float64), queries.astype(np.float64)
    if distance == "cosine":
        # float32 after normalising, as the index stores them
        vectors, queries = (
            (x / np.where((n := np.linalg.norm(x, axis=1, keepdims=True)) > 0, n, 1))
            .astype(np.float32)
            .astype(np.float64)
            for x in (vectors, queries)
        )
    if distance in ("cosine", "dot"):
        raw = (queries[:, None] * vectors[None]).sum(-1)
    else:
        raw = -((queries[:, None] - vectors[None]) ** 2).sum(-1)
        raw = -np.sqrt(-raw) if distance == "euclidean" else raw
    scores = np.full((len(queries), k), -np.inf, np.float32)
    positions = np.full((len(queries), k), -1, np.int64)
    for q, row in enumerate(raw.astype(np.float32)):
        found = [p for p in range(len(ids)) if exclude is None or p != exclude[q]]
        found = sorted(found, key=lambda p, row=row: (row[p], ids[p]), reverse=True)[:k]
        positions[q, : len(found)] = found
        scores[q, : len(found)] = row[found]
    return scores, positions


def make_index(ids, vectors, distance="cosine"):
    index = ExactIndex(vectors.shape[1], distance)
    index.add(ids, vectors)
    return index


def shuffled_ids(n, rng):
    return [f"d{i}" for i in rng.permutation(n)]


def check(ids, vectors, queries, k, distance, exclude=None):
    got = make_index(ids, vectors, distance).search(queries, k, exclude)
    want = brute_force(ids, vectors, queries, k, distance, exclude)
    assert got[0].dtype == np.float32 and got[1].dtype == np.int64
    np.testing.assert_array_equal(got[1], want[1])
    np.testing.assert_array_equal(got[0], want[0])
    return got


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("seed", range(3))
def test_random_vectors_match_brute_force(distance, seed):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(700, 24)).astype(np.float32)
    queries = rng.normal(size=(300, 24)).astype(np.float32)
    exclude = rng.integers(-1, 700, 300)
    check(shuffled_ids(700, rng), vectors, queries, 10, distance, exclude)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("seed", range(3))
def test_vectors_of_few_integers_tie_often_and_ties_are_cut_by_id(distance, seed):
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-1, 2, size=(900, 4)).astype(np.float32)
    queries = rng.integers(-1, 2, size=(60, 4)).astype(np.float32)  # zero vectors among them
    exclude = np.where(rng.random(60) < 0.5, rng.integers(0, 900, 60), -1)
    check(shuffled_ids(900, rng), vectors, queries, 7, distance, exclude)


@pytest.mark.parametrize("distance", DISTANCES)
def test_hundreds_of_duplicates_at_the_cut(distance):
    # Counts and a width that fit no SIMD or matrix block.
    rng = np.random.default_rng(0)
    base = rng.normal(size=(5, 37)).astype(np.float32)
    vectors = base[rng.integers(0, 5, 1501)]
    queries = rng.normal(size=(50, 37)).astype(np.float32)
    scores, _ = check(shuffled_ids(1501, rng), vectors, queries, 20, distance)
    assert (scores[:, 0] == scores[:, -1]).all()


def test_ids_are_compared_as_strings():
    vectors = np.ones((12, 3), np.float32)
    index = make_index([str(i) for i in range(12)], vectors)
    _, positions = index.search(vectors[:1], 4)
    assert positions.tolist() == [[9, 8, 7, 6]]  # "9" > "8" > "7" > "6" > … > "11" > "10"


def test_scores_that_are_equal_as_float32_are_ties():
    vectors = np.array([[1.0, 1e-9], [1.0, 0.0]], np.float32)
    _, positions = make_index(["a", "b"], vectors, "dot").search(np.ones((1, 2), np.float32), 2)
    assert positions.tolist() == [[1, 0]]


@pytest.mark.parametrize("distance", DISTANCES)
def test_k_beyond_the_index_is_padded(distance):
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(5, 3)).astype(np.float32)
    scores, positions = check(
        shuffled_ids(5, rng), vectors, vectors, 9, distance, exclude=np.array([-1, 0, 1, 2, 3])
    )
    assert (positions[0] >= 0).sum() == 5 and (positions[1] >= 0).sum() == 4
    assert np.isneginf(scores[positions < 0]).all()


def test_exclusion_happens_before_the_cut():
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(400, 8)).astype(np.float32)
    _, positions = check(
        shuffled_ids(400, rng), vectors, vectors, 5, "cosine", exclude=np.arange(400)
    )
    assert (positions != np.arange(400)[:, None]).all() and (positions >= 0).all()


@pytest.mark.parametrize("distance", DISTANCES)
def test_results_do_not_depend_on_which_queries_are_searched_together(distance):
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(1003, 37)).astype(np.float32)
    queries = rng.normal(size=(261, 37)).astype(np.float32)
    index = make_index(shuffled_ids(1003, rng), vectors, distance)
    together = index.search(queries, 6)
    for size in (1, 7, 100):
        parts = [index.search(queries[s : s + size], 6) for s in range(0, 261, size)]
        for whole, pieces in zip(together, zip(*parts, strict=True), strict=True):
            np.testing.assert_array_equal(whole, np.concatenate(pieces))


def test_near_duplicates_far_from_the_origin_are_ordered_exactly():
    # |q|² + |d|² - 2 q·d in float32, the BLAS formula, cannot tell these documents apart.
    rng = np.random.default_rng(4)
    centre = rng.normal(size=(1, 16)) * 1000
    vectors = (centre + rng.normal(size=(500, 16)) * 0.01).astype(np.float32)
    queries = (centre + rng.normal(size=(40, 16)) * 0.01).astype(np.float32)
    check(shuffled_ids(500, rng), vectors, queries, 5, "euclidean")


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_products_beyond_float32_still_rank(distance, size):
    rng = np.random.default_rng(5)
    vectors = (rng.normal(size=(300, 8)) * size).astype(np.float32)
    scores, positions = make_index(shuffled_ids(300, rng), vectors, distance).search(
        vectors[:30], 5
    )
    assert np.isfinite(scores).all() and (positions >= 0).all()
    if distance == "cosine":
        np.testing.assert_array_equal(positions[:, 0], np.arange(30))


def test_zero_vectors_have_cosine_zero():
    index = make_index(["a", "b", "c"], np.array([[1, 0], [0, 0], [-1, 0]], np.float32))
    scores, positions = index.search(np.array([[2, 0], [0, 0]], np.float32), 3)
    assert scores.tolist() == [[1, 0, -1], [0, 0, 0]]
    assert positions.tolist() == [[0, 1, 2], [2, 1, 0]]
    assert not np.signbit(scores[1]).any()


@pytest.mark.parametrize("distance", ["euclidean", "sqeuclidean"])
def test_a_distance_of_zero_is_not_minus_zero(distance):
    vectors = np.ones((2, 2), np.float32)
    scores, _ = make_index(["a", "b"], vectors, distance).search(vectors, 2)
    assert (scores == 0).all() and not np.signbit(scores).any()


def test_empty_index_and_no_queries():
    index = ExactIndex(4)
    scores, positions = index.search(np.ones((2, 4), np.float32), 3)
    assert len(index) == 0 and np.isneginf(scores).all() and (positions == -1).all()
    index.add([], np.empty((0, 4), np.float32))
    index.add(["a"], np.ones((1, 4), np.float32))
    scores, positions = index.search(np.empty((0, 4), np.float32), 3)
    assert scores.shape == positions.shape == (0, 3)


def test_documents_may_be_added_in_parts():
    rng = np.random.default_rng(6)
    vectors = rng.integers(-1, 2, size=(90, 4)).astype(np.float32)
    ids = shuffled_ids(90, rng)
    parts = ExactIndex(4)
    parts.add(ids[:40], vectors[:40])
    parts.search(vectors[:3], 3)  # what is cached here must not survive the next add
    parts.add(ids[40:], vectors[40:])
    assert len(parts) == 90 and parts.ids == ids
    for got, want in zip(
        parts.search(vectors, 5), make_index(ids, vectors).search(vectors, 5), strict=True
    ):
        np.testing.assert_array_equal(got, want)


def test_the_callers_vectors_are_not_changed():
    vectors = np.full((3, 2), 5, np.float32)
    make_index(["a", "b", "c"], vectors).search(vectors, 1)
    assert (vectors == 5).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_a_vector_that_is_not_finite_is_named(value):
    vectors = np.ones((3, 2))
    vectors[1, 0] = value
    index = ExactIndex(2)
    with pytest.raises(DataError, match=r"document 'second' .*1 of 3"):
        index.add(["first", "second", "third"], vectors)
    assert len(index) == 0
    index.add(["first"], vectors[:1])
    with pytest.raises(DataError, match="query number 1 "):
        index.search(vectors, 1)


def test_unknown_distance_offers_the_nearest():
    with pytest.raises(ConfigError, match=r"'cosin'.*Did you mean 'cosine'"):
        ExactIndex(2, "cosin")


def test_duplicate_ids_are_refused_and_nothing_is_added():
    index = make_index(["a"], np.ones((1, 2), np.float32))
    for ids in (["b", "a"], ["b", "b"]):
        with pytest.raises(DataError, match="occurs twice"):
            index.add(ids, np.ones((2, 2), np.float32))
    assert len(index) == 1


def test_shapes_that_do_not_fit():
    index = make_index(["a"], np.ones((1, 2), np.float32))
    with pytest.raises(DataError, match="width 2"):
        index.search(np.ones((1, 3), np.float32), 1)
    with pytest.raises(DataError, match="2 document ids were given for 1 vectors"):
        index.add(["b", "c"], np.ones((1, 2), np.float32))
    for exclude in ([0, 0], [1], [-2]):
        with pytest.raises(DataError, match="'exclude'"):
            index.search(np.ones((1, 2), np.float32), 1, np.array(exclude))
    with pytest.raises(ConfigError, match="k=0"):
        index.search(np.ones((1, 2), np.float32), 0)
    with pytest.raises(ConfigError):
        ExactIndex(0)


def test_a_collapsed_model_is_ranked_by_id():
    # Every embedding equal: every query ties with the whole index.
    vectors = np.ones((5000, 64), np.float32)
    index = make_index([f"{i:05d}" for i in range(5000)], vectors)
    _, positions = index.search(vectors[:300], 20)
    assert (positions == np.arange(4999, 4979, -1)).all()
