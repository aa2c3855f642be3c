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

import common
import scaling_model as model
from scaling_parts import (
    DIM,
    IN_FULL,
    PREPARED,
    K,
    index_table,
    loss_table,
    prepare_table,
    store_table,
)
from scaling_processes import Table, cores
from scaling_ranks import STEP_TEXTS, STEP_WIDTH, WORLDS, on_ranks, step_table, time_table

from ftray.words import counted

DOCS = common.FOLDER.parent / "docs" / "scaling.md"

TABLE = re.compile(r"\A(?:\|.*\n)*")


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


if __name__ == "__main__":
    main()
