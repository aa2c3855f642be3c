"""The rule of EarlyStopping as a `ray.tune.Stopper`."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from ray import cloudpickle

from ftray.cluster.stoppers import EarlyStoppingStopper
from ftray.errors import ConfigError


def stops_after(stopper: EarlyStoppingStopper, values: list[float], trial: str = "a") -> int | None:
    for epoch, value in enumerate(values, start=1):
        if stopper(trial, {"val_loss": value}):
            return epoch
    return None


@pytest.mark.parametrize(
    ("values", "options", "epoch"),
    [
        ([0.5, 0.6, 0.7, 0.8], {}, 3),
        ([0.5, 0.5, 0.5], {}, 3),
        ([0.5, 0.6, 0.4, 0.45, 0.46], {}, 5),
        ([0.5, 0.6], {"patience": 1}, 2),
        ([1, 0.95, 0.92], {"min_delta": 0.1}, 3),
        ([0.35, 0.36, 0.37, 0.38], {"baseline": 0.4}, None),
        ([math.nan, math.nan], {}, 2),
    ],
)
def test_it_stops_where_early_stopping_stops(values, options, epoch):
    assert stops_after(EarlyStoppingStopper("val_loss", **options), values) == epoch


def test_trials_do_not_share_their_patience():
    stopper = EarlyStoppingStopper("val_loss")
    assert not stopper("a", {"val_loss": 0.5}) and not stopper("a", {"val_loss": 0.6})
    assert not stopper("b", {"val_loss": 0.9}) and not stopper("b", {"val_loss": 0.95})
    assert stopper("a", {"val_loss": 0.7})
    assert not stopper("b", {"val_loss": 0.8})
    assert not stopper.stop_all()


def test_it_continues_after_a_restart():
    stopper = EarlyStoppingStopper("val_loss")
    assert stops_after(stopper, [0.5, 0.6]) is None
    assert stops_after(cloudpickle.loads(cloudpickle.dumps(stopper)), [0.7]) == 1


def test_patience_zero_is_refused():
    with pytest.raises(ConfigError, match="patience = 0"):
        EarlyStoppingStopper(patience=0)


# ---------------------------------------------------------------- through Ray Tune

SEQUENCES = {
    "falls no more": ([0.5, 0.6, 0.7, 0.1], [], 3),
    "falls once more": ([0.5, 0.6, 0.4, 0.45, 0.46, 0.1], [], 5),
    "stays": ([0.5, 0.5, 0.5, 0.1], [], 3),
    "falls": ([0.5, 0.4, 0.3, 0.2], [], 4),
    "falls too little": ([], [1, 0.95, 0.92, 0.1], 3),
}


@pytest.fixture(scope="module")
def session():
    import ray

    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", address="local")
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.ray
def test_trials_of_tune_stop_where_a_run_would(session, tmp_path):
    """All at once: a trial has a loss judged by the default rule, and one by `min_delta`; the one
    that it is not about falls all the while.
    """
    from ray import tune
    from ray.tune.stopper import CombinedStopper

    sequences = {name: (fine, coarse) for name, (fine, coarse, _) in SEQUENCES.items()}

    def train(config):
        fine, coarse = sequences[config["name"]]
        for epoch in range(max(len(fine), len(coarse))):
            tune.report(
                {
                    "val_loss": fine[epoch] if fine else -epoch,
                    "coarse_loss": coarse[epoch] if coarse else -epoch,
                }
            )

    tuner = tune.Tuner(
        tune.with_resources(train, {"cpu": 0.25}),
        param_space={"name": tune.grid_search(list(SEQUENCES))},
        run_config=tune.RunConfig(
            storage_path=str(tmp_path),
            verbose=0,
            stop=CombinedStopper(
                EarlyStoppingStopper("val_loss"),
                EarlyStoppingStopper("coarse_loss", min_delta=0.1),
            ),
        ),
    )
    results = tuner.fit()
    assert not results.errors
    stopped = {r.config["name"]: r.metrics["training_iteration"] for r in results}
    assert stopped == {name: last for name, (*_, last) in SEQUENCES.items()}


@pytest.mark.ray
def test_the_example_of_the_guide_stops_where_it_says(session, tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[2] / "docs" / "callbacks.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(from ray import tune\n.*?)```", page, re.DOTALL)
    (said,) = re.findall(r"# (\d+ \d+), and (\d+ \d+)", code)
    monkeypatch.setattr("ray.train.constants.DEFAULT_STORAGE_PATH", str(tmp_path))
    exec(compile(code, "docs/callbacks.md", "exec"), {"__name__": "__main__"})
    printed = re.findall(r"^\d+ \d+$", capsys.readouterr().out, re.MULTILINE)
    assert sorted(printed) == sorted(said)
