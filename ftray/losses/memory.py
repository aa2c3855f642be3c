"""Cross-batch memory (Wang et al. 2020): the embeddings of former steps as further references.

pytorch-metric-learning's `CrossBatchMemory` does the work. Wrapped here is what a run needs of it:
its place in the memory is part of a checkpoint, and a validation loss leaves the memory as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ftray.errors import ConfigError, nearest
from ftray.losses.base import LossInputs, Needs, Shard, StepLoss, no_loss
from ftray.losses.metric import NEEDS_POSITIVES, library_loss, scalar_loss
from ftray.losses.values import checked_options

__all__ = ["MemoryLoss"]

OPTIONS = ("loss", "loss_options", "memory_size")


class MemoryLoss(StepLoss):
    """A loss of pytorch-metric-learning over a step and the embeddings of the steps before it.

    Every rank holds the whole memory, and all hold the same: it is filled with the gathered
    embeddings of whole steps.

    Args:
        options: `loss`, the name of the loss; `loss_options`, its arguments; `memory_size`, how
            many embeddings are remembered (1,024).
        embedding_dim: width D of the embeddings.
        n_groups: number of classes (or of groups of pairs).
        miner: picks pairs or triplets between the step and the memory; None = all.

    Raises:
        ConfigError: for a loss that takes no references, or wrong options.
    """

    needs: Needs = "labels"
    sharded = False

    def __init__(
        self,
        options: Mapping[str, Any],
        embedding_dim: int,
        n_groups: int,
        miner: nn.Module | None = None,
    ) -> None:
        super().__init__()
        for option in options:
            if option not in OPTIONS:
                raise ConfigError(
                    f"loss_options.{option}: CrossBatchMemory has no such option."
                    f"{nearest(option, OPTIONS)}"
                )
        from pytorch_metric_learning.losses import CrossBatchMemory

        name, size = str(options.get("loss")), options.get("memory_size", 1024)
        if name not in CrossBatchMemory.supported_losses():
            known = CrossBatchMemory.supported_losses()
            raise ConfigError(
                f"loss_options.loss = {name}: CrossBatchMemory needs the name of a loss that "
                f"takes references.{nearest(name, known)}"
            )
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ConfigError(f"loss_options.memory_size = {size!r}: a positive whole number")
        where = "loss_options.loss_options"
        given = checked_options(where, options.get("loss_options"))
        inner = library_loss(name, given, embedding_dim, n_groups, where)
        self.max_items = size
        self._needs_positives = name in NEEDS_POSITIVES
        self.memory = CrossBatchMemory(inner, embedding_dim, memory_size=size, miner=miner)
        self.register_buffer("cursor", torch.zeros(2, dtype=torch.long))
        self.cursor: Tensor  # place of the next embedding; whether the memory has been full

    def forward(self, embeddings: Tensor, inputs: LossInputs, shard: Shard) -> Tensor:
        """The whole loss of the step, the same on every rank; in training it is remembered."""
        picked, memory = embeddings[inputs.label_items], self.memory
        memory.queue_idx, memory.has_been_filled = int(self.cursor[0]), bool(self.cursor[1])
        places = (torch.arange(len(picked)) + memory.queue_idx) % memory.memory_size
        before = memory.embedding_memory[places].clone(), memory.label_memory[places].clone()
        if self._needs_positives and not self._has_positives(inputs.labels):
            memory.add_to_memory(picked.detach().to(before[0].dtype), inputs.labels, len(picked))
            loss = no_loss(embeddings)
        else:
            loss = scalar_loss(memory(picked, inputs.labels), embeddings)
        if self.training:
            self.cursor[0], self.cursor[1] = memory.queue_idx, memory.has_been_filled
        else:
            memory.embedding_memory[places] = before[0].to(memory.embedding_memory)
            memory.label_memory[places] = before[1].to(memory.label_memory)
        return loss

    def _has_positives(self, labels: Tensor) -> bool:
        """Whether a class has two rows in the step, or one there and one in the memory."""
        known = self.memory.memory_size if self.memory.has_been_filled else self.memory.queue_idx
        remembered = self.memory.label_memory[:known].to(labels.device)
        return bool(labels.bincount().max() > 1) or bool(torch.isin(labels, remembered).any())
