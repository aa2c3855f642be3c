"""What ftray moves and how long it takes, beside a model of it: the constants of docs/scaling.md.

    python benchmarks/scaling.py [--runs 5] [--largest 1000000] [--write]

On 1, 2 and 4 gloo processes: the bytes of a training step through `training.step`, as payloads of
the collectives and as the kernel counts them on each process's sockets, and the time of the gather
and of the reduction. In one process: losses, an index of 10⁴ to 10⁶ vectors, what every rank does
for a step, a checkpoint. On a Ray of its own: weights and data through the object store.

Correctness first: collectives and payloads must be exactly what `scaling_model` says.

`--write` writes the page of results, and the tables of docs/scaling.md that are those of the page.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import common
import numpy as np
import scaling_model as model
import torch
import torch.multiprocessing
from torch import Tensor, nn

from ftray.data.dataset import StepRows
from ftray.losses.base import Shard
from ftray.losses.registry import build_loss
from ftray.models.base import Features
from ftray.runtime.process_group import ProcessGroupCollectives, SingleProcess
from ftray.training.bridge import CallbackDispatcher
from ftray.training.reduce import deal, gather_rows, reduce_gradients
from ftray.training.step import forward_backward, loss_inputs, own_texts
from ftray.words import counted

WORLDS = (1, 2, 4)
LOSSES = {"SupConLoss": "in full", "InfoNCE": "by rows"}
STEP_TEXTS, STEP_WIDTH = 256, 384
GATHERED = ((1024, 384), (4096, 384), (4096, 1024))
REDUCED = (1_000_000, 10_000_000, 40_000_000)
IN_FULL, BY_ROWS = (512, 1024, 2048), ((4096, 1), (4096, 2), (4096, 4))
DIM, K = 128, 20
PARAMETERS = 22_713_216  # MiniLM's
MB = 1e6
PREPARED = (8, 64, 1024)
DOCS = common.FOLDER.parent / "docs" / "scaling.md"

TABLE = re.compile(r"\A(?:\|.*\n)*")

Table = tuple[Sequence[str], list[list[str]]]


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--largest", type=int, default=1_000_000, help="of the indexes")
    parser.add_argument("--write", action="store_true", help="write results/scaling.md")
    arguments = parser.parse_args()
    load, runs = os.getloadavg()[0], arguments.runs
    sizes = [n for n in (10_000, 100_000, 1_000_000) if n <= arguments.largest]
    found = {W: on_ranks(W, runs) for W in WORLDS}
    tables = {
        "Bytes of a step": step_table(found),
        "Gather and reduction": time_table(found),
        "Losses": loss_table(runs),
        "An index": index_table(sizes, runs),
        "What every rank does for a step": prepare_table(runs),
        "Object store and checkpoint": store_table(arguments.largest, runs),
    }
    tables["Predicted steps"] = predicted_steps(tables)
    tables["Predicted indexes"] = predicted_indexes(tables)
    body = "\n\n".join(
        f"## {name}\n\n{WORDS[name]}\n\n{common.table(*table)}" for name, table in tables.items()
    )
    common.page(
        "scaling",
        "What is moved, and how long it takes",
        f"{INTRODUCTION} Medians of {counted(runs, 'run')}.\n\n{body}\n\n"
        + common.versions("torch", "faiss-cpu", "ray", "pytorch-metric-learning"),
        threads=cores(),
        load=load,
        write=arguments.write,
    )
    if arguments.write:
        write_docs(tables)


INTRODUCTION = """The constants of the model in [docs/scaling.md](../../docs/scaling.md); formulas
are those of [scaling_model.py](../scaling_model.py). MB are millions of bytes."""
WORDS = {
    "Bytes of a step": f"""One `forward_backward` and the broadcast of its decisions: {STEP_TEXTS}
    texts, embeddings of {STEP_WIDTH} numbers. Payloads are the sizes of the tensors that are given
    to the collectives, and were exactly those of the formula. Sent is what a rank gave to its
    sockets (TCP_INFO of the kernel, the most of all ranks, gloo's own headers included).""",
    "Gather and reduction": """`gather_rows` and `reduce_gradients`, one thread for each process,
    all on this machine: 4 processes share its cores. MB/s are what a rank sends in that time; the
    model's time is that of the smallest collective, plus what is sent at the rate of the largest
    gather or reduction.""",
    "Losses": f"""Forward and backward of the loss alone, embeddings of {STEP_WIDTH} numbers, in a
    fresh process; of a loss by rows, rank 0's part. Memory is the peak above what the process held
    before; a cell is a pair of texts that the rank compares.""",
    "An index": f"""`ExactIndex` in one process, vectors of {DIM} numbers, {K} documents for each
    query, all cores. Memory is the peak above what the process held with vectors and ids, which
    themselves take {4 * DIM} bytes and what stands in the last column. In shards:
    [index_scale.md](index_scale.md).""",
    "What every rank does for a step": f"""`TrainSet.step_rows` with the costs of all texts, and
    `deal`: every rank does it for all texts of the step before it tokenises its own. Here on one
    process, for steps of {model.PAIRS} pairs a worker.""",
    "Predicted steps": f"""Not measured: {model.PAIRS} pairs a GPU of {model.TOKENS} tokens a text,
    {model.P / 1e6:.0f} M parameters, embeddings of {model.D} numbers. Assumed: a GPU that computes
    {model.GPU_FLOPS / 1e12:.0f} TFLOP/s, and {model.LINKS_IN_WORDS}. What every rank prepares is
    the measured one; memory is what the losses took a cell.""",
    "Predicted indexes": f"""Not measured: vectors of {DIM} numbers; memory, ids and queries as at
    the largest size that was measured, nodes of {model.NODE_CORES} cores and
    {model.NODE_MEMORY / 1e9:.0f} GB that Ray counts, one shard on each, every core as fast
    as one here, without what the network costs. Encoding as in the predicted steps, on 64 GPUs.""",
    "Object store and checkpoint": """The weights of MiniLM's size as an overlapped evaluation gets
    them (`ray.put` of a dict of tensors; read by an actor), a retrieval's texts and ids as every
    worker gets them with the job, and a checkpoint with AdamW on the local disk.""",
}


