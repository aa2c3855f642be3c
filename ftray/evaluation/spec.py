"""What one evaluation is to do; light, so that callbacks can be made without torch or faiss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ftray.data.relevance import RetrievalSet
from ftray.data.scored import PairSet
from ftray.errors import ConfigError, nearest
from ftray.evaluation.measures import Measure, correlation_measures, measures_of
from ftray.evaluation.metrics import METRICS
from ftray.media import MODALITIES, Blobs, Content, Modality, contents, modalities_of, sizes
from ftray.models.kinds import names_of_towers, tower_called

__all__ = [
    "DISTANCES",
    "EvaluationSpec",
    "RetrievalSpec",
    "Side",
    "SimilaritySpec",
    "batches_of",
    "check_distance",
]

Numbers = npt.NDArray[np.int64]

DISTANCES: tuple[str, ...] = ("cosine", "dot", "euclidean", "sqeuclidean")


HOLD = {"query": "the queries are", "index": "the index is", "text": "the pairs are"}
"""How a message begins that says what a side holds."""


def check_distance(distance: str) -> None:
    """Raise a `ConfigError` for a distance that does not exist, with the nearest one."""
    if distance not in DISTANCES:
        raise ConfigError(f"Unknown distance '{distance}'.{nearest(distance, DISTANCES)}")


def batches_of(lengths: npt.ArrayLike, batch_size: int) -> list[Numbers]:
    """Positions of texts of similar length, longest first, `batch_size` at a time.

    The cut depends on the lengths and the batch size alone: whoever encodes a batch, and however
    many share the work, the numbers that come out are the same.
    """
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


class Side(NamedTuple):
    """What is encoded together: its name, the role of its texts, and the texts.

    The names are "query" and "index" of a retrieval, "text" of scored pairs. Among the texts may
    stand references to other things, whose contents `blobs` may hold (see `ftray.media`).
    """

    name: str
    role: str
    texts: pa.Array
    blobs: Blobs

    def items(self, positions: Numbers) -> list[tuple[str, Content]]:
        """What an encoder takes of the texts at these positions."""
        cells = self.texts.take(pa.array(positions)).to_pylist()
        return [(self.role, content) for content in contents(cells, self.blobs)]


@dataclass(frozen=True, kw_only=True)
class EvaluationSpec(ABC):
    """What one EvaluationCallback evaluates; the two kinds of data have a class each.

    Attributes:
        name: unique in the run; the caption, or "evaluation".
        caption: prefix of the metric keys, or None.
        data: what is evaluated with.
        batch_size: texts encoded at a time.
        distance: one of `DISTANCES`.
        overlap: whether training goes on meanwhile.
        steps_per_interval: every how many training steps it is done, or None.
        measures: the metrics, in the order in which they are reported.
        asked_towers: the towers that were asked for by name, which the model must have.
        dims: how many of the first dimensions of the embeddings count; None = all.
        quantize: how embeddings are quantised before they are compared, one of
            `ftray.evaluation.quantize.QUANTIZATIONS`, or None.
    """

    name: str
    caption: str | None
    data: RetrievalSet | PairSet
    batch_size: int
    distance: str
    overlap: bool = False
    steps_per_interval: int | None = None
    measures: tuple[Measure, ...]
    asked_towers: tuple[str, ...] = ()
    dims: int | None = None
    quantize: str | None = None

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the metrics, in the order in which they are reported."""
        return tuple(one.name for one in self.measures)

    @property
    @abstractmethod
    def sides(self) -> tuple[Side, ...]:
        """What is to be encoded."""

    @property
    @abstractmethod
    def query_texts(self) -> pa.Array:
        """The distinct texts that are evaluated: the queries, or all texts of pairs."""

    @property
    @abstractmethod
    def counts(self) -> dict[str, int]:
        """How much data there is, by what it is: queries and documents, or pairs."""

    @cached_property
    def batches(self) -> dict[str, list[Numbers]]:
        """For each side its batches, as positions of texts."""
        return {side.name: batches_of(sizes(side.texts), self.batch_size) for side in self.sides}

    @cached_property
    def modalities(self) -> frozenset[Modality]:
        """What is to be encoded."""
        return frozenset().union(*(modalities_of(side.texts) for side in self.sides))

    def key(self, metric: str) -> str:
        """The key under which callbacks and `run.metrics()` know a metric."""
        return f"{self.caption}_{metric}" if self.caption else metric

    def check_towers(self, towers: Sequence[str], model: str) -> None:
        """Refuse a tower that was asked for and that the model lacks.

        Args:
            towers: those of the model; none if it encodes all texts alike.
            model: its name, for messages.

        Raises:
            ConfigError: with the towers that there are, or what the tower encodes.
        """
        for tower in self.asked_towers:
            if tower_called(tower) not in towers:
                there = "it encodes all texts alike: leave model and index_model away"
                if towers:
                    known = nearest(tower, names_of_towers(towers))
                    there = f"it has {' and '.join(map(repr, towers))}.{known}"
                raise ConfigError(
                    f"EvaluationCallback '{self.name}': the model '{model}' has no tower "
                    f"'{tower}': {there}"
                )
        for side in self.sides:
            self._check_modality(side, towers)

    def _check_modality(self, side: Side, towers: Sequence[str]) -> None:
        """Refuse a tower for things of one modality where there are others."""
        tower = tower_called(side.role)
        if tower not in towers or tower not in MODALITIES:
            return
        held = sorted(modalities_of(side.texts))
        if held != [tower]:
            setting = "index_model" if side.name == "index" else "model"
            raise ConfigError(
                f"EvaluationCallback '{self.name}': the tower '{side.role}' encodes {tower}, but "
                f"{HOLD[side.name]} {' and '.join(held)}. Name the tower for it with {setting}, or "
                "leave model and index_model away."
            )


