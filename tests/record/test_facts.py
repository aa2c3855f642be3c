"""What `run.yaml` holds can be written as YAML, read back, and compared."""

from __future__ import annotations

import copy
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ftray.callbacks import BestModelCheckpoint, Callback, EarlyStopping, EvaluationCallback
from ftray.callbacks.registry import CALLBACKS, resolve_callbacks
from ftray.config import CsvOptions, FitConfig
from ftray.errors import ConfigError
from ftray.record.facts import SAME_ON_RESUME, callback_facts, check_same, data_facts, plain


class Thing:
    pass


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.5), 0.5),
        (np.float64(1e-5), 1e-5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (Path("a/b.csv"), "a/b.csv"),
        ((0.9, 0.999), [0.9, 0.999]),
        (OrderedDict(betas=(1, np.int8(2))), {"betas": [1, 2]}),
        ({1: "x"}, {"1": "x"}),
        (None, None),
        (True, True),
        ("yes", "yes"),
    ],
)
def test_what_yaml_can_hold_comes_back(value: Any, expected: Any) -> None:
    found, exact = plain(value)
    assert exact and type(found) is type(expected)
    assert yaml.safe_load(yaml.safe_dump(found)) == expected


@pytest.mark.parametrize("value", [Thing(), Thing, np.zeros(2), {1, 2}, len])
def test_what_yaml_cannot_hold_is_named_and_said_not_to_come_back(value: Any) -> None:
    found, exact = plain({"a": [value]})
    assert not exact
    assert yaml.safe_load(yaml.safe_dump(found)) == found
    assert plain(Thing())[0] == plain(Thing)[0] == f"{__name__}.Thing"


def test_option_models_become_mappings() -> None:
    assert plain(CsvOptions(delimiter=";"))[0]["delimiter"] == ";"


def test_data_is_its_path_or_a_description() -> None:
    assert data_facts("a.csv") == ("a.csv", True)
    assert data_facts(Path("a.csv")) == ("a.csv", True)
    assert data_facts(None) == (None, True)
    assert data_facts([{"text": "x"}] * 40) == ("a list of 40 records", False)


# ---------------------------------------------------------------- callbacks


def test_our_callbacks_are_recorded_as_a_configuration_gives_them() -> None:
    given = resolve_callbacks(
        [
            EvaluationCallback(Path("q.csv"), "i.csv", limit=5, csv_options={"delimiter": ";"}),
            BestModelCheckpoint("ndcg_at_k"),
            {"EarlyStopping": {"monitor": "ndcg_at_k", "patience": 7, "minimum_delta": 0.1}},
        ]
    )
    used = copy.deepcopy(given)  # as the job's: without their data
    facts, exact = callback_facts(used, given, CALLBACKS)
    assert exact
    read = yaml.safe_load(yaml.safe_dump(facts))
    assert read[0]["EvaluationCallback"]["query_data"] == "q.csv"
    assert read[1] == {"BestModelCheckpoint": {"monitor": "ndcg_at_k", "mode": "max"}}
    assert read[2]["EarlyStopping"]["patience"] == 7
    again = resolve_callbacks(read)
    assert callback_facts(again, again, CALLBACKS) == (facts, True)
    assert isinstance(again[2], EarlyStopping) and again[2].min_delta == 0.1


class Own(Callback):
    pass


def test_raw_data_and_a_users_own_class_are_described() -> None:
    given = [EvaluationCallback([{"text": "a", "label": "b"}] * 3), Own()]
    facts, exact = callback_facts(given, given, CALLBACKS)
    assert not exact
    assert facts[0]["EvaluationCallback"]["query_data"] == "a list of 3 records"
    assert facts[1] == f"{__name__}.Own"
    assert callback_facts([Own()], [Own()], CALLBACKS) == ([f"{__name__}.Own"], False)


# ---------------------------------------------------------------- what a resume must keep

DATA = {
    "train_data": {"source": "a.csv", "fingerprint": "f0"},
    "validation": {"source": "v.csv", "fingerprint": "f1"},
    "evaluation": {"fingerprint": "f2"},
}
CALLBACK_FACTS = [
    {"EvaluationCallback": {"query_data": "q.csv", "limit": 20}},
    {"EarlyStopping": {"monitor": "ndcg_at_k", "patience": 2}},
    "__main__.Own",
]


