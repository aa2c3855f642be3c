"""An index in shards, on a cluster of three nodes, finds what one index finds.

One cluster for the module: three nodes on this machine, each with a CPU. Fits with shards are in
test_ray_fit.py.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from ftray.callbacks import EvaluationCallback
from ftray.errors import DataError
from ftray.evaluation.scorer import make_scorer
from ftray.evaluation.search import ExactIndex
from ftray.evaluation.sharded import cut, home
from ftray.evaluation.spec import batches_of
from ftray.runtime.process_group import LostWorkersError

pytestmark = pytest.mark.ray

STORE_BYTES = 200 * 2**20


@pytest.fixture(scope="module")
def cluster():
    import ray
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(**node)
    ray.init(address=cluster.address, logging_level="ERROR")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def in_actor(actor: Any, ask: Any) -> Any:
    """What a function of the actor's object returns, called in the actor."""
    import ray

    return ray.get(actor.__ray_call__.remote(ask), timeout=60)


def node_of(actor: Any) -> str:
    """The id of the actor's node; nothing while it moves."""
    import ray

    try:
        return in_actor(actor, lambda _: ray.get_runtime_context().get_node_id())
    except ray.exceptions.ActorUnavailableError:
        return ""


# ---------------------------------------------------------------- vectors, without a model


def found_by_shards(actors, ids, vectors, queries, k):
    """Documents and queries are sent in batches, some on their way at a time."""
    import ray

    from ftray.cluster.sharded import ShardedSearch

    sides = {"index": vectors, "query": queries}
    batches = {side: batches_of(np.zeros(len(v)), 4096) for side, v in sides.items()}
    parts = cut(ids, batches, shards=len(actors), distance="cosine", limit=k)
    search = ShardedSearch(actors, parts, ids)
    for side, rows in sides.items():
        for number, batch in enumerate(batches[side]):
            shard, own_number = home(number, len(actors))
            sent = actors[shard].add.remote(side, own_number, rows[batch])
            if number % 16 == 0:
                ray.get(sent, timeout=60)
    search.build()
    return search.search(block=64)


