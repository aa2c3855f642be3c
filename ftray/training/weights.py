"""Weights apart from the encoder: copies, those before training, and what lies between."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ftray.callbacks.base import GivenWeights, Interpolation
from ftray.errors import RunFailedError
from ftray.models.lora import keeps_tuned
from ftray.training.job import Job

__all__ = ["InitialWeights", "copied", "interpolated", "made", "using"]


def copied(encoder: nn.Module) -> dict[str, Tensor]:
    """A copy of a module's weights and buffers, by name, on the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in encoder.state_dict().items()}


def interpolated(
    initial: Mapping[str, Tensor], tuned: Mapping[str, Tensor], alpha: float
) -> dict[str, Tensor]:
    """(1 - alpha) * initial + alpha * tuned, tensor by tensor (Wortsman et al. 2022, eq. 1).

    Whole numbers (such as positions) are those of `tuned`. alpha = 1 gives `tuned` bit by bit. Of
    low-rank adapters their product lies between, not the two factors each.

    Raises:
        RunFailedError: if the two do not have the same names and shapes.
    """
    _check_same("the fine-tuned model", initial, tuned)
    if alpha == 1.0:
        return dict(tuned)
    return {
        name: tensor
        if keeps_tuned(name) or not tensor.is_floating_point()
        else (1 - alpha) * initial[name] + alpha * tensor
        for name, tensor in tuned.items()
    }


def _check_same(what: str, wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    differ = [
        name
        for name in sorted({*wanted, *given})
        if name not in wanted or name not in given or wanted[name].shape != given[name].shape
    ]
    if differ:
        raise RunFailedError(
            f"The weights of {what} are not those of the model: {len(differ)} differ in name or "
            f"shape, such as '{differ[0]}'"
        )


class InitialWeights:
    """The weights before training, read again when they are first needed.

    Args:
        job: says how it is loaded.
        model: where the model is.
    """

    def __init__(self, job: Job, model: str) -> None:
        self._job = job
        self._model = model
        self._weights: dict[str, Tensor] | None = None

    def __call__(self) -> dict[str, Tensor]:
        """The weights by name, on the CPU."""
        if self._weights is None:
            self._weights = copied(self._job.encoder(torch.device("cpu"), self._model))
        return self._weights


def made(
    weights: Interpolation | GivenWeights, initial: InitialWeights, tuned: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors that a callback asked for.

    Raises:
        RunFailedError: if they do not fit the model.
    """
    if isinstance(weights, Interpolation):
        return interpolated(initial(), tuned, weights.alpha)
    given = dict(weights.tensors)
    _check_same(f"'{weights.name}'", tuned, given)
    return given


@contextmanager
def using(
    encoder: nn.Module,
    weights: Interpolation | GivenWeights | None,
    initial: InitialWeights,
    tuned: Mapping[str, Tensor] | None = None,
) -> Iterator[None]:
    """Put other weights into the encoder, and the present ones back afterwards.

    Args:
        encoder: whose weights.
        weights: what a callback asked for; None leaves them as they were trained.
        initial: the weights before training.
        tuned: the trained weights, of an earlier step; None means the present ones.
    """
    if weights is None and tuned is None:
        yield
        return
    present = copied(encoder)
    trained = present if tuned is None else tuned
    encoder.load_state_dict(dict(trained if weights is None else made(weights, initial, trained)))
    try:
        yield
    finally:
        encoder.load_state_dict(present)
