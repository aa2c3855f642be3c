"""EvaluationCallback: the model's quality before training and at the end of each epoch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ftray.callbacks.base import Callback, Evaluate, State
from ftray.config import CsvOptions, model_prefix
from ftray.data.evaluation import evaluation_data
from ftray.data.relevance import RetrievalSet, sampled
from ftray.data.scored import PairSet
from ftray.errors import ConfigError, DataError
from ftray.evaluation.measures import (
    CORRELATIONS,
    correlation_measures,
    measures_of,
    ranked_measures,
)
from ftray.evaluation.metrics import METRICS
from ftray.evaluation.quantize import check_dims, check_quantize
from ftray.evaluation.spec import (
    EvaluationSpec,
    RetrievalSpec,
    SimilaritySpec,
    check_distance,
)
from ftray.media import Modality

__all__ = ["EvaluationCallback"]

RESCORED = 4
"""How many times `limit` candidates of binary codes are scored anew, as in the examples of
sentence-transformers."""


class EvaluationCallback(Callback):
    """Search `index_data` for each query and measure how well relevant documents rank.

    Evaluates before training and at the end of each epoch. The metrics (see docs/metrics.md) are
    means over all queries at `limit`; relevance is exactly what the data says: equal labels, the
    given pairs, or qrels. Callbacks that monitor a metric may stand before or after this one.

    Data are what `train_data` may be, in any mixture: a path (CSV, TSV, Parquet, JSON lines, a BEIR
    folder), a DocList, a `pyarrow.Table`, or a list of records.

    With scored pairs nothing is searched: the metrics are `spearman` and `pearson`, correlations of
    the similarity of each pair with its score. Of the options, `limit` and `exclude_self` have no
    meaning then.

    A metric of your own is a function of one query's ranking, `fn(relevance, **options)`, as in
    Finetuner 0.4.1. `relevance` is a list of 1 (relevant) and 0, one for each document returned,
    best first, at most `limit`. If the function has a parameter `max_rel`, it gets the number of
    relevant documents of this query that the index holds (0 if there are none); a parameter
    `grades` gets the list of the documents' grades. It returns a number that is finite; the metric
    is the mean over all queries, `run.per_query()` has each. On Ray it travels to other processes:
    a function of a script or a notebook, also a lambda, goes as it is, one of a module must be
    importable there.

    Args:
        query_data: labelled texts, (query, document) pairs, (a, b, score) pairs, or a BEIR folder.
        index_data: the documents to search; None takes `query_data` again (for pairs: their
            documents).
        model: which tower encodes the queries, where the model has two. Of texts: "query" or
            "document"; a model has these if it has a route, or a prompt, for each of the two. Of
            CLIP and its like: "text" or "image", whichever the queries are ("clip-text" and
            "clip-vision" are the same). None takes the natural one: "query" for queries, "document"
            for documents, and for labelled texts neither (the model's default); images go through
            the tower of images. The name of the model that is fine-tuned means the same as None.
            Of scored pairs, the tower of both texts.
        index_model: the same for the index. None takes what `model` says.
        batch_size: texts encoded at a time.
        exclude_self: do not count a query's own document as found; applies where query and index
            are the same data set or carry ids of their own.
        limit: k, how many documents are retrieved.
        distance: "cosine", "euclidean", "sqeuclidean" or "dot".
        metrics: which metrics are computed, instead of all standard ones: a list of their names, or
            a mapping from a key to such a name, a function, or one of these with its options:
            `{"ndcg": "ndcg_at_k", "hit@5": ("hit_at_k", {"k": 5}), "mine": (fn, {"weight": 2})}`.
        steps_per_interval: evaluate every so many training steps too; EarlyStopping then counts
            evaluations.
        gather_examples: keep the rankings of some queries before and after training; not with
            scored pairs, of which `run.per_query()` has every one.
        num_example_queries: of how many queries, the first ones. Of queries with the same text, the
            id is added to it.
        query_sample_size: evaluate with this many of the queries, drawn once and for all by the
            data; the index stays whole. If there are fewer, all.
        dims: compare the first so many dimensions of the embeddings alone, as models trained with
            MatryoshkaLoss allow; None takes all.
        quantize: compare with quantised documents, to see what that costs: "int8", "binary" or
            "ubinary" (docs/encoding.md). Queries stay float32; of scored pairs both texts are
            quantised.
        rescore: with binary codes, `rescore` x `limit` documents are found by their Hamming
            distance and scored anew with the query in float32; 0 ranks by Hamming distance alone.
            None is 4.
        caption: prefix of this evaluation's metric keys; needed where there are several.
        overlap: train on while the weights of this moment are evaluated elsewhere: on Ray in an
            actor, in this process in a thread. What depends on the results (best weights, early
            stopping) is decided for the step that was evaluated, as without overlap.
        columns: our column names to those of the data. None takes those of the fit, where the data
            has all of them.
        csv_options: as in `fit`, whose own are not taken over.

    Raises:
        ConfigError: for values that cannot work.
    """

    order: ClassVar[int] = 10

    def __init__(
        self,
        query_data: Any,
        index_data: Any = None,
        *,
        model: str | None = None,
        index_model: str | None = None,
        batch_size: int = 32,
        exclude_self: bool = True,
        limit: int = 20,
        distance: str = "cosine",
        metrics: Mapping[str, Any] | Sequence[str] | None = None,
        steps_per_interval: int | None = None,
        gather_examples: bool = False,
        num_example_queries: int = 5,
        query_sample_size: int | None = None,
        dims: int | None = None,
        quantize: str | None = None,
        rescore: int | None = None,
        caption: str | None = None,
        overlap: bool = False,
        columns: Mapping[str, str] | None = None,
        csv_options: Mapping[str, Any] | CsvOptions | None = None,
    ) -> None:
        self.query_data = query_data
        self.index_data = index_data
        self.model = model
        self.index_model = index_model
        self.batch_size = batch_size
        self.exclude_self = exclude_self
        self.limit = limit
        self.distance = distance
        self.metrics = metrics
        self.steps_per_interval = steps_per_interval
        self.gather_examples = gather_examples
        self.num_example_queries = num_example_queries
        self.query_sample_size = query_sample_size
        self.dims = dims
        self.quantize = quantize
        self.rescore = rescore
        self.caption = caption
        self.overlap = overlap
        self.columns = columns
        self.csv_options = csv_options
        self.number = -1
        self._keys: tuple[str, ...] | None = None
        self._check()

    def _check(self) -> None:
        """Refuse values that cannot work, whatever the data."""
        check_distance(self.distance)
        measures_of(self.metrics, (*METRICS, *CORRELATIONS))
        for name in ("limit", "batch_size", "steps_per_interval", "query_sample_size"):
            value = getattr(self, name)
            if value is None and name in ("steps_per_interval", "query_sample_size"):
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"EvaluationCallback: {name} = {value!r}: a positive number")
        self._check_codes()
        for name in ("model", "index_model"):
            tower = getattr(self, name)
            if not isinstance(tower, str | None):
                raise ConfigError(f"EvaluationCallback: {name} = {tower!r}: the name of a tower")
        if self.caption is not None and not re.fullmatch(r"\w[\w.\- ]{0,63}", self.caption):
            raise ConfigError(
                f"EvaluationCallback: caption = {self.caption!r}: letters, digits, '_', '-', '.' "
                "and spaces, at most 64"
            )
        if self.gather_examples and self.num_example_queries < 1:
            raise ConfigError("EvaluationCallback: num_example_queries: at least 1")

    def _check_codes(self) -> None:
        """Refuse dims, quantize and rescore that cannot work."""
        check_dims(self.dims, setting="EvaluationCallback: dims")
        check_quantize(self.quantize, "EvaluationCallback: quantize")
        times = self.rescore
        if times is None:
            return
        if self.quantize not in ("binary", "ubinary"):
            raise ConfigError(
                f"EvaluationCallback: rescore = {times!r} is for quantize = 'binary', whose "
                f"distances are coarse; quantize is {self.quantize!r}"
            )
        if isinstance(times, bool) or not isinstance(times, int) or times < 0:
            raise ConfigError(f"EvaluationCallback: rescore = {times!r}: 0 or a positive number")

    @property
    def name(self) -> str:
        """What the record calls this evaluation: the caption, or "evaluation"."""
        return self.caption or "evaluation"

    def prepare(
        self,
        number: int,
        *,
        columns: Mapping[str, str] | None = None,
        model: str = "",
        towers: Sequence[str] | None = None,
        modalities: frozenset[Modality] | None = None,
    ) -> EvaluationSpec:
        """Read the data on the driver, before anything starts; keep only the number.

        Args:
            number: which evaluation of the run it is.
            columns: those of the training data, for data without columns of their own.
            model: what is fine-tuned, as the user named it.
            towers: of the model, where they are known before it is loaded.
            modalities: what the model takes, where that is known.

        Raises:
            DataError: for data that cannot be read or does not fit together.
            ConfigError: for options that do not go with the data, or a tower that is not there.
        """
        spec = self._spec(columns, model, modalities)
        if towers is not None:
            spec.check_towers(towers, model)
        self.number = number
        self._keys = tuple(spec.key(name) for name in spec.metrics)
        return spec

    def _spec(
        self,
        columns: Mapping[str, str] | None,
        model: str,
        modalities: frozenset[Modality] | None,
    ) -> EvaluationSpec:
        data = evaluation_data(
            self.query_data,
            self.index_data,
            columns=self.columns,
            inherited=columns,
            csv_options=self.csv_options,
            modalities=modalities,
        )
        query, index = self._towers(model)
        common: dict[str, Any] = {
            "name": self.name,
            "caption": self.caption,
            "batch_size": self.batch_size,
            "distance": self.distance,
            "overlap": self.overlap,
            "steps_per_interval": self.steps_per_interval,
            "asked_towers": tuple(tower for tower in (query, index) if tower is not None),
            "dims": self.dims,
            "quantize": self.quantize,
        }
        if isinstance(data, PairSet):
            self._check_pairs()
            measures = correlation_measures(self.metrics)
            return SimilaritySpec(data=data, measures=measures, role=query or "", **common)
        return RetrievalSpec(
            data=self._queries(data),
            limit=self.limit,
            exclude_self=self.exclude_self,
            examples=self.num_example_queries if self.gather_examples else 0,
            rescore=RESCORED if self.rescore is None else self.rescore,
            measures=ranked_measures(self.metrics, self.limit),
            query_role=query,
            index_role=index,
            **common,
        )

    def _towers(self, model: str) -> tuple[str | None, str | None]:
        """The towers of queries and index; None is the natural one, and so is the model's name."""
        given = (self.model, self.model if self.index_model is None else self.index_model)
        query, index = (
            None if name is None or model_prefix(name) == model_prefix(model) else name
            for name in given
        )
        return query, index

    def _check_pairs(self) -> None:
        """Refuse what has no meaning for scored pairs."""
        where = f"EvaluationCallback '{self.name}'"
        if self.gather_examples:
            raise ConfigError(
                f"{where}: gather_examples keeps rankings, and scored pairs have none. Leave it "
                "away: run.per_query() has the score and the similarity of every pair."
            )
        if self.query_sample_size is not None:
            raise ConfigError(
                f"{where}: query_sample_size: scored pairs have no queries. "
                "csv_options: {sampling_rate: …} takes a share of the pairs."
            )
        if self.rescore is not None:
            raise ConfigError(f"{where}: rescore: scored pairs are compared, not searched.")
        if self.index_model is not None:
            raise ConfigError(
                f"{where}: index_model: scored pairs have no index; model is for both texts."
            )

    def _queries(self, data: RetrievalSet) -> RetrievalSet:
        """The data with the queries that are taken; some must have something to find."""
        if not data.findable(exclude_self=self.exclude_self):
            raise DataError(
                "query_data: no query has a relevant document besides itself, so that there is "
                "nothing to find. Give several texts for a label, other texts as index_data, or "
                "exclude_self: false."
            )
        size = self.query_sample_size
        if size is None:
            return data
        some = sampled(data, size)
        if not some.findable(exclude_self=self.exclude_self):
            raise DataError(
                f"query_sample_size = {size}: none of the queries that were drawn has a relevant "
                "document. Give a larger one."
            )
        return some

    def metric_keys(self) -> list[str]:
        """The keys that this evaluation adds to the run's metrics; the data decide which.

        Raises:
            RuntimeError: before `prepare`, which reads the data.
        """
        if self._keys is None:
            raise RuntimeError("EvaluationCallback: prepare() reads the data that decide the keys")
        return list(self._keys)

    def __getstate__(self) -> dict[str, Any]:
        """Copies, such as those for workers, go without the raw data: it is prepared already."""
        return {**self.__dict__, "query_data": None, "index_data": None}

    def on_fit_begin(self, state: State) -> Evaluate | None:
        """Evaluate the given weights, unless a restarted run has done so."""
        return Evaluate(self.number) if state.global_step == 0 else None

    def on_train_batch_end(self, state: State) -> Evaluate | None:
        """Evaluate in mid-epoch, where that was asked for."""
        every = self.steps_per_interval
        if every is None or state.global_step % every or state.step + 1 == state.steps_per_epoch:
            return None
        return Evaluate(self.number)

    def on_train_epoch_end(self, state: State) -> Evaluate:
        """Evaluate the epoch's weights."""
        return Evaluate(self.number)
