"""A cluster of four nodes on this machine: the driver's, without CPUs, and three with one each.

What nodes do not share is simulated by taking it away once the driver has read it: then only the
object store has it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

import ftray
from ftray.callbacks import Callback, EvaluationCallback
from ftray.cluster.connect import START_TIMEOUT
from ftray.config import validated
from ftray.errors import ClusterError, RunFailedError
from ftray.events import FitStarted, Log, StepEnded
from ftray.training.job import prepare

pytestmark = [pytest.mark.ray, pytest.mark.slow]

UNPACKED = Path(tempfile.gettempdir()) / f"ftray-models-{os.getuid()}"
ONE_CPU = {"num_cpus": 1, "object_store_memory": 100 * 1024 * 1024}
ACTORS = {"Mailbox", "ScorerActor", "ShardActor", "EvaluatorActor"}
NO_CPU = {**ONE_CPU, "num_cpus": 0, "include_dashboard": False}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    import ray
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        # nobody else on this machine is to join it
        patch.setattr("ray._private.utils.write_ray_address", lambda *given: None)
        patch.setattr("ray._common.utils.reset_ray_address", lambda *given: None)
        cluster = Cluster(initialize_head=True, head_node_args=NO_CPU)
        for zone in "ab":
            cluster.add_node(**ONE_CPU, labels={"zone": zone})
        cluster.add_node(**ONE_CPU, labels={"zone": "c"}, resources={"spare": 1})
        ray.init(address=cluster.address, logging_level="ERROR")
        yield cluster
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nodes")


def fit(folder: Path, model: Path, rows: Any, **fields: Any) -> ftray.Run:
    given = {
        "loss": "SupConLoss",
        "epochs": 2,
        "batch_size": 32,
        "optimizer": "SGD",  # Adam makes steps of rounding errors, where a gradient is zero
        "learning_rate": 0.1,
        "storage_path": str(folder / "runs"),
        "listeners": [],
        **fields,
    }
    return ftray.fit(model=str(model), train_data=rows, **given)


def after(words: str, do: Callable[[], None]) -> Callable[[Any], None]:
    """A listener that does something, once, when a line with these words is logged."""
    done: list[bool] = []

    def listen(event: Any) -> None:
        if isinstance(event, Log) and words in event.message and not done:
            done.append(True)
            do()

    return listen


class Look(Callback):
    """Rank 0 writes down which models were unpacked on its node, and goes slowly."""

    def __init__(self, file: Path, pause_s: float = 0.0) -> None:
        self.file = file
        self.pause_s = pause_s

    def on_train_batch_end(self, state: Any) -> None:
        self.file.write_text("\n".join(path.name for path in UNPACKED.iterdir() if path.is_dir()))
        time.sleep(self.pause_s)


def losses(run: ftray.Run) -> list[float]:
    return [event.loss for event in run._record.events() if isinstance(event, StepEnded)]


@pytest.fixture(scope="module")
def three(
    cluster: Any, folder: Path, tiny_model: Path, labelled_rows: Any
) -> tuple[ftray.Run, set[str]]:
    """A run on three nodes whose model only the driver has seen, and what was unpacked for it."""
    model, hidden, seen = folder / "model", folder / "hidden", folder / "seen"
    shutil.copytree(tiny_model, model)
    hide = after("reaches other nodes through the object store", lambda: model.rename(hidden))
    before = unpacked()
    run = fit(
        folder,
        model,
        labelled_rows,
        num_workers=3,
        callbacks=[EvaluationCallback(labelled_rows), Look(seen)],
        listeners=[hide],
    )
    assert hidden.exists() and not model.exists()
    return run, set(seen.read_text().splitlines()) - before


def unpacked() -> set[str]:
    return {path.name for path in UNPACKED.iterdir()} if UNPACKED.exists() else set()


def test_three_nodes_train_as_one_process_does(
    three: Any, folder: Path, tiny_model: Path, labelled_rows: Any
) -> None:
    there, _ = three
    here = fit(
        folder,
        tiny_model,
        labelled_rows,
        num_workers=0,
        callbacks=[EvaluationCallback(labelled_rows)],
    )
    started = next(e for e in there._record.events() if isinstance(e, FitStarted))
    assert started.world_size == 3 and "3 Ray workers (gloo)" in started.where
    assert len(losses(here)) == 6
    assert losses(there) == pytest.approx(losses(here), abs=1e-5)
    for side in ("before", "after"):
        assert there.metrics()[side] == pytest.approx(here.metrics()[side], abs=1e-5)
    weights = [load_file(f"{run.artifact_id}/model.safetensors") for run in (here, there)]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        assert (value - weights[1][name]).abs().max() < 1e-5, name


def test_the_workers_are_on_three_nodes_and_the_log_says_which(three: Any) -> None:
    run, _ = three
    (line,) = [line for line in run.logs().splitlines() if "Workers: rank 0 on" in line]
    places = line.partition("Workers: ")[2].split("; ")
    assert len({place.partition(" on ")[2] for place in places}) == 3


def test_the_model_was_unpacked_once_for_all_processes_and_nothing_is_left(three: Any) -> None:
    run, seen = three
    assert len(seen) == 1, "this machine is the node of all"
    assert "The model's folder (" in run.logs()
    assert not seen & unpacked() and not {f"{name}.lock" for name in seen} & unpacked()


def test_a_file_that_a_node_does_not_see_is_named_with_the_node(cluster: Any, folder: Path) -> None:
    """One worker, on the node with the label that was asked for."""
    import ray

    pictures = folder / "pictures"
    for i in range(8):
        file = pictures / f"c{i % 2}" / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 30 * i, np.uint8)).save(file)
    with pytest.raises(RunFailedError) as caught:
        fit(
            folder,
            Path("convnet"),
            str(pictures),
            num_workers=1,
            batch_size=8,
            label_selector={"zone": "b"},
            listeners=[after("Run '", lambda: shutil.rmtree(pictures))],
        )
    (node,) = (n["NodeID"] for n in ray.nodes() if n["Labels"].get("zone") == "b")
    for words in (f"({node[:8]})", str(pictures), "cannot be read", "convert_to_blob: true"):
        assert words in str(caught.value)
    assert_no_actor_is_left()


def assert_no_actor_is_left() -> None:
    import ray

    def ours() -> list[str]:
        alive = [a for a in ray._private.state.actors().values() if a["State"] != "DEAD"]
        return [a["ActorClassName"] for a in alive if a["ActorClassName"] in ACTORS]

    deadline = time.monotonic() + 10
    while ours() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert ours() == []


def test_what_no_node_has_is_refused_with_what_there_is(
    cluster: Any, folder: Path, tiny_model: Path, labelled_rows: Any
) -> None:
    for asked, message in (
        ({"num_workers": 4}, r"num_workers = 4, each with 1 CPU: .* room for 3\. It has .*zone=a"),
        ({"resources_per_worker": {"CPU": 2}}, r"each with 2 CPUs: .* room for 0\."),
        ({"resources_per_worker": {"disk": 1}}, r"each with 1 CPU and 1 disk: .* room for 0"),
        ({"label_selector": {"zone": "d"}}, r"no node on nodes with label_selector .*'d'.*zone=c"),
        ({"label_selector": {"zone": "in(a"}}, r"label_selector = .*'in\(a'"),
        ({"accelerator_type": "A100"}, r"accelerator_type = 'A100': no node"),
    ):
        with pytest.raises(ftray.FtrayError, match=message):
            fit(folder, tiny_model, labelled_rows, **{"num_workers": 1, **asked})


def test_an_evaluation_that_finds_no_room_beside_the_workers_is_refused(
    cluster: Any, folder: Path, tiny_model: Path, labelled_rows: Any
) -> None:
    begun = time.monotonic()
    with pytest.raises(ClusterError, match=r"reserves 1 CPU, .* beside 3 workers .* Give less in"):
        fit(
            folder,
            tiny_model,
            labelled_rows,
            num_workers=3,
            resources_per_evaluator={"CPU": 1},
            callbacks=[EvaluationCallback(labelled_rows, overlap=True)],
        )
    assert time.monotonic() - begun < 60
    assert_no_actor_is_left()


def test_an_evaluation_that_waits_for_a_node_in_vain_ends_the_run_in_time(
    cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the only node with what it reserves was lost."""
    import ray

    from ftray.cluster import evaluators

    monkeypatch.setattr(evaluators, "PLACE_TIMEOUT_S", 1.0)
    monkeypatch.setattr(evaluators, "LOOK_EVERY_S", 0.0)
    actor = ray.remote(evaluators.EvaluatorActor).options(num_cpus=0, resources={"gone": 1})
    waiting = actor.remote("driver")
    view = evaluators.ActorEvaluator({0: waiting}, ray.put(None), None)
    view.submit(1, 0, {})
    time.sleep(1.5)  # while nobody looks, no time passes
    with pytest.raises(
        ClusterError, match=r"waiting for a node for 1 s: .* 1 spare, zone=c.* Give less"
    ):
        for _ in range(100):
            assert view.finished(0.2) == []
    ray.kill(waiting)


