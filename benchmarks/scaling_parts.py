"""What `scaling.py` measures without ranks: each part of a run alone, in a fresh process.

Losses, an index, what every rank prepares for a step, a checkpoint; and, on a Ray of its own,
weights and data through the object store.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
import numpy as np
import scaling_model as model
import torch
from scaling_processes import MB, Table, apart, cores, held, median_s, ready
from scaling_ranks import STEP_WIDTH, rows_of
from torch import nn

from ftray.losses.base import Shard
from ftray.losses.registry import build_loss
from ftray.training.reduce import deal
from ftray.training.step import loss_inputs

IN_FULL, BY_ROWS = (512, 1024, 2048), ((4096, 1), (4096, 2), (4096, 4))
DIM, K = 128, 20
PARAMETERS = 22_713_216  # MiniLM's
PREPARED = (8, 64, 1024)


# ---------------------------------------------------------------- losses


def loss_table(runs: int) -> Table:
    """Losses in full against the number of texts, losses by rows against the number of workers."""
    lines = []
    for name, texts, W in [("SupConLoss", n, 1) for n in IN_FULL] + [
        ("InfoNCE", n, W) for n, W in BY_ROWS
    ]:
        seconds, peak = apart(loss_of, name, texts, W, runs)
        pairs = name == "InfoNCE"
        cells = (texts // 2) ** 2 / W if pairs else texts**2
        lines.append(
            [
                name,
                f"{texts:,}",
                str(W) if pairs else "any",
                f"{1e3 * seconds:.1f}",
                f"{1e9 * seconds / cells:.1f}",
                f"{peak / MB:.0f}",
                f"{peak / cells:.0f}",
            ]
        )
    return ["loss", "texts", "W", "ms", "ns a cell", "memory, MB", "bytes a cell"], lines


def loss_of(name: str, texts: int, W: int, runs: int) -> tuple[float, int]:
    """Seconds and peak memory of a loss."""
    rows = rows_of(texts, pairs=name == "InfoNCE")
    loss = build_loss(name, {}, embedding_dim=STEP_WIDTH, n_groups=texts // 4, seed=0)
    inputs = loss_inputs(rows, torch.device("cpu"))
    embeddings = torch.randn(texts, STEP_WIDTH, requires_grad=True)
    shard = Shard(rank=0, world_size=W)

    def work() -> None:
        embeddings.grad = None
        loss(embeddings, inputs, shard).backward()

    small = rows_of(64, pairs=name == "InfoNCE")  # what is imported and made only once
    loss(torch.randn(64, STEP_WIDTH), loss_inputs(small, embeddings.device), Shard())
    before = ready()
    work()
    peak = held() - before
    return median_s(work, runs), peak


# ---------------------------------------------------------------- index, preparing


def index_table(sizes: Sequence[int], runs: int) -> Table:
    """Build, search and memory."""
    lines = []
    for N in sizes:
        common.say(f"index of {N:,} ...")
        build, search, peak, ids = apart(index_of, N, runs)
        lines.append(
            [
                f"{N:,}",
                f"{model.index(N, DIM) / MB:,.0f}",
                f"{peak / MB:,.0f}",
                f"{peak / model.index(N, DIM):.2f}",
                f"{build:.2f}",
                f"{1 / search:,.0f}",
                f"{1e12 * search / (N * DIM):.1f}",
                f"{ids / N:.0f}",
            ]
        )
    head = ["N", "4·N·D, MB", "memory, MB", "memory ÷ 4·N·D", "build s", "queries/s"]
    return [*head, "ps a query and number", "bytes an id"], lines


def index_of(N: int, runs: int) -> tuple[float, float, int, int]:
    """Seconds to build, seconds a query, peak memory, memory of the ids."""
    import faiss

    from ftray.evaluation.search import ExactIndex

    faiss.omp_set_num_threads(cores())
    rng = np.random.default_rng(0)
    documents = rng.standard_normal((N, DIM), np.float32)
    queries = rng.standard_normal((min(1024, max(64, 100_000_000 // N)), DIM), np.float32)
    without = ready()
    ids = [f"{number:08d}" for number in range(N)]
    before = ready()
    start = time.perf_counter()
    index = ExactIndex(DIM)
    index.add(ids, documents)
    build = time.perf_counter() - start
    search = median_s(lambda: index.search(queries, K), max(1, runs // 2)) / len(queries)
    return build, search, held() - before, before - without


def prepare_table(runs: int) -> Table:
    """What is done for all texts of a step on every rank."""
    lines = []
    for W in PREPARED:
        texts = 2 * model.PAIRS * W
        each, dealt = apart(prepare_of, texts, W, runs)
        lines.append([str(W), f"{texts:,}", f"{1e3 * each:.1f}", f"{1e3 * dealt:.1f}"])
    return ["W", "texts of the step", "rows and costs, ms", "deal, ms"], lines


def prepare_of(texts: int, W: int, runs: int) -> tuple[float, float]:
    """Seconds for the rows of a step of pairs with their costs, and for dealing them."""
    from ftray.data.dataset import train_set
    from ftray.data.readers import read_records
    from ftray.models.base import Encoder

    pairs = [(f"a question, number {n}", f"the answer to question {n}") for n in range(texts // 2)]
    data = train_set(read_records(pairs), where="train_data")
    rows = np.arange(len(data))

    def costs() -> list[int]:
        step = data.step_rows(rows, roles_differ=False)
        return [Encoder.cost(None, content) for _, content in step.texts]  # type: ignore[arg-type]

    lengths = costs()
    return median_s(costs, runs), median_s(lambda: deal(lengths, W), runs)


# ---------------------------------------------------------------- object store, checkpoint


def store_table(documents: int, runs: int) -> Table:
    """Weights and data through the object store; a checkpoint."""
    common.say("object store ...")
    lines = []
    for what, size, put, get in [*store_of(documents, runs), apart(checkpoint_of, runs)]:
        rate = f"{size / put / MB:,.0f}", f"{size / get / MB:,.0f}"
        lines.append([what, f"{size / MB:,.1f}", f"{1e3 * put:,.0f}", f"{1e3 * get:,.0f}", *rate])
    return ["what", "MB", "put or write, ms", "get or read, ms", "MB/s put", "MB/s get"], lines


def store_of(documents: int, runs: int) -> list[tuple[str, float, float, float]]:
    """Of weights and of a retrieval: bytes, seconds of a put, seconds of a get by an actor."""
    import pickle

    import ray

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=1_000_000_000,
    )
    try:
        reader = ray.remote(Reader).options(num_cpus=0).remote()
        weights = {f"layer.{n}": torch.randn(PARAMETERS // 100) for n in range(100)}
        data = retrieval(documents)
        sizes = {"weights": 4 * PARAMETERS, "data": len(pickle.dumps(data, protocol=5))}
        names = {"weights": f"weights, {PARAMETERS:,} parameters"}
        names["data"] = f"a retrieval of {documents:,} short documents"
        found = []
        for what, value in (("weights", weights), ("data", data)):
            took = [put_and_get(value, reader) for _ in range(runs + 1)][1:]
            put, get = map(statistics.median, zip(*took, strict=True))
            found.append((names[what], sizes[what], put, get))
        return found
    finally:
        ray.shutdown()


class Reader:
    """An actor that takes things from the object store."""

    def seconds(self, reference: list[Any]) -> float:
        """How long it takes."""
        import ray

        start = time.perf_counter()
        ray.get(reference[0])
        return time.perf_counter() - start


def put_and_get(value: Any, reader: Any) -> tuple[float, float]:
    """Seconds of both."""
    import ray

    start = time.perf_counter()
    reference = ray.put(value)
    put = time.perf_counter() - start
    return put, ray.get(reader.seconds.remote([reference]))


def retrieval(documents: int) -> Any:
    """What an evaluation knows of its data, with texts of 40 characters."""
    import pyarrow as pa

    from ftray.data.relevance import RetrievalSet

    texts = pa.array([f"{n:040d}" for n in range(documents)], pa.large_string())
    ids = [f"{n:08d}" for n in range(documents)]
    return RetrievalSet(
        query_texts=texts[:1],
        query_ids=ids[:1],
        document_texts=texts,
        document_ids=ids,
        groups=np.zeros(1, np.int64),
        group_starts=np.array([0, 1]),
        group_documents=np.zeros(1, np.int64),
        group_grades=np.ones(1, np.float32),
        own_document=np.full(1, -1),
        symmetric=False,
        notes=(),
        fingerprint="",
    )


def checkpoint_of(runs: int) -> tuple[str, float, float, float]:
    """Bytes of a checkpoint, seconds to write it, seconds to read it."""
    from ftray.record.storage import Storage
    from ftray.training.checkpoint import Position, read_checkpoint, write_checkpoint

    encoder = nn.ModuleList(nn.Linear(1023, PARAMETERS // 1024 // 20) for _ in range(20))
    loss = build_loss("SupConLoss", {}, embedding_dim=8, n_groups=2, seed=0)
    optimizer = torch.optim.AdamW(encoder.parameters(), fused=True)
    for parameter in encoder.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    count = sum(parameter.numel() for parameter in encoder.parameters())
    trained = encoder, loss, optimizer
    with tempfile.TemporaryDirectory() as place:
        storage = Storage(place)
        write = median_s(lambda: write_checkpoint(storage, Position(epoch=1), *trained), runs)
        read = median_s(lambda: read_checkpoint(storage, "epoch-0001", *trained), runs)
        size = sum(file.stat().st_size for file in Path(place).rglob("*") if file.is_file())
    off = size / model.checkpoint(count, count) - 1
    common.require(0 <= off < 0.01, f"a checkpoint is {off:.1%} larger than the formula's")
    return f"a checkpoint, {count:,} parameters", size, write, read
