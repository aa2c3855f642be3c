"""The same call works in a script, from another folder, in a notebook, with a cluster's address.

Each case is a process of its own, and nothing that ftray started is left running.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray

FIT = """
import json, os, sys
import ftray
from ftray.callbacks import EarlyStopping, EvaluationCallback

def fit(rows, model, storage, own=()):
    return ftray.fit(
        model=model, train_data=rows, loss="SupConLoss", epochs=1, batch_size=32,
        storage_path=storage, listeners=[],
        callbacks=[EvaluationCallback(rows), EarlyStopping("ndcg_at_k"), *own],
    )
"""

CALLBACK = """
import os
from ftray.callbacks import Callback, LogMetrics

class {name}(Callback):
    metric_names = ("{name}",)

    def __init__(self):
        self.seen = []

    def on_train_epoch_end(self, state):
        self.seen.append(state.epoch)
        return LogMetrics({{"{name}": os.getpid()}})
"""
OWN = CALLBACK.format(name="Own") + "\nfrom beside import Beside\n"


def ray_processes(group: int) -> list[str]:
    """Command lines of the processes in a session group that are not gone."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if os.getsid(int(entry.name)) == group:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
                if command and state != "Z":
                    found.append(command[:80])
        except (OSError, ProcessLookupError):
            continue
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_model, labelled_rows):
    folder = tmp_path_factory.mktemp("anywhere")
    (folder / "rows.json").write_text(json.dumps(labelled_rows))
    (folder / "code").mkdir()
    for beside in (folder, folder / "code"):  # beside the notebook, and beside the script
        (beside / "beside.py").write_text(CALLBACK.format(name="Beside"))
    return folder


def run(script: str, folder: Path, *arguments: str, **environment: str) -> tuple[str, int]:
    """Run a script in its own session, away from the checkout and from the script's own folder; its
    output and session id.
    """
    file = folder / "code" / "script.py"
    file.write_text(FIT + textwrap.dedent(script))
    process = subprocess.Popen(
        [sys.executable, str(file), *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**_environment(), **environment},
    )
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    return out, process.pid


def _environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("RAY_") or "AUTH" in k}


def assert_nothing_is_left(group: int) -> None:
    deadline = time.monotonic() + 15
    while ray_processes(group) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert ray_processes(group) == []


@pytest.mark.slow
def test_twice_in_one_process_from_another_folder_starts_and_stops_ray(place, tiny_model):
    """With callbacks of the script itself and of a module beside it, which run in the worker: what
    they log is on record, what they collect stays there.
    """
    script = f"""{OWN}
rows = json.load(open("rows.json"))
own = [Own(), Beside()]
runs = [fit(rows, sys.argv[1], "runs", own) for _ in range(2)]
import ray
logged = [[r.history()[name].to_pylist()[-1] for name in ("Own", "Beside")] for r in runs]
print(json.dumps([[r.status(), r.path, r.metrics()["after"]] for r in runs] + logged))
assert not ray.is_initialized()
assert "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S" not in os.environ
assert [callback.seen for callback in own] == [[], []]
    """
    out, group = run(script, place, str(tiny_model))
    first, second, *logged = json.loads(out.splitlines()[-1])
    assert first[0] == second[0] == "FINISHED"
    assert first[1] != second[1] and first[1].startswith(str(place / "runs"))
    assert first[2] == second[2]
    for own, beside in logged:
        assert own == beside != group  # the script is the leader of its session
    assert_nothing_is_left(group)


@pytest.mark.slow
def test_sigterm_stops_a_fit_on_ray_and_keeps_its_checkpoint(place, tiny_model):
    """`ray.init` takes SIGTERM for itself; the run must hear it all the same."""
    script = """
        ftray.fit(
            model=sys.argv[1], train_data=json.load(open("rows.json")), loss="SupConLoss",
            epochs=5000, batch_size=32, storage_path="runs", run_name="term", listeners=[],
        )
    """
    process = subprocess.Popen(
        [sys.executable, "-c", FIT + textwrap.dedent(script), str(tiny_model)],
        cwd=place,
        start_new_session=True,
        env=_environment(),
    )
    logs = place / "runs" / "default" / "term" / "logs.txt"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        time.sleep(0.3)
        if logs.exists() and "Checkpoint epoch-0002" in logs.read_text():
            break
    process.terminate()
    assert process.wait(timeout=60) == 143
    status = json.loads((logs.parent / "status.json").read_text())
    assert status["status"] == "STOPPED"
    assert_nothing_is_left(process.pid)


@pytest.fixture(scope="module")
def running_ray():
    """A Ray that somebody else started, and its address."""
    script = """
        import json, ray, sys, time
        ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="ERROR")
        print(ray.get_runtime_context().gcs_address, flush=True)
        sys.stdin.readline()
        print(ray.available_resources().get("CPU"), flush=True)
        alive = [a for a in ray._private.state.actors().values() if a["State"] != "DEAD"]
        print(json.dumps([a["ActorClassName"] for a in alive]), flush=True)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=_environment(),
    )
    address = process.stdout.readline().strip()
    yield address, process
    if process.poll() is None:
        os.kill(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


NOTEBOOK = [
    OWN,
    "rows = json.load(open('rows.json'))\nrun = fit(rows, model, 'runs', [Own(), Beside()])",
    "print([run.history()[name].to_pylist()[-1] != os.getpid() for name in ('Own', 'Beside')])",
    "print(run.status()); run.display_metrics(); assert run.status() == 'FINISHED'",
]


@pytest.mark.slow
def test_in_a_notebook_and_with_the_address_of_a_running_ray(
    place, tiny_model, running_ray, monkeypatch
):
    import nbformat
    from nbclient import NotebookClient

    address, cluster = running_ray
    monkeypatch.setenv("RAY_ADDRESS", address)
    cells = [FIT + f"\nmodel = {str(tiny_model)!r}", *NOTEBOOK]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(place)}}).execute()
    shown = "".join(str(output) for output in notebook.cells[-1].outputs)
    assert "FINISHED" in shown and "ndcg_at_k" in shown
    assert "[True, True]" in str(notebook.cells[-2].outputs), "callbacks run in the worker"
    # the cluster is alive, all CPUs are free again, and no actor of ours is left in it (Ray keeps
    # one coordinator of its own)
    cluster.stdin.write("\n")
    cluster.stdin.flush()
    assert float(cluster.stdout.readline()) == 2.0
    left = json.loads(cluster.stdout.readline())
    assert [name for name in left if name != "_AutoscalingCoordinatorActor"] == []


def test_an_address_where_no_ray_answers_is_one_clear_error(place, tiny_model):
    script = """
        try:
            fit(json.load(open("rows.json")), sys.argv[1], "runs")
        except ftray.FtrayError as error:
            print(type(error).__name__, error)
    """
    out, _ = run(script, place, str(tiny_model), RAY_ADDRESS="127.0.0.1:1")
    assert out.startswith("ClusterError No Ray cluster answers at RAY_ADDRESS = '127.0.0.1:1'")
