"""What learns, on one rank: the encoder, the loss, their optimizer and its schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ftray.data.dataset import StepRows, TrainSet
from ftray.errors import RunFailedError
from ftray.losses.registry import build_loss
from ftray.media import Media
from ftray.models.base import Encoder
from ftray.models.frozen import KnowingEncoder
from ftray.models.layout import Layout
from ftray.models.norm import connect
from ftray.models.onnx_export import check_exportable
from ftray.models.packing import refused
from ftray.runtime.base import Collectives
from ftray.training.average import Average
from ftray.training.checkpoint import Position
from ftray.training.compiling import compile_backbones
from ftray.training.frozen import FeatureMaker
from ftray.training.job import Job
from ftray.training.matching import check_whole_steps
from ftray.training.optim import build_optimizers
from ftray.training.precision import Precision
from ftray.training.schedule import build_scheduler
from ftray.training.step import OwnTexts, Seed, forward_backward, own_texts, validation_loss
from ftray.training.weights import copied
from ftray.words import counted

__all__ = ["Batch", "Learned", "Learner"]

MOST_LEFT_OUT = 20
"""In a row: by then a loss scale of 65,536 is below one."""
FEW_LEFT_OUT = 12
"""The first steps of a healthy fp16 run may be left out, until the loss scale is found."""


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
        steps_per_epoch: for the schedule.
        model: where the model is loaded from.

    Attributes:
        optimizers: that of the encoder and of the loss, or one for each.
        average: of the weights, where one is kept: it is what is evaluated, and the artifact.
        knowing: the encoder, as steps and evaluations of its own weights see it: it may know
            what its frozen part makes of a thing.
    """

    def __init__(
        self, job: Job, collectives: Collectives, steps_per_epoch: int, model: str
    ) -> None:
        config, device = job.config, collectives.device
        self._collectives = collectives
        self._max_grad_norm = config.max_grad_norm
        self._micro_batch_size = config.micro_batch_size
        self.layout: Layout = config.packing
        self.encoder = job.encoder(device, model)
        if config.to_onnx:
            check_exportable(self.encoder)
        if config.packing == "packed" and self.encoder.not_packed:
            raise refused(self.encoder.name, self.encoder.not_packed)
        if self.encoder.couples_rows:
            check_whole_steps(self.encoder.name, config)
            connect(
                self.encoder, collectives.all_reduce_sum if collectives.world_size > 1 else None
            )
        self.encoder.measure(job.train.example)
        self.knowing: Encoder | KnowingEncoder = self.encoder
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
        self.optimizers = build_optimizers(config, self.encoder, self.loss)
        self._steps_per_epoch, self._epochs = steps_per_epoch, config.epochs
        steps = config.epochs * steps_per_epoch
        self.scheduler = build_scheduler(config, self.optimizers, steps, config.epochs)
        decay = config.ema_decay
        self.average = None if decay is None else Average(self.encoder, decay)
        if config.compile:
            compile_backbones(self.encoder)

    def keep_features(
        self,
        job: Job,
        on_progress: Callable[[str, int, int], None],
        is_stopped: Callable[[], bool],
    ) -> list[str]:
        """Compute once what frozen weights make of what is encoded again and again.

        Every rank calls it before the first step, with the weights in place.

        Args:
            job: with the data.
            on_progress: takes task, batches done, and batches in all.
            is_stopped: whether the run is to stop; all ranks ask it at the same time.

        Returns:
            What the log should say.
        """
        maker = FeatureMaker(
            encoder=self.encoder,
            collectives=self._collectives,
            layout=self.layout,
            data_workers=job.data_workers,
            on_progress=on_progress,
            is_stopped=is_stopped,
        )
        sets = {"training": job.train} | ({} if job.val is None else {"validation": job.val})
        kept, notes = maker.made(sets, [spec for spec in job.evaluations if not spec.overlap])
        if len(kept):
            self.knowing = KnowingEncoder(self.encoder, kept)
        return notes

    def batch(self, data: TrainSet, rows: npt.NDArray[np.int64], seed: Seed | None = None) -> Batch:
        """Rows of a data set, with this rank's part tokenised or decoded, and laid out.

        It touches no weights, so it may be done ahead, in another process. With a seed, what is to
        be augmented is.
        """
        step_rows = data.step_rows(rows, roles_differ=self.encoder.roles_differ)
        own = own_texts(
            self.knowing, step_rows, self.layout, self._collectives, self._micro_batch_size, seed
        )
        # decoded by another process, the batch comes back through a pipe: without the files
        texts = [
            (role, content.without_data if isinstance(content, Media) else content)
            for role, content in step_rows.texts
        ]
        return Batch(replace(step_rows, texts=texts), own)

    def step(self, batch: Batch, seed: Seed) -> Learned:
        """Learn from one global batch; with fp16 the step may be left out: nothing changes then.

        Raises:
            RunFailedError: if the loss or the norm of its gradient is not finite; with fp16 if
                too many steps were left out, one after the other.
        """
        self.encoder.train()
        self.loss.train()
        result = forward_backward(
            self.knowing,
            self.loss,
            *batch,
            self._collectives,
            seed=seed,
            autocast=self.precision.autocast,
            scale=self.precision.scale(),
        )
        if not math.isfinite(result.loss):
            raise _diverged(f"the training loss is {result.loss}", seed)
        learning_rate = float(self.optimizers[0].param_groups[0]["lr"])
        try:
            norm, made = self.precision.step(self.optimizers, self._max_grad_norm)
        except FloatingPointError as error:
            raise _diverged(str(error), seed) from None
        self._check_moves(seed)
        self.scheduler.step(epoch_ends=self._ends_epoch(seed), made=made)
        if made:
            self.loss.after_step()
            if self.average is not None:
                self.average.follow()
        return Learned(
            loss=result.loss,
            learning_rate=learning_rate,
            grad_norm=norm,
            tokens=result.tokens,
            processed_tokens=result.processed_tokens,
        )

    def _ends_epoch(self, seed: Seed) -> bool:
        return seed[2] + 1 == self._steps_per_epoch

    def _check_moves(self, seed: Seed) -> None:
        """Raise a `RunFailedError` if steps are left out (fp16) and it will not get better."""
        in_a_row, epoch = self.precision.in_a_row, seed[1]
        most = MOST_LEFT_OUT
        if self._ends_epoch(seed):  # one without a step, of some steps at least, or the last
            least = 1 if epoch + 1 == self._epochs else FEW_LEFT_OUT
            most = min(most, max(self._steps_per_epoch, least))
        if in_a_row >= most:
            raise _diverged(
                f"fp16 left out {counted(in_a_row, 'step')} in a row, as the norm of the gradient "
                f"is not finite even at a loss scale of {self.precision.scale():g}, the last one",
                seed,
            )

    def validation_loss(self, batch: Batch, seed: Seed) -> float:
        """The loss of one global batch; nothing is learned."""
        self.encoder.eval()
        self.loss.eval()
        return validation_loss(
            self.knowing,
            self.loss,
            *batch,
            self._collectives,
            seed=seed,
            autocast=self.precision.autocast,
        )

    def learning_rates(self) -> dict[str, float]:
        """The rate of the next step, by group of parameters; layers have one each."""
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        return {group.get("rate_of", group["name"]): float(group["lr"]) for group in groups}

    @contextmanager
    def weights_to_use(self) -> Iterator[None]:
        """The encoder has the weights that an artifact of now would have, for a while."""
        if self.average is None:
            yield
            return
        with self.average.used():
            yield

    def weights(self) -> dict[str, torch.Tensor]:
        """A copy of those weights by name, on the CPU."""
        return copied(self.encoder) if self.average is None else self.average.weights()

    def end_training(self) -> None:
        """The encoder has those weights for good."""
        if self.average is not None:
            self.average.put()
        self.average = None

    def save_schedule(self, position: Position) -> None:
        """Write what is neither a weight nor the optimizer's into a position."""
        position.scheduler = self.scheduler.state_dict()
        position.scaler = self.precision.state_dict()

    def load_schedule(self, position: Position) -> None:
        """Continue from what `save_schedule` wrote, at the rates that are configured now."""
        self.scheduler.load_state_dict(position.scheduler)
        self.precision.load_state_dict(position.scaler)
        if self.average is not None:
            self.average.steps = position.global_step - self.precision.left_out

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
