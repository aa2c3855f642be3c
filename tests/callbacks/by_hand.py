"""A run of two epochs by two steps, as the loop tells it to a logger, hook by hook."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ftray.callbacks.base import EvaluationResult, Logger, State

RUN_ID = "abcdefgh"
RATE = 0.5
KEYS = {"ndcg_at_k": "ndcg_at_k"}


def run_directory(folder: Path) -> Path:
    """A run directory with what `run.yaml` says of the run."""
    path = folder / "trees" / "oak-1"
    path.mkdir(parents=True)
    config = {"model": "minilm", "loss": "InfoNCE", "batch_size": 8, "miner_options": {"m": 0.1}}
    (path / "run.yaml").write_text(yaml.safe_dump({"run_id": RUN_ID, "config": config}))
    return path


def state(path: Path | str, global_step: int = 0, **fields: Any) -> State:
    """The state after so many steps."""
    values: dict[str, Any] = {
        "epochs": 2,
        "epoch": max(global_step - 1, 0) // 2,
        "steps_per_epoch": 2,
        "step": 0,
        "global_step": global_step,
        "loss": 10.0 - global_step,
        "learning_rates": {"encoder": RATE * global_step},
        "run_path": str(path),
        "run_id": RUN_ID,
        "model_name": "minilm",
    }
    return State(**{**values, **fields})


def evaluated(value: float, when: str = "epoch", step: int = 0, **fields: Any) -> EvaluationResult:
    """A result of the weights of a step."""
    match = {"id": "d1", "text": f"a | text at {step}", "score": value, "relevant": True}
    other = {"id": "d2", "text": "other", "score": value / 2, "relevant": False}
    values: dict[str, Any] = {
        "number": 0,
        "caption": None,
        "metrics": {"ndcg_at_k": value},
        "keys": KEYS,
        "examples": {"which tree?": [match, other]},
    }
    return EvaluationResult(
        when=when, epoch=max(step - 1, 0) // 2, global_step=step, **{**values, **fields}
    )


def epoch(logger: Logger, path: Path, number: int) -> None:
    """One epoch: two steps, validation, an evaluation, metrics that other callbacks logged."""
    late = {"stale": 1.0, **({"late": float(number)} if number else {})}  # when one had ended
    logger.on_epoch_begin(state(path, 2 * number, epoch=number, metrics=late))
    for step in (2 * number + 1, 2 * number + 2):
        logger.on_train_batch_begin(state(path, step, epoch=number))
        # After the step the rates are already the next one's.
        ahead = {"encoder": RATE * (step + 1)}
        logger.on_train_batch_end(state(path, step, learning_rates=ahead))
    end = 2 * number + 2
    metrics = {"train_loss": 5.0 - number, "val_loss": 7.0 - number, "ndcg_at_k": 0.1}
    logger.on_train_epoch_end(state(path, end, metrics={"train_loss": 5.0 - number}))
    logger.on_val_end(state(path, end, metrics=metrics))
    logger.on_evaluation_end(state(path, end), evaluated(0.6 + number / 10, step=end))
    own = {**metrics, **late, "speed": 3.0}
    fresh = frozenset(metrics) | {"speed"}
    logger.on_metrics(state(path, end, metrics=own, fresh=fresh))
    logger.on_epoch_end(state(path, end, metrics=own, fresh=fresh))


def whole_run(logger: Logger, path: Path, status: str = "FINISHED") -> Any:
    """From the first hook to the last; what `on_fit_begin` returned."""
    said = logger.on_fit_begin(state(path, metrics={"stale": 1.0}))
    logger.on_evaluation_end(state(path), evaluated(0.5, "before"))
    for number in range(2):
        epoch(logger, path, number)
    if status == "FINISHED":
        logger.on_fit_end(state(path, 4, metrics={"stale": 1.0, "late": 2.0}))
    logger.on_run_end(state(path, 4), status)
    return said


ONCE_AN_EPOCH = {
    "val/loss": [(2, 7.0), (4, 6.0)],
    "metrics/ndcg_at_k": [(0, 0.5), (2, 0.6), (4, 0.7)],
    "metrics/speed": [(2, 3.0), (4, 3.0)],
    "metrics/late": [(2, 1.0), (4, 2.0)],
}
BY_EPOCH = {"train/loss": [(2, 5.0), (4, 4.0)], "lr/encoder": [(2, 1.0), (4, 2.0)]}
BY_BATCH = {
    "train/loss": [(1, 9.0), (2, 8.0), (3, 7.0), (4, 6.0)],
    "lr/encoder": [(1, 0.5), (2, 1.0), (3, 1.5), (4, 2.0)],
}
BEFORE_ROWS = [
    ["before", "which tree?", 1, "a | text at 0", 0.5, True],
    ["before", "which tree?", 2, "other", 0.25, False],
]
AFTER_ROWS = [
    ["after epoch 2", "which tree?", 1, "a | text at 4", 0.7, True],
    ["after epoch 2", "which tree?", 2, "other", 0.35, False],
]
