"""An index in shards beside plain FAISS: building it, searching it, and the memory it takes.

    python benchmarks/index_scale.py [--runs 3] [--sizes 10000 100000 1000000] [--write]

Vectors of 128 numbers go in batches, as workers send them, to 1, 2 and 4 shard actors of
`ftray.cluster.shards`, on one machine; 20 documents are searched for each query, 256 queries at a
time. Beside it `faiss.IndexFlatIP` in one process, which is given all vectors at once. Contestants
take turns, each in fresh processes.

Correctness first: the shards must find what one `ExactIndex` finds, the same documents with the
same scores, and the scores of plain FAISS to 1e-5.

The memory of a contestant is the sum over its processes of what is in memory at the peak, above
what each process held when it was ready for the first vector.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import common
import faiss
import numpy as np
import ray

from ftray.cluster.connect import connected
from ftray.cluster.sharded import ShardedSearch
from ftray.cluster.shards import start_actors
from ftray.evaluation.search import ExactIndex
from ftray.evaluation.sharded import cut, home
from ftray.evaluation.spec import batches_of
from ftray.words import counted

DIM, K, QUERIES_AT_A_TIME = 128, 20, 256
SHARDS = (1, 2, 4)
BATCH = 128  # vectors that a worker sends at a time
CALLS_AT_A_TIME = 200
PLAIN = "plain faiss"


class Measured(NamedTuple):
    """What one contestant took.

    Attributes:
        build: from the first vector to an index that can be asked, in seconds.
        send: of it until all vectors have arrived.
        rate: queries per second.
        memory: bytes at the peak, above the base.
    """

    build: float
    send: float
    rate: float
    memory: float


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--write", action="store_true", help="write results/index_scale.md")
    parser.add_argument("--plain", nargs=2, help=argparse.SUPPRESS)  # the process of plain faiss
    arguments = parser.parse_args()
    if arguments.plain:
        size, answer = arguments.plain
        print(json.dumps(plain(int(size), Path(answer))))
        return
    load, threads = os.getloadavg()[0], cores()
    with connected():
        lines = [line for size in arguments.sizes for line in measured(size, arguments.runs)]
    head = ["vectors", "index", "build s", "of it sending s", "queries/s", "memory MB"]
    head += ["build ÷ plain", "queries/s ÷ plain", "memory ÷ plain"]
    common.page(
        "index_scale",
        "An index in shards beside plain FAISS",
        f"{DIM} dimensions, {K} documents for each query, {QUERIES_AT_A_TIME} queries at a time; "
        f"medians of {arguments.runs} runs, and medians of the ratios to plain FAISS in the same "
        "run. The shards are actors on this one machine and share its cores (each has at least one "
        "thread): what shows is what exactness (ties by id, scores in float64) and the way through "
        "actors cost, not what further nodes bring. MB are millions of bytes, at the peak and "
        f"above the base, over all processes of an index; {DIM} float32 numbers take "
        f"{DIM * 4} bytes. Shards found exactly what one index found."
        "\n\n" + common.table(head, lines) + "\n\n" + common.versions("faiss-cpu", "ray", "numpy"),
        threads=threads,
        load=load,
        write=arguments.write,
    )


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0))


def vectors_of(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Documents `(size, DIM)` and queries, of length 1; the same in every process."""
    rng = np.random.default_rng(size)
    queries = QUERIES_AT_A_TIME * max(4, min(32, 2_000_000 // size // 8))
    made = [rng.standard_normal((n, DIM), np.float32) for n in (size, queries)]
    documents, asked = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in made)
    return documents, asked


def measured(size: int, runs: int) -> list[list[str]]:
    """The lines of one size: all contestants in turns, `runs` times."""
    documents, queries = vectors_of(size)
    ids = [f"{number:08d}" for number in np.random.default_rng(0).permutation(size)]
    index = ExactIndex(DIM, "dot")
    index.add(ids, documents)
    want = index.search(queries, K)
    del index
    found: dict[str, list[Measured]] = {PLAIN: [], **{counted(n, "shard"): [] for n in SHARDS}}
    for _ in range(runs):
        for name, count in zip(found, (0, *SHARDS), strict=True):
            if count:
                took = sharded(count, ids, documents, queries, want)
            else:
                took = plain_process(size, want[0])
            found[name].append(took)
            common.say(f"{size:,} {name}: {took}")
    return [line(size, name, took, found[PLAIN]) for name, took in found.items()]


def line(size: int, name: str, took: Sequence[Measured], beside: Sequence[Measured]) -> list[str]:
    """A line of the table."""
    build, send, rate, memory = (statistics.median(values) for values in zip(*took, strict=True))
    ratios = []
    for what in ("build", "rate", "memory"):
        pairs = zip(took, beside, strict=True)
        ratio = statistics.median(getattr(own, what) / getattr(its, what) for own, its in pairs)
        ratios.append("" if name == PLAIN else f"{ratio:.2f}")
    sent = "" if name == PLAIN else f"{send:.2f}"
    return [
        f"{size:,}",
        name,
        f"{build:.2f}",
        sent,
        f"{rate:,.0f}",
        f"{memory / 1e6:,.0f}",
        *ratios,
    ]


# ---------------------------------------------------------------- plain FAISS


def plain_process(size: int, scores: np.ndarray) -> Measured:
    """Plain FAISS in a process of its own."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "scores.npy"
        command = [sys.executable, __file__, "--plain", str(size), str(path)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        common.require(done.returncode == 0, f"plain FAISS with {size:,} vectors failed")
        off = np.abs(np.load(path) - scores).max()
    common.require(off < 1e-5, f"{size:,}: the scores of plain FAISS are off by {off}")
    return Measured(*json.loads(done.stdout))


def plain(size: int, answer: Path) -> Measured:
    """What that process does; it writes the scores to `answer`."""
    faiss.omp_set_num_threads(cores())
    documents, queries = vectors_of(size)
    base = ready()
    start = time.perf_counter()
    index = faiss.IndexFlatIP(DIM)
    index.add(documents)
    build = time.perf_counter() - start
    scores = [np.empty((0, K), np.float32)]
    for timed in (False, True):  # once to warm up
        start = time.perf_counter()
        for first in range(0, len(queries), QUERIES_AT_A_TIME):
            found, _ = index.search(queries[first : first + QUERIES_AT_A_TIME], K)
            if timed:
                scores.append(found)
        took = time.perf_counter() - start
    np.save(answer, np.concatenate(scores))
    return Measured(build, 0.0, len(queries) / took, peak() - base)


# ---------------------------------------------------------------- shards


def sharded(
    count: int,
    ids: Sequence[str],
    documents: np.ndarray,
    queries: np.ndarray,
    want: tuple[np.ndarray, np.ndarray],
) -> Measured:
    """So many shards, in actors of their own."""
    sides = {"index": documents, "query": queries}
    batches = {side: batches_of(np.zeros(len(rows)), BATCH) for side, rows in sides.items()}
    parts = cut(ids, batches, shards=count, distance="dot", limit=K)
    actors = start_actors(count)
    try:
        search = ShardedSearch(actors, parts, ids)
        base = sum(ray.get([actor.__ray_call__.remote(lambda _: ready()) for actor in actors]))
        start = time.perf_counter()
        send(actors, sides, batches)
        sent = time.perf_counter() - start
        search.build()
        build = time.perf_counter() - start
        search.search(QUERIES_AT_A_TIME)  # to warm up
        start = time.perf_counter()
        found = search.search(QUERIES_AT_A_TIME)
        took = time.perf_counter() - start
        most = sum(ray.get([actor.__ray_call__.remote(lambda _: peak()) for actor in actors]))
    finally:
        for actor in actors:
            ray.kill(actor)
    same = all(np.array_equal(one, other) for one, other in zip(found, want, strict=True))
    common.require(same, f"{len(ids):,}: {count} shards find something else than one index")
    return Measured(build, sent, len(queries) / took, most - base)


def send(
    actors: Sequence[Any],
    sides: dict[str, np.ndarray],
    batches: dict[str, list[np.ndarray]],
) -> None:
    """What workers do, here by one process; returns when all has arrived."""
    calls: list[Any] = []
    for side, rows in sides.items():
        for number, batch in enumerate(batches[side]):
            shard, own_number = home(number, len(actors))
            calls.append(actors[shard].add.remote(side, own_number, rows[batch]))
            if len(calls) == CALLS_AT_A_TIME:
                ray.get(calls)
                calls = []
    ray.get(calls)


# ---------------------------------------------------------------- memory


def ready() -> int:
    """What this process holds now, in bytes; from here on its peak is counted."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return memory()["VmRSS"]


def peak() -> int:
    """The most that this process held since `ready`."""
    return memory()["VmHWM"]


def memory() -> dict[str, int]:
    """What Linux says of this process's memory, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    fields = (entry.split() for entry in lines if entry.endswith(" kB"))
    return {name.rstrip(":"): 1024 * int(kilobytes) for name, kilobytes, _ in fields}


if __name__ == "__main__":
    main()
