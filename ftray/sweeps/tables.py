"""The table of a sweep, for a terminal or a notebook."""

from __future__ import annotations

from typing import Any

from ftray.report.figures import number
from ftray.report.tables import Cell, Sheet
from ftray.sweeps.record import SweepState

__all__ = ["sweep_sheet", "value_text"]

STYLES = {"failed": "red", "waiting": "dim", "stopped": "dim", "interrupted": "dim"}


def value_text(value: Any) -> str:
    """A value of a trial: floats in four digits, a dash where it is not varied."""
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def sweep_sheet(name: str, state: SweepState) -> Sheet:
    """The trials of a sweep, the best first.

    Args:
        name: of the sweep.
        state: how it stands.
    """
    varied = list(dict.fromkeys(key for trial in state.trials for key in trial.values))
    last = [key.rsplit(".", 1)[-1] for key in varied]
    shown = varied if len(set(last)) < len(last) else last
    rows = [
        [
            Cell(str(trial.number), "bold" if place == 0 and trial.has_score else ""),
            Cell(number(trial.score), "bold" if place == 0 else ""),
            *(Cell(value_text(trial.values.get(key))) for key in varied),
            Cell(str(len(trial.epochs))),
            Cell(trial.outcome, STYLES.get(trial.outcome, "")),
        ]
        for place, trial in enumerate(state.ordered())
    ]
    return Sheet(
        title=f"Sweep {name}: {state.metric} ({state.mode})",
        columns=["trial", state.metric, *shown, "epochs", "outcome"],
        right=frozenset(["trial", state.metric, *shown, "epochs"]),
        whole=frozenset(["outcome"]),
        sections=[rows],
    )
