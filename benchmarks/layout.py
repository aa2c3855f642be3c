"""A training step's forward and backward: bucketed against padded, and sentence-transformers.

    python benchmarks/layout.py [--runs 5] [--threads 2]

Texts: 64 of Banking77 (`$FTRAY_DATA/banking77`), or of the demo's corpus where that is not set.
Correctness first: the embeddings of all layouts agree to 1e-5. Then medians of alternating runs,
as ratios against sentence-transformers' own padded forward in the same run.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from ftray.models.registry import load_encoder

ROWS = 64


def texts() -> tuple[str, list[str]]:
    """The name of the source, and 64 texts drawn from it with a fixed seed."""
    if "FTRAY_DATA" in os.environ:
        path = Path(os.environ["FTRAY_DATA"]) / "banking77" / "train_balanced20.csv"
        with path.open(encoding="utf-8") as file:
            every = [row["text"] for row in csv.DictReader(file)]
        name = "Banking77"
    else:
        from ftray.demo.corpus import build_corpus

        every = [pair.query for pair in build_corpus().train]
        name = "docstrings of the standard library"
    return name, random.Random(0).sample(every, ROWS)


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    encoder = load_encoder("minilm")
    encoder.eval()
    name, rows = texts()
    items = [("", text) for text in rows]

    def ours(layout: str) -> Callable[[], torch.Tensor]:
        return lambda: encoder(encoder.collate(items, layout))

    ways = {
        "sentence-transformers, padded": lambda: encoder.model(encoder.model.preprocess(rows))[
            "sentence_embedding"
        ],
        "ftray, padded": ours("padded"),
        "ftray, bucketed": ours("bucketed"),
    }
    with torch.no_grad():
        reference = ways["sentence-transformers, padded"]()
        for way, run in ways.items():
            difference = (run() - reference).abs().max().item()
            assert difference < 1e-5, f"{way}: embeddings differ by {difference}"
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(arguments.runs + 1):
        for way, run in ways.items():
            encoder.zero_grad()
            start = time.perf_counter()
            run().square().sum().backward()
            seconds[way].append(time.perf_counter() - start)
    features = {layout: encoder.collate(items, layout) for layout in ("padded", "bucketed")}
    print(f"{ROWS} texts of {name}: {features['padded'].tokens} tokens; processed: ", end="")
    print(", ".join(f"{k} {v.processed_tokens}" for k, v in features.items()))
    print(f"{platform.processor() or platform.machine()}, {arguments.threads} threads, ", end="")
    print(f"torch {torch.__version__}, {arguments.runs} alternating runs after one warm-up\n")
    print("| forward and backward | median s | min | max | speed-up |\n|---|---|---|---|---|")
    base = statistics.median(seconds["sentence-transformers, padded"][1:])
    for way, values in seconds.items():
        rest = values[1:]
        median = statistics.median(rest)
        print(f"| {way} | {median:.3f} | {min(rest):.3f} | {max(rest):.3f} | {base / median:.2f} |")


if __name__ == "__main__":
    main()