def number(table: Table, line: int, column: str) -> float:
    """A number as it stands in a table."""
    head, lines = table
    return float(lines[line][list(head).index(column)].replace(",", ""))


def predicted_steps(tables: dict[str, Table]) -> Table:
    """Steps on more GPUs than there are here."""
    losses, prepared = tables["Losses"], tables["What every rank does for a step"]
    in_full = number(losses, len(IN_FULL) - 1, "bytes a cell")
    by_rows = number(losses, len(IN_FULL), "bytes a cell")
    lines = []
    for W, link in model.CLUSTERS:
        U, B = 2 * model.PAIRS * W, model.PAIRS * W
        line = PREPARED.index(W)
        prepare = number(prepared, line, "rows and costs, ms") + number(prepared, line, "deal, ms")
        parts = [1e3 * part for part in model.step_parts(W, link)]
        lines.append(
            [
                str(W),
                link.name,
                f"{B:,}",
                *(f"{part:.1f}" for part in parts),
                f"{prepare:.1f}",
                f"{100 * parts[0] / sum([*parts, prepare]):.0f} %",
                f"{by_rows * B * B / W / 1e9:.2f}",
                f"{in_full * U * U / 1e9:,.1f}",
            ]
        )
    head = ["GPUs", "link", "pairs a step", "encode, ms", "gather, ms", "loss's gradient, ms"]
    head += ["reduce, ms", "prepare, ms", "of it encoding", "InfoNCE, GB a GPU"]
    return [*head, "loss in full, GB a GPU"], lines


