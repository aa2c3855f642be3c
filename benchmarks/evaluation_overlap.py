"""Evaluation each epoch: training waits for it, or goes on meanwhile, beside no evaluation at all.

    FTRAY_DATA=... python benchmarks/evaluation_overlap.py [--runs 3] [--epochs 4] [--write]

The same fit of MiniLM on Banking77 on one Ray worker, in fresh processes that take turns: without
evaluation, with an evaluation that blocks, and with one that overlaps training. Once on busy cores
(the worker computes on all of them) and once with a core to spare (the worker has all but one).

Correctness first: the overlapped run must have the metrics of the blocking one to 1e-6, and the
same best step.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import common

from ftray.events import EvaluationEnded, FitEnded, FitStarted
from ftray.run import find_run

KINDS = ("none", "blocking", "overlapped")
WORDS = {"none": "no evaluation", "blocking": "blocking", "overlapped": "overlapped"}
ROWS, QUERIES, DOCUMENTS = 770, 150, 350
TIMEOUT_S = 1800


class Timing(NamedTuple):
    """What a run took, in seconds.

    Attributes:
        wall: from the start of the loop to its end, the last evaluation included.
        still: for how long training stood still for an evaluation.
        after: how long the run waited at its end, when nothing was left to train.
    """

    wall: float
    still: float
    after: float


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--write", action="store_true", help="write the page of results")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(json.loads(arguments.child))
        return
    common.require("FTRAY_DATA" in os.environ, "set FTRAY_DATA to the folder with banking77/")
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    settings = {"busy": cores, **({"spare": cores - 1} if cores > 1 else {})}
    timings: dict[tuple[str, str], list[Timing]] = {}
    sizes: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        write_data(Path(place))
        for number in range(arguments.runs):
            for setting, cpus in settings.items():
                for kind in KINDS:
                    name = f"{setting}-{kind}-{number}"
                    timing = measure(place, name, kind, cpus, arguments.epochs)
                    timings.setdefault((setting, kind), []).append(timing)
                    common.say(f"{name}: {timing}")
                sizes = check(place, setting, number)
    common.page(
        "evaluation_overlap",
        "Evaluation that does not stop training",
        report(timings, settings, sizes, arguments.epochs, arguments.runs),
        threads=cores,
        load=load,
        write=arguments.write,
    )


def write_data(place: Path) -> None:
    """Some of Banking77: every class in the training data, few of each in the evaluation."""
    for name, source, rows in (
        ("train", "train_balanced20", ROWS),
        ("query", "test", QUERIES),
        ("index", "train", DOCUMENTS),
    ):
        path = common.data_file("banking77", f"{source}.csv")
        assert path is not None
        with path.open(encoding="utf-8", newline="") as file:
            head, *lines = list(csv.reader(file))
        chosen = random.Random(0).sample(lines, rows)
        with (place / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([head, *chosen])


def child(what: dict[str, Any]) -> None:
    """One fit, on a Ray of so many CPUs."""
    import ray

    import ftray
    from ftray.callbacks import BestModelCheckpoint, EvaluationCallback

    ray.init(address="local", num_cpus=what["cpus"], include_dashboard=False, log_to_driver=False)
    data = Path(what["place"])
    callbacks: list[Any] = []
    if what["kind"] != "none":
        callbacks = [
            EvaluationCallback(
                str(data / "query.csv"),
                str(data / "index.csv"),
                overlap=what["kind"] == "overlapped",
            ),
            BestModelCheckpoint("ndcg_at_k"),
        ]
    ftray.fit(
        model="minilm",
        train_data=str(data / "train.csv"),
        loss="SupConLoss",
        loss_options={"temperature": 0.1},
        epochs=what["epochs"],
        batch_size=64,
        max_length=48,
        learning_rate=2e-4,
        num_workers=1,
        storage_path=what["place"],
        run_name=what["name"],
        callbacks=callbacks,
        listeners=[],
    )


def measure(place: str, name: str, kind: str, cpus: int, epochs: int) -> Timing:
    """Run one fit in a process of its own, and read its record."""
    what = {"place": place, "name": name, "kind": kind, "cpus": cpus, "epochs": epochs}
    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps(what)],
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
    )
    common.require(done.returncode == 0, f"{name} failed:\n{done.stderr[-2000:]}")
    events = list(find_run(name, storage_path=place)._record.events())
    (started,) = (event for event in events if isinstance(event, FitStarted))
    (ended,) = (event for event in events if isinstance(event, FitEnded))
    return Timing(
        wall=ended.time_s - started.time_s,
        still=ended.seconds.get("evaluation", 0.0),
        after=ended.seconds.get("waiting", 0.0),
    )


def check(place: str, setting: str, number: int) -> dict[str, Any]:
    """The overlapped run has the blocking run's metrics; returns the size of an evaluation."""
    found = {}
    for kind in KINDS[1:]:
        events = find_run(f"{setting}-{kind}-{number}", storage_path=place)._record.events()
        metrics = {e.global_step: e.metrics for e in events if isinstance(e, EvaluationEnded)}
        (ended,) = (event for event in events if isinstance(event, FitEnded))
        found[kind] = metrics, ended.best["global_step"] if ended.best else None
    blocking, overlapped = found["blocking"], found["overlapped"]
    common.require(blocking[0].keys() == overlapped[0].keys(), "other steps were evaluated")
    worst = max(
        abs(value - overlapped[0][step][name])
        for step, metrics in blocking[0].items()
        for name, value in metrics.items()
    )
    common.require(worst <= 1e-6, f"the metrics differ by {worst}")
    common.require(blocking[1] == overlapped[1], "another step is the best")
    return {"evaluations": len(blocking[0]), "worst": worst}


