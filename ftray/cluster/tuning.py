"""What Ray Tune calls while a sweep goes on: for new trials, for decisions, and with news.

Tune decides which trial runs when, and its schedulers compare trials. It never ends one: what a
scheduler, a stopper or a budget wants stopped is *asked* to stop, as `run.stop()` asks, and ends at
its next step with a checkpoint and an artifact. So nothing that a trial started outlives it, no
placement group of its workers either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import ray
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from ftray.errors import FtrayError
from ftray.sweeps.record import trial_name

__all__ = ["CLOCK", "NUMBER", "ROW", "VALUES", "Asking", "Reporter", "Suggested", "Suggestions"]
__all__ += ["Supervisor", "number_of", "trial_name_of"]

CLOCK = "epoch"
"""Schedulers compare trials at the same epoch."""
NUMBER, VALUES, ROW = "number", "values", "row"

Report = Callable[[dict[str, float], Path | None], None]


@dataclass(frozen=True, kw_only=True)
class Suggested:
    """A trial to run: its number, and the values it varies."""

    number: int
    values: dict[str, Any]


class Supervisor(Protocol):
    """The sweep's side: it says what is tried, and hears of everything. It may stop anything."""

    def suggest(self, ask: Callable[[], Mapping[str, Any] | None] | None) -> Suggested | None:
        """The next trial; None if there is none. `ask` asks another searcher for values."""

    def started(self, number: int, values: Mapping[str, Any], donor: str = "") -> None:
        """A trial runs."""

    def reported(self, number: int, row: Mapping[str, Any]) -> None:
        """An epoch of a trial is over."""

    def ask_to_stop(self, number: int, reason: str) -> None:
        """End a trial at its next step."""

    def ended(self, number: int, error: str) -> None:
        """A trial is over; `error` is empty unless it failed."""

    def tick(self, stopper: str) -> None:
        """Called several times a second; `stopper` names the one that wants the sweep to end."""


def trial_name_of(trial: TuneTrial) -> str:
    """By number. Tune asks once; under PBT a trial's config becomes that of another later."""
    return trial_name(trial.config[NUMBER])


def number_of(name: str) -> int:
    """The number of a trial by its name."""
    return int(name.rsplit("-", 1)[1])


class Suggestions(Searcher):  # type: ignore[misc]
    """Asks the supervisor for each trial; it may ask another searcher for its values.

    Args:
        supervisor: knows what is tried.
        other: decides values while the sweep goes on (Optuna), or None.
    """

    def __init__(self, supervisor: Supervisor, other: Searcher | None) -> None:
        super().__init__()
        self._supervisor = supervisor
        self._other = other
        self._asked: set[str] = set()

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        """The other searcher knows already."""
        return True

    def suggest(self, trial_id: str) -> Any:
        """The next trial."""
        ask = None
        if self._other is not None:
            other = self._other

            def ask() -> Mapping[str, Any] | None:
                self._asked.add(trial_id)
                return other.suggest(trial_id)  # type: ignore[no-any-return]

        found = self._supervisor.suggest(ask)
        if found is None:
            return Searcher.FINISHED
        return {NUMBER: found.number, VALUES: found.values}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Pass a result on."""
        if self._other is not None and trial_id in self._asked:
            self._other.on_trial_result(trial_id, result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Pass an end on."""
        if self._other is not None and trial_id in self._asked:
            self._other.on_trial_complete(trial_id, result, error)

    def save(self, checkpoint_path: str) -> None:
        """A sweep goes on from its own record: nothing is kept."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing was kept."""