@pytest.mark.parametrize(
    "size", [pytest.param(20_000), pytest.param(1_000_000, marks=pytest.mark.slow)]
)
def test_three_shards_find_what_one_index_finds_among_many_duplicates(cluster, size):
    import ray

    from ftray.cluster.shards import start_actors

    rng = np.random.default_rng(0)
    base = rng.normal(size=(size // 50, 128)).astype(np.float32)
    vectors = base[rng.integers(0, len(base), size)]  # 50 of each: every cut at 20 is within a tie
    queries = base[:150]
    ids = [str(number) for number in rng.permutation(size)]
    index = ExactIndex(128)
    index.add(ids, vectors)
    want = index.search(queries, 20)
    del index
    actors = start_actors(3)
    try:
        got = found_by_shards(actors, ids, vectors, queries, 20)
        nodes = {node_of(actor) for actor in actors}
    finally:
        for actor in actors:
            ray.kill(actor)
    np.testing.assert_array_equal(got[1], want[1])
    np.testing.assert_array_equal(got[0], want[0])
    assert (want[0][:, 0] == want[0][:, -1]).mean() > 0.9
    assert len(nodes) == 3


# ---------------------------------------------------------------- an evaluation, without a model


class Evaluated:
    """What scorers need of a `Job`."""

    def __init__(self, spec: Any) -> None:
        self.evaluations = (spec,)


@pytest.fixture(scope="module")
def actors(cluster):
    """A scorer actor and its three shards."""
    import ray

    from ftray.cluster.actors import start_scorers
    from ftray.cluster.shards import start_actors

    made = start_scorers(1), start_actors(3)
    yield made
    for actor in (*made[0], *made[1]):
        ray.kill(actor)


@pytest.fixture(scope="module")
def specs(labelled_rows, pair_rows):
    """Queries that stand in the index, and queries of their own, with examples of each."""
    options: dict[str, Any] = {"gather_examples": True, "limit": 7, "batch_size": 8}
    given = {
        "self": EvaluationCallback(labelled_rows, **options),
        "pairs": EvaluationCallback(pair_rows, exclude_self=False, distance="euclidean", **options),
    }
    return {name: callback.prepare(0) for name, callback in given.items()}


def vectors_of(spec) -> dict[str, Any]:
    """Of few values, so that many documents tie."""
    rng = np.random.default_rng(3)
    return {
        side.name: rng.integers(-1, 2, (len(side.texts), 3)).astype(np.float32)
        for side in spec.sides
    }


def fill(scorer, spec, vectors) -> None:
    for side, batches in spec.batches.items():
        for number, batch in enumerate(batches):
            scorer.add(side, number, vectors[side][batch])
    scorer.flush()


def loaded(actors, spec):
    """What a worker sends to, when rank 0 has given the actors their data."""
    import ray

    from ftray.cluster.actors import ActorScorer, load_scorers

    (scorer,), shards = actors
    load_scorers([scorer], ray.put(Evaluated(spec)), {0: shards})
    return ActorScorer(scorer, shards)


@pytest.mark.parametrize("name", ["self", "pairs"])
def test_an_evaluation_is_judged_as_with_one_index(actors, specs, name):
    spec = specs[name]
    assert (spec.query_places is None) is (name == "pairs")
    scorer = loaded(actors, spec)
    for shift in (0, 1):  # after an evaluation comes the next one
        vectors = {side: v + shift for side, v in vectors_of(spec).items()}
        here = make_scorer(spec)
        for one in (here, scorer):
            fill(one, spec, vectors)
        held = [
            in_actor(shard, lambda self: sum(map(len, self._shard._parts["index"].values())))
            for shard in actors[1]
        ]
        assert sum(held) == len(spec.data.document_ids) and max(held) <= sum(held) / 2
        assert in_actor(actors[0][0], lambda self: sum(map(len, self._scorer._parts.values()))) == 0
        want, got = here.score(), scorer.score()
        assert got.metrics == want.metrics
        assert got.per_query.equals(want.per_query)
        assert got.examples == want.examples and want.examples
        assert got.queries_without_relevant == want.queries_without_relevant


def test_a_vector_that_is_not_finite_is_the_users_error(actors, specs):
    for name, side in (("self", "index"), ("pairs", "query")):
        spec = specs[name]
        vectors = vectors_of(spec)
        vectors[side][4] = np.nan
        scorer = loaded(actors, spec)
        fill(scorer, spec, vectors)
        with pytest.raises(DataError, match="holds NaN or infinity"):
            scorer.score()


def test_a_lost_shard_is_a_lost_worker(actors, specs):
    import ray

    from ftray.cluster.shards import start_actors

    spec, ours = specs["self"], start_actors(2)
    scorer = loaded((actors[0], ours), spec)
    fill(scorer, spec, vectors_of(spec))
    ray.kill(ours[1], no_restart=False)
    with pytest.raises(LostWorkersError, match=r"restarted and has no data|An index shard did not"):
        scorer.score()
    scorer = loaded((actors[0], ours), spec)  # the next attempt of the run
    fill(scorer, spec, vectors_of(spec))
    assert scorer.score().metrics
    ray.kill(ours[0])
    with pytest.raises(LostWorkersError, match="An index shard did not answer"):
        loaded((actors[0], ours), spec)
    ray.kill(ours[1])


@pytest.mark.slow
def test_a_shard_whose_node_is_gone_starts_on_another(cluster):
    import ray

    from ftray.cluster.sharded import ShardedSearch
    from ftray.cluster.shards import start_actors

    fourth = cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
    actors = start_actors(4)
    before = [node_of(actor) for actor in actors]
    assert len(set(before)) == 4
    moved = actors[before.index(fourth.node_id)]
    cluster.remove_node(fourth, allow_graceful=False)
    deadline = time.monotonic() + 60
    while node_of(moved) == fourth.node_id and time.monotonic() < deadline:
        time.sleep(0.2)
    ids = [str(number) for number in range(9)]
    batches = {"index": batches_of(np.zeros(9), 2)}
    parts = cut(ids, batches, shards=4, distance="dot", limit=1, places=np.arange(9))
    ShardedSearch(actors, parts, ids)  # the next attempt of a run loads them again
    after = [node_of(actor) for actor in actors]
    assert fourth.node_id not in after
    assert [one == other for one, other in zip(before, after, strict=True)].count(False) == 1
    for actor in actors:
        ray.kill(actor)


def test_a_shard_that_cannot_be_placed_is_an_error_in_time(cluster, monkeypatch):
    import ray

    from ftray.cluster import sharded, shards

    monkeypatch.setattr(sharded, "PLACE_TIMEOUT_S", 1.0)
    actor = ray.remote(shards.ShardActor).options(num_cpus=99).remote(1)
    part = cut(
        ["a"], {"index": [np.array([0])]}, shards=1, distance="dot", limit=1, places=np.array([0])
    )
    with pytest.raises(LostWorkersError, match="An index shard did not answer within 1 s"):
        sharded.ShardedSearch([actor], part, ["a"])
    ray.kill(actor)
