"""What a callback sees, and what it may decide.

Callbacks run on rank 0. They see a read-only `State` and return decisions; the loop broadcasts
each decision, and all ranks carry it out at the same step. The order of the hooks is Finetuner's:

    on_fit_begin
      on_epoch_begin, on_train_epoch_begin
        (on_train_batch_begin, on_train_batch_end) for each step
      on_train_epoch_end
      with evaluation data: on_val_begin, (on_val_batch_begin, on_val_batch_end)*, on_val_end
      on_epoch_end
    on_fit_end

and `on_keyboard_interrupt`, `on_exception` instead of `on_fit_end`. Ours beside them:
`on_evaluation_end` whenever the result of an evaluation arrives. An `Evaluate` decision of
`on_train_epoch_end` or `on_val_end` is carried out before `on_epoch_end`, whatever the order of
the callbacks, so that whoever monitors a metric there sees this epoch's value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

__all__ = [
    "HOOKS",
    "Callback",
    "Decision",
    "Evaluate",
    "EvaluationResult",
    "LogMetrics",
    "MarkBest",
    "Say",
    "State",
    "Stop",
]

HOOKS = (
    "on_fit_begin",
    "on_epoch_begin",
    "on_train_epoch_begin",
    "on_train_batch_begin",
    "on_train_batch_end",
    "on_train_epoch_end",
    "on_val_begin",
    "on_val_batch_begin",
    "on_val_batch_end",
    "on_val_end",
    "on_epoch_end",
    "on_fit_end",
    "on_evaluation_end",
    "on_keyboard_interrupt",
    "on_exception",
)


@dataclass(frozen=True)
class Decision:
    """Base of what a hook may return (one, or a list of them)."""


@dataclass(frozen=True)
class Stop(Decision):
    """Stop training now (after a batch hook: after this step), keep a checkpoint."""

    reason: str


@dataclass(frozen=True)
class Evaluate(Decision):
    """Run evaluation `number` of the job with the present weights."""

    number: int


@dataclass(frozen=True)
class MarkBest(Decision):
    """The weights of this epoch are the best so far: the artifact will hold them."""

    monitor: str
    value: float


@dataclass(frozen=True)
class LogMetrics(Decision):
    """Add metrics of the callback's own to the state and the record."""

    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Say(Decision):
    """A line in the run's log."""

    message: str
    level: str = "INFO"


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """A finished evaluation, and which weights it belongs to.

    `metrics` has no caption; `keys` maps each to the key it has in `State.metrics`.
    """

    number: int
    caption: str | None
    when: str
    epoch: int
    global_step: int
    metrics: Mapping[str, float]
    keys: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class State:
    """Where the run is. Read-only.

    Attributes:
        epochs: epochs planned. epoch: the present one, from 0.
        steps_per_epoch: steps planned per epoch. step: the present one in this epoch, from 0.
        global_step: optimizer steps done.
        loss: of the last batch, training or validation.
        metrics: newest value of every metric: train_loss, val_loss, evaluation metrics.
        learning_rates: of each parameter group.
        run_path: the run directory.
        model_name: as the user gave it.
    """

    epochs: int
    epoch: int
    steps_per_epoch: int
    step: int
    global_step: int
    loss: float
    metrics: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    learning_rates: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    run_path: str = ""
    model_name: str = ""


class Callback:
    """Base of all callbacks; override the hooks you need.

    Every hook runs on rank 0, in the training process, and may return a `Decision`, several, or
    None. An exception fails the run, with the names of the callback and the hook.

    Attributes:
        metric_names: metrics that this callback logs itself, so that others may monitor them. Log
            them by `on_train_epoch_end`, `on_val_end` or `on_evaluation_end`: monitors look at
            `on_epoch_end`.
    """

    metric_names: ClassVar[Sequence[str]] = ()

    def on_fit_begin(self, state: State) -> Any:
        """Before anything is trained; weights are the given ones."""

    def on_epoch_begin(self, state: State) -> Any:
        """Before each epoch."""

    def on_train_epoch_begin(self, state: State) -> Any:
        """Before the training steps of an epoch."""

    def on_train_batch_begin(self, state: State) -> Any:
        """Before each training step; learning rates are those of the step."""

    def on_train_batch_end(self, state: State) -> Any:
        """After the optimizer step; `state.loss` is the step's loss over all workers."""

    def on_train_epoch_end(self, state: State) -> Any:
        """After the training steps; `train_loss` is in `state.metrics`."""

    def on_val_begin(self, state: State) -> Any:
        """Before the validation loss is computed; only with evaluation data."""

    def on_val_batch_begin(self, state: State) -> Any:
        """Before each validation batch."""

    def on_val_batch_end(self, state: State) -> Any:
        """After each validation batch; `state.loss` is its loss."""

    def on_val_end(self, state: State) -> Any:
        """After validation; `val_loss` is in `state.metrics`."""

    def on_epoch_end(self, state: State) -> Any:
        """After each epoch; all metrics of the epoch are in `state.metrics`."""

    def on_fit_end(self, state: State) -> Any:
        """After the last epoch or an early stop, before the artifact is written."""

    def on_evaluation_end(self, state: State, result: EvaluationResult) -> Any:
        """When the result of an evaluation is there."""

    def on_keyboard_interrupt(self, state: State) -> Any:
        """Instead of `on_fit_end` when the run was stopped from outside."""

    def on_exception(self, state: State, exception: BaseException) -> Any:
        """Instead of `on_fit_end` when rank 0 raised; the exception is raised again."""

    def state_dict(self) -> dict[str, Any]:
        """What must survive a restart, as JSON values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
