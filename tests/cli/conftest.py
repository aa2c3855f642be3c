"""The command line, called in this process: fast, and what it prints is caught."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from ftray.cli import main


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """`cli("show", name)`: what `ftray show NAME` returns and prints."""

    def call(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["ftray", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main()
        out, err = capsys.readouterr()
        return Done(int(exit_.value.code or 0), out, err)

    return call


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder; runs go to runs/ in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


@pytest.fixture
def config(folder: Path, tiny_model: Path, labelled_csv: Path) -> Callable[..., Path]:
    """Writes config.yaml: a fit of a fraction of a second, in this process."""

    def write(**fields: Any) -> Path:
        values = {
            "model": str(tiny_model),
            "train_data": str(labelled_csv),
            "loss": "SupConLoss",
            "epochs": 1,
            "batch_size": 32,
            "num_workers": 0,
            "learning_rate": 1e-3,
            **fields,
        }
        path = folder / "config.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in values.items() if v is not ...}))
        return path

    return write
