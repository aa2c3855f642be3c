"""A training step's forward and backward in each layout, beside sentence-transformers'.

    python benchmarks/layout.py [--runs 5] [--threads 2] [--write]

Texts: 64 of Banking77 (`$FTRAY_DATA/banking77`), or of the demo's corpus where that is not set.
Correctness first: the embeddings of all layouts agree to 1e-5. Then medians of alternating runs,
as ratios against sentence-transformers' own padded forward in the same run.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import statistics
import time
from collections.abc import Callable

import common
import torch

from ftray.models.layout import Layout
from ftray.models.registry import load_encoder

ROWS = 64
LAYOUTS: tuple[Layout, ...] = ("padded", "bucketed", "packed", "auto")
PEER = "sentence-transformers, padded"


def texts() -> tuple[str, list[str]]:
    """The name of the source, and 64 texts drawn from it with a fixed seed."""
    path = common.data_file("banking77", "train_balanced20.csv")
    if path is not None:
        with path.open(encoding="utf-8") as file:
            every = [row["text"] for row in csv.DictReader(file)]
        name = "Banking77"
    else:
        from ftray.demo.corpus import build_corpus

        every = [pair.query for pair in build_corpus().train]
        name = "docstrings of the standard library"
    return name, random.Random(0).sample(every, ROWS)


def main() -> None:
    """Check, measure, report."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--write", action="store_true", help="write results/layout.md")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    torch.set_num_threads(arguments.threads)
    encoder = load_encoder("minilm").eval()
    name, rows = texts()
    items = [("", text) for text in rows]

    def ours(layout: Layout) -> Callable[[], torch.Tensor]:
        return lambda: encoder(encoder.collate(items, layout))

    ways = {
        PEER: lambda: encoder.model(encoder.model.preprocess(rows))["sentence_embedding"],
        "ftray, padded": ours("padded"),
        "ftray, bucketed": ours("bucketed"),
        "ftray, packed": ours("packed"),
        "ftray, auto (the default)": ours("auto"),
    }
    with torch.no_grad():
        reference = ways[PEER]()
        for way, run in ways.items():
            off = (run() - reference).abs().max().item()
            common.require(off < 1e-5, f"{way}: embeddings differ by {off}")
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(arguments.runs + 1):
        for way, run in ways.items():
            encoder.zero_grad()
            start = time.perf_counter()
            run().square().sum().backward()
            seconds[way].append(time.perf_counter() - start)
    features = {layout: encoder.collate(items, layout) for layout in LAYOUTS}
    processed = ", ".join(f"{k} {v.processed_tokens}" for k, v in features.items())
    table = []
    for way, (_, *rest) in seconds.items():
        median = statistics.median(rest)
        ratio = statistics.median(seconds[PEER][1:]) / median
        table.append([way, *(f"{s:.3f}" for s in (median, min(rest), max(rest))), f"{ratio:.2f}"])
    common.page(
        "layout",
        "Layout of a step: packed, bucketed and padded",
        f"{ROWS} texts of {name}, drawn with seed 0: {features['padded'].tokens} tokens; "
        f"processed: {processed}. Medians of {arguments.runs} alternating runs after one warm-up; "
        "the embeddings of all agree to 1e-5 (checked first).\n\n"
        + common.table(["forward and backward", "median s", "min", "max", "speed-up"], table),
        threads=arguments.threads,
        load=load,
        write=arguments.write,
    )


if __name__ == "__main__":
    main()
