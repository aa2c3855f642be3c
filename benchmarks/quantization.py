"""What smaller embeddings lose: int8, binary, and fewer dimensions, on Banking77 and MedQuAD.

    FTRAY_DATA=... python benchmarks/quantization.py [--model minilm] [--queries 1000] [--write]

Each data set is encoded once; all sizes are measured on the same embeddings, with queries in
float32. all-MiniLM-L6-v2 was not trained with MatryoshkaLoss: what its first dimensions lose is an
upper bound for a model that was. Give such a one with --model.

Correctness first: the codes of a sample are those of sentence-transformers' `quantize_embeddings`.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import common
import numpy as np
import torch
from sentence_transformers.util import quantize_embeddings

import ftray
from ftray.api.sizes import SizedMetrics
from ftray.models.base import Encoder

METRIC = "ndcg_at_k"
NAMES: tuple[str | None, ...] = (None, "int8", "binary")


@dataclass(frozen=True)
class Work:
    """A data set: its files below `$FTRAY_DATA`, the cut-off, and the longest text in tokens."""

    title: str
    files: tuple[str, ...]
    limit: int
    max_length: int


WORKS = (
    Work("Banking77", ("banking77/test.csv", "banking77/train.csv"), 20, 48),
    Work("MedQuAD", ("medquad",), 10, 128),
)


def main() -> None:
    """Check, measure, report."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--dims", nargs="+", type=int, default=[256, 128, 64])
    parser.add_argument("--queries", type=int, help="so many of each data set; default: all")
    parser.add_argument("--write", action="store_true", help="write results/quantization.md")
    arguments = parser.parse_args()
    root = common.data_file()
    if root is None:
        raise SystemExit("quantization.py: set FTRAY_DATA")
    load = os.getloadavg()[0]
    parts = [introduction(arguments.model)]
    for work in WORKS:
        common.say(work.title)
        data = [str(root / file) for file in work.files]
        encoder = ftray.get_model(arguments.model, max_length=work.max_length)
        check_codes(encoder)
        options = {"limit": work.limit, "query_sample_size": arguments.queries}
        found = measured(encoder, data, arguments.dims, options)
        parts.append(report(work, found))
    common.page(
        "quantization",
        "What smaller embeddings lose",
        "\n\n".join(parts),
        threads=torch.get_num_threads(),
        load=load,
        write=arguments.write,
    )


def check_codes(encoder: Encoder) -> None:
    """The codes are sentence-transformers'."""
    vectors = ftray.encode(encoder, [f"text number {number}" for number in range(128)])
    for name in NAMES[1:]:
        same = np.array_equal(
            ftray.quantize(vectors, str(name)),
            quantize_embeddings(vectors, precision=name),  # type: ignore[arg-type]
        )
        common.require(same, f"the {name} codes differ")


def measured(
    encoder: Encoder, data: Sequence[str], dims: Sequence[int], options: dict[str, Any]
) -> list[SizedMetrics]:
    """The metrics of every size, the largest first; binary with and without scoring anew."""
    sizes = ftray.compare_sizes(
        encoder,
        *data,
        dims=[None, *dims],
        quantize=NAMES,
        rescore=[None, 0],
        metrics=[METRIC],
        **options,
    )
    return sorted(sizes, key=lambda one: -one.bytes)


def report(work: Work, found: list[SizedMetrics]) -> str:
    """One data set's part of the page."""
    whole = found[0]
    rows = []
    for one in found:
        value = one.metrics[METRIC]
        rows.append(
            [
                str(one),
                f"{one.bytes:,}",
                f"{whole.bytes / one.bytes:.3g} ×",
                f"{value:.4f}",
                f"{value - whole.metrics[METRIC]:+.4f}",
                f"{value / whole.metrics[METRIC]:.1%}",
            ]
        )
    head = ["", "bytes", "smaller", f"nDCG@{work.limit}", "change", "kept"]
    return f"## {work.title}\n\n{common.table(head, rows)}"


def introduction(model: str) -> str:
    """How the numbers came about."""
    return f"""{common.versions("sentence-transformers", "faiss-cpu")}. Model: {model}, as it is
given. Documents are quantised, queries are float32. int8: ranges of each dimension over the index,
all documents scored. binary: four times as many documents as asked for are found by Hamming
distance and scored anew with the query (the default of `rescore`), or, where it says so, ranked by
Hamming distance alone. Bytes are those of one embedding."""


if __name__ == "__main__":
    main()
