"""Experiments are the folders that hold runs: listed, found, and deleted with care."""

from __future__ import annotations

import builtins
from pathlib import Path

import pytest

import ftray
from ftray.errors import ConfigError, ExperimentNotFoundError, RunNotFoundError
from ftray.record.storage import Storage
from tests.handmade import record


def a_run(root: Path, experiment: str, name: str, status: str = "FINISHED") -> Storage:
    return record(Storage(f"{root}/{experiment}/{name}"), status=status)


def say(monkeypatch: pytest.MonkeyPatch, answer: str) -> list[str]:
    asked: list[str] = []

    def answered(prompt: str) -> str:
        asked.append(prompt)
        return answer

    monkeypatch.setattr(builtins, "input", answered)
    return asked


def test_an_experiment_is_there_as_soon_as_it_has_a_run(tmp_path: Path) -> None:
    assert ftray.list_experiments(str(tmp_path)) == []
    (tmp_path / "thesis").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    for experiment, name in (("b", "one"), ("a", "two"), ("a", "three")):
        a_run(tmp_path, experiment, name)
    assert [e.name for e in ftray.list_experiments(str(tmp_path))] == ["a", "b"]
    experiment = ftray.get_experiment("a", str(tmp_path))
    assert experiment.path == f"{tmp_path}/a"
    assert repr(experiment) == f"Experiment('a', path='{tmp_path}/a')"
    assert [run.name for run in experiment.list_runs()] == ["two", "three"]
    assert experiment.get_run("two").path == f"{tmp_path}/a/two"
    with pytest.raises(RunNotFoundError, match="no run 'one'"):
        experiment.get_run("one")  # it is one of b's


def test_an_experiment_that_is_not_there_is_named_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ExperimentNotFoundError, match="There are no runs there"):
        ftray.get_experiment("default", str(tmp_path))
    a_run(tmp_path, "clothes", "one")
    for call in (ftray.get_experiment, ftray.delete_experiment):
        with pytest.raises(ExperimentNotFoundError, match=r"'cloths'.* Did you mean 'clothes'\?"):
            call("cloths", str(tmp_path))


def test_deleting_asks_and_takes_all_runs_and_no_other_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for experiment, name in (("a", "one"), ("a", "two"), ("b", "one")):
        a_run(tmp_path, experiment, name)
    asked = say(monkeypatch, "")
    assert not ftray.delete_experiment("a", str(tmp_path))
    assert (tmp_path / "a/one").exists() and "2 runs" in asked[0] and f"{tmp_path}/a" in asked[0]
    say(monkeypatch, "y")
    assert ftray.delete_experiment("a", str(tmp_path))
    assert not (tmp_path / "a").exists() and (tmp_path / "b/one").exists()
    assert ftray.delete_experiment("b", str(tmp_path), confirm=True)
    assert ftray.list_experiments(str(tmp_path)) == []


@pytest.mark.parametrize("error", [EOFError, NotImplementedError])
def test_where_nobody_can_be_asked_nothing_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """Standard input is closed; or a notebook is executed by a program."""

    def nobody(prompt: str) -> str:
        raise error

    a_run(tmp_path, "a", "one")
    monkeypatch.setattr(builtins, "input", nobody)
    with pytest.raises(ConfigError, match="confirm=True"):
        ftray.delete_experiment("a", str(tmp_path))
    with pytest.raises(ConfigError, match="confirm=True"):
        ftray.delete_run("one", storage_path=str(tmp_path))
    assert (tmp_path / "a/one/run.yaml").exists()


def test_an_experiment_with_a_run_that_goes_on_stays_whole(tmp_path: Path) -> None:
    a_run(tmp_path, "a", "done")
    a_run(tmp_path, "a", "busy", status="STARTED")
    with pytest.raises(ftray.FtrayError, match=r"busy still running; stop that first"):
        ftray.delete_experiment("a", str(tmp_path), confirm=True)
    assert (tmp_path / "a/done/run.yaml").exists()


def test_a_folder_that_holds_other_things_than_runs_stays_whole(tmp_path: Path) -> None:
    a_run(tmp_path, "a", "one")
    (tmp_path / "a/thesis").mkdir()
    (tmp_path / "a/notes.txt").write_text("mine")
    with pytest.raises(ftray.FtrayError, match=r"what is no run: notes\.txt, thesis\. Nothing"):
        ftray.delete_experiment("a", str(tmp_path), confirm=True)
    assert (tmp_path / "a/one/run.yaml").exists() and (tmp_path / "a/notes.txt").exists()


def test_a_run_that_begins_meanwhile_is_not_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_run(tmp_path, "a", "one")

    def answered(prompt: str) -> str:
        a_run(tmp_path, "a", "new", status="STARTED")
        return "yes"

    monkeypatch.setattr(builtins, "input", answered)
    assert ftray.delete_experiment("a", str(tmp_path))
    assert not (tmp_path / "a/one").exists() and (tmp_path / "a/new/run.yaml").exists()
