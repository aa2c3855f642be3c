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
from collections.abc import Callable, Mapping
from typing import Any
from unittest.mock import patch

import common
import torch

from ftray.models import text as text_module
from ftray.models.base import Features, joined
from ftray.models.layout import ATTENTION_TOKENS, FORWARD_COST_TOKENS, Layout, in_rows
from ftray.models.registry import load_encoder
from ftray.models.text import TextEncoder

ROWS = 64
WIDTHS = (64, 128, 256, 512)
PARTS = 8
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
    common.page(
        "layout",
        "Layout of a step: packed, bucketed and padded",
        "\n\n".join([layouts(arguments.runs), constants(arguments.runs)]),
        threads=arguments.threads,
        load=load,
        write=arguments.write,
    )


def layouts(runs: int) -> str:
    """Forward and backward of 64 texts in every layout."""
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
    seconds = timed(
        {way: lambda run=run: run().square().sum().backward() for way, run in ways.items()}, runs
    )
    features = {layout: encoder.collate(items, layout) for layout in LAYOUTS}
    processed = ", ".join(f"{k} {v.processed_tokens}" for k, v in features.items())
    table = []
    for way, found in seconds.items():
        median = statistics.median(found)
        ratio = statistics.median(seconds[PEER]) / median
        table.append([way, *(f"{s:.3f}" for s in (median, min(found), max(found))), f"{ratio:.2f}"])
    return (
        f"{ROWS} texts of {name}, drawn with seed 0: {features['padded'].tokens} tokens; "
        f"processed: {processed}. Medians of {runs} alternating runs after one warm-up; "
        "the embeddings of all agree to 1e-5 (checked first).\n\n"
        + common.table(["forward and backward", "median s", "min", "max", "speed-up"], table)
    )


def constants(runs: int) -> str:
    """What the choice of a layout rests on: rows of several widths, and several forwards."""
    encoder = load_encoder("minilm")
    assert isinstance(encoder, TextEncoder)
    _, rows = texts()
    items = [("", text) for text in rows * 4]
    made = {width: forced(encoder, items, (width,)) for width in WIDTHS}
    cut = forced(encoder, items, (64,) * PARTS)
    ways = {width: (lambda width=width: learned(encoder, made[width])) for width in WIDTHS}
    training = timed({**ways, "cut": lambda: learned(encoder, cut)}, runs)
    encoding = timed(
        {width: (lambda width=width: encoded(encoder, made[width])) for width in WIDTHS}, runs
    )
    table = []
    each: dict[int, float] = {}
    for width in WIDTHS:
        tokens = made[width].processed_tokens
        each[width] = statistics.median(training[width]) / tokens
        own = statistics.median(encoding[width]) / tokens
        assumed = (1 + width / ATTENTION_TOKENS) / (1 + WIDTHS[0] / ATTENTION_TOKENS)
        table.append(
            [
                str(width),
                f"{tokens:,}",
                f"{1e6 * each[width]:.0f}",
                f"{each[width] / each[WIDTHS[0]]:.2f}",
                f"{assumed:.2f}",
                f"{1e6 * own:.0f}",
            ]
        )
    more = statistics.median(training["cut"]) - each[64] * cut.processed_tokens
    forward = more / (PARTS - 1) / each[64]
    head = ["row width", "tokens", "µs a token, training", "first = 1", "assumed", "µs, encoding"]
    return f"""## What the choice rests on

The same texts four times over, packed in rows of several widths; dropout on in training. Attention
is assumed to cost as much as all else in rows of {ATTENTION_TOKENS} tokens, and one more forward as
much as {FORWARD_COST_TOKENS} tokens: measured here, cutting a step in {PARTS}, {forward:.0f}.

{common.table(head, table)}"""


def forced(encoder: TextEncoder, items: list[tuple[str, str]], widths: tuple[int, ...]) -> Features:
    """Texts in rows of a width; with several widths, as many forwards, each with its part."""
    parts = []
    for number, width in enumerate(widths):
        places = list(range(number, len(items), len(widths)))
        with patch.object(
            text_module, "forwards_of", lambda lengths, _, w=width: in_rows(lengths, w)
        ):
            parts.append((places, encoder.collate([items[i] for i in places], "packed")))
    return joined(parts)


def learned(encoder: TextEncoder, features: Features) -> None:
    """Forward and backward as in training."""
    encoder.train()
    encoder(features).square().sum().backward()
    encoder.zero_grad()


@torch.no_grad()
def encoded(encoder: TextEncoder, features: Features) -> None:
    """A forward as in evaluation."""
    encoder.eval()
    encoder(features)


def timed(ways: Mapping[Any, Callable[[], object]], runs: int) -> dict[Any, list[float]]:
    """Seconds of each, in alternating runs after one warm-up."""
    seconds: dict[Any, list[float]] = {way: [] for way in ways}
    for number in range(runs + 1):
        for way, run in ways.items():
            start = time.perf_counter()
            run()
            if number:
                seconds[way].append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    main()
