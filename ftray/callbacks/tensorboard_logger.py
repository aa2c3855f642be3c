"""TensorBoardLogger: the numbers of a run as TensorBoard reads them."""

from __future__ import annotations

import os
import shlex
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from ftray.callbacks.base import Say, State
from ftray.callbacks.tracker import (
    EXAMPLE_COLUMNS,
    MetricsStep,
    Tracker,
    local_folder,
    run_options,
)

__all__ = ["TensorBoardLogger"]

ALPHA_STEPS = 1000


class TensorBoardLogger(Tracker):
    """Log losses, learning rates, metrics and examples for TensorBoard.

    The run's options and the examples are texts. TensorBoard knows whole steps only: the step of a
    `wise_ft/` value is alpha in thousandths. A run that is resumed goes on in the same folder; what
    a lost attempt logged beyond the checkpoint is hidden.

    Args:
        log_dir: where the files go; None: `tensorboard/` of the run directory where that is a
            folder of this machine, else a temporary folder, which the log names.
        metrics_logger_step: training loss and learning rates once an "epoch", or each "batch".

    Raises:
        ConfigError: for another `metrics_logger_step`.
    """

    def __init__(
        self,
        log_dir: str | os.PathLike[str] | None = None,
        metrics_logger_step: MetricsStep = "epoch",
    ) -> None:
        super().__init__(metrics_logger_step)
        self.log_dir = None if log_dir is None else os.fspath(log_dir)
        if self.log_dir and "://" not in self.log_dir:
            # A worker on Ray has another working directory than the user.
            self.log_dir = os.path.abspath(os.path.expanduser(self.log_dir))
        self._writer: Any = None

    def start(self, state: State) -> Say:
        """Open the files."""
        import yaml
        from tensorboardX import SummaryWriter

        folder = self.log_dir or os.path.join(local_folder(state, "tensorboard"), "tensorboard")
        resumed = state.global_step > 0
        self._writer = SummaryWriter(
            folder,
            purge_step=state.global_step + 1 if resumed else None,
            filename_suffix=f".{uuid.uuid4().hex[:8]}",  # else named by the second, overwritten
        )
        if not resumed:
            text = yaml.safe_dump(run_options(state), sort_keys=False, allow_unicode=True)
            # Four spaces make it a block of code in Markdown, whatever it holds.
            self._text("config", "\n".join(f"    {line}" for line in text.splitlines()), 0)
        return Say(f"TensorBoard: tensorboard --logdir {shlex.quote(folder)}")

    def log(self, values: Mapping[str, float], *, global_step: int, epoch: int) -> None:
        """Tell values of one step."""
        for name, value in {**values, "epoch": epoch}.items():
            self._writer.add_scalar(name, value, global_step)
        if self.metrics_logger_step == "epoch" or "train/loss" not in values:
            self._writer.flush()

    def log_interpolation(self, values: Mapping[str, float], *, alpha: float) -> None:
        """Tell the metrics of interpolated weights, over alpha in thousandths."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, round(ALPHA_STEPS * alpha))
        self._writer.flush()

    def log_examples(self, name: str, rows: Sequence[Sequence[Any]], *, global_step: int) -> None:
        """Tell examples as a table in Markdown."""
        lines = [EXAMPLE_COLUMNS, ["---"] * len(EXAMPLE_COLUMNS), *rows]
        table = "\n".join(f"| {' | '.join(_cell(value) for value in line)} |" for line in lines)
        self._text(name, table, global_step)

    def _text(self, name: str, text: str, step: int) -> None:
        self._writer.add_text(name, text, step)
        self._writer.flush()

    def finish(self, status: str) -> None:
        """Close the files."""
        writer, self._writer = self._writer, None
        writer.close()


def _cell(value: Any) -> str:
    """A value in a row of a Markdown table."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4f}"
    return " ".join(str(value).split()).replace("\\", "\\\\").replace("|", "\\|")
