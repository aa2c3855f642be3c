"""What learns, on one rank: the encoder, the loss, their optimizer and its schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ftray.data.dataset import StepRows, TrainSet
from ftray.errors import RunFailedError
from ftray.losses.registry import build_loss
from ftray.media import Media
from ftray.models.layout import Layout
from ftray.models.norm import connect
from ftray.runtime.base import Collectives
from ftray.training.checkpoint import Position
from ftray.training.job import Job
from ftray.training.matching import check_whole_steps
from ftray.training.optim import build_optimizer, build_scheduler
from ftray.training.precision import Precision
from ftray.training.step import OwnTexts, Seed, forward_backward, own_texts, validation_loss

__all__ = ["Batch", "Learned", "Learner"]


class Batch(NamedTuple):
    """The rows of a step, and what this rank encodes of them."""

    rows: StepRows
    own: OwnTexts


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What a step gave, the same on every rank; `learning_rate` is the one it was made with."""

    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    processed_tokens: int


class Learner:
    """Everything that a step changes.

    Args:
        job: what to train.
        collectives: the other ranks.
        total_steps: of the whole run, for the schedule.
        model: where the model is loaded from.
    """

    def __init__(self, job: Job, collectives: Collectives, total_steps: int, model: str) -> None:
        config, device = job.config, collectives.device
        self._collectives = collectives
        self._max_grad_norm = config.max_grad_norm
        self._micro_batch_size = config.micro_batch_size
        self.layout: Layout = "padded" if config.packing == "padded" else "bucketed"
        self.encoder = job.encoder(device, model)
        if self.encoder.couples_rows:
            check_whole_steps(self.encoder.name, config)
            connect(
                self.encoder, collectives.all_reduce_sum if collectives.world_size > 1 else None
            )
        self.encoder.measure(job.train.example)
        self.loss = build_loss(
            config.loss,
            config.loss_options,
            embedding_dim=self.encoder.embedding_dim,
            n_groups=job.train.n_groups,
            seed=config.seed,
            miner=config.miner,
            miner_options=config.miner_options,
        ).to(device)
        self.precision = Precision(config.precision, device)
        self.optimizer = build_optimizer(config, self.encoder, self.loss)
        self.scheduler = build_scheduler(config, self.optimizer, total_steps)

    def batch(self, data: TrainSet, rows: npt.NDArray[np.int64], seed: Seed | None = None) -> Batch:
        """Rows of a data set, with this rank's part tokenised or decoded, and laid out.

        It touches no weights, so it may be done ahead, in another process. With a seed, what is to
        be augmented is.
        """
        step_rows = data.step_rows(rows, roles_differ=self.encoder.roles_differ)
        own = own_texts(
            self.encoder, step_rows, self.layout, self._collectives, self._micro_batch_size, seed
        )
        # decoded by another process, the batch comes back through a pipe: without the files
        texts = [
            (role, content.without_data if isinstance(content, Media) else content)
            for role, content in step_rows.texts
        ]
        return Batch(replace(step_rows, texts=texts), own)

    def step(self, batch: Batch, seed: Seed) -> Learned:
        """Learn from one global batch.

        Raises:
            RunFailedError: if the loss or the norm of its gradient is not finite.
        """
        self.encoder.train()
        self.loss.train()
        result = forward_backward(
            self.encoder,
            self.loss,
            *batch,
            self._collectives,
            seed=seed,
            autocast=self.precision.autocast,
            scale=self.precision.scale(),
        )
        if not math.isfinite(result.loss):
            raise _diverged(f"the training loss is {result.loss}", seed)
        learning_rate = float(self.optimizer.param_groups[0]["lr"])
        try:
            norm = self.precision.step(self.optimizer, self._max_grad_norm)
        except FloatingPointError as error:
            raise _diverged(str(error), seed) from None
        self.loss.after_step()
        self.scheduler.step()
        return Learned(
            loss=result.loss,
            learning_rate=learning_rate,
            grad_norm=norm,
            tokens=result.tokens,
            processed_tokens=result.processed_tokens,
        )

    def validation_loss(self, batch: Batch, seed: Seed) -> float:
        """The loss of one global batch; nothing is learned."""
        self.encoder.eval()
        self.loss.eval()
        return validation_loss(
            self.encoder,
            self.loss,
            *batch,
            self._collectives,
            seed=seed,
            autocast=self.precision.autocast,
        )

    def learning_rates(self) -> dict[str, float]:
        """The rate of the next step, by group of parameters."""
        return {group["name"]: float(group["lr"]) for group in self.optimizer.param_groups}

    def save_schedule(self, position: Position) -> None:
        """Write what is neither a weight nor the optimizer's into a position."""
        position.scheduler = self.scheduler.state_dict()
        position.scaler = self.precision.state_dict()

    def load_schedule(self, position: Position) -> None:
        """Continue from what `save_schedule` wrote, at the rates that are configured now.

        Those are what they were, except where PBT changed them.
        """
        ticks = {k: v for k, v in position.scheduler.items() if k != "base_lrs"}
        self.scheduler.load_state_dict(ticks)
        rates = zip(self.scheduler.base_lrs, self.scheduler.lr_lambdas, strict=True)
        for group, (rate, at) in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * at(self.scheduler.last_epoch)
        self.precision.load_state_dict(position.scaler)

    def hardware(self) -> dict[str, Any]:
        """What it computes on, for the record."""
        device = self._collectives.device
        return {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "precision": self.precision.name,
        }


def _diverged(what: str, seed: Seed) -> RunFailedError:
    _, epoch, step = seed
    return RunFailedError(
        f"Training diverged: {what} at epoch {epoch + 1}, step {step + 1}. A lower learning_rate, "
        "precision: fp32, or other loss_options are the usual cures."
    )
