"""What is done to a model before it is trained: weights frozen, and a head put behind it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ftray.errors import ConfigError, nearest
from ftray.models.base import Encoder
from ftray.models.kinds import kind_of
from ftray.models.lora import add_adapters
from ftray.models.lora_options import check_lora
from ftray.models.norm import GlobalBatchNorm
from ftray.models.options import OPTIONS

__all__ = ["Surgery", "check_surgery", "frozen_names", "is_all_at_rest", "operate", "options_of"]


@dataclass(frozen=True, kw_only=True)
class Surgery:
    """What is to be done.

    Attributes:
        freeze: whether the whole model is frozen, and a head trained behind it; or names of what
            is frozen, of weights or of modules, with the wildcards of `fnmatch`. They are those of
            `ModelSummary`, whose first part may be left away.
        output_dim: the width D that embeddings are to have; None = the model's own.
        lora: options of low-rank adapters; None = none.
    """

    freeze: bool | tuple[str, ...] = False
    output_dim: int | None = None
    lora: Mapping[str, Any] | None = None

    @property
    def needs_width(self) -> bool:
        """Whether it takes the model's own width to know what is to be done."""
        return self.freeze is True or self.output_dim is not None


def options_of(name: str, place: str, options: Mapping[str, Any], surgery: Surgery) -> Any:
    """The options of the model, with its own `output_dim` where it has such an option.

    A net that is made from scratch ends in a layer of that width, and gets no head besides. It
    does where the net is to be frozen.

    Args:
        name: what the user called the model.
        place: as `locate_model` gives it.
        options: as the user gave them.
        surgery: with the width.

    Raises:
        ConfigError: if both give a width, and not the same.
    """
    kind, facts = kind_of(place)
    has_own = kind is not None and "output_dim" in OPTIONS[kind].model_fields
    if surgery.output_dim is None or not has_own or "options" in facts or surgery.freeze is True:
        return dict(options)
    given = options.get("output_dim", surgery.output_dim)
    if given != surgery.output_dim:
        raise ConfigError(
            f"output_dim = {surgery.output_dim}, but model_options.output_dim = {given!r}: "
            f"'{name}' has one width; give one of the two"
        )
    return {**options, "output_dim": surgery.output_dim}


def check_surgery(surgery: Surgery, kind: str | None, name: str) -> None:
    """Refuse what cannot be done, as far as that is known without the model.

    Args:
        surgery: what is to be done.
        kind: of the model, None where it is not known.
        name: what the user called it.

    Raises:
        ConfigError: for options of adapters that there are not, and for adapters in frozen weights.
    """
    if surgery.lora is None:
        return
    if surgery.freeze:
        raise ConfigError(
            f"freeze = {_shown(surgery.freeze)} and lora: adapters freeze the weights that they "
            "stand beside by themselves; give one of the two"
        )
    check_lora(surgery.lora, kind, name)


def operate(encoder: Encoder, surgery: Surgery, seed: int) -> None:
    """Freeze weights of an encoder, attach a head, and put adapters into it, in place.

    A head is attached where `output_dim` is not the model's own width, and behind a model that is
    frozen as a whole, as Finetuner did; one that the model has from an earlier fit is trained on.

    Args:
        encoder: as it was loaded, in the precision in which it was.
        surgery: what to do.
        seed: the weights of the head are drawn from it, and depend on nothing else.

    Raises:
        ConfigError: for a name that nothing has, a head of another width than the one that is
            there, if nothing would be trained, and as `check_surgery` and `add_adapters`.
    """
    check_surgery(surgery, encoder.kind, encoder.name)
    if surgery.freeze is True:
        for _, weight in _backbone(encoder):
            weight.requires_grad_(False)
    elif surgery.freeze:
        frozen = frozen_names(encoder, surgery.freeze)
        for name, weight in encoder.named_parameters():
            if name in frozen:
                weight.requires_grad_(False)
    if is_needed(encoder, surgery):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder.attach_head(surgery.output_dim or encoder.own_dim)
    if surgery.freeze:
        _put_to_rest(encoder)
        if not any(w.requires_grad for w in encoder.parameters()):
            raise ConfigError(
                f"freeze = {_shown(surgery.freeze)} leaves nothing of '{encoder.name}' to train: "
                "freeze: true attaches a head and trains it, as output_dim does"
            )
    if surgery.lora is not None:
        add_adapters(encoder, surgery.lora, seed)


