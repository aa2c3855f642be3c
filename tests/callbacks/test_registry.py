"""Callbacks as a configuration names them."""

from __future__ import annotations

from typing import Any

import pytest

from ftray.callbacks import BestModelCheckpoint, Callback, EarlyStopping, EvaluationCallback
from ftray.callbacks.registry import CALLBACKS, resolve_callbacks
from ftray.errors import ConfigError


def refused(*entries: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve_callbacks(list(entries))
    return str(caught.value)


def test_names_mappings_and_objects_become_callbacks_in_the_order_of_their_kinds() -> None:
    own = Callback()
    third, first, second, fourth = resolve_callbacks(
        [
            "BestModelCheckpoint",
            {"EarlyStopping": {"patience": 5, "monitor": "recall_at_k"}},
            own,
            {"EarlyStopping": None},
        ]
    )
    assert isinstance(first, BestModelCheckpoint)
    assert isinstance(second, EarlyStopping)
    assert (second.patience, second.mode) == (5, "max")
    assert third is own
    assert isinstance(fourth, EarlyStopping)


def test_every_name_is_its_class() -> None:
    assert {name: cls.__name__ for name, cls in CALLBACKS.items()} == {n: n for n in CALLBACKS}


def test_unknown_name_gets_its_place_and_the_nearest() -> None:
    assert refused("BestModelCheckpoint", "EarlyStoping") == (
        "callbacks[1]: there is no callback 'EarlyStoping'. Did you mean 'EarlyStopping'?"
    )


def test_unknown_option_gets_the_nearest() -> None:
    assert refused({"EarlyStopping": {"patiense": 3}}) == (
        "callbacks[0]: EarlyStopping has no option 'patiense'. Did you mean 'patience'?"
    )


def test_class_instead_of_object_says_what_to_write() -> None:
    assert refused(EvaluationCallback) == (
        "callbacks[0] is the class EvaluationCallback: an object is expected, as in "
        "EvaluationCallback()"
    )


def test_missing_option_is_named() -> None:
    message = refused("EvaluationCallback")
    assert message.startswith("callbacks[0]: EvaluationCallback: ")
    assert "query_data" in message


def test_refused_value_keeps_its_reason() -> None:
    assert "patience = 0: at least 1" in refused({"EarlyStopping": {"patience": 0}})


@pytest.mark.parametrize("entry", [3, None, {}, {"EarlyStopping": {}, "BestModelCheckpoint": {}}])
def test_what_is_no_callback_is_refused_with_an_example(entry: Any) -> None:
    assert refused(entry) == (
        f"callbacks[0] = {entry!r}: a callback object, a name, or a mapping such as "
        "{EarlyStopping: {patience: 2}} is expected"
    )


@pytest.mark.parametrize("options", [3, [1, 2], "patience"])
def test_options_that_are_no_mapping_are_refused(options: Any) -> None:
    assert refused({"EarlyStopping": options}) == (
        "callbacks[0]: EarlyStopping: options by name are expected, as in "
        f"{{EarlyStopping: {{patience: 2}}}}, not {options!r}"
    )
