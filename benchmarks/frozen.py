"""A frozen model with a trained head: what is frozen computed once, or in every step.

    FTRAY_DATA=... python benchmarks/frozen.py [--epochs 3] [--rows N] [--threads 2] [--write]

MiniLM on Banking77 in this process, `freeze: true`, with an evaluation before training and after
each epoch; both ways with the same steps. Correctness first: the losses of all steps agree to 1e-4,
the metrics to 2e-3. `--rows` takes so many texts of each file, to try it.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import common
import torch

import ftray
from ftray.callbacks import EvaluationCallback
from ftray.events import EpochEnded, EvaluationEnded, StepEnded
from ftray.run import Run
from ftray.training import frozen

WAYS = ("in every step", "once")
FILES = {"train": "train_balanced20.csv", "query": "test.csv", "index": "train.csv"}


class Timing(NamedTuple):
    """What a run took, in seconds.

    Attributes:
        first: what was computed before the first step.
        epochs: each epoch's training alone.
        evaluations: each evaluation, that before training first.
        whole: all of it, reading and the artifact left out.
    """

    first: float
    epochs: list[float]
    evaluations: list[float]
    whole: float


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rows", type=int, help="texts of each file; all without it")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--write", action="store_true", help="write results/frozen.md")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    torch.set_num_threads(arguments.threads)
    data = {name: read(file, arguments.rows) for name, file in FILES.items()}
    runs: dict[str, Run] = {}
    limit = frozen.MAX_BYTES
    with tempfile.TemporaryDirectory() as place:
        for way in WAYS:
            frozen.MAX_BYTES = limit if way == "once" else 0
            common.say(way)
            runs[way] = fit(Path(place, way), data, arguments.epochs)
        check(*runs.values())
        timings = {way: timing_of(run) for way, run in runs.items()}
    common.page(
        "frozen",
        "What is frozen is computed once",
        report(timings, data, arguments.epochs),
        threads=arguments.threads,
        load=load,
        write=arguments.write,
    )


def read(file: str, rows: int | None) -> list[dict[str, str]]:
    """A file of Banking77, or some of it: of every class about as many."""
    path = common.data_file("banking77", file)
    if path is None:
        raise SystemExit("set FTRAY_DATA to the folder with banking77/")
    with path.open(encoding="utf-8", newline="") as lines:
        found = list(csv.DictReader(lines))
    return found if rows is None else found[:: max(1, len(found) // rows)][:rows]


def fit(place: Path, data: dict[str, list[dict[str, str]]], epochs: int) -> Run:
    """One fit, without a word."""
    return ftray.fit(
        model="minilm",
        train_data=data["train"],
        freeze=True,
        loss="SupConLoss",
        epochs=epochs,
        batch_size=64,
        max_length=48,
        learning_rate=1e-3,
        num_workers=0,
        device="cpu",
        callbacks=[EvaluationCallback(data["query"], data["index"])],
        storage_path=str(place),
        listeners=[],
    )


def check(plain: Run, once: Run) -> None:
    """Refuse to time what does not agree."""
    losses = [[step.loss for step in steps_of(run)] for run in (plain, once)]
    pairs = list(zip(*losses, strict=True))
    off = max(abs(one - other) for one, other in pairs)
    common.require(off < 1e-4, f"the losses of the two differ by {off}")
    before, after = plain.metrics()["after"], once.metrics()["after"]
    off = max(abs(before[name] - after[name]) for name in before)
    common.require(off < 2e-3, f"the metrics of the two differ by {off}")


def steps_of(run: Run) -> list[StepEnded]:
    """The steps of a run."""
    return [event for event in run._record.events() if isinstance(event, StepEnded)]


def timing_of(run: Run) -> Timing:
    """What a run says of its times."""
    events: list[Any] = run._record.events()
    steps: dict[int, float] = {}
    for step in steps_of(run):
        steps[step.epoch] = steps.get(step.epoch, 0.0) + step.data_s + step.step_s
    evaluations = [event.wall_s for event in events if isinstance(event, EvaluationEnded)]
    ends = [event.seconds for event in events if isinstance(event, EpochEnded)]
    first = ends[-1].get("frozen weights", 0.0)
    epochs = list(steps.values())
    return Timing(first, epochs, evaluations, first + sum(epochs) + sum(evaluations))


def report(timings: dict[str, Timing], data: dict[str, list[dict[str, str]]], epochs: int) -> str:
    """The body of the page."""
    rows = []
    slow = timings[WAYS[0]]
    for way, found in timings.items():
        epoch, evaluation = (
            statistics.median(part) for part in (found.epochs, found.evaluations[1:])
        )
        rows.append(
            [
                way,
                f"{found.first:.1f}",
                f"{epoch:.2f}",
                f"{evaluation:.2f}",
                f"{found.whole:.1f}",
                f"{slow.whole / found.whole:.1f}",
            ]
        )
    counts = ", ".join(f"{name} {len(part):,}" for name, part in data.items())
    head = ["what is frozen", "before, s", "an epoch, s", "an evaluation, s", "together, s", "×"]
    return (
        f"Texts of Banking77: {counts}. {epochs} epochs of {len(data['train']) // 64} steps of 64, "
        f"an evaluation before the first and after each ({epochs + 1}). The losses of all steps "
        "agree to 1e-4 (checked first). Epochs and evaluations: medians. Computed once are the "
        "texts of training and of the evaluation; then a step computes the head alone.\n\n"
        + common.table(head, rows)
    )


if __name__ == "__main__":
    main()
