"""The least that a training on Ray is: one `TorchTrainer.fit`, set up as ftray sets up its own.

`startup.py` runs it in fresh processes and gives it ftray's environment variables.

    python benchmarks/startup_bare.py TIMES [MODEL SAVED]

Without a model the worker does nothing. With one it does what any training of sentence-transformers
must: import them, load the model, and save it. The times of the stages go to the file TIMES.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer


class TrainerWithoutCleaner(TorchTrainer):
    """As ftray's: the cleaner of placement groups needs a dashboard, and there is none."""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [c for c in callbacks if type(c).__name__ != "PlacementGroupCleanerCallback"]


def work(setup: dict[str, str]) -> dict[str, float]:
    """What the worker does; returns when it came to what."""
    times = {"worker": time.time()}
    if setup:
        import torch  # noqa: F401
        from sentence_transformers import SentenceTransformer

        times["imported"] = time.time()
        model = SentenceTransformer(setup["model"], device="cpu")
        times["ready"] = time.time()
        model.save(setup["saved"], create_model_card=False)
    return {"ready": times["worker"], **times, "done": time.time()}


def main(times_file: str, model: str = "", saved: str = "") -> None:
    """Start Ray, fit, stop Ray."""
    times = {"imports": time.time()}
    ray.init(address="local", include_dashboard=False, logging_level=logging.ERROR)
    times["ray"] = time.time()
    trainer = TrainerWithoutCleaner(
        work,
        train_loop_config={"model": model, "saved": saved} if model else {},
        torch_config=TorchConfig(timeout_s=600),
        scaling_config=ScalingConfig(
            num_workers=1, resources_per_worker={"CPU": int(ray.cluster_resources()["CPU"])}
        ),
        run_config=RunConfig(
            name="checkpoints",
            storage_path=str(Path(times_file).resolve().parent),
            failure_config=FailureConfig(max_failures=2),
            logging_config=ray.train.LoggingConfig(log_level="CRITICAL"),
        ),
    )
    times |= trainer.fit().return_value
    times["returned"] = time.time()
    ray.shutdown()
    times["ended"] = time.time()
    Path(times_file).write_text(json.dumps(times), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
