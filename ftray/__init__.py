"""ftray: fine-tune embedding models for retrieval on Ray.

The public names are imported on first use: `import ftray` alone brings in neither ray nor torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ftray.api import (
        compare_sizes,
        cos_sim,
        delete_experiment,
        delete_run,
        describe_models,
        encode,
        encode_stream,
        evaluate,
        fit,
        get_experiment,
        get_model,
        get_run,
        get_sweep,
        list_callbacks,
        list_experiments,
        list_model_options,
        list_models,
        list_runs,
        list_sweeps,
        model_summary,
        submit,
        sweep,
        to_onnx,
    )
    from ftray.config import FitConfig
    from ftray.errors import FtrayError
    from ftray.evaluation.quantize import quantization_ranges, quantize
    from ftray.experiment import Experiment
    from ftray.run import Run
    from ftray.sweeps.config import SweepConfig
    from ftray.sweeps.sweep import Sweep

_LAZY = {
    "Experiment": "ftray.experiment",
    "FitConfig": "ftray.config",
    "FtrayError": "ftray.errors",
    "Run": "ftray.run",
    "Sweep": "ftray.sweeps.sweep",
    "SweepConfig": "ftray.sweeps.config",
    "compare_sizes": "ftray.api",
    "cos_sim": "ftray.api",
    "delete_experiment": "ftray.api",
    "delete_run": "ftray.api",
    "describe_models": "ftray.api",
    "encode": "ftray.api",
    "encode_stream": "ftray.api",
    "evaluate": "ftray.api",
    "fit": "ftray.api",
    "get_experiment": "ftray.api",
    "get_model": "ftray.api",
    "get_run": "ftray.api",
    "get_sweep": "ftray.api",
    "list_callbacks": "ftray.api",
    "list_experiments": "ftray.api",
    "list_model_options": "ftray.api",
    "list_models": "ftray.api",
    "list_runs": "ftray.api",
    "list_sweeps": "ftray.api",
    "model_summary": "ftray.api",
    "quantization_ranges": "ftray.evaluation.quantize",
    "quantize": "ftray.evaluation.quantize",
    "submit": "ftray.api",
    "sweep": "ftray.api",
    "to_onnx": "ftray.api",
}

__all__ = [
    "Experiment",
    "FitConfig",
    "FtrayError",
    "Run",
    "Sweep",
    "SweepConfig",
    "__version__",
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
    "quantization_ranges",
    "quantize",
    "submit",
    "sweep",
    "to_onnx",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'ftray' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
