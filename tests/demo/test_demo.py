"""The demo does what the README shows: a plain gain on modules that were never trained on."""

from __future__ import annotations

import pytest
from rich.console import Console

from ftray.evaluation.intervals import paired_change

pytestmark = [pytest.mark.slow, pytest.mark.ray]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    from ftray.demo.fit import run_demo

    storage = str(tmp_path_factory.mktemp("demo") / "runs")
    console = Console(record=True, width=120)
    return run_demo(console, storage_path=storage), console.export_text(), storage


def test_the_gain_is_plain_and_its_interval_lies_above_zero(demo):
    run, _, _ = demo
    before, after = run.per_query("before"), run.per_query("after")
    change = paired_change(before["reciprocal_rank"], after["reciprocal_rank"])
    assert len(before) == 500
    assert change.low > 0
    assert change.mean > 0.05


def test_the_output_names_what_to_try_next(demo):
    run, text, _ = demo
    assert run.artifact_id in text and run.path in text
    assert "ftray demo --ask" in text and "ftray show" in text
    assert text.count("Before") >= 3


def test_the_model_answers_a_question(demo):
    from ftray.demo.fit import answer

    console = Console(record=True, width=120)
    answer(console, "remove a directory and everything in it", demo[2])
    assert console.export_text().count(".py:") == 3
