"""`ftray fit --detach`: what it prints leads to the run that goes on."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import ftray


def test_detach_says_how_to_follow_and_the_commands_work(cli, config, folder: Path) -> None:
    started = cli("fit", config(run_name="my run", epochs=2000), "--detach")
    assert started.code == 0 and started.err == ""
    first, follow, stop = started.out.splitlines()
    assert first == f"Run 'my run' goes on in the background: {folder}/runs/default/my run"
    follow_, stop_ = (shlex.split(line.partition(":")[2]) for line in (follow, stop))
    assert follow_ == ["ftray", "logs", "-f", "my run"] and stop_ == ["ftray", "stop", "my run"]
    assert ftray.get_run("my run").status() == "STARTED"
    assert cli(*stop_[1:]).out == "Run 'my run' was asked to stop at its next step.\n"
    followed = cli(*follow_[1:])
    assert followed.code == 0 and "Stopped: a stop was requested" in followed.out
    assert ftray.get_run("my run").status() == "STOPPED"


def test_detach_with_json_and_a_run_that_its_name_does_not_find(cli, config, folder: Path) -> None:
    from ftray.cli.fit import shortest_name

    started = cli("fit", config(storage_path="elsewhere", epochs=0), "--detach", "--json")
    (line,) = started.out.splitlines()
    facts = json.loads(line)
    assert facts["path"] == f"{folder}/elsewhere/default/{facts['name']}"
    run = ftray.get_run(facts["path"]).wait(0.05)
    assert run.status() == "FINISHED" and shortest_name(run) == run.path


def test_detach_with_a_mistake_is_2_and_starts_nothing(cli, config, folder: Path) -> None:
    done = cli("fit", config(loss="SupCon"), "--detach")
    assert done.code == 2 and done.err.startswith("ftray: There is no loss 'SupCon'.")
    assert not (folder / "runs").exists()
