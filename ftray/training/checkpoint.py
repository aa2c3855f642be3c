"""Checkpoints to continue from: JSON and safetensors, complete or invisible.

A checkpoint is a folder `checkpoints/<name>/` of the run directory:

    model.safetensors       weights of the encoder
    loss.safetensors        the loss's own parameters and memory, if it has any
    average.safetensors     the average of weights that is evaluated and kept, if there is one
    optimizer.safetensors   the optimizer's tensors, named by parameter
    loss_optimizer.safetensors   those of the loss's own optimizer, if it has one
    state.json              position, scheduler, callbacks, metrics; written last

The state to continue is small because random states and the plan are functions of (seed, epoch,
step): see contract 3 in docs/architecture.md.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from ftray.errors import StorageError
from ftray.record.storage import Storage
from ftray.training.average import Average
from ftray.words import counted

__all__ = ["Position", "Trained", "amend_checkpoint", "checkpoint_names", "latest_checkpoint"]
__all__ += ["load_weights", "read_checkpoint", "read_references", "read_weights"]
__all__ += ["remove_checkpoints", "write_checkpoint"]

FOLDER = "checkpoints"
FORMAT = 1
OPTIMIZERS = ("optimizer", "loss_optimizer")


@dataclass(kw_only=True)
class Position:
    """Where a run stands: what `state.json` holds.

    `epoch` and `step` are the next ones to train; `metrics` the newest values; `epoch_losses` loss
    and rows of each step of this epoch; `best` the best checkpoint so far, or None; `stopped` why
    training is over before its last epoch; `callbacks` each callback's name and `state_dict`;
    `points` the earlier steps whose evaluations are still under way; `logged` the metrics that were
    measured or logged since the epoch began.
    """

    epoch: int = 0
    step: int = 0
    global_step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    best: dict[str, Any] | None = None
    callbacks: list[dict[str, Any]] = field(default_factory=list)
    scheduler: dict[str, Any] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)
    epoch_losses: list[tuple[float, int]] = field(default_factory=list)
    stopped: str | None = None
    points: list[dict[str, Any]] = field(default_factory=list)
    logged: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """`epoch-0003` after a whole epoch, `epoch-0003-step-000017` within one."""
        if self.step == 0:
            return f"epoch-{self.epoch:04d}"
        return f"epoch-{self.epoch:04d}-step-{self.step:06d}"

    def move_to(self, other: Position) -> None:
        """Become the other position."""
        for name, value in vars(other).items():
            setattr(self, name, value)


@dataclass(frozen=True)
class Trained:
    """What a checkpoint holds the state of.

    `optimizers` are that of the encoder and of the loss, or one for each.
    """

    encoder: nn.Module
    loss: nn.Module
    optimizers: Sequence[torch.optim.Optimizer]
    average: Average | None = None


def write_checkpoint(storage: Storage, position: Position, trained: Trained) -> str:
    """Write a checkpoint and return its name; `state.json` comes last and makes it valid."""
    name, encoder, loss = position.name, trained.encoder, trained.loss
    folder = f"{FOLDER}/{name}"
    _delete(storage, name)
    storage.write_bytes(f"{folder}/model.safetensors", save_tensors(_flat(encoder.state_dict())))
    if loss.state_dict():
        storage.write_bytes(f"{folder}/loss.safetensors", save_tensors(_flat(loss.state_dict())))
    if trained.average is not None:
        averaged = save_tensors(_flat(trained.average.state_dict()))
        storage.write_bytes(f"{folder}/average.safetensors", averaged)
    state: dict[str, Any] = {"format": FORMAT, **asdict(position)}
    for whose, optimizer in zip(OPTIMIZERS, trained.optimizers, strict=False):
        tensors, state[whose] = _split_optimizer(optimizer)
        storage.write_bytes(f"{folder}/{whose}.safetensors", save_tensors(tensors))
    storage.write_text(f"{folder}/state.json", json.dumps(state))
    return name


def amend_checkpoint(storage: Storage, position: Position) -> None:
    """Write what is known by now of the position of a checkpoint; its weights stay."""
    path = f"{FOLDER}/{position.name}/state.json"
    state = json.loads(storage.read_text(path))
    storage.write_text(path, json.dumps({**state, **asdict(position)}))


def latest_checkpoint(storage: Storage) -> str | None:
    """The complete checkpoint with the most steps, or None."""
    found: list[tuple[int, str]] = []
    for name in storage.names(FOLDER):
        if storage.exists(f"{FOLDER}/{name}/state.json"):
            try:
                state = json.loads(storage.read_text(f"{FOLDER}/{name}/state.json"))
            except ValueError:  # damaged: the one before is there
                continue
            found.append((int(state["global_step"]), name))
    return max(found)[1] if found else None


def read_checkpoint(storage: Storage, name: str, trained: Trained) -> Position:
    """Load weights and optimizers in place; returns the position to go on from.

    Raises:
        StorageError: if the checkpoint is damaged or does not fit the model, naming what is
            missing.
    """
    state = json.loads(storage.read_text(f"{FOLDER}/{name}/state.json"))
    if state.pop("format", None) != FORMAT:
        raise StorageError(f"The checkpoint {name} was written by another version of ftray")
    _load(trained.encoder, _tensors(_weights_of(storage, name), name), name)
    if storage.exists(f"{FOLDER}/{name}/loss.safetensors"):
        _load(trained.loss, _read_tensors(storage, name, "loss"), name)
    stored = [whose for whose in OPTIMIZERS if whose in state]
    try:
        if len(stored) != len(trained.optimizers):
            raise ValueError(f"it has {counted(len(stored), 'optimizer')}")
        for whose, optimizer in zip(stored, trained.optimizers, strict=True):
            _join_optimizer(optimizer, _read_tensors(storage, name, whose), state.pop(whose))
    except ValueError as error:
        raise StorageError(f"The checkpoint {name} does not fit the optimizer: {error}") from None
    if trained.average is not None:
        _load_average(trained.average, storage, name)
    return Position(**state)


def _load_average(average: Average, storage: Storage, name: str) -> None:
    try:
        average.load_state_dict(_read_tensors(storage, name, "average"))
    except (FileNotFoundError, ValueError) as error:
        raise StorageError(
            f"The checkpoint {name} has no average of this model's weights: {error}"
        ) from None


def read_weights(storage: Storage, name: str) -> dict[str, Tensor]:
    """A checkpoint's encoder weights, on the CPU: averaged, where there is an average."""
    weights = _tensors(_weights_of(storage, name), name)
    if storage.exists(f"{FOLDER}/{name}/average.safetensors"):
        weights.update(_read_tensors(storage, name, "average"))
    return weights


