"""What users call from Python."""

from __future__ import annotations

from ftray.api.fits import fit, list_callbacks, submit, sweep
from ftray.api.models import (
    describe_models,
    encode,
    evaluate,
    get_model,
    list_model_options,
    list_models,
)
from ftray.api.records import (
    delete_experiment,
    delete_run,
    get_experiment,
    get_run,
    get_sweep,
    list_experiments,
    list_runs,
    list_sweeps,
)

__all__ = [
    "delete_experiment",
    "delete_run",
    "describe_models",
    "encode",
    "evaluate",
    "fit",
    "get_experiment",
    "get_model",
    "get_run",
    "get_sweep",
    "list_callbacks",
    "list_experiments",
    "list_model_options",
    "list_models",
    "list_runs",
    "list_sweeps",
    "submit",
    "sweep",
]
