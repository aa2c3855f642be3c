"""What smaller embeddings lose: metrics of a model's embeddings, whole, truncated and quantised."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftray.api.models import data_workers, evaluate, evaluation_of, model_of
from ftray.errors import ConfigError, nearest
from ftray.evaluation.quantize import bytes_per_vector, check_dims, check_quantize, shortened

if TYPE_CHECKING:
    from ftray.evaluation.base import Scorer
    from ftray.evaluation.spec import EvaluationSpec
    from ftray.models.base import Encoder

__all__ = ["SizedMetrics", "compare_sizes"]


@dataclass(frozen=True, kw_only=True)
class SizedMetrics:
    """The metrics of embeddings of one size.

    Attributes:
        dims: dimensions that were kept.
        quantize: how they were quantised; None = float32.
        rescore: of binary codes, how many times k documents were scored anew.
        bytes: of one embedding.
        metrics: as `ftray.evaluate` returns them.
    """

    dims: int
    quantize: str | None
    rescore: int | None
    bytes: int
    metrics: Mapping[str, float]

    def __str__(self) -> str:
        alone = ", Hamming alone" if self.rescore == 0 else ""
        return f"{self.quantize or 'float32'}, {self.dims} dims{alone}"


def compare_sizes(
    model: Encoder | str | Path,
    query_data: Any,
    index_data: Any = None,
    *,
    dims: Sequence[int | None] | int | None = (None,),
    quantize: Sequence[str | None] | str | None = (None, "int8", "binary"),
    rescore: Sequence[int | None] | int | None = (None,),
    max_length: int | None = None,
    **options: Any,
) -> list[SizedMetrics]:
    """Metrics for every number of dimensions with every quantisation; all is encoded once.

    Args:
        model: what `get_model` gives or takes.
        query_data: as of `EvaluationCallback`, and so `index_data`.
        index_data: the documents to search.
        dims: how many dimensions; None = all. One alone is a list of one, as of the next two.
        quantize: how they are quantised; None = float32.
        rescore: of binary codes, how many times k documents are scored anew; None = 4.
        max_length: longest text in tokens, of a model that is named; an object has its own.
        options: others of `evaluate`, as limit, distance and metrics.

    Returns:
        One for each pair of a number of dimensions and a quantisation, in that order; of binary
        codes one for each `rescore`.

    Raises:
        FtrayError: for data, a model or options that cannot be used.
    """
    _check_options(options)
    widths, names = _listed(dims, "dims"), _listed(quantize, "quantize")
    times = _listed(rescore, "rescore")
    for name in names:
        check_quantize(name)
    binary = [name for name in names if name in ("binary", "ubinary")]
    if not binary and times != [None]:
        raise ConfigError(f"rescore = {times} is for binary codes; none are asked for")
    encoder = model_of(model, max_length)
    width = encoder.embedding_dim
    for one in widths:
        check_dims(one, width)
    codes = [(name, often) for name in names for often in (times if name in binary else [None])]
    sizes = [(one or width, name, often) for one in widths for name, often in codes]
    spec = evaluation_of(encoder, query_data, index_data, **options)
    specs = [_sized(spec, *size) for size in sizes]
    return [
        SizedMetrics(
            dims=one,
            quantize=name,
            rescore=getattr(sized, "rescore", None) if name in binary else None,
            bytes=bytes_per_vector(one, name),
            metrics=scorer.score().metrics,
        )
        for (one, name, _), sized, scorer in zip(sizes, specs, _scored(encoder, specs), strict=True)
    ]


def _listed(given: Any, setting: str) -> list[Any]:
    """What was given as a list; one alone is a list of one.

    Raises:
        ConfigError: for an empty one.
    """
    if isinstance(given, str) or not isinstance(given, Iterable):
        return [given]
    found = list(given)
    if not found:
        raise ConfigError(f"{setting} = {given!r}: at least one is needed")
    return found


def _check_options(options: Mapping[str, Any]) -> None:
    """Refuse options that `evaluate` does not have."""
    known = inspect.signature(evaluate).parameters.keys()
    for name in options:
        if name not in known:
            raise ConfigError(f"compare_sizes has no option '{name}'.{nearest(name, known)}")


def _sized(
    spec: EvaluationSpec, dims: int, quantize: str | None, rescore: int | None
) -> EvaluationSpec:
    """The same evaluation of embeddings of one size.

    Raises:
        ConfigError: for a `rescore` that cannot be.
    """
    from ftray.evaluation.spec import RetrievalSpec

    sized = replace(spec, dims=dims, quantize=quantize)
    if rescore is None:
        return sized
    if isinstance(rescore, bool) or not isinstance(rescore, int) or rescore < 0:
        raise ConfigError(f"rescore = {rescore!r}: 0 or a positive number")
    if not isinstance(sized, RetrievalSpec):
        raise ConfigError("rescore: scored pairs are compared, not searched")
    return replace(sized, rescore=rescore)


def _scored(encoder: Encoder, specs: Sequence[EvaluationSpec]) -> list[Scorer]:
    """Scorers with the embeddings of evaluations that differ in their size alone."""
    from ftray.evaluation.encode import encode_batch, evaluating
    from ftray.evaluation.scorer import make_scorer
    from ftray.models.ahead import ahead
    from ftray.models.onednn import with_onednn

    scorers = [make_scorer(spec) for spec in specs]
    with evaluating(encoder), with_onednn(encoder):
        for side in specs[0].sides:
            batches = specs[0].batches[side.name]
            made = ahead(
                lambda number, side=side, batches=batches: encoder.collate(  # type: ignore[misc]
                    side.items(batches[number]), "auto"
                ),
                range(len(batches)),
                data_workers(encoder),
            )
            with closing(made) as ready:
                for number, features in enumerate(ready):
                    vectors = encode_batch(encoder, features)
                    for spec, scorer in zip(specs, scorers, strict=True):
                        scorer.add(side.name, number, shortened(vectors, spec.dims))
    return scorers
