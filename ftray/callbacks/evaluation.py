"""EvaluationCallback: the model's quality before training and at the end of each epoch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from ftray.callbacks.base import Callback, Evaluate, State
from ftray.config import CsvOptions
from ftray.data.evaluation import evaluation_data
from ftray.data.scored import PairSet
from ftray.errors import ConfigError, DataError
from ftray.evaluation.spec import (
    EvaluationSpec,
    RetrievalSpec,
    SimilaritySpec,
    check_distance,
)

__all__ = ["EvaluationCallback"]


class EvaluationCallback(Callback):
    """Search `index_data` for each query and measure how well relevant documents rank.

    Evaluates before training and at the end of each epoch. The metrics (see docs/metrics.md) are
    means over all queries at `limit`; relevance is exactly what the data says: equal labels, the
    given pairs, or qrels. Callbacks that monitor a metric may stand before or after this one.

    With scored pairs nothing is searched: the metrics are `spearman` and `pearson`, correlations of
    the similarity of each pair with its score. Of the options, `limit` and `exclude_self` have no
    meaning then.

    Args:
        query_data: labelled texts, (query, document) pairs, (a, b, score) pairs, or a BEIR folder.
        index_data: the documents to search; None takes `query_data` again (for pairs: their
            documents).
        batch_size: texts encoded at a time.
        exclude_self: do not count a query's own document as found; applies where query and index
            are the same data set or carry ids of their own.
        limit: k, how many documents are retrieved.
        distance: "cosine", "euclidean", "sqeuclidean" or "dot".
        steps_per_interval: evaluate every so many training steps too; EarlyStopping then counts
            evaluations.
        gather_examples: keep the rankings of some queries before and after training; not with
            scored pairs, of which `run.per_query()` has every one.
        num_example_queries: of how many queries.
        caption: prefix of this evaluation's metric keys; needed where there are several.
        overlap: train on while the weights of this moment are evaluated elsewhere: on Ray in an
            actor, in this process in a thread. What depends on the results (best weights, early
            stopping) is decided for the step that was evaluated, as without overlap.
        columns: our column names to those of the data.
        csv_options: as in `fit`.

    Raises:
        ConfigError: for values that cannot work.
    """

    order: ClassVar[int] = 10

    def __init__(
        self,
        query_data: Any,
        index_data: Any = None,
        *,
        batch_size: int = 32,
        exclude_self: bool = True,
        limit: int = 20,
        distance: str = "cosine",
        steps_per_interval: int | None = None,
        gather_examples: bool = False,
        num_example_queries: int = 5,
        caption: str | None = None,
        overlap: bool = False,
        columns: Mapping[str, str] | None = None,
        csv_options: Mapping[str, Any] | CsvOptions | None = None,
    ) -> None:
        check_distance(distance)
        interval = 1 if steps_per_interval is None else steps_per_interval
        for name, value in (
            ("limit", limit),
            ("batch_size", batch_size),
            ("steps_per_interval", interval),
        ):
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"EvaluationCallback: {name} = {value!r}: a positive number")
        if caption is not None and not re.fullmatch(r"\w[\w.\- ]{0,63}", caption):
            raise ConfigError(
                f"EvaluationCallback: caption = {caption!r}: letters, digits, '_', '-', '.' and "
                "spaces, at most 64"
            )
        if gather_examples and num_example_queries < 1:
            raise ConfigError("EvaluationCallback: num_example_queries: at least 1")
        self.query_data = query_data
        self.index_data = index_data
        self.batch_size = batch_size
        self.exclude_self = exclude_self
        self.limit = limit
        self.distance = distance
        self.steps_per_interval = steps_per_interval
        self.gather_examples = gather_examples
        self.num_example_queries = num_example_queries
        self.caption = caption
        self.overlap = overlap
        self.columns = columns
        self.csv_options = csv_options
        self.number = -1
        self._keys: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        """What the record calls this evaluation: the caption, or "evaluation"."""
        return self.caption or "evaluation"

    def prepare(self, number: int) -> EvaluationSpec:
        """Read the data on the driver, before anything starts; keep only the number.

        Raises:
            DataError: for data that cannot be read or does not fit together.
            ConfigError: for options that do not go with scored pairs.
        """
        spec = self._spec()
        self.number = number
        self._keys = tuple(spec.key(name) for name in spec.metrics)
        return spec

    def _spec(self) -> EvaluationSpec:
        data = evaluation_data(
            self.query_data, self.index_data, columns=self.columns, csv_options=self.csv_options
        )
        common: dict[str, Any] = {
            "name": self.name,
            "caption": self.caption,
            "batch_size": self.batch_size,
            "distance": self.distance,
            "overlap": self.overlap,
            "steps_per_interval": self.steps_per_interval,
        }
        if isinstance(data, PairSet):
            if self.gather_examples:
                raise ConfigError(
                    f"EvaluationCallback '{self.name}': gather_examples keeps rankings, and scored "
                    "pairs have none. Leave it away: run.per_query() has the score and the "
                    "similarity of every pair."
                )
            return SimilaritySpec(data=data, **common)
        if not data.findable(exclude_self=self.exclude_self):
            raise DataError(
                "query_data: no query has a relevant document besides itself, so that there is "
                "nothing to find. Give several texts for a label, other texts as index_data, or "
                "exclude_self: false."
            )
        return RetrievalSpec(
            data=data,
            limit=self.limit,
            exclude_self=self.exclude_self,
            examples=self.num_example_queries if self.gather_examples else 0,
            **common,
        )

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
