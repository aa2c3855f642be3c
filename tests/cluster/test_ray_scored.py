"""Scored pairs on two Ray workers, evaluated in an actor, equal scored pairs in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_fit_scored import fit

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def session():
    import ray

    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", address="local")
    yield
    ray.shutdown()


@pytest.mark.slow
def test_two_workers_give_the_same_losses_and_correlations(
    session: None, tmp_path: Path, tiny_model: Path
) -> None:
    here = fit(tmp_path, tiny_model, epochs=2)
    there = fit(tmp_path, tiny_model, epochs=2, num_workers=2)
    losses = [[x for x in run.history()["loss"].to_pylist() if x] for run in (here, there)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    for side in ("before", "after"):
        assert there.metrics()[side] == pytest.approx(here.metrics()[side], abs=1e-4)
    evaluated = there._evaluations()[-1]
    assert evaluated.pairs == 30 and min(evaluated.rows_encoded) > 0
    assert sum(evaluated.rows_encoded) == len(
        {row[text] for row in there.per_query().to_pylist() for text in ("text_a", "text_b")}
    )
