"""A torch.nn.Module of the user's own, with functions that make its inputs.

The module travels as it is to the workers of the same run, as callbacks do; what is kept in the run
directory and in the artifact are its weights alone, as safetensors. Whoever loads them brings the
module: nothing of it is ever read from a file.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import default_collate

from ftray.clouds import read_cloud
from ftray.errors import FtrayError, ModelError
from ftray.media import MODALITIES, Content, Media, Modality
from ftray.models.base import Draws, Encoder, Features, Item
from ftray.models.kinds import FACTS
from ftray.models.layout import Layout
from ftray.models.norm import synced
from ftray.models.options import ModuleOptions, checked
from ftray.models.pictures import decoded
from ftray.models.request import Request, not_loaded

__all__ = ["ModuleEncoder", "ModuleParts", "keep_module", "load"]

WEIGHTS = "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class ModuleParts:
    """What a user gives for a model of their own.

    Attributes:
        module: gives embeddings `(n, D)` for a batch.
        preprocess_fn: makes of a text (`str`), an image (`PIL.Image`), points (`(N, 3)` float32)
            or features (`(N,)` float32) what is collated; None takes it as it is (an image: as an
            array). If it has a parameter `rng`, it gets a `numpy.random.Generator` in training,
            and None else: whatever it draws from that is the same on any number of workers.
        collate_fn: makes a batch of a list of these: a tensor, a tuple or list of positional
            arguments, or a dict of keyword arguments; None = torch's `default_collate`.
    """

    module: nn.Module
    preprocess_fn: Callable[..., Any] | None = None
    collate_fn: Callable[[list[Any]], Any] | None = None

    @property
    def name(self) -> str:
        """The name of the module's class."""
        return type(self.module).__name__


def keep_module(parts: ModuleParts, folder: Path) -> str:
    """Write the module's weights as they are now, and return their fingerprint (16 hex digits).

    Raises:
        ModelError: for a module whose weights safetensors cannot hold.
    """
    folder.mkdir(parents=True)
    _save(parts.module, folder / WEIGHTS, parts.name)
    digest = hashlib.sha256(parts.name.encode())
    digest.update((folder / WEIGHTS).read_bytes())
    facts = {"format": 1, "kind": "module", "class": parts.name}
    (folder / FACTS).write_text(json.dumps(facts, indent=2), encoding="utf-8")
    return digest.hexdigest()[:16]


def _save(module: nn.Module, file: Path, name: str) -> None:
    # a copy of each: weights that share memory are written as two, and loaded as one again
    weights = {key: value.detach().cpu().clone() for key, value in module.state_dict().items()}
    if not weights:
        raise ModelError(f"The module '{name}' has no weights: there is nothing to train")
    save_file(weights, file)


def load(request: Request) -> ModuleEncoder:
    """The module that was given, with the weights of a folder."""
    parts: ModuleParts | None = request.module
    if parts is None:
        kept = request.facts.get("class", "a class of your own")
        raise ModelError(
            f"'{request.name}' holds the weights of a torch.nn.Module ({kept}), and nothing of the "
            "module itself: give it too, as get_model(…, module=MyModule(), preprocess_fn=…)"
        )
    module = copy.deepcopy(parts.module)
    file = Path(request.place) / WEIGHTS
    try:
        module.load_state_dict(load_file(file))
    except RuntimeError as error:
        said = str(error).splitlines()[0]
        raise ModelError(
            f"The weights in '{request.name}' are not those of {parts.name}: {said}"
        ) from None
    except (OSError, SafetensorError) as error:
        raise not_loaded(request, error) from error
    options: ModuleOptions = checked("module", request.options, parts.name)
    facts = request.facts
    modality = options.modality or facts.get("modality")
    dim = options.embedding_dim or facts.get("dim")
    return ModuleEncoder(parts, module, request.name, options, modality, dim)