def predicted_indexes(tables: dict[str, Table]) -> Table:
    """Indexes larger than one that fits here."""
    measured = tables["An index"]
    ratio = number(measured, -1, "memory ÷ 4·N·D")
    ids, each = number(measured, -1, "bytes an id"), number(measured, -1, "ps a query and number")
    lines = []
    for N in (10**6, 10**7, 10**8, 10**9):
        shards = model.auto_shards(N, model.NODE_MEMORY, 10**6)
        rate = shards * model.NODE_CORES / cores() / (1e-12 * each * N * DIM)
        lines.append(
            [
                f"{N:,}",
                f"{model.index(N, DIM) / 1e9:,.1f}",
                f"{(1 + ratio) * model.index(N, DIM) / 1e9:,.1f}",
                f"{ids * N / 1e9:,.2f}",
                f"{shards:,}",
                f"{rate:,.0f}",
                f"{N * model.encode_s(1) / 64:,.1f}",
            ]
        )
    head = ["N", "vectors, GB", "while it is built, GB", "ids, GB in each process", "auto shards"]
    return [*head, "queries/s", "encoding, s"], lines


def write_docs(tables: dict[str, Table]) -> None:
    """Put the tables in their places in docs/scaling.md."""
    text = DOCS.read_text(encoding="utf-8")
    for name, table in tables.items():
        before, mark, after = text.partition(f"<!-- results: {name} -->\n")
        if mark:
            text = before + mark + common.table(*table) + "\n" + TABLE.sub("", after)
    DOCS.write_text(text, encoding="utf-8")
    common.say("Written: the tables of docs/scaling.md")


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0))


def median_s(work: Callable[[], object], runs: int) -> float:
    """Seconds that a call takes; once more to warm up."""
    took = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        work()
        took.append(time.perf_counter() - start)
    return statistics.median(took[1:])


# ---------------------------------------------------------------- processes


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of this module in a fresh process."""
    (answer,) = spawned(function, [arguments])
    return answer


def spawned(function: Callable[..., Any], each: Sequence[Sequence[Any]]) -> list[Any]:
    """Call a function in as many fresh processes at once as there are argument lists."""
    with tempfile.TemporaryDirectory(prefix="ftray-scaling-") as place:
        paths = [f"{place}/{number}" for number in range(len(each))]
        context = torch.multiprocessing.get_context("spawn")
        processes = [
            context.Process(target=answer_into, args=(path, function, arguments))
            for path, arguments in zip(paths, each, strict=True)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        failed = any(process.exitcode for process in processes)
        common.require(not failed, f"{function.__name__} failed in a process")
        return [torch.load(path, weights_only=False) for path in paths]


def answer_into(path: str, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    """What such a process does; it ends at once, as gloo's threads do not always end in order."""
    torch.save(function(*arguments), path)
    os._exit(0)


def ready() -> int:
    """What this process holds now, in bytes; from here on its peak is counted."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return held("VmRSS")


def held(field: str = "VmHWM") -> int:
    """A size that Linux tells of this process, in bytes; by default the peak since `ready`."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (size,) = (line.split()[1] for line in lines if line.startswith(f"{field}:"))
    return 1024 * int(size)


# ---------------------------------------------------------------- ranks


