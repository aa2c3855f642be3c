"""A model of cost: bytes and seconds of a step, of an index, of evaluations, of checkpoints.

`docs/scaling.md` explains it, `scaling.py` measures its constants. Bytes are exact; seconds are
latency plus bytes over bandwidth.

Symbols: `U` distinct texts of a step, `B` pairs of a step, `D` embedding width, `P` trained
parameters in `T` tensors, `A` all parameters, `W` workers, `N` documents, `Q` queries, `K`
documents for each query, `S` shards.
"""

from __future__ import annotations

import math
from typing import NamedTuple

FLOAT = 4
BUCKET = 32 * 1024 * 1024
"""Elements of one all-reduce of gradients, at most: `training.reduce.BUCKET_ELEMENTS`."""
ASSUMED_DIM = 1024
SHARE_OF_NODE = 0.25
MAX_WAITING = 4


class Link(NamedTuple):
    """What joins the workers: bytes per second that a rank sends, and seconds for one hop."""

    name: str
    bandwidth: float
    hop: float

    def collective(self, sent: float, W: int) -> float:
        """Seconds of a collective in which every rank sends so many bytes; small ones in a tree."""
        return sent / self.bandwidth + 2 * math.ceil(math.log2(W)) * self.hop


NVLINK = Link("NVLink 4", 450e9, 5e-6)
INFINIBAND = Link("InfiniBand NDR", 50e9, 5e-6)
ETHERNET = Link("Ethernet 100 Gb/s", 12.5e9, 30e-6)
LINKS_IN_WORDS = "NVLink 450 GB/s, InfiniBand 50 GB/s, Ethernet 12.5 GB/s for what a rank sends"
CLUSTERS = ((8, NVLINK), (64, INFINIBAND), (64, ETHERNET), (1024, INFINIBAND), (1024, ETHERNET))
PAIRS, TOKENS = 128, 128
"""Pairs that a GPU encodes in a step, and tokens of a text."""
P, T, D = 110_000_000, 200, 768
"""Of a model of BERT-base's size: parameters, tensors, embedding width."""
GPU_FLOPS = 400e12
"""Assumed: 40 % of the 989 TFLOP/s that an H100 is said to do in bf16."""
NODE_CORES, NODE_MEMORY = 64, 350e9


def encode_s(texts: int, *, training: bool = False) -> float:
    """Seconds that a GPU encodes: 2 operations a parameter and token, 6 with the backward."""
    return (6 if training else 2) * P * TOKENS * texts / GPU_FLOPS


def step_parts(W: int, link: Link) -> list[float]:
    """Seconds to encode, to gather, for the gradient of a loss by rows, and to reduce."""
    U = 2 * PAIRS * W
    return [
        encode_s(2 * PAIRS, training=True),
        link.collective(gather_sent(U, D, W), W),
        link.collective(ring(FLOAT * U * D, W), W),
        math.ceil(P / BUCKET) * link.collective(0, W) + ring(FLOAT * (P + T), W) / link.bandwidth,
    ]


def ring(payload: float, W: int) -> float:
    """Bytes that a rank sends in a ring all-reduce (Patarasu and Yuan 2009)."""
    return 2 * (W - 1) / W * payload


def gather_sent(U: int, D: int, W: int) -> int:
    """Bytes that a rank sends in the gather of the embeddings: shares are padded to the longest."""
    return FLOAT * D * math.ceil(U / W) * (W - 1)


def calls(P: int, W: int, *, by_rows: bool) -> dict[str, int]:
    """Collectives of one step, without batch normalisation and without a decision."""
    if W == 1:
        return {}
    buckets = math.ceil(P / BUCKET)
    return {"all_gather": 1, "all_reduce": buckets + 1 + 2 * by_rows, "broadcast": 1}


def payload(U: int, D: int, P: int, T: int, W: int, *, by_rows: bool) -> int:
    """Bytes of the tensors that a rank gives to the collectives of a step.

    Its share of the embeddings, padded; of a loss by rows the gradient of all embeddings and the
    loss; the gradients with a flag for each tensor; two counts of tokens; the length of the
    decisions (there are none).
    """
    loss = FLOAT * U * D + FLOAT if by_rows else 0
    return FLOAT * D * math.ceil(U / W) + loss + FLOAT * (P + T) + 16 + 8 if W > 1 else 0


def step_sent(U: int, D: int, P: int, T: int, W: int, *, by_rows: bool) -> float:
    """Bytes that a rank sends in one step: of what `payload` counts."""
    if W == 1:
        return 0.0
    loss = FLOAT * U * D + FLOAT if by_rows else 0
    return gather_sent(U, D, W) + ring(loss + FLOAT * (P + T) + 16, W) + 8


def index(N: int, D: int) -> int:
    """Bytes of the vectors of an index."""
    return FLOAT * N * D


def embeddings_sent(N: int, Q: int, D: int) -> int:
    """Bytes that all workers together send to whoever scores a blocking evaluation."""
    return FLOAT * D * (N + Q)


def sharded_search_sent(Q: int, D: int, K: int, S: int) -> int:
    """Bytes of a search in shards: queries to the other shards, lists (float32, int64) back."""
    return FLOAT * D * Q * (S - 1) + 12 * Q * K * S


def snapshots(A: int) -> int:
    """Bytes in the object store when as many overlapped evaluations wait as may."""
    return MAX_WAITING * FLOAT * A


def checkpoint(A: int, P: int) -> int:
    """Bytes of a checkpoint with AdamW: weights, and two moments of what is trained."""
    return FLOAT * A + 2 * FLOAT * P


def auto_shards(N: int, memory: float, nodes: int) -> int:
    """What `index_shards: auto` takes, with the memory that Ray counts on the smallest node."""
    return min(math.ceil(2 * FLOAT * ASSUMED_DIM * N / (SHARE_OF_NODE * memory)), nodes)
