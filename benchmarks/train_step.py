"""A training step of all-MiniLM-L6-v2: ftray, sentence-transformers' trainer, bare PyTorch.

    python benchmarks/train_step.py [--rounds 3] [--steps 12] [--write]

A step is everything between the ends of two steps: tokenise, forward, loss, backward, clip, AdamW,
schedule, and what each contestant's loop does besides (events, record, callbacks, data loader).
All train on the same rows in the same order, those of ftray's plan, in fp32 on the CPU.

Correctness first, with dropout off: the gradient of one step (relative difference < 1e-3) and the
losses of real runs of every contestant (< 1e-4 in the first step). Then rounds of runs, the order
of the contestants turned by one in each round; the first steps of each run are left out.

The trainer of sentence-transformers needs accelerate and datasets, which `make venv` installs.
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import common
import numpy as np
import torch
from step_contestants import (
    BARE,
    BARE_MERGED,
    FTRAY,
    PADDED,
    TRAINER,
    TRAINER_PACKAGES,
    Trace,
    bare_gradient,
    contestants,
    ftray_gradient,
    has_trainer,
    trainer_gradient,
)
from step_workloads import MODEL, Workload, labelled, pairs, without_dropout
from torch import Tensor

from ftray.models.registry import load_encoder

CHECKED_STEPS = 3
DROPPED_STEPS = 2
PACKAGES = ("sentence-transformers", "transformers", "pytorch-metric-learning", "ray")

Build = Callable[[int], Workload | None]


def main() -> None:
    """Check, measure, report."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--steps", type=int, default=12, help=f"{DROPPED_STEPS} of them are dropped"
    )
    parser.add_argument("--only", choices=("pairs", "labels"), help="one of the two workloads")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--write", action="store_true", help="write results/train_step.md")
    arguments = parser.parse_args()
    common.require(arguments.steps > DROPPED_STEPS, f"--steps: more than {DROPPED_STEPS}")
    load = os.getloadavg()[0]
    torch.set_num_threads(arguments.threads)
    builds: dict[str, Build] = {"pairs": pairs, "labels": labelled}
    parts = [
        run(build, arguments.rounds, arguments.steps)
        for name, build in builds.items()
        if arguments.only in (None, name)
    ]
    common.require(any(parts), "nothing was measured")
    common.page(
        "train_step",
        "A training step",
        "\n\n".join([introduction(arguments.rounds, arguments.steps), *filter(None, parts)]),
        threads=arguments.threads,
        load=load,
        write=arguments.write,
    )


def run(build: Build, rounds: int, steps: int) -> str:
    """Check and time one workload; its part of the page."""
    work = build(steps)
    if work is None:
        return ""
    common.say(work.title)
    with tempfile.TemporaryDirectory() as folder:
        checked = check(build, Path(folder) / "check")
        common.say(checked)
        timings = measure(work, rounds, Path(folder))
    return report(work, timings, checked)


# ------------------------------------------------------------------ correctness


def check(build: Build, folder: Path) -> str:
    """Compare everybody with bare PyTorch; returns what was found, or ends the script."""
    work = build(CHECKED_STEPS)
    assert work is not None
    model = without_dropout(folder / "model")
    gradients = {
        BARE: bare_gradient(work, model, merged=False),
        BARE_MERGED: bare_gradient(work, model, merged=True),
        FTRAY: ftray_gradient(work, model, "auto"),
        PADDED: ftray_gradient(work, model, "padded"),
    }
    if has_trainer():
        gradients[TRAINER] = trainer_gradient(work, model, folder / "trainer")
    loss_off, gradient_off = check_gradients(gradients)
    traces = {
        name: contestant(work, model, folder / str(i))
        for i, (name, contestant) in enumerate(contestants(work).items())
    }
    run_off = check_runs(traces)
    return (
        f"Checked first, dropout off: the loss of one step differs by at most {loss_off:.0e} and "
        f"its gradient by {gradient_off:.0e} (relative); over {CHECKED_STEPS} steps of real runs "
        f"the losses of all contestants stay within {run_off:.0e}."
    )


def check_gradients(found: dict[str, tuple[float, Tensor]]) -> tuple[float, float]:
    """The largest difference of a loss, and of a gradient relative to its norm."""
    expected, reference = found[BARE]
    losses = {name: abs(loss - expected) for name, (loss, _) in found.items()}
    gradients = {
        name: float((gradient - reference).norm() / reference.norm())
        for name, (_, gradient) in found.items()
    }
    for name in found:
        common.require(losses[name] < 1e-4, f"{name}: the loss is off by {losses[name]:.1e}")
        off = gradients[name]
        common.require(off < 1e-3, f"{name}: the gradient is off by {off:.1e} of its norm")
    return max(losses.values()), max(gradients.values())


def check_runs(traces: dict[str, Trace]) -> float:
    """The largest difference of a loss over real runs from the same weights."""
    expected = np.array(traces[BARE].losses)
    worst = 0.0
    for name, trace in traces.items():
        common.require(len(trace.losses) == len(expected), f"{name}: {len(trace.losses)} steps")
        off = np.abs(np.array(trace.losses) - expected)
        fine = off[0] < 1e-4 and off.max() < 1e-3
        common.require(bool(fine), f"{name}: the losses of a run are off by {off.tolist()}")
        worst = max(worst, float(off.max()))
    return worst