class Counting(ProcessGroupCollectives):
    """The collectives of a run, which also count their calls and payloads."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.counted: Counter[str] = Counter()
        self.payload = 0

    def _count(self, name: str, tensor: Tensor) -> None:
        self.counted[name] += 1
        self.payload += tensor.numel() * tensor.element_size()

    def all_reduce_sum(self, tensor: Tensor) -> None:
        """See the base."""
        self._count("all_reduce", tensor)
        super().all_reduce_sum(tensor)

    def all_gather(self, tensor: Tensor) -> Tensor:
        """See the base."""
        self._count("all_gather", tensor)
        return super().all_gather(tensor)

    def _broadcast(self, tensor: Tensor) -> None:
        self._count("broadcast", tensor)
        super()._broadcast(tensor)


class Sines(nn.Module):
    """An encoder of numbers that are written as texts, for steps of any size."""

    couples_rows = False

    def __init__(self, width: int, hidden: int = 2000) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(64, hidden), nn.Tanh(), nn.Linear(hidden, width))

    def cost(self, content: Any) -> int:
        """All cost the same."""
        return 1

    def coupled(self, content: Any) -> bool:
        """No row depends on another."""
        return False

    def collate(self, items: Sequence[Any], layout: Any, draws: Any = None) -> Features:
        """Sines of 64 frequencies."""
        numbers = torch.tensor([float(text) for _, text in items]).reshape(-1, 1)
        rows = torch.sin(numbers * torch.arange(1, 65) / 7)
        return Features(forwards=[{"rows": rows}], order=torch.arange(len(items)))

    def forward(self, features: Features) -> Tensor:
        """`(n, width)`."""
        embeddings: Tensor = self.net(features.forwards[0]["rows"])
        return embeddings


def rows_of(texts: int, *, pairs: bool) -> StepRows:
    """A step of so many distinct texts: pairs of them, or classes of four."""
    numbers = np.arange(texts)
    columns = numbers.reshape(2, -1).T if pairs else numbers.reshape(-1, 1)
    return StepRows(
        rows=np.arange(len(columns)),
        texts=[("", str(number)) for number in numbers],
        columns=columns,
        text_ids=columns,
        label_items=numbers,
        labels=numbers // 4,
    )


def on_ranks(W: int, runs: int) -> list[dict[str, Any]]:
    """What each of `W` ranks measured."""
    common.say(f"{W} processes ...")
    if W == 1:
        return [apart(rank_alone, runs)]
    with tempfile.TemporaryDirectory(prefix="ftray-gloo-") as place:
        return spawned(
            rank_of_many, [(rank, W, f"file://{place}/store", runs) for rank in range(W)]
        )


def rank_alone(runs: int) -> dict[str, Any]:
    """Without other ranks nothing is exchanged, but rows are put in their places."""
    torch.set_num_threads(1)
    return timed(SingleProcess(torch.device("cpu")), runs)


def rank_of_many(rank: int, W: int, store: str, runs: int) -> dict[str, Any]:
    """One rank of a group: the bytes of steps, then times."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=W)
    collectives = Counting()
    steps = {loss: counted_step(loss, collectives) for loss in LOSSES}
    found = {"steps": steps, **timed(collectives, runs)}
    collectives.barrier()
    return found


def counted_step(name: str, collectives: Counting) -> dict[str, Any]:
    """Calls, payload and bytes sent of one step; the one before it opened the connections."""
    encoder, rows = Sines(STEP_WIDTH), rows_of(STEP_TEXTS, pairs=name == "InfoNCE")
    loss = build_loss(name, {}, embedding_dim=STEP_WIDTH, n_groups=STEP_TEXTS // 4, seed=0)
    own = own_texts(encoder, rows, "padded", collectives)
    dispatcher = CallbackDispatcher([], collectives, lambda message, level: None)

    def step() -> None:
        forward_backward(encoder, loss, rows, own, collectives)
        dispatcher.share()

    step()
    collectives.barrier()
    before, collectives.payload = sent_bytes(), 0
    collectives.counted.clear()
    step()
    calls, payload = dict(collectives.counted), collectives.payload
    time.sleep(0.2)  # until the last bytes are acknowledged
    tensors = list(encoder.parameters())
    return {
        "P": sum(p.numel() for p in tensors),
        "T": len(tensors),
        "calls": calls,
        "payload": payload,
        "sent": sent_bytes() - before,
    }


def sent_bytes() -> int:
    """Bytes that the other ends of this process's TCP connections have acknowledged so far."""
    import socket

    total = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if not os.readlink(entry).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(entry.name))) as own:
                if own.type == socket.SOCK_STREAM and own.family != socket.AF_UNIX:
                    info = own.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
                    total += int.from_bytes(info[120:128], "little")  # tcpi_bytes_acked
        except OSError:  # closed meanwhile
            continue
    return total


def timed(collectives: Any, runs: int) -> dict[str, Any]:
    """Seconds of each run of gathers and reductions, and of the smallest collective."""
    return {
        "small": [
            one_s(collectives, lambda: collectives.all_reduce_sum(torch.zeros(2)))
            for _ in range(10 * runs)
        ],
        "gather": {size: gather_s(*size, collectives, runs) for size in GATHERED},
        "reduce": {P: reduce_s(P, collectives, runs) for P in REDUCED},
    }


