"""What a sweep is asked for: read, checked, and made into the configuration of each trial."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ftray.config import FitConfig
from ftray.errors import ConfigError
from ftray.sweeps.config import SweepConfig, load_sweep, validated_sweep

FIT = {"model": "minilm", "train_data": "train.csv", "num_workers": 0}
RATE = {"learning_rate": {"loguniform": [1e-5, 1e-3]}}


def sweep(**fields: Any) -> SweepConfig:
    return validated_sweep({"fit": FIT, "space": RATE, "metric": "train_loss", **fields})


def test_a_trial_has_what_is_shared_and_what_it_varies() -> None:
    asked = sweep(
        fit={**FIT, "loss_options": {"margin": 0.1, "swap": True}, "epochs": 2},
        space={"loss_options.margin": {"choice": [0.3]}, "epochs": {"choice": [7]}},
        storage_path="there",
    )
    config = asked.fit_config({"loss_options.margin": 0.3, "epochs": 7}, "mine", "trial-004")
    assert isinstance(config, FitConfig)
    assert config.loss_options == {"margin": 0.3, "swap": True}
    assert (config.epochs, config.storage_path) == (7, "there")
    assert (config.experiment_name, config.run_name, config.resume) == ("mine", "trial-004", "auto")
    assert asked.fit["loss_options"] == {"margin": 0.1, "swap": True}, "left as it was"


def test_an_option_of_a_callback_can_be_varied() -> None:
    callbacks = [{"EarlyStopping": {"monitor": "train_loss", "patience": 2}}]
    key = "callbacks.0.EarlyStopping.patience"
    asked = sweep(fit={**FIT, "callbacks": callbacks}, space={key: {"choice": [5]}})
    config = asked.fit_config({key: 5}, "mine", "trial-000")
    assert config.callbacks == [{"EarlyStopping": {"monitor": "train_loss", "patience": 5}}]


def test_workers_of_trials_take_one_cpu_unless_told_otherwise() -> None:
    """One trial would take them all."""
    workers = {**FIT, "num_workers": 2}
    assert sweep(fit=workers).fit_config({}, "a", "b").resources_per_worker == {"CPU": 1}
    told = {**workers, "resources_per_worker": {"CPU": 3}}
    assert sweep(fit=told).fit_config({}, "a", "b").resources_per_worker == {"CPU": 3}
    assert sweep().fit_config({}, "a", "b").resources_per_worker is None


@pytest.mark.parametrize(
    ("space", "fit", "shared"),
    [
        (RATE, {}, True),
        ({"loss": {"choice": ["a"]}, "batch_size": {"choice": [2]}}, {}, True),
        ({"train_data": {"choice": ["a.csv"]}}, {}, False),
        ({"csv_options.delimiter": {"choice": [";"]}}, {}, False),
        ({"model": {"choice": ["minilm"]}}, {}, False),
        ({"seed": {"choice": [0]}}, {}, True),
        ({"seed": {"choice": [0]}}, {"val_split": 0.1}, False),
    ],
)
def test_data_is_shared_unless_trials_differ_in_it(
    space: dict[str, Any], fit: dict[str, Any], shared: bool
) -> None:
    assert sweep(space=space, fit={**FIT, **fit}).shares_data is shared


def test_points_follow_the_search() -> None:
    assert len(sweep(num_samples=7).points()) == 7
    grid = {"epochs": {"grid": [1, 2]}, "batch_size": {"choice": [8, 16, 32]}}
    assert len(sweep(space=grid, search="grid").points()) == 6
    assert sweep(seed=1).points() != sweep(seed=2).points()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"metrc": "x"}, "there is no option 'metrc'. Did you mean 'metric'"),
        ({"metric": None}, "metric = None"),
        ({"num_samples": 0}, "num_samples = 0"),
        ({"scheduler": "hyperband"}, "scheduler = 'hyperband'"),
        ({"max_concurrent_trials": 0}, "a positive number of trials, or 'auto'"),
        ({"name": "a/b"}, "is to be a folder's name"),
        ({"space": {"lerning_rate": {"choice": [1]}}}, "Did you mean 'learning_rate'"),
        ({"space": {"run_name": {"choice": ["a"]}}}, "trials are named by number"),
        ({"fit": {**FIT, "storage_path": "x"}}, "all trials are kept with the sweep"),
        ({"fit": {**FIT, "resume": "auto"}}, "trials go on with their sweep"),
        ({"scheduler_options": {"max_t": 3}}, "and no scheduler"),
        ({"search_options": {"seed": 3}}, "belong to search: optuna"),
        ({"search": "grid"}, "is a range"),
        (
            {"search": "grid", "space": {"epochs": {"grid": [1]}}, "num_samples": 3},
            "num_samples has no use",
        ),
        ({"scheduler": "pbt", "space": {"epochs": {"choice": [1]}}}, "while a trial trains"),
        ({"scheduler": "pbt", "search": "optuna"}, "draws its first values itself"),
        ({"scheduler": "pbt", "max_concurrent_trials": 2}, "resources_per_trial instead"),
        ({"scheduler": "pbt", "fit": {**FIT, "num_workers": 2}}, "give fit.num_workers: 0"),
    ],
)
def test_mistakes_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sweep(**fields)


def test_a_value_that_a_trial_cannot_have_names_the_trial() -> None:
    asked = sweep(space={"epochs": {"choice": [-1]}})
    with pytest.raises(ConfigError, match=r"trial-000: epochs = -1"):
        asked.fit_config({"epochs": -1}, "mine", "trial-000")


def test_the_yaml_file_may_name_that_of_a_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("fit.yaml").write_text("model: minilm\ntrain_data: train.csv\nepochs: 3\n")
    space = "space: {learning_rate: {loguniform: [1e-5, 1e-3]}}\nmetric: train_loss\n"
    Path("sweep.yaml").write_text(f"fit: fit.yaml\n{space}")
    asked = load_sweep("sweep.yaml", ["fit.epochs=9", "num_samples=4"])
    assert asked.fit == {"model": "minilm", "train_data": "train.csv", "epochs": 9}
    assert asked.num_samples == 4
    with pytest.raises(ConfigError, match=r"looks like a fit: .* under 'fit:'"):
        load_sweep("fit.yaml")
    Path("sweep.yaml").write_text(f"fit: other.yaml\n{space}")
    with pytest.raises(ConfigError, match=r"no file 'other.yaml'. Did you mean 'fit.yaml'|There"):
        load_sweep("sweep.yaml")