class Backwards:
    """An evaluator that does its first task last, as one that was started again may."""

    def __init__(self) -> None:
        self._may_end = threading.Event()

    def evaluate(self, job: Any, model: Any, number: int, weights: Any) -> str:
        if weights["which"] == 1:
            self._may_end.wait()
        return f"evaluation {number} of weights {weights['which']}"

    def let_it_end(self) -> None:
        self._may_end.set()


def test_results_of_an_evaluation_come_in_the_order_of_its_weights(cluster: Any) -> None:
    import ray

    from ftray.cluster.evaluators import ActorEvaluator

    actors = {
        number: ray.remote(Backwards).options(num_cpus=0, max_concurrency=3).remote()
        for number in (0, 1)
    }
    view = ActorEvaluator(actors, ray.put(None), None)
    for ticket, number, which in ((1, 0, 1), (2, 1, 2), (3, 0, 2), (4, 0, 3)):
        view.submit(ticket, number, {"which": which})
    ready, not_ready = ray.wait(list(view._waiting), num_returns=3, timeout=60)
    assert (len(ready), len(not_ready)) == (3, 1)
    assert view.finished(10) == [(2, "evaluation 1 of weights 2")]
    ray.get(actors[0].let_it_end.remote())
    ray.wait(not_ready, timeout=60)
    assert view.finished(10) == [
        (1, "evaluation 0 of weights 1"),
        (3, "evaluation 0 of weights 2"),
        (4, "evaluation 0 of weights 3"),
    ]
    for actor in actors.values():
        ray.kill(actor)


