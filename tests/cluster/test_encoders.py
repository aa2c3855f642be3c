"""Encoding by actors of a Ray cluster."""

from __future__ import annotations

import numpy as np
import pytest

import ftray
from ftray.cluster.encoders import share_of
from ftray.cluster.inventory import Node
from ftray.errors import ClusterError, FtrayError


def nodes(*resources: dict[str, float]) -> list[Node]:
    return [Node(str(number), dict(held)) for number, held in enumerate(resources)]


def test_each_actor_gets_a_gpu_where_there_are_as_many_else_its_share_of_the_cpus() -> None:
    two = nodes({"CPU": 8.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 1.0})
    assert share_of(two, 2) == {"CPU": 0.0, "GPU": 1.0}
    assert share_of(two, 3) == {"CPU": 4.0}, "no actor lies on two nodes"
    assert share_of(two, 12) == {"CPU": 1.0}
    with pytest.raises(ClusterError, match=r"num_workers = 13, each with a CPU: .* 8 CPUs, 1 GPU"):
        share_of(two, 13)


@pytest.mark.ray
@pytest.mark.slow
def test_two_actors_give_the_embeddings_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    model = ftray.get_model("mlp", model_options={"input_size": 6, "hidden_sizes": [8]})
    given = list(np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32))
    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", address="local")
    try:
        with pytest.raises(ClusterError, match="num_workers = 3, each with a CPU"):
            ftray.encode(model, given, num_workers=3, on_ray=True)
        done: list[int] = []
        found = ftray.encode(
            model,
            given,
            num_workers=2,
            on_ray=True,
            batch_size=16,
            on_progress=lambda so_far, _: done.append(so_far),
        )
        assert np.abs(found - ftray.encode(model, given)).max() < 1e-6
        assert done[-1] == 300 and len(done) == 19
        with pytest.raises(FtrayError):  # of another width: raised there, and told here
            ftray.encode(model, [np.zeros(7, np.float32)], num_workers=1, on_ray=True)
        assert ray.is_initialized(), "the caller's session is left to the caller"
    finally:
        ray.shutdown()
