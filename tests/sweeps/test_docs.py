"""docs/sweeps.md: its examples are sweeps, and what it names exists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import ftray
from ftray.launch import sweep as launch
from ftray.sweeps.config import SweepConfig, load_sweep
from ftray.sweeps.space import LISTS, RANGES
from ftray.sweeps.sweep import Sweep

PAGE = (Path(__file__).parents[2] / "docs" / "sweeps.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)


def test_the_file_is_read_and_gives_trials(tmp_path: Path) -> None:
    (block,) = blocks("yaml")
    file = tmp_path / "sweep.yaml"
    file.write_text(block)
    sweep = load_sweep(file, ["num_samples=8"])
    points = sweep.points()
    assert len(points) == 8
    configs = [sweep.fit_config(point, "mine", f"trial-{n}") for n, point in enumerate(points)]
    assert {config.loss for config in configs} == {"TripletMarginLoss", "MultiSimilarityLoss"}
    assert all(("margin" in c.loss_options) == (c.loss == "TripletMarginLoss") for c in configs)


def test_the_python_example_asks_for_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the sweep itself, which the tests of sweeps on Ray run."""
    asked: list[SweepConfig] = []

    class Asked(Exception):
        pass

    def take(sweep: SweepConfig, say: Any) -> Sweep:
        asked.append(sweep)
        raise Asked

    monkeypatch.setattr(launch, "sweep_here", take)
    (block,) = blocks("python")
    with pytest.raises(Asked):
        exec(block, {})
    (sweep,) = asked
    assert sweep.metric == "val_loss" and len(sweep.points()) == 20
    used = set(re.findall(r"sweep\.(\w+)", block)) - {"sweep"}
    assert used and all(hasattr(Sweep, name) for name in used)


def test_every_domain_scheduler_and_option_is_there() -> None:
    table = PAGE[PAGE.index("| domain") : PAGE.index("`if: {other")]
    assert set(re.findall(r"`\{(\w+): \[", table)) == {*RANGES, *LISTS}
    choices = SweepConfig.model_json_schema()["properties"]["scheduler"]["enum"]
    for name in choices:
        assert name == "none" or f"`scheduler: {name}`" in PAGE
    missing = [name for name in SweepConfig.model_fields if not re.search(rf"\b{name}\b", PAGE)]
    assert not missing
    assert all(hasattr(ftray, name) for name in re.findall(r"ftray\.(\w+)\(", PAGE))
