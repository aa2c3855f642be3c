"""Autocast and loss scaling: bf16 and fp16 where the device has them, fp32 otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

__all__ = ["Precision"]

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """How the encoder's forward computes, and how the optimizer steps.

    Args:
        name: "auto", "fp32", "bf16" or "fp16". "auto" is bf16 on a GPU that has it, fp16 on other
            GPUs, and fp32 on a CPU (autocast gains little there in training).
        device: where training runs.

    Attributes:
        left_out: steps that were left out so far, all of them with fp16.
        in_a_row: how many of them since the last one that was made.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        if name == "auto":
            name = "fp32"
            if device.type == "cuda":
                name = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
        self.name = name
        self._device = device
        self._scaler = torch.amp.GradScaler(device.type) if name == "fp16" else None
        self.left_out = self.in_a_row = 0

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of a forward."""
        if self.name == "fp32":
            return nullcontext()
        return torch.autocast(self._device.type, dtype=DTYPES[self.name])

    def scale(self) -> float:
        """What multiplies the gradients of this step."""
        if self._scaler is None:
            return 1.0
        return float(self._scaler.scale(torch.ones((), device=self._device)))

    def step(
        self, optimizers: Sequence[torch.optim.Optimizer], max_grad_norm: float | None
    ) -> tuple[float, bool]:
        """Unscale, clip by the norm over all of them, and step.

        With fp16 a step whose norm is not finite is left out, and the loss scale is lowered.

        Returns:
            The norm before clipping, and whether a step was made.

        Raises:
            FloatingPointError: if the norm is not finite, but with fp16.
        """
        if self._scaler is not None:
            for optimizer in optimizers:
                self._scaler.unscale_(optimizer)
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        parameters = [p for group in groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm or float("inf"))
        made = bool(torch.isfinite(norm))
        if self._scaler is not None:
            if made:  # all of them, or none
                for optimizer in optimizers:
                    self._scaler.step(optimizer)
            self._scaler.update()
        elif made:
            for optimizer in optimizers:
                optimizer.step()
        else:
            raise FloatingPointError(f"the norm of the gradient is {float(norm)}")
        self.left_out += not made
        self.in_a_row = 0 if made else self.in_a_row + 1
        return float(norm), made

    def state_dict(self) -> dict[str, Any]:
        """The loss scale and the steps that were left out, where there can be some."""
        if self._scaler is None:
            return {}
        counts = {"left_out": self.left_out, "in_a_row": self.in_a_row}
        return {**self._scaler.state_dict(), **counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        if self._scaler is not None and state:
            self.left_out, self.in_a_row = state.get("left_out", 0), state.get("in_a_row", 0)
            self._scaler.load_state_dict(state)
