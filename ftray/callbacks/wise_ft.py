"""WiSEFTCallback: the artifact's weights lie between the pre-trained and the fine-tuned ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from ftray.callbacks.base import (
    Callback,
    Decision,
    Evaluate,
    EvaluationResult,
    Interpolation,
    ReplaceWeights,
    Say,
    State,
)
from ftray.callbacks.monitor import Mode, resolve_mode
from ftray.errors import ConfigError
from ftray.evaluation.spec import EvaluationSpec

__all__ = ["WiSEFTCallback"]


class WiSEFTCallback(Callback):
    """Interpolate between the weights before and after training, tensor by tensor.

    The artifact gets (1 - alpha) * pre-trained + alpha * fine-tuned (Wortsman et al. 2022, "Robust
    fine-tuning of zero-shot models"), which often keeps more of what the model could do before, at
    little or no cost in the new domain. Fine-tuned are the weights that the artifact would hold
    otherwise: the best ones with BestModelCheckpoint, else the last. A run that is stopped from
    outside is not interpolated.

    Of several alphas each is scored by the run's EvaluationCallbacks, and the best one is kept; the
    curve is in the record and in the report.

    Args:
        alpha: 0 is the pre-trained model, 1 the fine-tuned one; or a list of alphas to choose from.
        monitor: the metric of an EvaluationCallback that chooses among several alphas. None takes
            BestModelCheckpoint's, if that is one, or the first evaluation's `ndcg_at_k` (of scored
            pairs `spearman`; of other metrics the first one).
        mode: "min", "max", or "auto": min for losses, else max.

    Raises:
        ConfigError: for an alpha outside of [0, 1], or none.
    """

    order: ClassVar[int] = 60

    def __init__(
        self,
        alpha: float | Sequence[float] = 0.4,
        monitor: str | None = None,
        mode: Mode = "auto",
    ) -> None:
        alphas = [alpha] if isinstance(alpha, int | float) else list(alpha)
        for value in alphas:
            if not isinstance(value, int | float) or not 0 <= value <= 1:
                raise ConfigError(f"WiSEFTCallback: alpha = {value!r}: a number from 0 to 1")
        if not alphas:
            raise ConfigError("WiSEFTCallback: alpha is an empty list")
        resolve_mode("", mode)
        self.alpha = alpha
        self.monitor = monitor
        self.mode = mode
        self._alphas = sorted({float(value) for value in alphas})
        self._evaluations = 0
        self._curve: dict[float, dict[str, float]] = {}
        self._heard = 0

    def prepare(self, evaluations: Sequence[EvaluationSpec], best: str | None) -> None:
        """Choose what to monitor, once it is known what will be evaluated.

        Args:
            evaluations: of the run.
            best: what a BestModelCheckpoint monitors, if there is one.

        Raises:
            ConfigError: for several alphas and nothing to choose by.
        """
        self._evaluations = len(evaluations)
        keys = [spec.key(name) for spec in evaluations for name in spec.metrics]
        if self.monitor is not None and self.monitor not in keys:
            raise ConfigError(
                f"WiSEFTCallback monitors '{self.monitor}', but interpolated weights have the "
                f"metrics of EvaluationCallbacks only: {', '.join(sorted(keys)) or 'there is none'}"
            )
        if self.monitor is None and len(self._alphas) > 1:
            if not keys:
                raise ConfigError(
                    f"WiSEFTCallback: alpha = {list(self._alphas)}: to choose among them there "
                    "must be an EvaluationCallback. Add one, or give one alpha."
                )
            self.monitor = best if best in keys else _telling(evaluations[0])

    def on_fit_end(self, state: State) -> list[Decision]:
        """Have each alpha evaluated; take the only one."""
        self._curve, self._heard = {}, 0
        scored: list[Decision] = [Evaluate(weights=Interpolation(alpha)) for alpha in self._alphas]
        return scored if len(self._alphas) > 1 else [*scored, *_keep(self._alphas[0], "")]

    def on_evaluation_end(self, state: State, result: EvaluationResult) -> list[Decision]:
        """Note a score; after the last one, keep the best alpha."""
        if result.alpha is None or len(self._alphas) == 1 or self.monitor is None:
            return []
        found = self._curve.setdefault(result.alpha, {})
        found.update({result.keys[name]: value for name, value in result.metrics.items()})
        self._heard += 1
        if self._heard < len(self._alphas) * self._evaluations:
            return []
        sign = 1 if resolve_mode(self.monitor, self.mode) == "max" else -1
        values = {alpha: self._curve[alpha][self.monitor] for alpha in self._alphas}
        best = max(values, key=lambda alpha: _worst_if_nan(sign * values[alpha]))
        tried = ", ".join(f"{alpha:g}" for alpha in self._alphas)
        return _keep(best, f": {self.monitor} = {values[best]:.5f}, the best of {tried}")


def _telling(spec: EvaluationSpec) -> str:
    """The metric that says most of an evaluation."""
    names = [name for name in spec.metrics if name in ("ndcg_at_k", "spearman")]
    return spec.key((*names, *spec.metrics)[0])


def _keep(alpha: float, why: str) -> list[Decision]:
    weights = Interpolation(alpha)
    said = f"WiSE-FT: the artifact holds {1 - alpha:g} x pre-trained + {alpha:g} x fine-tuned{why}"
    return [ReplaceWeights(weights), Say(said)]


def _worst_if_nan(value: float) -> Any:
    return -math.inf if math.isnan(value) else value
