"""What an artifact says of itself: where its weights come from, and how good they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ftray.models.artifact import public_name
from ftray.models.licence import read_licence
from ftray.training.checkpoint import Position
from ftray.training.job import Job
from ftray.training.lineage import base_model

__all__ = ["artifact_facts"]


def artifact_facts(
    job: Job,
    position: Position,
    *,
    global_step: int,
    weights: str,
    derived: Mapping[str, dict[str, float]],
    cut_off: bool,
) -> dict[str, Any]:
    """The content of `ftray.json`.

    Args:
        job: what was done.
        position: where it ended.
        global_step: whose weights the artifact holds.
        weights: the name of weights that were derived from those, or "".
        derived: metrics of derived weights, by their name.
        cut_off: whether training was stopped from outside: in mid-epoch its weights have no
            metrics.
    """
    if weights:
        metrics = derived.get(weights, {})
    elif position.best is not None:
        metrics = dict(position.best["metrics"])
    else:
        metrics = {} if cut_off and position.step else dict(position.metrics)
    return {
        "base_model": base_model(job.config, job.model, job.run_uri),
        "began_with": public_name(job.config.model, job.model),
        "license": read_licence(job.model)[0] or job.licence,
        "run": job.run_uri,
        "metrics": metrics,
        "global_step": global_step,
        "weights": weights,
        "best": position.best,
        **({"parent": job.parent} if job.parent else {}),
    }
