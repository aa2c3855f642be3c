"""Embeddings of 5,000 texts of skewed length: ftray.encode against SentenceTransformer.encode.

    python benchmarks/encode.py [--rounds 3] [--texts 5000] [--layouts auto] [--write]

Texts: nine questions of Banking77 to one answer of MedQuAD, and questions alone (`$FTRAY_DATA`), or
descriptions and code of the standard library where that is not set. all-MiniLM-L6-v2 on the CPU.

Two comparisons. One process, all threads, at equal precision: fp32, and bf16 weights on both sides;
beside it how long the linear layers alone take, below which nobody comes. Two processes with a
thread each against this process with one thread; the processes run already, as they do after the
first window, and how long they took to start stands beside it.

Correctness first: fp32 embeddings of all contestants agree to 1e-5, those of bf16 weights have
cosines above 0.999 with them. Then rounds of everybody, the order turned by one in each round.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import common
import numpy as np
import numpy.typing as npt
import torch
from sentence_transformers import SentenceTransformer

import ftray
from ftray.evaluation.embedding import with_weights
from ftray.evaluation.encode import encode_texts
from ftray.evaluation.encoders import Processes
from ftray.models.base import Encoder
from ftray.models.onednn import with_onednn
from ftray.models.registry import locate_model

MODEL = "minilm"
PEER = "sentence-transformers"
TARGETS = {"fp32": 1.35, "bf16": 1.5}
PROCESSES, PROCESSES_TARGET = 2, 1.8
SHARES_OF_LONG = (0.1, 0.0)
"""Of the texts; the first is the workload of the targets."""
TOKENS_AT_A_TIME = 2048

Floats = npt.NDArray[np.float32]
Encode = Callable[[], Floats]


def main() -> None:
    """Check, measure, report."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=5000)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--layouts", nargs="+", default=["auto"], help="of ftray: auto, padded, …")
    parser.add_argument("--only", choices=("precision", "processes"), help="one comparison")
    parser.add_argument("--write", action="store_true", help="write results/encode.md")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    parts = [introduction(arguments.rounds)]
    if arguments.only != "processes":
        torch.set_num_threads(arguments.threads)
        for share in SHARES_OF_LONG:
            source, texts = drawn(arguments.texts, share)
            common.say(f"{len(texts):,} texts of {source}")
            parts.append(
                f"## One process: {source}\n\n{lengths_of(texts)}\n\n"
                + precisions(texts, arguments.layouts, arguments.rounds)
            )
    if arguments.only != "precision":
        source, texts = drawn(arguments.texts, SHARES_OF_LONG[0])
        parts.append(f"## Processes: {source}\n\n" + processes(texts, arguments.rounds))
    common.page(
        "encode",
        "Encoding texts of skewed length",
        "\n\n".join(parts),
        threads=arguments.threads,
        load=load,
        write=arguments.write,
    )


def drawn(count: int, share: float) -> tuple[str, list[str]]:
    """The source, and texts of it: many short ones, and a share of long ones, in random order."""
    banking = common.data_file("banking77", "train.csv")
    medquad = common.data_file("medquad", "train.csv")
    if banking is not None and medquad is not None:
        name, short, long = (
            "Banking77 and MedQuAD" if share else "Banking77",
            column(banking, "text"),
            column(medquad, "answer"),
        )
    else:
        from ftray.demo.corpus import build_corpus

        pairs = build_corpus().train
        name = "descriptions and code" if share else "descriptions"
        short, long = [pair.query for pair in pairs], [pair.document for pair in pairs]
    draw = random.Random(0)
    of_long = min(round(share * count), len(long))
    texts = draw.sample(long, of_long) + draw.choices(short, k=count - of_long)
    draw.shuffle(texts)
    return name, texts


def column(path: os.PathLike[str], name: str) -> list[str]:
    """One column of a CSV file."""
    with open(path, encoding="utf-8") as file:
        return [row[name] for row in csv.DictReader(file)]


# ------------------------------------------------------------------ timing