def load_weights(storage: Storage, name: str, encoder: nn.Module) -> None:
    """Load a checkpoint's encoder weights in place, as `read_weights` gives them."""
    _load(encoder, read_weights(storage, name), name)


def _read_tensors(storage: Storage, name: str, what: str) -> dict[str, Tensor]:
    return _tensors(storage.read_bytes(f"{FOLDER}/{name}/{what}.safetensors"), name)


def _weights_of(storage: Storage, name: str) -> bytes:
    try:
        return storage.read_bytes(f"{FOLDER}/{name}/model.safetensors")
    except FileNotFoundError:
        raise StorageError(
            f"The checkpoint {name} is needed to go on, but its weights are gone from "
            f"{storage.path(FOLDER)}"
        ) from None


def read_references(storage: Storage, name: str) -> set[str]:
    """The other checkpoints that one refers to: its best, and those under evaluation."""
    try:
        state = json.loads(storage.read_text(f"{FOLDER}/{name}/state.json"))
    except (FileNotFoundError, ValueError):  # incomplete: nobody goes on from there
        return set()
    best = state.get("best") or {}
    open_points = [Position(epoch=p["next_epoch"], step=p["next_step"]) for p in state["points"]]
    names = {best.get("name", ""), best.get("tied", ""), *(p.name for p in open_points)}
    return names - {""}


def checkpoint_names(storage: Storage) -> list[str]:
    """The names of all checkpoints, complete or not, in the order of their steps."""
    return sorted(name for name in storage.names(FOLDER) if name.startswith("epoch-"))


def remove_checkpoints(storage: Storage, keep: set[str]) -> list[str]:
    """Delete all checkpoints but those in `keep`; returns the names of the deleted."""
    gone = []
    for name in reversed(checkpoint_names(storage)):  # what the newest refers to goes after it
        if name not in keep:
            _delete(storage, name)
            gone.append(name)
    return gone


def _delete(storage: Storage, name: str) -> None:
    """`state.json` goes first: a checkpoint that is half deleted is invisible."""
    storage.delete(f"{FOLDER}/{name}/state.json")
    storage.delete(f"{FOLDER}/{name}")


def _flat(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors, none shared by two names (safetensors refuses shared memory)."""
    seen: dict[int, str] = {}
    result: dict[str, Tensor] = {}
    for name, tensor in state.items():
        copy = tensor.detach().cpu().contiguous()
        if tensor.numel() and tensor.data_ptr() in seen:
            copy = copy.clone()
        seen[tensor.data_ptr()] = name
        result[name] = copy
    return result


def _load(module: nn.Module, tensors: dict[str, Tensor], name: str) -> None:
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise StorageError(f"The checkpoint {name} does not fit the model: {error}") from None


def _tensors(data: bytes, name: str) -> dict[str, Tensor]:
    try:
        return dict(load_tensors(data))
    except SafetensorError as error:
        raise StorageError(f"The checkpoint {name} is damaged: {error}") from None


def _split_optimizer(
    optimizer: torch.optim.Optimizer,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {"param_groups": state["param_groups"], "state": {}}
    for index, values in state["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{key}"] = value.detach().cpu().contiguous()
            else:
                numbers["state"].setdefault(str(index), {})[key] = value
    return tensors, numbers


def _join_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], numbers: dict[str, Any]
) -> None:
    state: dict[int, dict[str, Any]] = {
        int(index): dict(values) for index, values in numbers["state"].items()
    }
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    options = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    optimizer.load_state_dict({"state": state, "param_groups": numbers["param_groups"]})
    for group, configured in zip(optimizer.param_groups, options, strict=True):
        group.update(configured)  # what it was, except where PBT changed it
