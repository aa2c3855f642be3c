"""Retrieval: index, search, metrics, examples. And which scorer an evaluation has."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ftray.evaluation.base import Scorer, Scores
from ftray.evaluation.measures import measure
from ftray.evaluation.metrics import judge, means
from ftray.evaluation.quantized import search_quantized
from ftray.evaluation.search import ExactIndex, check_finite
from ftray.evaluation.similarity import SimilarityScorer
from ftray.evaluation.spec import EvaluationSpec, RetrievalSpec, SimilaritySpec
from ftray.media import Media, contents, modality_of, shown, shown_cell
from ftray.models.pictures import thumbnail

__all__ = ["RetrievalScorer", "make_scorer"]

Floats = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int64]


def make_scorer(spec: EvaluationSpec) -> Scorer:
    """The scorer that an evaluation needs."""
    if isinstance(spec, SimilaritySpec):
        return SimilarityScorer(spec)
    if isinstance(spec, RetrievalSpec):
        return RetrievalScorer(spec)
    raise TypeError(f"there is no scorer for a {type(spec).__name__}")


class RetrievalScorer(Scorer):
    """Ranks the documents for each query, and judges the rankings."""

    def __init__(self, spec: RetrievalSpec) -> None:
        super().__init__(spec)
        self._spec = spec

    def score(self) -> Scores:
        """Index, search and judge all batches; see `Scorer.score`."""
        spec, data = self._spec, self._spec.data
        found, ranked = self._search()
        own = data.own_document if spec.exclude_self else None
        judged = judge(
            ranked, data.groups, data.group_starts, data.group_documents, data.group_grades, own
        )
        values = measure(
            spec.measures,
            judged,
            (ranked >= 0).sum(axis=1),
            limit=spec.limit,
            describe=lambda query: f"'{_short(shown_cell(data.query_texts[query].as_py()))}'",
        )
        table = pa.table(
            {
                "query_id": data.query_ids,
                "query": shown(data.query_texts),
                "relevant": judged.relevant,
                **values,
            }
        )
        examples, pictures = self._examples(ranked, found) if spec.examples else (None, None)
        return Scores(
            metrics=means(values),
            per_query=table,
            examples=examples,
            query_images=pictures,
            queries_without_relevant=int((judged.relevant == 0).sum()),
        )

    def _search(self) -> tuple[Floats, Numbers]:
        """Scores and positions of the best documents of every query, `(Q, K)`; see `ExactIndex`."""
        spec, data = self._spec, self._spec.data
        documents = self._assemble("index")
        places = spec.query_places
        queries = self._assemble("query") if places is None else documents[places]
        own = data.own_document if spec.exclude_self else None
        if spec.quantize is not None:
            for what, vectors in (("document", documents), ("query", queries)):
                check_finite(vectors, what, lambda row: f"number {row}")  # codes would hide it
            return search_quantized(
                queries,
                documents,
                data.document_ids,
                k=spec.limit,
                distance=spec.distance,
                quantization=spec.quantize,
                rescore=spec.rescore,
                exclude=own,
            )
        index = ExactIndex(documents.shape[1], spec.distance)
        index.add(data.document_ids, documents)
        return index.search(queries, spec.limit, exclude=own)

    def _examples(
        self, ranked: Any, found: Floats
    ) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
        """The rankings of the first queries, and the pictures of those that are images."""
        data = self._spec.data
        cells = data.query_texts.slice(0, self._spec.examples).to_pylist()
        texts = [shown_cell(cell) for cell in cells]
        examples: dict[str, list[dict[str, Any]]] = {}
        pictures: dict[str, str] = {}
        for query, text in enumerate(texts):
            relevant = set(data.relevant(query)[0].tolist())
            key = text
            while key in examples or (key == text and texts.count(text) > 1):
                key += f" [{data.query_ids[query]}]"  # two queries may have one text
            pictures.update(self._picture(cells[query], key))
            examples[key] = [
                {
                    **self._document(position),
                    "score": float(score),
                    "relevant": position in relevant,
                }
                for position, score in zip(ranked[query].tolist(), found[query], strict=True)
                if position >= 0
            ]
        return examples, pictures

    def _document(self, position: int) -> dict[str, Any]:
        data = self._spec.data
        cell = data.document_texts[position].as_py()
        ident = data.document_ids[position]
        return {"id": ident, "text": shown_cell(cell), **self._picture(cell, "image")}

    def _picture(self, cell: str, key: str) -> dict[str, str]:
        """A small picture of an image; nothing of anything else."""
        if modality_of(cell) != "image":
            return {}
        (content,) = contents([cell], self._spec.data.blobs)
        assert isinstance(content, Media)
        return {key: thumbnail(content)}


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:59] + "…"
