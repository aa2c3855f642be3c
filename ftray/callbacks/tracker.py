"""What trackers of experiments share: which values they tell, at which step."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, get_args

from ftray.callbacks.base import EvaluationResult, Logger, State
from ftray.errors import ConfigError, nearest

__all__ = ["EXAMPLE_COLUMNS", "MetricsStep", "Tracker", "local_folder", "run_options"]

MetricsStep = Literal["epoch", "batch"]

EXAMPLE_COLUMNS = ("when", "query", "rank", "match", "score", "relevant")


class Tracker(Logger, ABC):
    """Base of loggers that pass the numbers of a run on to a tracker of experiments.

    The names are Finetuner's: `train/loss`, `val/loss`, `lr/<parameter group>`, `metrics/<key>`,
    with the key of `run.metrics()`; `epoch` counts from 1 and is 0 before training. A value stands
    at the step that it was measured at, also where it comes later (`overlap`).

    Args:
        metrics_logger_step: training loss and learning rates once an "epoch", or each "batch".
        log_zero_shot: evaluations before training too.

    Raises:
        ConfigError: for another `metrics_logger_step`.
    """

    def __init__(
        self, metrics_logger_step: MetricsStep = "epoch", log_zero_shot: bool = True
    ) -> None:
        allowed = get_args(MetricsStep)
        if metrics_logger_step not in allowed:
            hint = nearest(str(metrics_logger_step), allowed)
            raise ConfigError(
                f"{type(self).__name__}: metrics_logger_step = {metrics_logger_step!r}.{hint}"
            )
        self.metrics_logger_step: MetricsStep = metrics_logger_step
        self.log_zero_shot = log_zero_shot
        self._started = False
        self._rates: dict[str, float] = {}
        self._evaluated: set[str] = set()
        self._told: set[tuple[str, int]] = set()
        self._values: dict[str, float] = {}
        self._before: dict[str, list[list[Any]]] = {}
        self._after: dict[str, list[list[Any]]] = {}

    # ---------------------------------------------------------------- what each tracker does

    @abstractmethod
    def start(self, state: State) -> Any:
        """Open what is written to; what it returns are the decisions of `on_fit_begin`."""

    @abstractmethod
    def log(self, values: Mapping[str, float], *, global_step: int, epoch: int) -> None:
        """Tell values of one step."""

    @abstractmethod
    def log_interpolation(self, values: Mapping[str, float], *, alpha: float) -> None:
        """Tell the metrics of interpolated weights."""

    @abstractmethod
    def log_examples(self, name: str, rows: Sequence[Sequence[Any]], *, global_step: int) -> None:
        """Tell the examples before and after training, by `EXAMPLE_COLUMNS`."""

    @abstractmethod
    def finish(self, status: str) -> None:
        """Close what was opened."""

    # ---------------------------------------------------------------- hooks

    def on_fit_begin(self, state: State) -> Any:
        """Open what is written to."""
        self._rates, self._evaluated, self._told = {}, set(), set()
        self._before, self._after = {}, {}
        self._values = dict(state.metrics)
        decisions = self.start(state)
        self._started = True
        return decisions

    def on_train_batch_begin(self, state: State) -> None:
        """Keep the learning rates: after the step they are those of the next one."""
        self._rates = {f"lr/{group}": rate for group, rate in state.learning_rates.items()}

    def on_train_batch_end(self, state: State) -> None:
        """Tell the loss of the step."""
        if self.metrics_logger_step == "batch":
            self._log(state, {"train/loss": state.loss, **self._rates})

    def on_train_epoch_end(self, state: State) -> None:
        """Tell the mean loss of the epoch."""
        if self.metrics_logger_step == "epoch":
            self._log(state, {"train/loss": state.metrics["train_loss"], **self._rates})

    def on_val_end(self, state: State) -> None:
        """Tell the validation loss."""
        self._log(state, {"val/loss": state.metrics["val_loss"]})

    def on_evaluation_end(self, state: State, result: EvaluationResult) -> None:
        """Tell the metrics, at the step whose weights they belong to."""
        before = result.when == "before"
        if before and not self.log_zero_shot:
            self._evaluated.update(result.keys.values())
            return
        values = {result.keys[name]: value for name, value in result.metrics.items()}
        if result.alpha is not None:
            named = {f"wise_ft/{key}": value for key, value in values.items()}
            self.log_interpolation(named, alpha=result.alpha)
            return
        epoch = 0 if before else min(result.epoch + 1, state.epochs)
        group = result.weights or "metrics"
        named = {f"{group}/{key}": value for key, value in values.items()}
        self.log(named, global_step=result.global_step, epoch=epoch)
        if result.weights:
            return
        self._evaluated.update(values)
        if result.examples:
            self._take_examples(result)

    def on_metrics(self, state: State) -> None:
        """Tell what callbacks logged at this step themselves."""
        self._log_own(state, state.fresh)

    def on_epoch_end(self, state: State) -> None:
        """Tell what callbacks logged in this epoch themselves."""
        self._log_own(state, state.fresh | self._changed(state))

    def on_epoch_begin(self, state: State) -> None:
        """Tell what callbacks logged when the epoch before had ended; its step is this one."""
        self._log_own(state, self._changed(state), epoch=state.epoch)

    def on_fit_end(self, state: State) -> None:
        """Tell what callbacks logged when the last epoch had ended."""
        self._log_own(state, self._changed(state))

    def on_run_end(self, state: State, status: str) -> None:
        """Tell the examples before and after, and close."""
        if not self._started:
            return  # it ended before it began
        self._started = False
        try:
            for name in sorted({*self._before, *self._after}):
                rows = [*self._before.get(name, []), *self._after.get(name, [])]
                self.log_examples(name, rows, global_step=state.global_step)
        finally:
            self.finish(status)

    # ---------------------------------------------------------------- small things

    def _log(self, state: State, values: Mapping[str, float]) -> None:
        self.log(values, global_step=state.global_step, epoch=min(state.epoch + 1, state.epochs))

    def _changed(self, state: State) -> set[str]:
        """Metrics that are not what they were when this was asked before."""
        before, self._values = self._values, dict(state.metrics)
        return {key for key, value in self._values.items() if before.get(key) != value}

    def _log_own(self, state: State, keys: Collection[str], epoch: int | None = None) -> None:
        """Tell metrics that are neither losses nor of an evaluation, each once a step."""
        known = {"train_loss", "val_loss", *self._evaluated}
        step = state.global_step
        own = [
            key
            for key in sorted(keys)
            if key in state.metrics and key not in known and (key, step) not in self._told
        ]
        self._told.update((key, step) for key in own)
        if own:
            values = {f"metrics/{key}": state.metrics[key] for key in own}
            done = min(state.epoch + 1, state.epochs) if epoch is None else epoch
            self.log(values, global_step=step, epoch=done)

    def _take_examples(self, result: EvaluationResult) -> None:
        """Keep those before training, and of the others the newest, until the run ends."""
        name = f"{result.caption}_examples" if result.caption else "examples"
        kept = self._before if result.when == "before" else self._after
        kept[name] = _example_rows(result)


def _example_rows(result: EvaluationResult) -> list[list[Any]]:
    """Rankings as rows of a table; whose weights ranked so stands in the first column."""
    when = {
        "before": "before",
        "step": f"after step {result.global_step}",
        "epoch": f"after epoch {result.epoch + 1}",
        "final": "after",
    }[result.when]
    return [
        [when, query, rank, match["text"], match["score"], match["relevant"]]
        for query, matches in (result.examples or {}).items()
        for rank, match in enumerate(matches, 1)
    ]


def run_options(state: State) -> dict[str, Any]:
    """What the run was started with: the configuration in `run.yaml`, and the model."""
    from ftray.record.reader import RecordReader
    from ftray.record.storage import Storage

    facts = RecordReader(Storage(state.run_path)).config()
    return {**facts.get("config", {}), "model": state.model_name}


def local_folder(state: State, purpose: str) -> str:
    """The run directory where it is a folder of this machine, else a new temporary one."""
    from ftray.record.storage import Storage

    storage = Storage(state.run_path)
    if storage.is_local and storage.exists():
        return storage.path()
    return tempfile.mkdtemp(prefix=f"ftray-{purpose}-")