def is_needed(encoder: Encoder, surgery: Surgery) -> bool:
    """Whether a head is to be attached.

    Raises:
        ConfigError: if the model has one of another width.
    """
    if encoder.head_prefix is None:
        other = surgery.output_dim is not None and surgery.output_dim != encoder.own_dim
        return other or surgery.freeze is True
    if surgery.output_dim not in (None, encoder.embedding_dim):
        raise ConfigError(
            f"output_dim = {surgery.output_dim}: '{encoder.name}' has a head already, of the width "
            f"{encoder.embedding_dim}. Begin with the model that it was made from"
        )
    return False


def _backbone(encoder: Encoder) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and weights of all but the head."""
    prefix = encoder.head_prefix
    for name, weight in encoder.named_parameters():
        if prefix is None or not name.startswith(prefix):
            yield name, weight


def frozen_names(encoder: Encoder, patterns: Sequence[str]) -> set[str]:
    """The names of the weights that patterns mean: their own, or those of a module they are in.

    Raises:
        ConfigError: for a pattern that no weight has, with the nearest names.
    """
    owners = {name: list(_owners(name)) for name, _ in encoder.named_parameters()}
    found: set[str] = set()
    for pattern in patterns:
        meant = {
            name
            for name, chain in owners.items()
            if any(fnmatchcase(each, pattern) for each in chain)
        }
        if not meant:
            raise ConfigError(
                f"freeze: '{pattern}' is the name of no weight and no module of '{encoder.name}'."
                f"{_near(pattern, owners)} `ftray models NAME --summary` lists them; * stands for "
                "any characters"
            )
        found |= meant
    return found


def _near(pattern: str, names: Mapping[str, Iterable[str]]) -> str:
    """What may have been meant: the end of a name; else told by the first part that is in none.

    Args:
        pattern: that nothing has.
        names: of the weights, each with those of the modules that it is in.
    """
    end = f"*.{pattern}"
    if pattern and any(fnmatchcase(each, end) for chain in names.values() for each in chain):
        return f" Did you mean '{end}'?"
    parts = {part for name in names for part in name.split(".")}
    wrong = [word for word in re.findall(r"[A-Za-z_]\w*", pattern) if word not in parts]
    words = sorted(part for part in parts if not part.isdecimal())
    return nearest(wrong[0], words) if wrong else ""


def _owners(name: str) -> Iterable[str]:
    """A weight's name, and those of the modules that it is in, from the innermost.

    Each also without its first part, by which the encoder knows the model: users know it without.
    """
    while name:
        yield name
        if inner := name.partition(".")[2]:
            yield inner
        name = name.rpartition(".")[0]


def is_all_at_rest(encoder: Encoder) -> bool:
    """Whether all of the model but its head is frozen: then its embeddings never change."""
    return not any(weight.requires_grad for _, weight in _backbone(encoder))


def _put_to_rest(encoder: Encoder) -> None:
    """Let what is frozen behave as in evaluation.

    A model that is frozen as a whole has no dropout, and its statistics stay, so that what it
    makes of a thing never changes. Of one that is frozen in part this is so for the batch
    normalisation whose weights are frozen; dropout goes on, as it does elsewhere.
    """
    if is_all_at_rest(encoder):
        encoder.at_rest = list(encoder.children())  # dropout and statistics: a head has neither
    else:
        encoder.at_rest = [layer for layer in encoder.modules() if _is_still(layer)]
    still = {id(inside) for module in encoder.at_rest for inside in module.modules()}
    if encoder.couples_rows:
        encoder.couples_rows = any(
            id(layer) not in still
            for layer in encoder.modules()
            if isinstance(layer, GlobalBatchNorm)
        )
    encoder.train(encoder.training)


def _is_still(layer: nn.Module) -> bool:
    """Whether a layer is batch normalisation whose own weights are frozen."""
    weights = list(layer.parameters()) if isinstance(layer, _BatchNorm) else []
    return bool(weights) and not any(weight.requires_grad for weight in weights)


def _shown(freeze: bool | tuple[str, ...]) -> str:
    return "true" if freeze is True else str(list(freeze or ()))