def one_s(collectives: Any, work: Callable[[], object]) -> float:
    """Seconds of a call that all ranks begin together."""
    collectives.barrier()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def gather_s(U: int, D: int, collectives: Any, runs: int) -> list[float]:
    """Seconds of each gather of `U` rows of `D` numbers."""
    shares = deal([1] * U, collectives.world_size)
    own = torch.randn(len(shares[collectives.rank]), D)
    return [one_s(collectives, lambda: gather_rows(own, shares, collectives)) for _ in range(runs)]


def reduce_s(P: int, collectives: Any, runs: int) -> list[float]:
    """Seconds of each reduction of the gradients of `P` parameters in 40 tensors."""
    parameters = [nn.Parameter(torch.zeros(P // 40)) for _ in range(40)]
    took = []
    for _ in range(runs):
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        took.append(
            one_s(
                collectives,
                lambda: reduce_gradients(
                    parameters, [], loss_is_sharded=False, collectives=collectives
                ),
            )
        )
    return took


def slowest(ranks: Sequence[Iterable[float]]) -> float:
    """The median over runs of what the slowest rank took."""
    return statistics.median(max(run) for run in zip(*ranks, strict=True))


def step_table(found: dict[int, list[dict[str, Any]]]) -> Table:
    """Bytes and collectives, of the formula and counted."""
    lines = []
    for loss, kind in LOSSES.items():
        for W in WORLDS[1:]:
            ranks = [rank["steps"][loss] for rank in found[W]]
            P, T, by_rows = ranks[0]["P"], ranks[0]["T"], kind == "by rows"
            want = model.calls(P, W, by_rows=by_rows)
            payload = model.payload(STEP_TEXTS, STEP_WIDTH, P, T, W, by_rows=by_rows)
            for rank in ranks:
                common.require(rank["calls"] == want, f"{loss}, W={W}: {rank['calls']}, not {want}")
                common.require(
                    rank["payload"] == payload, f"{loss}, W={W}: {rank['payload']}, not {payload}"
                )
            formula = model.step_sent(STEP_TEXTS, STEP_WIDTH, P, T, W, by_rows=by_rows)
            sent = max(rank["sent"] for rank in ranks)
            lines.append(
                [
                    f"{loss} ({kind})",
                    str(W),
                    f"{P:,}",
                    str(sum(want.values())),
                    f"{payload:,}",
                    f"{formula:,.0f}",
                    f"{sent:,}",
                    f"{sent / formula:.3f}",
                ]
            )
    head = ["loss", "W", "P", "collectives", "payload", "sent, formula", "sent, counted"]
    return [*head, "counted ÷ formula"], lines


def time_table(found: dict[int, list[dict[str, Any]]]) -> Table:
    """Seconds, and what the model says with the bandwidth of the largest and the least latency."""
    lines = []
    for W in WORLDS:
        ranks = found[W]
        small = slowest([rank["small"] for rank in ranks])
        what = [
            (
                f"gather {U:,} x {D:,}",
                model.gather_sent(U, D, W),
                [r["gather"][U, D] for r in ranks],
            )
            for U, D in GATHERED
        ]
        what += [  # one worker has nothing to reduce
            (f"reduce {P:,}", model.ring(4 * (P + 40), W), [r["reduce"][P] for r in ranks])
            for P in REDUCED
            if W > 1
        ]
        if W > 1:
            lines.append([str(W), "all_reduce of 2 numbers", "", f"{1e3 * small:.2f}", "", ""])
        bandwidths = {}
        for name, sent, took in what:  # the last of each kind is the largest
            bandwidths[name.split()[0]] = sent / slowest(took)
        for name, sent, took in what:
            seconds = slowest(took)
            rate, said = "", ""
            if W > 1:
                rate = f"{sent / seconds / MB:,.0f}"
                said = f"{1e3 * (small + sent / bandwidths[name.split()[0]]):.1f}"
            lines.append([str(W), name, f"{sent / MB:.2f}", f"{1e3 * seconds:.1f}", said, rate])
    return ["W", "what", "sent by a rank, MB", "ms", "ms, model", "MB/s"], lines


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


if __name__ == "__main__":
    main()