class ModuleEncoder(Encoder):
    """A module of the user's as an encoder.

    Args:
        parts: its functions.
        module: the module, with the weights to begin from.
        name: of the model.
        options: see `ModuleOptions`.
        modality: what it takes; None = whatever it is given.
        dim: width D of its embeddings; None = `measure` finds out.
    """

    kind = "module"

    def __init__(
        self,
        parts: ModuleParts,
        module: nn.Module,
        name: str,
        options: ModuleOptions,
        modality: Modality | None,
        dim: int | None,
    ) -> None:
        super().__init__(name)
        self.module = module
        self.modality = modality
        self.modalities = frozenset({modality} if modality else MODALITIES)
        self._preprocess = parts.preprocess_fn
        self._collate = parts.collate_fn or default_collate
        self._draws = parts.preprocess_fn is not None and takes_rng(parts.preprocess_fn)
        self._class = parts.name
        self._dim = dim
        self._frozen_norms = options.batch_norm == "frozen"
        self.couples_rows = False if self._frozen_norms else synced(module)

    @property
    def own_dim(self) -> int:
        """Width of what the module gives, as `measure` found it.

        Raises:
            ModelError: before.
        """
        if self._dim is None:
            raise ModelError(f"The width of the embeddings of '{self.name}' is not known yet")
        return self._dim

    def measure(self, content: Content) -> None:
        """Find out the width D, by encoding one thing.

        Raises:
            ModelError: if what comes out is not `(1, D)`.
        """
        if self._dim is not None:
            return
        was_training = self.training
        self.eval()
        with torch.no_grad():
            inputs = self.collate([("", content)]).forwards[0]
            self._dim = int(self.encode(self._moved(inputs)).shape[1])
        self.train(was_training)

    def train(self, mode: bool = True) -> ModuleEncoder:
        """Switch the mode; batch normalisation stays as it is where its statistics are frozen."""
        super().train(mode)
        if self._frozen_norms:
            for part in self.module.modules():
                if isinstance(part, nn.modules.batchnorm._BatchNorm):
                    part.eval()
        return self

    def varies(self, content: Content) -> bool:
        """Whether the preprocess_fn draws at random."""
        return self._draws

    def collate(
        self, items: Sequence[Item], layout: Layout = "auto", draws: Draws | None = None
    ) -> Features:
        """Make the inputs of one forward by the user's functions."""
        if not items:
            return Features(forwards=[], order=torch.zeros(0, dtype=torch.long))
        values = [
            self._made(content, None if draws is None else draws[i])
            for i, (_, content) in enumerate(items)
        ]
        batch = self._called(self._collate, "collate_fn", values)
        return Features(forwards=[{"batch": batch}], order=torch.arange(len(items)))

    def _made(self, content: Content, draw: np.uint64 | None) -> Any:
        value = _value(content)
        if self._preprocess is None:
            return np.asarray(value) if not isinstance(value, str) else value
        more = {}
        if self._draws:
            more["rng"] = None if draw is None else np.random.default_rng(int(draw))
        return self._called(self._preprocess, "preprocess_fn", value, **more)

    def _called(self, function: Callable[..., Any], what: str, *given: Any, **more: Any) -> Any:
        try:
            return function(*given, **more)
        except FtrayError:
            raise
        except Exception as error:
            hint = "" if self._preprocess else ". There is no preprocess_fn to make its inputs"
            raise ModelError(
                f"The {what} of '{self.name}' failed: {type(error).__name__}: {error}{hint}"
            ) from error

    def encode(self, inputs: dict[str, Any]) -> Tensor:
        """What the module makes of a batch."""
        batch = on_device(inputs["batch"], self.device, next(self.parameters()).dtype)
        if isinstance(batch, dict):
            found = self._called(self.module, "module", **batch)
        elif isinstance(batch, list | tuple):
            found = self._called(self.module, "module", *batch)
        else:
            found = self._called(self.module, "module", batch)
        width = found.shape[1] if isinstance(found, Tensor) and found.ndim == 2 else None
        if None not in (width, self._dim) and width != self._dim:
            raise ModelError(
                f"The module '{self.name}' gives embeddings of the width {width}, not of "
                f"{self._dim} (model_options.embedding_dim)"
            )
        if not isinstance(found, Tensor) or found.ndim != 2:
            shape = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found)
            raise ModelError(
                f"The module '{self.name}' is to give one embedding for each thing, (n, D); it "
                f"gave {shape}"
            )
        return found

    def freeze(self, weight: str) -> None:
        """Leave a weight, by its name in the user's module, as it is."""
        self.module.get_parameter(weight).requires_grad_(False)

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the weights; the module's code stays with the user."""
        _save(self.module, folder / WEIGHTS, self.name)
        return {"class": self._class, "modality": self.modality, "dim": self._dim}


def takes_rng(function: Callable[..., Any]) -> bool:
    """Whether a preprocess_fn wants to draw."""
    try:
        return "rng" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def on_device(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """A batch of whatever nesting, its tensors on a device, numbers in the type of the weights."""
    if isinstance(value, Tensor):
        return value.to(device, dtype) if value.is_floating_point() else value.to(device)
    if isinstance(value, dict):
        return {name: on_device(part, device, dtype) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(on_device(part, device, dtype) for part in value)
    return value


def _value(content: Content) -> Any:
    """What a preprocess_fn is given."""
    if not isinstance(content, Media):
        return content
    if content.modality == "image":
        return decoded(content)
    if content.modality == "points":
        return read_cloud(content.read(), content.name)[0].astype(np.float32)
    return np.frombuffer(cast(Any, content.read()), "<f4").copy()
