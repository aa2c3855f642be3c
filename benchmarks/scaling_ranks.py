"""What `scaling.py` measures on gloo ranks: the bytes of steps, gathers and reductions."""

from __future__ import annotations

import os
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
from scaling_processes import MB, Table, apart, spawned
from torch import Tensor, nn

from ftray.data.dataset import StepRows
from ftray.losses.registry import build_loss
from ftray.models.base import Features
from ftray.runtime.process_group import ProcessGroupCollectives, SingleProcess
from ftray.training.bridge import CallbackDispatcher
from ftray.training.reduce import deal, gather_rows, reduce_gradients
from ftray.training.step import forward_backward, own_texts

WORLDS = (1, 2, 4)
LOSSES = {"SupConLoss": "in full", "InfoNCE": "by rows"}
STEP_TEXTS, STEP_WIDTH = 256, 384
GATHERED = ((1024, 384), (4096, 384), (4096, 1024))
REDUCED = (1_000_000, 10_000_000, 40_000_000)


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