class Dies:
    """An evaluator on a node where it cannot start."""

    def __init__(self, driver: str) -> None:
        raise OSError("no thread is left")

    def ready(self) -> None: ...


def test_an_evaluator_that_dies_while_it_starts_is_told(
    cluster: Any, tiny_model: Path, labelled_rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ftray.cluster import evaluators
    from ftray.cluster.placement import place

    monkeypatch.setattr(evaluators, "EvaluatorActor", Dies)
    asked = validated(
        {
            "model": str(tiny_model),
            "train_data": labelled_rows,
            "loss": "SupConLoss",
            "num_workers": 1,
            "resources_per_evaluator": {"CPU": 1},
            "callbacks": [EvaluationCallback(labelled_rows, overlap=True)],
        }
    )
    job = prepare(asked, "/nowhere/runs/default/run")
    with pytest.raises(
        ClusterError, match=r"(?s)evaluation with overlap died: .*no thread is left"
    ):
        evaluators.start_evaluators(job, place(job.config, 1))


class InThread(threading.Thread):
    """A fit in a thread: nodes can only be added in the main one."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(daemon=True)
        self.fields = fields
        self.run_: ftray.Run | None = None
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self.run_ = fit(**self.fields)
        except Exception as error:
            self.error = error


def wait_for(logs: Path, words: str, timeout_s: float = 180) -> None:
    deadline = time.monotonic() + timeout_s
    while not logs.exists() or words not in logs.read_text():
        assert time.monotonic() < deadline, f"{words}: {logs.read_text() if logs.exists() else ''}"
        time.sleep(0.2)


def remove_a_node(cluster: Any) -> None:
    """One that has nothing but its CPU."""
    plain = [node for node in cluster.worker_nodes if not node._ray_params.resources]
    cluster.remove_node(min(plain, key=lambda node: str(node.node_id)))


@pytest.mark.slow
def test_a_lost_node_is_told_and_the_run_goes_on_when_there_is_another(
    cluster: Any, three: Any, folder: Path, tiny_model: Path, labelled_rows: Any
) -> None:
    """With an evaluation that overlaps, in an actor beside a worker."""
    overlapped = EvaluationCallback(labelled_rows, overlap=True)
    thread = InThread(
        folder=folder,
        model=tiny_model,
        rows=labelled_rows,
        num_workers=3,
        run_name="lost-node",
        resources_per_evaluator={"spare": 0.5},
        callbacks=[overlapped, Look(folder / "lost", pause_s=2.0)],
    )
    thread.start()
    logs = folder / "runs" / "default" / "lost-node" / "logs.txt"
    wait_for(logs, "Checkpoint epoch-0001")
    remove_a_node(cluster)
    wait_for(logs, "was lost, and rank")
    wait_for(logs, "Workers were lost")
    cluster.add_node(**ONE_CPU)
    thread.join(300)
    assert thread.error is None and thread.run_ is not None
    text = logs.read_text()
    assert "as soon as there is room for 3 workers with 1 CPU each (waiting for at most" in text
    assert text.count("Workers: rank 0 on") == 2
    assert "Continuing from checkpoint" in text
    run, _ = three
    assert losses(thread.run_) == pytest.approx(losses(run), abs=1e-6)
    assert thread.run_.metrics()["after"] == pytest.approx(run.metrics()["after"], abs=1e-6)


@pytest.mark.slow
def test_without_another_node_the_run_ends_in_time_and_can_be_resumed(
    cluster: Any,
    folder: Path,
    tiny_model: Path,
    labelled_rows: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(START_TIMEOUT, "2")
    fields = {
        "folder": folder,
        "model": tiny_model,
        "rows": labelled_rows,
        "run_name": "too-few",
        "callbacks": [Look(folder / "few", pause_s=1.0)],
    }
    thread = InThread(**fields, num_workers=3)
    thread.start()
    logs = folder / "runs" / "default" / "too-few" / "logs.txt"
    wait_for(logs, "Checkpoint epoch-0001")
    remove_a_node(cluster)
    removed = time.monotonic()
    thread.join(120)
    assert not thread.is_alive() and time.monotonic() - removed < 90
    message = r"no room for 3 workers with 1 CPU each within 10 s: the Ray cluster has .*1 spare"
    assert isinstance(thread.error, RunFailedError)
    with pytest.raises(RunFailedError, match=message):
        raise thread.error
    run = fit(**fields, num_workers=2, resume="must")
    assert run.status() == "FINISHED" and "Continuing from checkpoint" in run.logs()