@dataclass
class Timed:
    """Seconds of each round, and the embeddings of the first."""

    seconds: list[float]
    vectors: Floats

    @property
    def median(self) -> float:
        """Of the rounds."""
        return float(np.median(self.seconds))


def measured(contestants: dict[str, Encode], rounds: int) -> dict[str, Timed]:
    """Everybody once, which is not timed; then rounds."""
    found = {name: Timed([], encode()) for name, encode in contestants.items()}
    everybody = list(contestants.items())
    for number in range(rounds):
        turn = number % len(everybody)
        for name, encode in everybody[turn:] + everybody[:turn]:
            start = time.perf_counter()
            encode()
            found[name].seconds.append(time.perf_counter() - start)
            common.say(f"round {number + 1}, {name}: {found[name].seconds[-1]:.2f} s")
    return found


def rows(found: dict[str, Timed], rivals: dict[str, str]) -> list[list[str]]:
    """A row of the table for each; `rivals` says with whom each is compared."""
    table = []
    for name, timed in found.items():
        count = len(timed.vectors)
        row = [name, f"{timed.median:.2f}", f"{min(timed.seconds):.2f}–{max(timed.seconds):.2f}"]
        row.append(f"{count / timed.median:,.0f}")
        table.append([*row, f"{speed(found[rivals[name]], timed):.2f}"])
    return table


def speed(rival: Timed, own: Timed) -> float:
    """Ratio of the medians."""
    return rival.median / own.median


# ------------------------------------------------------------------ equal precision


def precisions(texts: list[str], layouts: list[str], rounds: int) -> str:
    """One process against sentence-transformers, in fp32 and with weights in bf16."""
    contestants: dict[str, Encode] = {}
    rivals: dict[str, str] = {}
    for precision in TARGETS:
        peer = SentenceTransformer(locate_model(MODEL), device="cpu")
        if precision == "bf16":
            peer = peer.bfloat16()
        rival = f"{PEER}, {precision}"
        rivals[rival] = rival
        contestants[rival] = lambda peer=peer: peer.encode(texts)
        encoder = with_weights(ftray.get_model(MODEL, device="cpu"), precision, own=True)
        for layout in layouts:
            name = f"ftray, {layout}, {precision}"
            rivals[name] = rival
            contestants[name] = ours(encoder, texts, layout, precision)
    found = measured(contestants, rounds)
    off, cosine = check(found)
    verdicts = [
        f"{name} is {speed(found[rival], found[name]):.2f} × as fast as {rival} "
        f"(target ≥ {TARGETS[rival.rsplit(' ', 1)[1]]})"
        for name, rival in rivals.items()
        if name != rival
    ]
    alone = []
    for precision in TARGETS:
        seconds = products_alone(texts, precision)
        bound = found[f"{PEER}, {precision}"].median / seconds
        alone.append(f"{seconds:.2f} s in {precision} ({bound:.2f} ×)")
    return f"""Checked first: fp32 embeddings agree within {off:.0e}; with weights in bf16 the least
cosine with them is {cosine:.5f}.

{common.table(["", "median s", "min–max", "texts/s", "speed, same precision"], rows(found, rivals))}

{"; ".join(verdicts)}. The linear layers alone, by oneDNN and without padding, take
{" and ".join(alone)}."""


def products_alone(texts: list[str], precision: str) -> float:
    """Seconds of the linear layers on as many tokens as the texts have; the best of three."""
    encoder = with_weights(ftray.get_model(MODEL, device="cpu"), precision, own=True)
    layers = [
        layer
        for name, layer in encoder.named_modules()
        if type(layer) is torch.nn.Linear and "pooler" not in name  # of the first token alone
    ]
    limit = encoder.max_tokens()
    tokens = sum(min(count, limit) for count in encoder.token_counts(texts, ""))
    dtype = layers[0].weight.dtype
    inputs = [torch.randn(TOKENS_AT_A_TIME, layer.in_features, dtype=dtype) for layer in layers]
    seconds = []
    with torch.no_grad(), with_onednn(encoder):
        for _ in range(4):
            start = time.perf_counter()
            for _ in range(round(tokens / TOKENS_AT_A_TIME)):
                for layer, values in zip(layers, inputs, strict=True):
                    layer(values)
            seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def ours(encoder: Encoder, texts: list[str], layout: str, precision: str) -> Encode:
    """ftray's; "auto" is what `ftray.encode` does, with all it does besides."""
    if layout == "auto":
        return lambda: ftray.encode(encoder, texts, precision=precision, progress=False)
    return lambda: encode_texts(encoder, texts, batch_size=None, layout=layout)  # type: ignore[arg-type]


