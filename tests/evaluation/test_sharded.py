"""Shards find together what one index finds: same documents, same order, same scores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftray.errors import DataError
from ftray.evaluation.search import ExactIndex, tie_ranks
from ftray.evaluation.sharded import Shard, cut, home, merge, query_blocks
from ftray.evaluation.spec import DISTANCES, batches_of


def sharded(ids, documents, queries, k, distance, shards, *, own=None, places=None, batch=7):
    """What shards find, each in this process; they are sent their batches by nobody else's rule."""
    sides = {"index": documents} | ({"query": queries} if places is None else {})
    batches = {side: batches_of(np.arange(len(v)) % 5, batch) for side, v in sides.items()}
    parts = cut(ids, batches, shards=shards, distance=distance, limit=k, places=places, own=own)
    held = [Shard(part) for part in parts]
    for side, vectors in sides.items():
        for number, rows in enumerate(batches[side]):
            shard, own_number = home(number, shards)
            held[shard].add(side, own_number, vectors[rows])
    for shard in held:
        shard.build()
    count = len(queries) if places is None else len(places)
    scores, positions = np.zeros((count, k), np.float32), np.full((count, k), -2)
    for holder, numbers in query_blocks([part.queries for part in parts], size=4):
        vectors = held[holder].queries(numbers)
        found = [shard.search(vectors, numbers) for shard in held]
        scores[numbers], positions[numbers] = merge(found, tie_ranks(ids))
    return scores, positions


def whole(ids, documents, queries, k, distance, own=None):
    index = ExactIndex(documents.shape[1], distance)
    index.add(ids, documents)
    return index.search(queries, k, own)


def assert_equal(got, want) -> None:
    np.testing.assert_array_equal(got[1], want[1])
    np.testing.assert_array_equal(got[0], want[0])


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    documents=st.integers(1, 90),
    shards=st.integers(1, 6),
    k=st.integers(1, 30),
    distance=st.sampled_from(DISTANCES),
    values=st.sampled_from([2, 3, 1000]),  # of few values nearly all documents tie
    hide=st.booleans(),
    self_retrieval=st.booleans(),
)
def test_any_cut_finds_what_one_index_finds(
    seed, documents, shards, k, distance, values, hide, self_retrieval
):
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-(values // 2), values, (documents, 3)).astype(np.float32)
    ids = [f"d{i}" for i in rng.permutation(documents)]
    places = rng.integers(0, documents, 11) if self_retrieval else None
    queries = rng.integers(-1, 2, (11, 3)).astype(np.float32) if places is None else vectors[places]
    own = None
    if hide:
        own = np.where(rng.random(11) < 0.3, -1, rng.integers(0, documents, 11))
    got = sharded(ids, vectors, queries, k, distance, shards, own=own, places=places)
    assert_equal(got, whole(ids, vectors, queries, k, distance, own))


@pytest.mark.parametrize("distance", DISTANCES)
def test_real_vectors_with_duplicates_at_every_cut(distance):
    rng = np.random.default_rng(0)
    base = rng.normal(size=(40, 24)).astype(np.float32)
    vectors = base[rng.integers(0, 40, 3000)]  # 75 of each, over all shards
    ids = [str(i) for i in rng.permutation(3000)]
    places = rng.integers(0, 3000, 60)
    own = np.arange(60)
    got = sharded(ids, vectors, vectors[places], 20, distance, 3, own=own, places=places, batch=32)
    assert_equal(got, whole(ids, vectors, vectors[places], 20, distance, own))
    assert (got[0][:, 0] == got[0][:, -1]).mean() > 0.9  # they do tie
    assert (np.diff(np.sort(got[1] // 32 % 3, axis=1), axis=1) > 0).any()  # of several shards


def test_tie_order_is_that_of_ids_not_of_shards():
    # a wrong merge that keeps the shards' order would return position 0 first
    vectors = np.ones((4, 2), np.float32)
    _, positions = sharded(list("abcd"), vectors, vectors[:1], 3, "cosine", 2, batch=1)
    assert positions.tolist() == [[3, 2, 1]]


def test_more_shards_than_batches_and_fewer_documents_than_k():
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(5, 3)).astype(np.float32)
    got = sharded(list("abcde"), vectors, vectors, 9, "dot", 4, batch=3)
    assert_equal(got, whole(list("abcde"), vectors, vectors, 9, "dot"))
    assert (got[1][:, 5:] == -1).all() and np.isneginf(got[0][:, 5:]).all()


def test_each_document_and_each_query_is_in_one_shard():
    rng = np.random.default_rng(2)
    batches = {"index": batches_of(rng.integers(0, 9, 100), 8), "query": batches_of([1] * 31, 8)}
    ids = [f"d{i}" for i in range(100)]
    parts = cut(ids, batches, shards=3, distance="dot", limit=5)
    assert sorted(np.concatenate([part.documents for part in parts])) == list(range(100))
    assert sorted(np.concatenate([part.queries for part in parts])) == list(range(31))
    assert max(len(part.documents) for part in parts) <= 40  # no shard has much more than a third
    for part in parts:
        assert part.ids == [f"d{i}" for i in part.documents]


def test_a_batch_that_did_not_arrive_is_missed():
    batches = {"index": batches_of([1] * 6, 2), "query": batches_of([1] * 2, 2)}
    part = cut(list("abcdef"), batches, shards=1, distance="dot", limit=1)[0]
    shard = Shard(part)
    shard.add("index", 0, np.ones((2, 2), np.float32))
    with pytest.raises(RuntimeError, match="2 of 3 index batches did not arrive"):
        shard.build()


def test_a_vector_that_is_not_finite_is_named_by_its_place_in_the_whole():
    vectors = np.ones((9, 2), np.float32)
    broken = vectors.copy()
    broken[7] = np.nan
    ids = list("abcdefghi")
    with pytest.raises(DataError, match=r"document 'h' holds NaN"):
        sharded(ids, broken, vectors, 2, "dot", 3, batch=1)
    with pytest.raises(DataError, match=r"query number 7 holds NaN"):
        sharded(ids, vectors, broken, 2, "dot", 3, batch=1)


def test_a_shard_can_be_filled_again_after_it_forgot():
    batches = {"index": batches_of([1] * 3, 3)}
    places = np.arange(3)
    part = cut(list("abc"), batches, shards=1, distance="dot", limit=1, places=places)[0]
    shard = Shard(part)
    for scale in (1.0, 2.0):
        shard.add("index", 0, np.eye(3, dtype=np.float32) * scale)
        shard.build()
        scores, positions = shard.search(shard.queries(places), places)
        assert positions.ravel().tolist() == [0, 1, 2] and (scores == scale**2).all()
        shard.forget()
        assert np.isneginf(shard.search(np.eye(3, dtype=np.float32), places)[0]).all()
