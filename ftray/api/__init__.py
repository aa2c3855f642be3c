"""What users call from Python."""

from __future__ import annotations

from ftray.api.encoding import cos_sim, encode, encode_stream
from ftray.api.fits import fit, list_callbacks, submit, sweep
from ftray.api.models import (
    describe_models,
    evaluate,
    get_model,
    list_model_options,
    list_models,
    to_onnx,
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
from ftray.api.sizes import compare_sizes
from ftray.api.summary import model_summary

__all__ = [
    "compare_sizes",
    "cos_sim",
    "delete_experiment",
    "delete_run",
    "describe_models",
    "encode",
    "encode_stream",
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
    "model_summary",
    "submit",
    "sweep",
    "to_onnx",
]
