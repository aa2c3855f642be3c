"""`fit(wait=False)`: a child process trains, on its own from the moment it is on record."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable as Function
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from safetensors.torch import load_file

import ftray
from ftray.callbacks import Callback, EvaluationCallback
from ftray.config import validated
from ftray.errors import ConfigError, ModelError, RunExistsError, RunFailedError
from ftray.launch import child, detach
from ftray.run import DONE, Run


def fields(folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "loss": "SupConLoss",
        "epochs": 6,
        "batch_size": 32,
        "num_workers": 0,
        "learning_rate": 1e-3,
        "storage_path": str(folder / "runs"),
        **more,
    }


def until(condition: Function[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def pid_of(run: Run) -> int:
    return int(run._record.status()["pid"])


def steps(run: Run) -> list[int]:
    history = run.history()
    kinds, numbers = (history[name].to_pylist() for name in ("kind", "global_step"))
    return [step for kind, step in zip(kinds, numbers, strict=True) if kind == "step"]


class Slow(Callback):
    """A second for each step, until a file is there."""

    def __init__(self, gate: Path) -> None:
        self.gate = gate

    def on_train_batch_end(self, state: Any) -> None:
        if not self.gate.exists():
            time.sleep(1)


# ---------------------------------------------------------------- the script that started it

SCRIPT = """
import json, sys, time
import ftray
from ftray.callbacks import Callback, EvaluationCallback
from sentence_transformers import SentenceTransformer
from words import greeting

class Waits(Callback):
    def on_epoch_begin(self, state):
        print(greeting(state.epoch))
        if state.epoch == 1:
            print(json.dumps(sys.argv), file=sys.stderr)
            while not open(sys.argv[2]).read():
                time.sleep(0.05)