def check(found: dict[str, Timed]) -> tuple[float, float]:
    """The largest difference in fp32, and the least cosine of bf16 with fp32."""
    reference = found[f"{PEER}, fp32"].vectors
    off, cosine = 0.0, 1.0
    for name, timed in found.items():
        if name.endswith("fp32"):
            difference = float(np.abs(timed.vectors - reference).max())
            common.require(difference < 1e-5, f"{name}: embeddings differ by {difference:.1e}")
            off = max(off, difference)
        else:
            short = timed.vectors / np.linalg.norm(timed.vectors, axis=1, keepdims=True)
            least = float((short * reference).sum(axis=1).min())
            common.require(least > 0.999, f"{name}: a cosine with fp32 is {least}")
            cosine = min(cosine, least)
    return off, cosine


# ------------------------------------------------------------------ processes


def processes(texts: list[str], rounds: int) -> str:
    """Two processes with a thread each, against this one with a thread."""
    cores = len(os.sched_getaffinity(0))
    common.require(cores >= PROCESSES, f"{PROCESSES} processes need as many cores")
    encoder = ftray.get_model(MODEL, device="cpu")
    keep = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(keep)[:PROCESSES])  # so that each process gets one core
    torch.set_num_threads(1)
    start = time.perf_counter()
    try:
        with Processes(encoder, PROCESSES) as pool:

            def dealt(given: list[str] = texts) -> Floats:
                return pool.encode(given, role="", batch_size=None, on_done=lambda count: None)

            dealt(texts[:PROCESSES])
            started = time.perf_counter() - start
            one = "1 process × 1 thread"
            several = f"{PROCESSES} processes × 1 thread"
            found = measured(
                {one: lambda: ftray.encode(encoder, texts, progress=False), several: dealt}, rounds
            )
    finally:
        os.sched_setaffinity(0, keep)
    off = float(np.abs(found[one].vectors - found[several].vectors).max())
    common.require(off < 1e-6, f"{several}: embeddings differ by {off:.1e}")
    ratio = speed(found[one], found[several])
    table = rows(found, {one: one, several: one})
    return f"""Checked first: the embeddings agree within {off:.0e}. The processes took
{started:.1f} s to start, which is not in the times.

{common.table(["", "median s", "min–max", "texts/s", "speed"], table)}

{several} are {ratio:.2f} × as fast as {one} (target ≥ {PROCESSES_TARGET})."""


# ------------------------------------------------------------------ the page


def introduction(rounds: int) -> str:
    """Who encoded, and how."""
    versions = common.versions("sentence-transformers", "transformers")
    return f"""{versions}. all-MiniLM-L6-v2. Everybody has the defaults: batches of 32 of
sentence-transformers. Medians of {rounds} rounds after one that is not timed, the order turned by
one in each round."""


def lengths_of(texts: list[str]) -> str:
    """How long they are."""
    encoder = ftray.get_model(MODEL, device="cpu")
    lengths = np.array(encoder.token_counts(texts, ""))
    low, middle, high = (int(np.percentile(lengths, share)) for share in (10, 50, 95))
    limit = encoder.max_tokens()
    return f"""{len(texts):,} texts, drawn with seed 0: a tenth of them have {low} tokens or fewer,
half {middle} or fewer, one in twenty {high} or more; what is longer than {limit} is cut."""


if __name__ == "__main__":
    main()
