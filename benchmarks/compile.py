"""Steps with and without torch.compile: a text model on Banking77, a small net on Fashion-MNIST.

    FTRAY_DATA=... python benchmarks/compile.py [--steps 24] [--warm-up 12] [--write]

The steps are those of the runs of `benchmarks/configs/`, by the code that the loop calls: batches
made ready first, then encoder, loss, gradient and optimizer. Texts differ in number and length from
step to step, so the warm-up, in which shapes are met for the first time, is stated by itself.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

import common
import torch

from ftray.config_file import load_config
from ftray.runtime.process_group import SingleProcess
from ftray.training.job import prepare
from ftray.training.learner import Learner

CONFIGS = {"Banking77, MiniLM": "banking77.yaml", "Fashion-MNIST, convnet": "fashion_mnist.yaml"}


def measured(file: str, compiled: bool, steps: int, warm_up: int) -> dict[str, Any]:
    """Seconds of each step, of the warm-up, and the losses."""
    path = Path(__file__).parent / "configs" / file
    given = {"compile": compiled, "num_workers": 0, "device": "cpu", "callbacks": []}
    config = load_config(path).model_copy(update=given)
    job = prepare(config, "")
    plan = job.plan()
    start = time.perf_counter()
    learner = Learner(job, SingleProcess(torch.device("cpu")), plan.steps_per_epoch, job.model)
    seconds, losses = [], []
    for step in range(warm_up + steps):
        seed = (config.seed, 0, step % plan.steps_per_epoch)
        batch = learner.batch(job.train, plan.rows(0, seed[2]), seed)
        if step == warm_up:
            before = time.perf_counter() - start
        begin = time.perf_counter()
        losses.append(learner.step(batch, seed).loss)
        seconds.append(time.perf_counter() - begin)
    return {"steps": seconds[warm_up:], "warm-up": before, "losses": losses}


def main() -> None:
    """Check, measure, report."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--warm-up", type=int, default=12)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--write", action="store_true", help="write results/compile.md")
    arguments = parser.parse_args()
    common.require("FTRAY_DATA" in os.environ, "FTRAY_DATA names the folder of the data")
    load = os.getloadavg()[0]
    torch.set_num_threads(arguments.threads)
    rows = []
    for name, file in CONFIGS.items():
        plain, compiled = (
            measured(file, on, arguments.steps, arguments.warm_up) for on in (False, True)
        )
        apart = max(
            abs(a - b) / max(abs(a), 1e-9)
            for a, b in zip(plain["losses"], compiled["losses"], strict=True)
        )
        common.require(apart < 1e-2, f"{name}: losses differ by a share of {apart}")
        median = statistics.median(plain["steps"])
        for way, found in (("plain", plain), ("compiled", compiled)):
            first, middle, third = common.quartiles(found["steps"])
            rows.append(
                [
                    name,
                    way,
                    *(f"{1000 * s:.0f}" for s in (middle, first, third)),
                    f"{median / middle:.2f}",
                    f"{found['warm-up']:.0f}",
                ]
            )
        common.say(f"{name}: done; losses agree to a share of {apart:.1e}")
    head = ["run", "way", "median ms a step", "first quartile", "third", "speed-up"]
    common.page(
        "compile",
        "torch.compile of the encoder, on a CPU",
        f"{arguments.steps} steps after {arguments.warm_up} of warm-up, which with the model's "
        "loading took what the last column says, in seconds; the losses agree (checked).\n\n"
        + common.table([*head, "warm-up s"], rows),
        threads=arguments.threads,
        load=load,
        write=arguments.write,
    )


if __name__ == "__main__":
    main()
