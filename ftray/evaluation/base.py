"""What every scorer is: it takes encoded batches, and makes scores of them.

With Ray a scorer is an actor (`ftray.cluster.actors`), without Ray it lives in this process: the
same class, given the same batches, so the same numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ftray.evaluation.spec import EvaluationSpec

__all__ = ["Scorer", "Scores"]

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a scorer returns: metrics over all data, and one row per query or per pair.

    Matches of example queries may have a small picture, `image`, a data URI; `query_images` are
    those of the queries.
    """

    metrics: dict[str, float]
    per_query: pa.Table
    examples: dict[str, list[dict[str, Any]]] | None = None
    query_images: dict[str, str] | None = None
    queries_without_relevant: int = 0


class Scorer(ABC):
    """Collects the encoded batches of one evaluation.

    Args:
        spec: the evaluation.
    """

    def __init__(self, spec: EvaluationSpec) -> None:
        self._batches = spec.batches
        self._parts: dict[str, dict[int, Floats]] = defaultdict(dict)

    def add(self, side: str, batch: int, vectors: Floats) -> None:
        """Keep the vectors of one batch; a batch sent again replaces the former one."""
        self._parts[side][batch] = vectors

    def flush(self) -> None:
        """Nothing is on its way: what was added is here."""
        return None

    @abstractmethod
    def score(self) -> Scores:
        """Make the scores of all batches; forgets the vectors.

        Raises:
            RuntimeError: if a batch is missing (an encoder died between adding and scoring).
        """

    def _assemble(self, side: str) -> Floats:
        """The vectors of one side in the order of its texts, `(N, D)`; forgets its batches."""
        batches, parts = self._batches[side], self._parts.pop(side, {})
        missing = [i for i in range(len(batches)) if i not in parts]
        if missing:
            raise RuntimeError(f"{len(missing)} of {len(batches)} {side} batches did not arrive")
        vectors = np.empty((sum(map(len, batches)), parts[0].shape[1]), np.float32)
        for number, batch in enumerate(batches):
            vectors[batch] = parts[number]
        return vectors
