"""How long a trainer waits for images: the data share of a run, by decoding processes and threads.

    FTRAY_DATA=... python benchmarks/data_wait.py [--runs 3] [--write]

Runs configs/fashion_mnist.yaml for some epochs, without its evaluations, each time in a process of
its own, and reads from the record what a run prints at its end: seconds waited for batches, of
those of data and steps together. One thread leaves a core of two to the decoding processes; two
threads leave none.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile

import common

import ftray
from ftray.events import FitEnded

CONFIG = common.FOLDER / "configs" / "fashion_mnist.yaml"
IMAGES = 10_000


def main() -> None:
    """Run, read, report."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--write", action="store_true", help="write results/data_wait.md")
    arguments = parser.parse_args()
    if common.data_file() is None:
        parser.error("FTRAY_DATA must name the folder that holds fashion_mnist/")
    load = os.getloadavg()[0]
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for threads in arguments.threads:
            for workers in arguments.workers:
                found = [
                    measured(threads, workers, i, place, arguments.epochs)
                    for i in range(arguments.runs)
                ]
                shares = [data / (data + step) for data, step in found]
                low, middle, high = common.quartiles(shares)
                wall = statistics.median(data + step for data, step in found)
                rows.append(
                    [
                        str(threads),
                        str(workers),
                        f"{middle:.1%}",
                        f"{low:.1%} to {high:.1%}",
                        f"{statistics.median(data for data, _ in found):.2f}",
                        f"{IMAGES * arguments.epochs / wall:,.0f}",
                    ]
                )
    head = [
        "threads of the trainer",
        "data_workers",
        "data-wait share",
        "quartiles",
        "s",
        "images/s",
    ]
    body = f"""{arguments.epochs} epochs of 10,000 images of 28 x 28 pixels in steps of 128, median
of {arguments.runs} runs each; the share is of the seconds of data and steps, `s` are those of
waiting.

{common.table(head, rows)}"""
    common.page(
        "data_wait",
        "Waiting for images",
        body,
        threads=max(arguments.threads),
        load=load,
        write=arguments.write,
    )


def measured(
    threads: int, workers: int, number: int, place: str, epochs: int
) -> tuple[float, float]:
    """Seconds waited for data, and seconds of steps, of one run."""
    name = f"threads-{threads}-workers-{workers}-{number}"
    settings = {
        "num_workers": 0,
        "data_workers": workers,
        "epochs": epochs,
        "callbacks": "[]",
        "storage_path": place,
        "run_name": name,
    }
    words = [sys.executable, "-m", "ftray", "fit", str(CONFIG)]
    for key, value in settings.items():
        words += ["--set", f"{key}={value}"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(words, env=environment, stdout=sys.stderr, check=False)
    common.require(done.returncode == 0, f"{name} failed")
    run = ftray.get_run(name, storage_path=place)
    (ended,) = (e for e in run._record.events() if isinstance(e, FitEnded))
    common.say(f"{name}: {ended.seconds}")
    return ended.seconds["data"], ended.seconds["step"]


if __name__ == "__main__":
    main()