model = SentenceTransformer(sys.argv[1], device="cpu")
before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
rows = json.load(open("rows.json"))
run = ftray.fit(
    model=model, train_data=rows, loss="SupConLoss", epochs=3, batch_size=32, num_workers=0,
    learning_rate=1e-3, callbacks=[Waits(), EvaluationCallback(rows[:40], rows[40:])], wait=False,
)
after = model.state_dict()
assert before.keys() == after.keys()
assert all(tensor.equal(after[name]) for name, tensor in before.items())
print(json.dumps([run.path, run.status()]))
"""


@pytest.fixture(scope="module")
def script(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, labelled_rows: list[Any]
) -> tuple[Run, str]:
    """The run of a script that has ended, and the run's status when it ended."""
    folder = tmp_path_factory.mktemp("script")
    (folder / "code").mkdir()
    (folder / "code" / "train.py").write_text(SCRIPT)
    (folder / "code" / "words.py").write_text("def greeting(n): return f'hello from epoch {n}'")
    (folder / "rows.json").write_text(json.dumps(labelled_rows))
    (folder / "gate").touch()
    done = subprocess.run(
        [sys.executable, "code/train.py", str(tiny_model), "gate"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    path, status = json.loads(done.stdout.splitlines()[-1])
    assert status == "STARTED" and "hello" not in done.stdout + done.stderr
    run = ftray.get_run(path)
    until(lambda: "Training [1/" in run.logs())
    still = run.status()
    (folder / "gate").write_text("open")
    return run.wait(0.05), still


def test_a_run_goes_on_when_its_script_has_ended(script: tuple[Run, str]) -> None:
    run, when_the_script_had_ended = script
    assert when_the_script_had_ended == "STARTED"
    assert run.status() == "FINISHED" and steps(run) == list(range(1, 10))
    assert run.metrics()["after"]["ndcg_at_k"] > run.metrics()["before"]["ndcg_at_k"]
    assert "Done ✨" in run.logs() and list(run.stream_logs()) == run.logs().splitlines()


def test_what_is_printed_is_kept_with_the_run(script: tuple[Run, str], tiny_model: Path) -> None:
    run, _ = script
    text = Path(run.path, "output.txt").read_text()
    for epoch in range(3):
        assert text.count(f"hello from epoch {epoch}\n") == 1
    assert json.dumps(["code/train.py", str(tiny_model), "gate"]) in text
    assert f"What libraries print is kept in {run.path}/output.txt" in run.logs()


def test_what_is_printed_stays_in_a_temporary_file_where_the_run_is_elsewhere(
    tmp_path: Path,
) -> None:
    class Elsewhere:
        storage = SimpleNamespace(is_local=False)
        said: ClassVar[list[str]] = []

        def say(self, *message: str) -> None:
            self.said.append(message[0])

    so_far = tmp_path / "printed.txt"
    so_far.touch()
    child._keep_output(Elsewhere(), so_far)  # type: ignore[arg-type]
    assert Elsewhere.said == [f"What libraries print is kept in {so_far}"] and so_far.exists()


def test_the_record_names_what_it_cannot_hold(script: tuple[Run, str], tiny_model: Path) -> None:
    run, _ = script
    assert run.facts["reproducible"] is False
    assert run.config["model"].endswith(".SentenceTransformer")
    assert run.config["callbacks"][-1] == "__main__.Waits"
    assert run.config["train_data"] == "a list of 96 records"
    assert run.facts["environment"]["command"][0] == "code/train.py"
    assert run.facts["model"]["name"] == "tiny" and len(run.facts["model"]["fingerprint"]) == 16
    kept = load_file(f"{run.path}/model/model.safetensors")
    base = load_file(tiny_model / "model.safetensors")
    assert all(tensor.equal(kept[name]) for name, tensor in base.items())
    assert "Metric: 'tiny_ndcg_at_k' before fine-tuning" in run.logs()


# ---------------------------------------------------------------- killed, stopped, continued


def test_a_run_is_killed_continued_stopped_and_continued(
    tmp_path: Path, tiny_model: Path, labelled_rows: list[Any]
) -> None:
    gate = tmp_path / "gate"
    given = fields(tmp_path, model=str(tiny_model), train_data=labelled_rows, run_name="life")
    given["callbacks"] = [Slow(gate)]

    run = ftray.fit(wait=False, **given)
    assert run.status() == "STARTED" and pid_of(run) != os.getpid()
    assert os.getsid(pid_of(run)) != os.getsid(0)  # a terminal that closes takes its own session
    with pytest.raises(RunExistsError, match="is running"):
        ftray.fit(wait=False, resume="auto", **given)
    until(lambda: "Checkpoint epoch-0001" in run.logs())
    os.kill(pid_of(run), signal.SIGKILL)
    until(lambda: run.status() == "FAILED", 10)
    assert "is gone without closing the record" in run.details

    run = ftray.fit(wait=False, resume="auto", **given)
    lines: list[str] = []
    follower = threading.Thread(target=lambda: lines.extend(run.stream_logs(0.05)))
    follower.start()
    until(lambda: "Continuing from checkpoint epoch-0001" in run.logs())
    stopped = subprocess.run(
        [sys.executable, "-m", "ftray", "stop", "life", "--storage-path", given["storage_path"]],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert stopped.stdout == "Run 'life' was asked to stop at its next step.\n"
    assert run.wait(0.05).status() == "STOPPED" and run.details == "a stop was requested"
    follower.join(10)
    assert lines == run.logs().splitlines()
    assert 3 <= max(steps(run)) < 18
    assert any(Path(run.path, "checkpoints").iterdir())

    gate.touch()
    ended = ftray.get_run("life", storage_path=given["storage_path"])
    ftray.fit(wait=False, resume="auto", **given).wait(0.05)
    assert ended.status() == "FINISHED" and steps(ended) == list(range(1, 19))
    assert len(ended.facts["resumed"]) == 2


# ---------------------------------------------------------------- mistakes


class Unpicklable(Callback):
    def __init__(self) -> None:
        self.lock = threading.Lock()


class Deadly(Callback):
    """Ends the process that loads it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("import os; print('last words'); os._exit(3)",)


def test_mistakes_are_raised_in_the_caller_and_nothing_is_on_record(
    tmp_path: Path, tiny_model: Path, labelled_rows: list[Any]
) -> None:
    given = fields(tmp_path, model=str(tiny_model), train_data=labelled_rows)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "modules.json").write_text("[")
    mistakes: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (ConfigError, "no loss 'SupCon'", {"loss": "SupCon"}),
        (ConfigError, "cannot call listeners", {"listeners": []}),
        (ConfigError, r"callbacks\[0\], of class Unpicklable,", {"callbacks": [Unpicklable()]}),
        # what only the child can find
        (ModelError, "The model in '.*broken' cannot be loaded", {"model": str(broken)}),
        (RunFailedError, r"exit code 3\).*last words", {"callbacks": [Deadly()]}),
    ]
    for error, message, changed in mistakes:
        with pytest.raises(error, match=message):
            ftray.fit(wait=False, **{**given, **changed})
    assert not (tmp_path / "runs").exists()


def test_an_interrupted_caller_leaves_no_child(
    tmp_path: Path, tiny_model: Path, labelled_rows: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    children: list[subprocess.Popen[bytes]] = []
    send = detach.Child._send

    def press(self: detach.Child, handed: bytes) -> None:
        children.append(self.process)
        send(self, handed)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(detach.Child, "_send", press)
    with pytest.raises(KeyboardInterrupt):
        ftray.fit(wait=False, **fields(tmp_path, model=str(tiny_model), train_data=labelled_rows))
    assert [process.returncode for process in children] == [-signal.SIGTERM]
    assert not (tmp_path / "runs").exists()


# ---------------------------------------------------------------- what the child gets


def test_what_the_user_gave_is_known_in_the_child(
    tmp_path: Path, tiny_model: Path, labelled_rows: list[Any]
) -> None:
    given = fields(tmp_path, model=str(tiny_model), train_data=labelled_rows)
    del given["batch_size"]
    for more, explicit in (({}, False), ({"batch_size": 64}, True)):
        with detach.made_ready(validated({**given, **more})) as start:
            handed: detach.Handed = pickle.loads(detach._pickled(start, tmp_path / "out.txt"))
            assert handed.start.job.config.batch_size_is_explicit is explicit
            assert handed.start.job.config == start.job.config
            assert handed.start.facts == start.facts and handed.argv == sys.argv


@pytest.mark.parametrize(("own", "workers"), [(False, 1), (True, 1), (False, 0)])
def test_the_child_joins_the_ray_session_of_its_caller_unless_that_ends_with_it(
    tmp_path: Path,
    tiny_model: Path,
    labelled_rows: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    own: bool,
    workers: int,
) -> None:
    from ftray.cluster import connect

    monkeypatch.setenv("RAY_ADDRESS", "from-outside:1")
    here = connect.Session(address="10.0.0.1:6379", own=own)
    monkeypatch.setattr(connect, "session_here", lambda: here)
    given = fields(tmp_path, model=str(tiny_model), train_data=labelled_rows, num_workers=workers)
    with detach.made_ready(validated(given)) as start:
        environment, told = detach._environment(start)
    joined = workers == 1 and not own
    assert environment["RAY_ADDRESS"] == ("10.0.0.1:6379" if joined else "from-outside:1")
    assert ("has another" in str(told.job.notes)) is own


@pytest.mark.slow
@pytest.mark.ray
def test_the_child_drives_workers_on_ray_from_a_copy_of_the_module(
    tmp_path: Path, tiny_model: Path, labelled_rows: list[Any]
) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(tiny_model), device="cpu")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    given = fields(tmp_path, model=model, train_data=labelled_rows, num_workers=1, epochs=2)
    given["storage_path"] = f"file://{given['storage_path']}"
    given["callbacks"] = [EvaluationCallback(labelled_rows)]
    run = ftray.fit(wait=False, **given)
    assert run.status() not in DONE
    run.wait(0.1)
    assert run.status() == "FINISHED", run.logs()
    assert all(tensor.equal(model.state_dict()[name]) for name, tensor in before.items())
    trained = load_file(f"{Path(run._storage.root)}/artifact/model.safetensors")
    base = load_file(tiny_model / "model.safetensors")
    assert any(not tensor.equal(trained[name]) for name, tensor in base.items())
    assert "on 1 Ray worker" in run.logs()
