"""The command line, called in this process: fast, and what it prints is caught."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
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


@pytest.fixture
def unwritable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which nothing can be made, not even by root, for whom modes do not count."""
    if os.geteuid() == 0:
        if not Path("/proc/self").exists():
            pytest.skip("root may write anywhere here")
        yield Path("/proc")
        return
    place = tmp_path_factory.mktemp("readonly")
    place.chmod(0o500)
    yield place
    place.chmod(0o700)


def contents(*folders: Path) -> dict[str, bytes | None]:
    """Every file below the folders with its bytes, every folder with None."""
    found = (path for folder in folders for path in sorted(folder.rglob("*")))
    return {str(path): path.read_bytes() if path.is_file() else None for path in found}


@pytest.fixture
def refused(
    cli: Callable[..., Done], folder: Path, labelled_csv: Path, tiny_model: Path
) -> Callable[..., str]:
    """`refused(*arguments)`: the message, once everything else is as it should be.

    That is: exit code 2, one line, no traceback, and every file as it was, byte for byte.
    """

    def call(*arguments: object) -> str:
        places = folder, labelled_csv.parent, tiny_model
        before = contents(*places)
        done = cli(*arguments)
        assert done.code == 2, done
        assert done.err.startswith("ftray: ") and done.err.count("ftray: ") == 1
        assert done.err.count("\n") == 1 and "Traceback" not in done.err
        assert contents(*places) == before, "something was written"
        return done.err.removeprefix("ftray: ")

    return call