@dataclass(frozen=True, kw_only=True)
class RetrievalSpec(EvaluationSpec):
    """Documents are ranked for queries.

    Attributes:
        data: queries, documents, and which are relevant.
        limit: k, the cut-off of the metrics.
        exclude_self: leave a query's own document out of its ranking.
        examples: how many queries' rankings to keep, 0 for none.
        rescore: of binary codes, how many times `limit` candidates are scored anew with the query
            in float32; 0 = none.
        query_role: as what queries are encoded; None = as their data says: labelled texts have no
            role, queries of pairs are queries. index_role: the same of documents.
    """

    data: RetrievalSet
    limit: int
    exclude_self: bool
    examples: int
    rescore: int = 0
    measures: tuple[Measure, ...] = measures_of(None, METRICS)
    query_role: str | None = None
    index_role: str | None = None

    @cached_property
    def _roles(self) -> tuple[str, str]:
        natural = ("", "") if self.data.symmetric else ("query", "document")
        given = (self.query_role, self.index_role)
        query, index = (
            own if role is None else role for role, own in zip(given, natural, strict=True)
        )
        return query, index

    @cached_property
    def query_places(self) -> Numbers | None:
        """Where among the documents each query's text stands, `(Q,)`.

        Then their vectors are the documents', encoded once. None if some text stands nowhere
        there, or if queries and documents have different roles.
        """
        query, index = self._roles
        if query != index:
            return None
        found = pc.index_in(self.data.query_texts, value_set=self.data.document_texts)
        if found.null_count:
            return None
        places: Numbers = found.to_numpy(zero_copy_only=False).astype(np.int64)
        return places

    @cached_property
    def sides(self) -> tuple[Side, ...]:
        """The index, and the queries unless their vectors are among the index's."""
        query, index = self._roles
        documents = Side("index", index, self.data.document_texts, self.data.blobs)
        if self.query_places is not None:
            return (documents,)
        return Side("query", query, self.data.query_texts, self.data.blobs), documents

    @property
    def query_texts(self) -> pa.Array:
        """The queries."""
        return self.data.query_texts

    @property
    def counts(self) -> dict[str, int]:
        """Queries and documents."""
        return {"queries": len(self.data.query_texts), "documents": len(self.data.document_texts)}


@dataclass(frozen=True, kw_only=True)
class SimilaritySpec(EvaluationSpec):
    """Similarities of pairs are compared with scores.

    Attributes:
        data: the pairs and their scores.
        role: as what their texts are encoded: neither is the query, so they have none.
    """

    data: PairSet
    measures: tuple[Measure, ...] = correlation_measures(None)
    role: str = ""

    @property
    def sides(self) -> tuple[Side, ...]:
        """The distinct texts."""
        return (Side("text", self.role, self.data.texts, self.data.blobs),)

    @property
    def query_texts(self) -> pa.Array:
        """The distinct texts."""
        return self.data.texts

    @property
    def counts(self) -> dict[str, int]:
        """Pairs."""
        return {"pairs": len(self.data.pairs)}
