"""The options of the loss, tried on one step: what would fail in a worker fails on the driver."""

from __future__ import annotations

import numpy as np
import torch

from ftray.config import FitConfig
from ftray.data.dataset import StepRows, TrainSet
from ftray.errors import ConfigError, DataError, FtrayError
from ftray.losses.base import StepLoss
from ftray.losses.registry import build_loss, least_dim
from ftray.runtime.process_group import SingleProcess
from ftray.training.step import loss_and_gradient

__all__ = ["TRIED_ROWS", "check_margins", "margin_notes", "small_loss", "try_loss"]

SMALL_DIM = 8
"""Width of the embeddings that losses are tried with, where a loss asks for no more."""
TRIED_ROWS = 64
"""A step for a GPU may be more than the driver can hold, with all its triplets."""


def tried_dim(config: FitConfig) -> int:
    """The width of the embeddings that the loss is tried with."""
    return max(SMALL_DIM, least_dim(config.loss, config.loss_options))


def small_loss(config: FitConfig, n_groups: int) -> StepLoss:
    """The loss of a fit for narrow embeddings.

    Raises:
        ConfigError: for a name, an option or a value that its class refuses.
    """
    return build_loss(
        config.loss,
        config.loss_options,
        embedding_dim=tried_dim(config),
        n_groups=n_groups,
        seed=0,
        miner=config.miner,
        miner_options=config.miner_options,
    )


def check_margins(loss: StepLoss, data: TrainSet) -> None:
    """Refuse a teacher whose margins the loss can never reach, whatever the model.

    Raises:
        DataError: with the margins, and what learns from them.
    """
    widest, bound = _widest_margin(data), loss.widest_margin()
    if widest > bound:
        raise DataError(
            f"{data.source}: the teacher's margins are as wide as {widest:g}, but those of "
            f"cosines (similarity: cosine, and all that MatryoshkaLoss shortens) are {bound:g} at "
            f"most, and MarginMSELoss would have them equal. {_learns_all(widest)}"
        )


def margin_notes(
    config: FitConfig, data: TrainSet, n_groups: int, *, normalised: bool
) -> list[str]:
    """What is to be said of a teacher whose margins this model can never reach.

    Args:
        config: names the loss and its options.
        data: to train with.
        n_groups: as in `build_loss`.
        normalised: whether the model's embeddings have length 1.
    """
    if not normalised or data.kind != "distillation":
        return []
    widest = _widest_margin(data)
    bound = small_loss(config, n_groups).widest_margin(unit_length=True)
    if widest <= bound:
        return []
    return [
        f"{data.source}: the teacher's margins are as wide as {widest:g}, but '{config.model}' "
        f"gives embeddings of length 1, whose margins are {bound:g} at most: MarginMSELoss will "
        f"not reach them. {_learns_all(widest)}"
    ]


def _widest_margin(data: TrainSet) -> float:
    """Of a document's score and a negative's."""
    assert data.scores is not None
    return float(np.abs(data.scores[:, :1] - data.scores[:, 1:]).max())


def _learns_all(widest: float) -> str:
    return (
        "DistillKLDivLoss learns from margins of any width, with loss_options: "
        f"{{teacher_temperature: {round(widest)}}}; MarginMSELoss with similarity: dot, from a "
        "model whose embeddings are not normalised; or divide the scores."
    )


def try_loss(config: FitConfig, rows: StepRows, n_groups: int) -> None:
    """Compute the loss of a step and its gradient, for random embeddings.

    Most losses take any value when they are made and fail at the first step; that would be a run
    on record that never trained. Without options of the user's there is nothing to try.

    Args:
        config: names the loss and its options.
        rows: a step, or some of it.
        n_groups: as in `build_loss`.

    Raises:
        ConfigError: if the options cannot work.
    """
    given = {**config.loss_options, **config.miner_options}
    if not given:
        return
    loss = small_loss(config, n_groups)
    draw = torch.Generator().manual_seed(0)
    embeddings = torch.randn(len(rows.texts), tried_dim(config), generator=draw)
    alone = SingleProcess(torch.device("cpu"))
    try:
        loss_and_gradient(loss, rows, embeddings, alone, (0, 0, 0), 1.0)
    except FtrayError:
        raise
    except Exception as error:  # whatever a library makes of a wrong value
        what = " and ".join(
            name for name in ("loss_options", "miner_options") if getattr(config, name)
        )
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(f"{what} do not fit {config.loss}: {said} (given: {given})") from None