class Asking(TrialScheduler):  # type: ignore[misc]
    """Another scheduler, whose decision to stop a trial becomes a request to the trial.

    Args:
        name: of the scheduler, for people.
        epochs: that a trial trains, if it varies no `epochs` itself.
        inner: compares trials.
        stoppers: see each result too.
        supervisor: takes the requests.
    """

    def __init__(
        self,
        name: str,
        epochs: int,
        inner: TrialScheduler,
        stoppers: Sequence[Stopper],
        supervisor: Supervisor,
    ) -> None:
        super().__init__()
        self._name, self._epochs = name, epochs
        self._inner = inner
        self._stoppers = list(stoppers)
        self._supervisor = supervisor
        self._asked: dict[str, str] = {}
        self._seen: dict[str, float] = {}
        self._supports_buffered_results = False

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Pass on what is better."""
        super().set_search_properties(metric, mode, **spec)
        return bool(self._inner.set_search_properties(metric, mode, **spec))

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        """See `TrialScheduler`."""
        # PBT wants to be the only one that chooses values, and refuses who only lists trials
        self._inner.on_trial_add(SimpleNamespace(search_alg=None), trial)

    def on_trial_error(self, tune_controller: Any, trial: TuneTrial) -> None:
        """See `TrialScheduler`."""
        self._inner.on_trial_error(tune_controller, trial)

    def on_trial_result(
        self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]
    ) -> str:
        """What the inner scheduler says, but never STOP."""
        go_on = str(TrialScheduler.CONTINUE)
        epoch = result[CLOCK]
        is_again = self._name != "pbt" and epoch <= self._seen.get(trial.trial_id, 0)  # a repeat
        self._seen[trial.trial_id] = max(epoch, self._seen.get(trial.trial_id, 0))
        is_last = epoch >= trial.config[VALUES].get("epochs", self._epochs)
        if trial.trial_id in self._asked:
            self._supervisor.ask_to_stop(number_of(str(trial)), self._asked[trial.trial_id])
            return go_on
        if is_again or (is_last and self._name == "pbt"):  # what PBT gave now would train no more
            return go_on
        decision, reason = self._decision(tune_controller, trial, result)
        if reason and not is_last:
            self._asked[trial.trial_id] = reason
            self._supervisor.ask_to_stop(number_of(str(trial)), reason)
        return go_on if decision == TrialScheduler.STOP else decision

    def _decision(
        self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]
    ) -> tuple[str, str]:
        """What the inner scheduler says, and why the trial is to stop, if it is."""
        decision = str(self._inner.on_trial_result(tune_controller, trial, result))
        reason = ""
        if decision == TrialScheduler.STOP:
            reason = f"{self._name}: others are better at epoch {result[CLOCK]}"
        for stopper in self._stoppers:
            if not reason and stopper(trial.trial_id, result):
                reason = f"{type(stopper).__name__} at epoch {result[CLOCK]}"
        return decision, reason

    def stop_all(self) -> str:
        """Which stopper wants to end the sweep, or nothing."""
        return next((type(s).__name__ for s in self._stoppers if s.stop_all()), "")

    def on_trial_complete(
        self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]
    ) -> None:
        """See `TrialScheduler`."""
        self._inner.on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: TuneTrial) -> None:
        """See `TrialScheduler`."""
        self._inner.on_trial_remove(tune_controller, trial)

    def choose_trial_to_run(self, tune_controller: Any) -> TuneTrial | None:
        """See `TrialScheduler`."""
        return self._inner.choose_trial_to_run(tune_controller)

    def debug_string(self) -> str:
        """See `TrialScheduler`."""
        return str(self._inner.debug_string())

    def save(self, checkpoint_path: str) -> None:
        """A sweep goes on from its own record: nothing is kept."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing was kept."""


class Reporter(tune.Callback):  # type: ignore[misc]
    """Tells the supervisor what Tune does.

    Args:
        supervisor: hears of it.
        scheduler: knows whether a stopper wants to end the sweep.
    """

    def __init__(self, supervisor: Supervisor, scheduler: Asking) -> None:
        self._supervisor = supervisor
        self._scheduler = scheduler
        self._failed: list[TuneTrial] = []

    def on_step_begin(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        """Time for budgets, and to show that the sweep goes on."""
        self._tell_failed()
        self._supervisor.tick(self._scheduler.stop_all())

    def on_experiment_end(self, trials: list[TuneTrial], **info: Any) -> None:
        """There is nothing left to run."""
        self._tell_failed()

    def on_trial_start(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """A trial runs, for the first time or again."""
        handed = trial.checkpoint  # in the folder of the trial whose weights it is to have
        donor = Path(handed.path).parent.name if handed else ""
        self._supervisor.started(number_of(str(trial)), trial.config[VALUES], donor)

    def on_trial_result(
        self,
        iteration: int,
        trials: list[TuneTrial],
        trial: TuneTrial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        """An epoch of a trial is over."""
        self._supervisor.reported(number_of(str(trial)), result[ROW])

    def on_trial_complete(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """A trial came to its end."""
        self._supervisor.ended(number_of(str(trial)), "")

    def on_trial_error(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """A trial failed for good; Tune knows why only after this."""
        self._failed.append(trial)

    def _tell_failed(self) -> None:
        failed, self._failed = self._failed, []
        for trial in failed:
            self._supervisor.ended(number_of(str(trial)), _reason(trial))


def _reason(trial: TuneTrial) -> str:
    """What went wrong in a trial, without Ray's wrappings; the files are Tune's own."""
    error: Any = None
    if trial.pickled_error_file and Path(trial.pickled_error_file).is_file():
        error = ray.cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    inner = getattr(error, "cause", None) or error
    if isinstance(inner, FtrayError):
        return str(inner)
    if inner is None or isinstance(inner, ray.exceptions.RayActorError):
        return "the process of the trial was lost"
    said = str(inner).strip().splitlines()
    return f"{type(inner).__name__}: {said[-1] if said else 'no reason given'}"
