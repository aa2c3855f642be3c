"""What every scorer is: it takes encoded batches, and makes scores of them.

With Ray a scorer is an actor (`ftray.cluster.actors`), without Ray it lives in this process: the
same class, given the same batches, so the same numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ftray.evaluation.spec import EvaluationSpec

__all__ = ["Collector", "Scorer", "Scores"]

Floats = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int64]


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


class Collector:
    """Keeps the encoded batches of each side until they are put together.

    Args:
        batches: for each side its batches, as rows of the whole.
    """

    def __init__(self, batches: Mapping[str, Sequence[Numbers]]) -> None:
        self._batches = batches
        self._parts: dict[str, dict[int, Floats]] = defaultdict(dict)

    def add(self, side: str, batch: int, vectors: Floats) -> None:
        """Keep the vectors of one batch; a batch sent again replaces the former one."""
        self._parts[side][batch] = vectors

    def _assemble(self, side: str) -> Floats:
        """The vectors of one side in the order of its rows, `(N, D)`; forgets its batches.

        `(0, 0)` if the side has no batches.

        Raises:
            RuntimeError: if a batch is missing.
        """
        batches, parts = self._batches[side], self._parts.pop(side, {})
        missing = [i for i in range(len(batches)) if i not in parts]
        if missing:
            raise RuntimeError(f"{len(missing)} of {len(batches)} {side} batches did not arrive")
        width = parts[0].shape[1] if parts else 0
        vectors = np.empty((sum(map(len, batches)), width), np.float32)
        for number, batch in enumerate(batches):
            vectors[batch] = parts.pop(number)  # never all of them twice in memory
        return vectors


class Scorer(Collector, ABC):
    """Collects the encoded batches of one evaluation, and scores them.

    Args:
        spec: the evaluation.
    """

    def __init__(self, spec: EvaluationSpec) -> None:
        super().__init__(spec.batches)

    def flush(self) -> None:
        """Nothing is on its way: what was added is here."""
        return None

    @abstractmethod
    def score(self) -> Scores:
        """Make the scores of all batches; forgets the vectors.

        Raises:
            RuntimeError: if a batch is missing (an encoder died between adding and scoring).
        """
