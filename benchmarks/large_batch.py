"""Large batches in small memory: peak memory and time of a step, by the size of the global batch.

    FTRAY_DATA=... python benchmarks/large_batch.py [--sizes 64 256 512 2048] [--rounds 3] [--write]

Pairs of short texts (Banking77: two texts of one intent), MultipleNegativesRankingLoss, which needs
all embeddings of a step at once. Plain steps keep the activations of the whole batch; with micro
batches (`micro_batch_size`) they are computed again, so that memory stays that of a micro batch
(Gao et al. 2021). Beside ftray's two ways stand sentence-transformers'
`MultipleNegativesRankingLoss` and `CachedMultipleNegativesRankingLoss`.

Every run is a process of its own; its peak memory is that of all it did, imports and optimizer
included. Plain steps are left out beyond `--plain-up-to`, where memory would not do.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import torch
from step_contestants import (
    TRAINER_PACKAGES,
    Trace,
    build_trainer,
    fit,
    ftray_gradient,
    has_trainer,
    no_chatter,
)
from step_workloads import MODEL, SCALE, Workload, without_dropout, workload

MICRO = 64
FTRAY, CACHED = "ftray", f"ftray, micro_batch_size: {MICRO}"
PEER = "sentence-transformers"
PEER_CACHED = f"sentence-transformers, cached, mini_batch_size {MICRO}"
PLAIN = (FTRAY, PEER)
DROPPED = 1


def main() -> None:
    """Check, measure, report."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256, 512, 2048])
    parser.add_argument("--plain-up-to", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--write", action="store_true", help="write results/large_batch.md")
    parser.add_argument("--worker", nargs=2, metavar=("WHO", "SIZE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if common.data_file() is None:
        parser.error("FTRAY_DATA must name the folder that holds the data sets")
    if arguments.worker:
        print(json.dumps(one_run(arguments.worker[0], int(arguments.worker[1]))))
        return
    load = os.getloadavg()[0]
    off = gradients_agree()
    empty = in_a_process("nobody", 0, arguments.threads)["peak_mib"]
    common.require(empty < 1024, f"a process that does nothing reports {empty} MiB")
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for number in range(arguments.rounds):
        for size in arguments.sizes:
            who = [
                name for name in everybody() if name not in PLAIN or size <= arguments.plain_up_to
            ]
            for name in who[number % len(who) :] + who[: number % len(who)]:
                done = in_a_process(name, size, arguments.threads)
                found.setdefault((name, size), []).append(done)
                common.say(f"round {number + 1}, {size} pairs, {name}: {done}")
    common.page(
        "large_batch",
        "Large batches in small memory",
        report(found, arguments, off),
        threads=arguments.threads,
        load=load,
        write=arguments.write,
    )


def everybody() -> list[str]:
    """Who takes part here."""
    return [FTRAY, CACHED, *([PEER, PEER_CACHED] if has_trainer() else [])]


def pairs(size: int, steps: int) -> Workload:
    """Steps of pairs of texts of one intent, every text once."""
    path = common.data_file("banking77", "train.csv")
    assert path is not None
    members: dict[str, list[str]] = {}
    with path.open(encoding="utf-8") as file:
        label_of = {row["text"].strip(): row["label"] for row in csv.DictReader(file)}
    for text, label in label_of.items():
        members.setdefault(label, []).append(text)
    records = [
        {"query": first, "document": second}
        for texts in members.values()
        for first, second in zip(texts[::2], texts[1::2], strict=False)
    ]
    common.require(len(records) >= size * steps, f"{len(records)} pairs are too few")
    every = len(records) // (size * steps)  # of all intents
    return workload(
        "pairs",
        records[::every][: size * steps],
        batch_size=size,
        max_length=64,
        loss="MultipleNegativesRankingLoss",
        loss_options={"temperature": 1 / SCALE},
    )


def gradients_agree() -> float:
    """The gradient of a step with micro batches, beside that of a plain one, dropout off."""
    with tempfile.TemporaryDirectory() as folder:
        model, work = without_dropout(Path(folder) / "model"), pairs(256, 1)
        loss, plain = ftray_gradient(work, model, "auto")
        cached_loss, cached = ftray_gradient(work, model, "auto", MICRO)
    off = float((plain - cached).norm() / plain.norm())
    common.require(off < 1e-4 and abs(loss - cached_loss) < 1e-4, f"the gradient is off by {off}")
    return off


def one_run(name: str, size: int) -> dict[str, Any]:
    """Train for a few steps; seconds of those after the first, and this process's peak."""
    if not size:
        return {"peak_mib": round(peak_mib())}
    work = pairs(size, 6 if size <= 256 else 3 if size <= 512 else 2)
    with tempfile.TemporaryDirectory() as folder:
        trace = CONTESTANTS[name](work, Path(folder))
    ends = trace.wall_s
    seconds = [
        after - before for before, after in zip(ends[DROPPED - 1 :], ends[DROPPED:], strict=False)
    ]
    return {"peak_mib": round(peak_mib()), "step_s": round(statistics.median(seconds), 3)}


def peak_mib() -> float:
    """The most memory this process has held; what its parent held does not count."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status has no VmHWM: the peak is measured on Linux alone")


def peer(cached: bool) -> Callable[[Workload, Path], Trace]:
    """sentence-transformers' trainer with one of its two losses."""

    def loss_of(encoder: Any) -> Any:
        from sentence_transformers.sentence_transformer import losses

        if not cached:
            return losses.MultipleNegativesRankingLoss(encoder, SCALE)
        return losses.CachedMultipleNegativesRankingLoss(encoder, SCALE, mini_batch_size=MICRO)

    def run(work: Workload, folder: Path) -> Trace:
        trace = Trace()
        with no_chatter():
            build_trainer(work, MODEL, folder, trace, loss_of).train()
        return trace

    return run


CONTESTANTS: dict[str, Callable[[Workload, Path], Trace]] = {
    FTRAY: lambda work, folder: fit(work, MODEL, folder, num_workers=0),
    CACHED: lambda work, folder: fit(work, MODEL, folder, num_workers=0, micro_batch_size=MICRO),
    PEER: peer(cached=False),
    PEER_CACHED: peer(cached=True),
}


def in_a_process(name: str, size: int, threads: int) -> dict[str, Any]:
    """`one_run` where nothing else has used memory."""
    words = [sys.executable, __file__, "--threads", str(threads), "--worker", name, str(size)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    common.require(done.returncode == 0, f"{name} with {size} pairs failed ({done.returncode})")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def report(
    found: dict[tuple[str, int], list[dict[str, Any]]], arguments: argparse.Namespace, off: float
) -> str:
    """The page."""
    peaks = {key: statistics.median(one["peak_mib"] for one in runs) for key, runs in found.items()}
    times = {key: statistics.median(one["step_s"] for one in runs) for key, runs in found.items()}
    rows = []
    for size in arguments.sizes:
        for name in everybody():
            if (name, size) not in times:
                continue
            plain = times.get((FTRAY, size))
            own = times[name, size]
            rows.append(
                [
                    str(size),
                    name,
                    f"{peaks[name, size]:,.0f}",
                    f"{own:.2f}",
                    f"{own / plain:.2f}" if plain else "-",
                    f"{2 * size / own:,.0f}",
                ]
            )
    smallest, largest = min(arguments.sizes), max(arguments.sizes)
    flat = peaks[CACHED, largest] / peaks[CACHED, smallest]
    both = [size for size in arguments.sizes if (FTRAY, size) in times]
    slower = {size: times[CACHED, size] / times[FTRAY, size] for size in both}
    head = ["pairs a step", "", "peak MiB", "s a step", "time, plain ftray = 1", "texts/s"]
    packages = (
        common.versions("sentence-transformers", "transformers", *TRAINER_PACKAGES)
        if has_trainer()
        else "sentence-transformers' trainer was left out: it needs accelerate and datasets"
    )
    ratios = ", ".join(f"{ratio:.2f} × at {size}" for size, ratio in slower.items())
    return f"""{packages}. all-MiniLM-L6-v2, fp32, dropout on, texts of 16 tokens on average;
medians of {arguments.rounds} runs, each a process of its own, in turning order; the first step of
each is left out. The gradient of a step of 256 pairs with micro batches differs from the plain one
by {off:.0e} of its norm (checked first, dropout off).

From {smallest} to {largest:,} pairs a step the peak with micro batches grows by {flat:.2f} ×
(target ≤ 1.3), and a step with them takes {ratios} of a plain one (target ≤ 1.4).

{common.table(head, rows)}"""


if __name__ == "__main__":
    main()
