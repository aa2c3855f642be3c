"""What is asked of a loader of models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ftray.errors import ModelError
from ftray.models.catalogue import MODELS, SCRATCH

__all__ = ["Request", "not_loaded"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """A model to load, or to make.

    Attributes:
        name: what the user called it, for messages.
        place: a folder, a hub id, or `new:` and a registry name.
        facts: of the folder's `ftray.json`; empty where there is none.
        options: as the user gave them, unchecked.
        max_length: longest text in tokens, or None.
        augmentation: "auto", "none", or operations.
        seed: of weights that are made; torch is seeded with it when the loader is called.
        module: the user's module with its functions, where there is one.
    """

    name: str
    place: str
    facts: dict[str, Any]
    options: dict[str, Any]
    max_length: int | None
    augmentation: str | Mapping[str, Any]
    seed: int
    module: Any = None

    @property
    def is_new(self) -> bool:
        """Whether it is made from scratch."""
        return self.place.startswith(SCRATCH)


def not_loaded(request: Request, error: Exception) -> ModelError:
    """The error for a model whose files, or whose hub, do not give one."""
    import os

    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if os.path.isdir(request.place):
        return ModelError(f"The model in '{request.name}' cannot be loaded: {reason}")
    from huggingface_hub import is_offline_mode

    offline = "HF_HUB_OFFLINE is set. " if is_offline_mode() else ""
    known = [name for name, model in MODELS.items() if model.package or model.hub_id is None]
    return ModelError(
        f"The model '{request.name}' cannot be loaded from the Hugging Face hub: "
        f"{reason.rstrip('.')}. {offline}If the hub cannot be reached from here, give a local "
        f"folder or a registry name: {', '.join(map(repr, known))}"
    )