def facts(**changes: Any) -> dict[str, Any]:
    config = {**dict.fromkeys(SAME_ON_RESUME, 1), "num_workers": 1, "callbacks": CALLBACK_FACTS}
    data = copy.deepcopy(DATA)
    for path, value in changes.items():
        name, _, part = path.partition("__")
        if part:
            data[name][part] = value
        elif name in data:
            data.pop(name)
        else:
            config[name] = value
    return {"config": config, "data": data}


def refused(**changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        check_same(facts(), facts(**changes), "runs/default/x")
    return str(caught.value)


@pytest.mark.parametrize("name", [*SAME_ON_RESUME])
def test_every_option_that_changes_the_mathematics_must_be_the_same(name: str) -> None:
    assert f"runs/default/x was started with {name} = 1, not 2" in refused(**{name: 2})


def test_options_of_the_mathematics_are_known() -> None:
    assert {"val_split", "columns", "csv_options", "seed", "max_length"} <= set(SAME_ON_RESUME)
    assert not {"num_workers", "packing", "device", "storage_path"} & set(SAME_ON_RESUME)


@pytest.mark.parametrize("name", list(DATA))
def test_data_must_be_the_same_wherever_it_lies(name: str) -> None:
    assert f"{name} is not what the run" in refused(**{f"{name}__fingerprint": "other"})
    assert f"was started with {name}, which is missing now" in refused(**{name: None})
    check_same(facts(), facts(**{f"{name}__source": "moved.csv"}), "x")
    with pytest.raises(ConfigError, match=f"was started without {name}"):
        check_same(facts(**{name: None}), facts(), "x")


def test_a_model_object_must_have_the_same_weights() -> None:
    def of(fingerprint: str) -> dict[str, Any]:
        return {**facts(), "model": {"name": "tiny", "fingerprint": fingerprint}}

    check_same(of("a"), of("a"), "x")
    with pytest.raises(ConfigError, match="the run x was started with: its fingerprint was a, and"):
        check_same(of("a"), of("b"), "x")


def test_callbacks_must_be_the_same() -> None:
    assert (
        "callbacks = EvaluationCallback, EarlyStopping, Own, not EvaluationCallback, EarlyStopping:"
        in refused(callbacks=CALLBACK_FACTS[:2])
    )
    other = copy.deepcopy(CALLBACK_FACTS)
    other[1]["EarlyStopping"]["patience"] = 3
    assert "callbacks[1]: EarlyStopping: patience = 2, not 3" in refused(callbacks=other)


def test_callbacks_may_come_from_another_module_with_their_data_elsewhere() -> None:
    other = copy.deepcopy(CALLBACK_FACTS)
    other[0]["EvaluationCallback"]["query_data"] = "a list of 40 records"
    other[2] = "train.Own"
    check_same(facts(), facts(callbacks=other), "x")
    check_same(facts(), facts(num_workers=9), "x")


def test_every_option_is_kept_on_resume_or_free_for_a_reason() -> None:
    """A new option that changes the mathematics must not be free by oversight."""
    by_fingerprint = {"train_data", "eval_data", "callbacks"}
    where_and_how = {"num_workers", "device", "packing", "micro_batch_size", "max_failures"}
    where_and_how |= {"index_shards", "resources_per_worker", "resources_per_evaluator"}
    where_and_how |= {"accelerator_type", "label_selector", "compile"}
    name_and_record = {"storage_path", "experiment_name", "run_name", "description", "resume"}
    free = (
        by_fingerprint | where_and_how | name_and_record | {"log_rows", "data_workers", "to_onnx"}
    )
    assert set(FitConfig.model_fields) == set(SAME_ON_RESUME) | free
    assert not free & set(SAME_ON_RESUME)


def test_options_that_there_were_not_when_a_run_was_started_do_not_stop_it() -> None:
    before = facts(csv_options={"delimiter": ";"})
    check_same(before, facts(csv_options={"delimiter": ";", "dialect": "auto"}), "runs/default/x")
    with pytest.raises(ConfigError, match="csv_options"):
        check_same(before, facts(csv_options={"delimiter": ",", "dialect": "auto"}), "r")