# ------------------------------------------------------------------ timing


@dataclass
class Timing:
    """Seconds of the timed steps of one contestant, by round and step; CPU seconds if known."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def add(self, trace: Trace) -> None:
        """Take a run, but not its first steps."""
        self.wall += np.diff(trace.wall_s)[DROPPED_STEPS - 1 :].tolist()
        self.cpu += np.diff(trace.cpu_s)[DROPPED_STEPS - 1 :].tolist()


def measure(work: Workload, rounds: int, folder: Path) -> dict[str, Timing]:
    """Rounds of runs of everybody."""
    everybody = list(contestants(work).items())
    timings = {name: Timing() for name, _ in everybody}
    for number in range(rounds):
        turn = number % len(everybody)
        for name, contestant in everybody[turn:] + everybody[:turn]:
            gc.collect()
            place = folder / f"{number} {name}"
            timings[name].add(contestant(work, MODEL, place))
            shutil.rmtree(place, ignore_errors=True)
            common.say(f"round {number + 1}, {name}: {middle(timings[name].wall):.3f} s so far")
    return timings


def middle(values: list[float]) -> float:
    """The median."""
    return float(np.median(values))


# ------------------------------------------------------------------ the page


def introduction(rounds: int, steps: int) -> str:
    """How the numbers came about."""
    packages = PACKAGES + (TRAINER_PACKAGES if has_trainer() else ())
    missing = "sentence-transformers' trainer was left out: it needs accelerate and datasets.\n"
    return f"""{common.versions(*packages)}. {"" if has_trainer() else missing}
Seconds from the end of one step to the end of the next: all-MiniLM-L6-v2, fp32, dropout on, fused
AdamW, clipping, linear schedule; the same rows in the same order and as many threads for everybody.
{rounds} rounds of runs, one contestant after the other, the order turned by one in each round;
{steps} steps a run, the first {DROPPED_STEPS} left out. Speed is the ratio of the medians, in
brackets the quartiles of the ratios over equal batches. CPU seconds are those of the process that
trains, over all its threads; they say more where others use the machine.

"padded" is ftray with `packing: padded`: it lays texts out as the others do and shows what the
framework costs. The default packs texts end to end in rows, or lets those of similar length share
a forward, whichever costs less; the rest of the gain is that. On a Ray worker Ray's own processes
and the driver share the cores with the training."""


def report(work: Workload, timings: dict[str, Timing], checked: str) -> str:
    """One workload's part of the page."""
    medians = {name: middle(timing.wall) for name, timing in timings.items()}
    best = min((name for name in (BARE, BARE_MERGED) if name in medians), key=lambda n: medians[n])
    rivals = [best, *([TRAINER] if TRAINER in medians else [])]
    rows = []
    for name, timing in timings.items():
        low, median, high = common.quartiles(timing.wall)
        row = [name, f"{median:.3f}", f"{low:.3f}–{high:.3f}"]
        row += [f"{min(timing.wall):.3f}–{max(timing.wall):.3f}"]
        row += [f"{middle(timing.cpu):.3f}" if timing.cpu else ""]
        rows.append(row + [speed(timings[rival].wall, timing.wall) for rival in rivals])
    head = ["", "median s", "quartiles", "min–max", "median CPU s", "speed, best bare loop = 1"]
    head += ["speed, sentence-transformers = 1"] * (len(rivals) - 1)
    verdict = [
        f"ftray in this process is {medians[best] / medians[FTRAY]:.2f} × as fast as the best bare "
        f"loop ({best}; target ≥ 0.98)",
        f"{medians[best] / medians[PADDED]:.2f} × when padded like it",
    ]
    if TRAINER in medians:
        ratio = medians[TRAINER] / medians[FTRAY]
        target = "target ≥ 1" if len(work.batches[0].columns) > 1 else "target ≥ 2.5"
        verdict.append(f"{ratio:.2f} × as fast as sentence-transformers ({target})")
    return "\n\n".join(
        [
            f"## {work.title}",
            f"{describe(work)} {checked}",
            common.table(head, rows),
            f"{len(timings[FTRAY].wall)} timed steps each: {', '.join(verdict)}.",
        ]
    )


def speed(rival: list[float], own: list[float]) -> str:
    """Ratio of the medians, and the quartiles of the ratios over equal batches."""
    low, _, high = common.quartiles((np.array(rival) / np.array(own)).tolist())
    return f"{middle(rival) / middle(own):.2f} ({low:.2f}–{high:.2f})"


def describe(work: Workload) -> str:
    """How many texts, and how long they are."""
    encoder = load_encoder(MODEL, max_length=work.max_length)
    lines = []
    for column in zip(*(batch.columns for batch in work.batches), strict=True):
        texts = [("", text) for texts in column for text in texts]
        lines.append(encoder.collate(texts, "padded").tokens / len(texts))
    columns = " and ".join(f"{tokens:.0f}" for tokens in lines)
    size = sum(len(column) for column in work.batches[0].columns)
    return f"{size} texts a step, {columns} tokens long on average."


if __name__ == "__main__":
    main()
