"""What a callback sees, and what it may decide.

Callbacks run on rank 0, in the training process. They see a read-only `State` and return decisions;
the loop broadcasts each decision, and all ranks carry it out at the same step. The order of the
hooks is Finetuner's:

    on_fit_begin
      on_epoch_begin, on_train_epoch_begin
        (on_train_batch_begin, on_train_batch_end) for each step
      on_train_epoch_end
      with evaluation data: on_val_begin, (on_val_batch_begin, on_val_batch_end)*, on_val_end
      on_epoch_end
    on_fit_end

and `on_keyboard_interrupt`, `on_exception` instead of `on_fit_end`. Ours beside them:

- `on_evaluation_end` whenever the result of an evaluation arrives,
- `on_metrics` when all metrics of a step are there: before `on_epoch_end`, after an evaluation in
  mid-epoch, or, with an evaluation that overlaps training, as soon as its result is in,
- `on_run_end` last of all, however the run ended.

An `Evaluate` decision of `on_train_epoch_end` or `on_val_end` is carried out before `on_metrics`,
whatever the order of the callbacks, so that whoever monitors a metric sees this epoch's value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

__all__ = [
    "FINETUNER_HOOKS",
    "HOOKS",
    "Callback",
    "Decision",
    "Evaluate",
    "EvaluationResult",
    "GivenWeights",
    "Interpolation",
    "LogMetrics",
    "Logger",
    "MarkBest",
    "ReplaceWeights",
    "Save",
    "Say",
    "State",
    "Stop",
]

FINETUNER_HOOKS = (
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
    "on_keyboard_interrupt",
    "on_exception",
)
HOOKS = (*FINETUNER_HOOKS, "on_evaluation_end", "on_metrics", "on_run_end")


@dataclass(frozen=True)
class Interpolation:
    """The weights (1 - alpha) * pre-trained + alpha * fine-tuned (Wortsman et al. 2022).

    `alpha` is in [0, 1]: 0 are the weights before training, 1 the fine-tuned ones.
    """

    alpha: float

    @property
    def name(self) -> str:
        """How the record calls these weights."""
        return f"alpha {self.alpha:g}"


@dataclass(frozen=True, eq=False)
class GivenWeights:
    """Weights that a callback made.

    Attributes:
        name: how the record calls them.
        tensors: by the names of `State.weights()`, on the CPU; all of them.
    """

    name: str
    tensors: Mapping[str, Any]


@dataclass(frozen=True)
class Decision:
    """Base of what a hook may return (one, or a list of them)."""


@dataclass(frozen=True)
class Stop(Decision):
    """Stop training now (after a batch hook: after this step), keep a checkpoint.

    Of `on_metrics` and `on_evaluation_end` it says that training should have ended at that state's
    step: where an overlapped evaluation told so late, the weights of that step stand, and later
    steps are discarded.
    """

    reason: str


@dataclass(frozen=True)
class Evaluate(Decision):
    """Run evaluation `number` of the job; None runs all of them.

    With `weights` other weights than the present ones are evaluated, and put back afterwards.
    """

    number: int | None = None
    weights: Interpolation | GivenWeights | None = None


@dataclass(frozen=True)
class MarkBest(Decision):
    """Of `on_metrics` only: the weights of this step are the best so far, for the artifact."""

    monitor: str
    value: float


@dataclass(frozen=True)
class Save(Decision):
    """Write a checkpoint to continue from at this step; kept as the newest ones are."""


@dataclass(frozen=True)
class ReplaceWeights(Decision):
    """The artifact is to hold these weights: of `on_fit_end`, or of what follows from it."""

    weights: Interpolation | GivenWeights


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

    `metrics` has no caption; `keys` maps each to the key it has in `State.metrics`. `when` is
    "before" (training), "step" (in mid-epoch), "epoch", or "final" (after training). `weights`
    names other weights than those of `global_step`, which an `Evaluate` decision asked for; of an
    interpolation, `alpha` is its number. `examples` are the rankings of example queries, where the
    evaluation gathers them.
    """

    number: int
    caption: str | None
    when: str
    epoch: int
    global_step: int
    metrics: Mapping[str, float]
    keys: Mapping[str, str]
    weights: str = ""
    alpha: float | None = None
    examples: Mapping[str, Sequence[Mapping[str, Any]]] | None = None


def _no_weights() -> dict[str, Any]:
    raise RuntimeError("this state was made without a model")


@dataclass(frozen=True, kw_only=True)
class State:
    """Where the run is. Read-only.

    Attributes:
        epochs: epochs planned. epoch: the present one, from 0.
        steps_per_epoch: steps planned per epoch. step: the present one in this epoch, from 0.
        global_step: optimizer steps done.
        loss: of the last batch, training or validation.
        metrics: newest value of every metric: train_loss, val_loss, evaluation metrics.
        fresh: of `on_metrics` and `on_evaluation_end`, which of them were measured at this very
            step (at an epoch's end: all of that epoch); of other hooks, which were measured or
            logged since the epoch began.
        learning_rates: of each parameter group.
        run_path: the run directory. run_id: eight letters that stay the same when it is resumed.
        model_name: as the user gave it.
        weights: a function that gives a copy of the encoder's present weights, by name, on the CPU.
    """

    epochs: int
    epoch: int
    steps_per_epoch: int
    step: int
    global_step: int
    loss: float
    metrics: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    learning_rates: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    fresh: frozenset[str] = frozenset()
    run_path: str = ""
    run_id: str = ""
    model_name: str = ""
    weights: Callable[[], dict[str, Any]] = _no_weights


class Callback:
    """Base of all callbacks; override the hooks you need.

    Every hook runs on rank 0, in the training process, and may return a `Decision`, several, or
    None. An exception fails the run, with the names of the callback and the hook (of a `Logger` it
    is a warning).

    Attributes:
        metric_names: metrics that this callback logs itself, so that others may monitor them. Log
            them by `on_train_epoch_end`, `on_val_end` or `on_evaluation_end`: monitors look at
            `on_metrics`.
        order: callbacks are called by ascending order, those of equal order as they were given.
    """

    metric_names: ClassVar[Sequence[str]] = ()
    order: ClassVar[int] = 50

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
        """After each epoch; all metrics of it but overlapped ones are in `state.metrics`."""

    def on_fit_end(self, state: State) -> Any:
        """After the last epoch or an early stop; the weights are those that the artifact gets."""

    def on_evaluation_end(self, state: State, result: EvaluationResult) -> Any:
        """When the result of an evaluation is there; the result says of which step."""

    def on_metrics(self, state: State) -> Any:
        """When all metrics of a step are there: of an epoch, or of an evaluation in mid-epoch.

        `state` is the state at that step: with an overlapped evaluation, an earlier one than the
        step that is being trained. Steps are judged in their order. `state.fresh` says which
        metrics were measured at this step.
        """

    def on_keyboard_interrupt(self, state: State) -> Any:
        """Instead of `on_fit_end` when the run was stopped from outside."""

    def on_exception(self, state: State, exception: BaseException) -> Any:
        """Instead of `on_fit_end` when rank 0 raised; the exception is raised again."""

    def on_run_end(self, state: State, status: str) -> Any:
        """Last of all, for closing what was opened; decisions count no more.

        Args:
            state: where the run ended.
            status: "FINISHED", "STOPPED", "FAILED", or "LOST": workers were lost, and another
                attempt may begin in another process.
        """

    def state_dict(self) -> dict[str, Any]:
        """What must survive a restart, as JSON values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""


class Logger(Callback):
    """Base of callbacks that only tell others: one that fails is left out, and the run goes on."""

    order: ClassVar[int] = 90
