"""The options of a fit: what YAML and --set may say, and what is said about mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ftray.config import FitConfig, validated
from ftray.config_file import apply_overrides, load_config
from ftray.errors import ConfigError

MINIMAL = "model: minilm\ntrain_data: train.csv\n"


def written(folder: Path, text: str, name: str = "fit.yaml") -> Path:
    path = folder / name
    path.write_text(MINIMAL + text, encoding="utf-8")
    return path


def refused(values: dict[Any, Any], where: str = "") -> str:
    with pytest.raises(ConfigError) as caught:
        validated({"model": "minilm", "train_data": "train.csv", **values}, where=where)
    return str(caught.value)


def refused_file(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def refused_override(text: str) -> str:
    values = {"epochs": 3, "callbacks": [{"EarlyStopping": {"patience": 2}}, "X"]}
    with pytest.raises(ConfigError) as caught:
        apply_overrides(values, [text])
    return str(caught.value)


# ---------------------------------------------------------------- YAML


def test_yaml_file_is_the_arguments_of_fit(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "epochs: 2\nloss_options: {margin: 0.1}\ncsv_options: {delimiter: ';'}\n"
        "callbacks:\n- EarlyStopping: {patience: 3}\n",
    )
    assert load_config(path) == FitConfig(
        model="minilm",
        train_data="train.csv",
        epochs=2,
        loss_options={"margin": 0.1},
        csv_options={"delimiter": ";"},  # type: ignore[arg-type]
        callbacks=[{"EarlyStopping": {"patience": 3}}],
    )


@pytest.mark.parametrize(
    ("text", "value"), [("5e-5", 5e-5), ("1E-3", 1e-3), ("2.5e-05", 2.5e-5), ("1.e-2", 0.01)]
)
def test_number_in_exponent_form_is_a_number(tmp_path: Path, text: str, value: float) -> None:
    path = written(tmp_path, f"learning_rate: {text}\noptimizer_options: {{eps: {text}}}\n")
    config = load_config(path)
    assert config.learning_rate == value
    assert config.optimizer_options == {"eps": value}
    given = load_config(path, [f"learning_rate={text}", f"loss_options.x={text}"])
    assert (given.learning_rate, given.loss_options) == (value, {"x": value})


def test_text_that_only_looks_like_a_number_stays_a_text(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, "run_name: '5e-5'\ndescription: e5\n"))
    assert (config.run_name, config.description) == ("5e-5", "e5")


def test_environment_variable_stands_anywhere_in_a_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FTRAY_TEST_DATA", "/data")
    monkeypatch.setenv("FTRAY_TEST_WORKERS", "2")
    path = written(
        tmp_path,
        "eval_data: ${FTRAY_TEST_DATA}/eval-${FTRAY_TEST_WORKERS}.csv\n"
        "num_workers: ${FTRAY_TEST_WORKERS}\n"
        "callbacks: [{EvaluationCallback: {query_data: '${FTRAY_TEST_DATA}/q.csv'}}]\n",
    )
    config = load_config(path, ["storage_path=${FTRAY_TEST_DATA}/runs"])
    assert config.eval_data == "/data/eval-2.csv"
    assert config.num_workers == 2
    assert config.callbacks == [{"EvaluationCallback": {"query_data": "/data/q.csv"}}]
    assert config.storage_path == "/data/runs"


def test_unset_variable_is_an_error_with_the_nearest_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FTRAY_TEST_DATA", "/data")
    message = refused_file(written(tmp_path, "eval_data: ${FTRAY_TEST_DATE}/eval.csv\n"))
    assert "fit.yaml: the environment variable 'FTRAY_TEST_DATE' is not set." in message
    assert "Did you mean 'FTRAY_TEST_DATA'" in message


def test_missing_file_gets_the_nearest_name(tmp_path: Path) -> None:
    written(tmp_path, "")
    message = refused_file(tmp_path / "fti.yaml")
    assert message.endswith("fti.yaml'. Did you mean 'fit.yaml'?")
    assert "There is no file" in refused_file(tmp_path / "nowhere" / "fit.yaml")


@pytest.mark.parametrize("text", ["", "just words", "- a\n- b", "# nothing\n"])
def test_file_without_options_is_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "fit.yaml"
    path.write_text(text)
    assert refused_file(path).endswith(
        "fit.yaml holds no options: a mapping such as 'model: minilm' is expected"
    )


def test_malformed_yaml_is_an_error_with_its_line(tmp_path: Path) -> None:
    message = refused_file(written(tmp_path, "loss_options: {margin: \n"))
    assert "fit.yaml is not valid YAML" in message
    assert "line 4" in message


def test_yaml_cannot_make_python_objects(tmp_path: Path) -> None:
    path = written(tmp_path, "description: !!python/object/apply:os.getcwd []\n")
    assert "is not valid YAML" in refused_file(path)


# ---------------------------------------------------------------- --set


def test_override_reaches_into_mappings_and_lists() -> None:
    values = {"loss": "A", "callbacks": [{"EarlyStopping": {"patience": 2}}, "B"]}
    result = apply_overrides(
        values,
        [
            "epochs=3",
            "callbacks.0.EarlyStopping.patience=5",
            "callbacks.1={BestModelCheckpoint: {mode: min}}",
            "loss_options.distance.name=x",
            "description=a=b, c",
            "run_name=null",
        ],
    )
    assert result == {
        "loss": "A",
        "epochs": 3,
        "callbacks": [
            {"EarlyStopping": {"patience": 5}},
            {"BestModelCheckpoint": {"mode": "min"}},
        ],
        "loss_options": {"distance": {"name": "x"}},
        "description": "a=b, c",
        "run_name": None,
    }
    assert values == {"loss": "A", "callbacks": [{"EarlyStopping": {"patience": 2}}, "B"]}


def test_later_override_wins() -> None:
    assert apply_overrides({}, ["epochs=1", "epochs=2"]) == {"epochs": 2}


def test_overridden_batch_size_counts_as_given(tmp_path: Path) -> None:
    path = written(tmp_path, "")
    assert not load_config(path).batch_size_is_explicit
    assert load_config(path, ["batch_size=64"]).batch_size_is_explicit


@pytest.mark.parametrize("text", ["epochs", "epochs 3", "=3", ""])
def test_override_without_key_or_value_says_the_form(text: str) -> None:
    assert refused_override(text) == (
        f"--set {text}: 'key=value' is expected, as in --set epochs=3"
    )


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("epochs.x=1", "x"),
        ("epochs.x.y=1", "x"),
        ("callbacks.2=X", "2"),
        ("callbacks.2.EarlyStopping=X", "2"),
        ("callbacks.last=X", "last"),
        ("callbacks.-1=X", "-1"),
    ],
)
def test_override_that_leads_nowhere_names_the_part(text: str, part: str) -> None:
    assert refused_override(text) == f"--set {text}: '{part}' is not part of anything"


def test_override_with_malformed_value_says_so() -> None:
    assert "--set epochs={: the value is not valid YAML" in refused_override("epochs={")


def test_misspelt_override_gets_the_nearest_key(tmp_path: Path) -> None:
    message = refused_file(written(tmp_path, ""), "epoch=3")
    assert message.endswith("fit.yaml: there is no option 'epoch'. Did you mean 'epochs'?")


# ---------------------------------------------------------------- mistakes


def test_misspelt_key_gets_the_nearest_and_the_file(tmp_path: Path) -> None:
    message = refused_file(written(tmp_path, "learning_rat: 1e-5\ncsv_options: {delimeter: ;}\n"))
    assert message.startswith(f"{tmp_path}/fit.yaml: ")
    assert "there is no option 'learning_rat'. Did you mean 'learning_rate'?" in message
    assert "there is no option 'csv_options.delimeter'. Did you mean 'delimiter'?" in message


def test_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match=r"fit.yaml: 'train_data' is missing"):
        validated({"model": "minilm"}, where="fit.yaml")


@pytest.mark.parametrize(
    ("values", "start"),
    [
        ({"epochs": -1}, "epochs = -1: input should be greater than or equal to 0"),
        ({"epochs": "many"}, "epochs = 'many': input should be a valid integer"),
        ({"batch_size": 1}, "batch_size = 1: a number of rows from 2, or 'auto'"),
        ({"batch_size": 2.5}, "batch_size = 2.5: a number of rows from 2, or 'auto'"),
        ({"val_split": 1}, "val_split = 1: input should be less than 1"),
        ({"learning_rate": 0}, "learning_rate = 0: input should be greater than 0"),
        ({"sampler": "pair"}, "sampler = 'pair': input should be 'auto', 'class', 'random' or"),
        ({"precision": "fp8"}, "precision = 'fp8': input should be 'auto', 'fp32', 'bf16' or"),
        ({"loss_options": 3}, "loss_options = 3: input should be a valid dictionary"),
        ({"csv_options": {"size": 0}}, "csv_options.size = 0: input should be greater than"),
        ({"seed": -1}, "seed = -1: input should be greater than or equal to 0"),
    ],
)
def test_wrong_value_names_key_and_value(values: dict[str, Any], start: str) -> None:
    assert refused(values).startswith(start)
    assert refused(values, where="fit.yaml").startswith(f"fit.yaml: {start}")


@pytest.mark.parametrize("value", [-1, True, 2.5, "many", (1, 2), None])
def test_wrong_number_of_workers_says_what_is_allowed(value: Any) -> None:
    assert refused({"num_workers": value}) == (
        f"num_workers = {value!r}: 0 (this process), a positive number of workers, or 'auto'"
    )


@pytest.mark.parametrize("value", [0, 1, 8, "auto"])
def test_number_of_workers(value: Any) -> None:
    config = validated({"model": "m", "train_data": "t", "num_workers": value})
    assert config.num_workers == value


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", " a", "a\n", "-x", "a" * 129])
def test_name_that_is_no_folder_is_refused(name: str) -> None:
    for key in ("run_name", "experiment_name"):
        assert "is to be a folder's name" in refused({key: name})


@pytest.mark.parametrize("name", ["a", "run 1", "größe-2.b_c", "a" * 128])
def test_name_of_a_folder(name: str) -> None:
    assert validated({"model": "m", "train_data": "t", "run_name": name}).run_name == name


def test_key_that_is_no_text_is_an_error() -> None:
    assert "1" in refused({1: 2})  # YAML's `1: 2`


def test_assigning_a_wrong_value_is_refused() -> None:
    config = validated({"model": "m", "train_data": "t"})
    with pytest.raises(ValueError, match="epochs"):
        config.epochs = -1


def test_path_is_accepted_where_yaml_has_a_text() -> None:
    config = validated(
        {"model": Path("models") / "a", "train_data": "t", "storage_path": Path("r")}
    )
    assert (config.model, config.storage_path) == ("models/a", "r")


def test_importing_the_config_needs_no_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys, ftray.config\n"
        "print(sorted({'torch', 'ray', 'transformers', 'docarray'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