def report(
    timings: dict[tuple[str, str], list[Timing]],
    settings: dict[str, int],
    sizes: dict[str, Any],
    epochs: int,
    runs: int,
) -> str:
    """The page's body."""
    parts = [
        common.versions("ray", "torch", "sentence-transformers"),
        f"""MiniLM on {ROWS} texts of Banking77, SupConLoss, batches of 64, {epochs} epochs, one Ray
        worker; each of {sizes["evaluations"]} evaluations (before training and after each epoch)
        embeds {QUERIES:,} queries and {DOCUMENTS:,} documents and searches exactly. Medians of
        {runs} runs of each, in fresh processes that take turns. Wall time is that of the loop,
        without start-up, with the artifact and the last evaluation. The metrics of the overlapped
        run are those of the blocking one (largest difference {sizes["worst"]:.1g}), and so is the
        best step.""",
    ]
    for setting, cpus in settings.items():
        title = (
            f"## Busy cores: the worker computes on all {cpus}"
            if setting == "busy"
            else f"## A core to spare: the worker computes on {cpus}"
        )
        none = statistics.median(t.wall for t in timings[setting, "none"])
        blocking = statistics.median(t.wall for t in timings[setting, "blocking"])
        rows = []
        for kind in KINDS:
            found = timings[setting, kind]
            walls = [t.wall for t in found]
            wall = statistics.median(walls)
            still = statistics.median(t.still for t in found)
            after = statistics.median(t.after for t in found)
            rows.append(
                [
                    WORDS[kind],
                    f"{wall:.1f} ({min(walls):.1f}-{max(walls):.1f})",
                    f"{wall / none:.2f}",
                    f"{wall / blocking:.2f}",
                    f"{still:.2f} ({100 * still / wall:.1f} %)",
                    f"{after:.1f}",
                ]
            )
        head = [
            "evaluation",
            "wall s (min-max)",
            "x none",
            "x blocking",
            "training stood still s",
            "waited at the end s",
        ]
        parts += [title, common.table(head, rows)]
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
