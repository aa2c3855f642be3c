"""What is changed of a sentence-transformers model before it is trained: pooling, prompts, a head.

All but GeM are modules and settings of sentence-transformers, so that the artifact is one of its
folders. It has no GeM: `GeMPooling` is ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ftray.errors import ConfigError
from ftray.models.base import linear_head
from ftray.models.options import LEARNT_P, TextOptions
from ftray.models.pooling import GeM

__all__ = ["GEM_NOTE", "OWN_MODULES", "GeMPooling", "changed", "has_gem", "insert_head"]


GEM_NOTE = (
    "Its pooling is GeM, which sentence-transformers does not have: SentenceTransformer(folder) "
    "refuses it, and loads it where ftray is installed and trust_remote_code=True is given."
)


class GeMPooling(Pooling):  # type: ignore[misc]
    """Generalised-mean pooling of tokens, as `ftray.models.pooling` defines it.

    `modules.json` names it, and `SentenceTransformer(folder)` refuses what is not its own; with
    `trust_remote_code=True` it loads this class, where ftray is installed.

    Args:
        embedding_dimension: width D of the features of a token.
        include_prompt: whether the tokens of the prompt count.
        p: the exponent to begin with; it is learnt, and kept with the weights.
    """

    config_keys = ["embedding_dimension", "include_prompt", "p"]  # noqa: RUF012

    def __init__(
        self, embedding_dimension: int, include_prompt: bool = True, p: float = LEARNT_P
    ) -> None:
        super().__init__(embedding_dimension, "mean", include_prompt)
        self.p = p
        self.gem = GeM(p)

    def _forward_padded(
        self,
        token_embeddings: Tensor,
        attention_mask: Tensor,
        features: dict[str, Tensor],
        prompt_length: int | None = None,
    ) -> list[Tensor]:
        mask = attention_mask
        if prompt_length:
            mask = self._exclude_prompt_from_mask(mask, prompt_length)
        return [self.gem(token_embeddings, mask)]

    def _forward_flattened(
        self,
        token_embeddings: Tensor,
        features: dict[str, Tensor],
        prompt_length: int | None = None,
    ) -> list[Tensor]:
        ends = features["cu_seq_lens_q"].tolist()
        lengths = [after - before for before, after in pairwise(ends)]
        rows = pad_sequence(
            list(torch.split(token_embeddings.squeeze(0), lengths)), batch_first=True
        )
        steps = torch.arange(rows.shape[1], device=rows.device)
        mask = steps < torch.tensor(lengths, device=rows.device)[:, None]
        return self._forward_padded(rows, mask.long(), features, prompt_length)

    def save(
        self, output_path: str, *args: Any, safe_serialization: bool = True, **more: Any
    ) -> None:
        """Write options and exponent."""
        self.save_config(output_path)
        self.save_torch_weights(output_path, safe_serialization=safe_serialization)

    @classmethod
    def load(cls, model_name_or_path: str, **where: Any) -> GeMPooling:
        """Read what `save` wrote."""
        known = ("subfolder", "token", "cache_folder", "revision", "local_files_only")
        place = {name: value for name, value in where.items() if name in known}
        made = cls(**cls.load_config(model_name_or_path=model_name_or_path, **place))
        found: GeMPooling = cls.load_torch_weights(model_name_or_path, model=made, **place)
        return found


OWN_MODULES = {f"{GeMPooling.__module__}.{GeMPooling.__qualname__}": GeMPooling}
"""By their `type` in `modules.json`; nothing else that is not sentence-transformers' is loaded."""


def changed(model: SentenceTransformer, options: TextOptions, name: str) -> None:
    """Carry out the options of a text model, in place.

    Raises:
        ConfigError: for a pooling of a model that does not pool tokens, one that gives another
            width than what follows it takes, or another exponent than a learnt one began with.
    """
    if options.prompts is not None:
        model.prompts = {**model.prompts, **options.prompts}
    if options.pooling == "auto":
        return
    places = [
        (parent, key)
        for parent in model.modules()
        for key, part in parent.named_children()
        if isinstance(part, Pooling)
    ]
    if not places:
        raise ConfigError(
            f"model_options.pooling = '{options.pooling}': '{name}' does not pool tokens: it has "
            "no module for that"
        )
    for parent, key in places:
        before: Any = parent.get_submodule(key)
        made = _pooling(before, options, name)
        _check_width(model, before, made, name)
        parent._modules[key] = made


def _pooling(before: Pooling, options: TextOptions, name: str) -> Pooling:
    width, with_prompt = before.embedding_dimension, before.include_prompt
    if options.pooling != "gem":
        return Pooling(width, options.pooling, with_prompt)
    if not isinstance(before, GeMPooling):
        return GeMPooling(width, with_prompt, options.pooling_p)
    if "pooling_p" in options.model_fields_set and options.pooling_p != before.p:
        raise ConfigError(
            f"model_options.pooling_p = {options.pooling_p:g}: '{name}' was made with "
            f"{before.p:g}, which has been learnt since and cannot be changed"
        )
    return before


def _check_width(model: nn.Module, before: Pooling, made: Pooling, name: str) -> None:
    """Refuse a pooling of another width where what follows takes the one that was.

    Several poolings side by side, as mean and maximum, are wider than one.
    """
    widths = [int(part.get_embedding_dimension()) for part in (before, made)]
    if widths[0] == widths[1]:
        return
    for part in _followers(model, before):
        if not isinstance(part, Normalize):
            raise ConfigError(
                f"model_options.pooling = '{made.pooling_mode}' gives {widths[1]} numbers, but the "
                f"{type(part).__name__} that follows in '{name}' takes the {widths[0]} of its own "
                "pooling"
            )


def _followers(model: nn.Module, part: nn.Module) -> Iterator[nn.Module]:
    """What stands behind a module in the stacks that it is in."""
    for stack in model.modules():
        if isinstance(stack, nn.Sequential):
            parts = list(stack)
            places = [i for i, one in enumerate(parts) if part in set(one.modules())]
            yield from parts[places[0] + 1 :] if places else ()


def has_gem(model: SentenceTransformer) -> bool:
    """Whether sentence-transformers by itself cannot load the model."""
    return any(isinstance(part, GeMPooling) for part in model.modules())


def insert_head(model: SentenceTransformer, width: int, dim: int) -> str:
    """Put a linear layer behind a model, before a normalisation that comes last.

    Where each route of a model with routes ends in one, another comes behind the layer.

    Args:
        model: changed in place.
        width: of its embeddings.
        dim: that they are to have.

    Returns:
        The name of the new module in the model.
    """
    parts = list(model)
    linear = linear_head(width, dim)
    head = Dense(
        width, dim, bias=False, activation_function=nn.Identity(), init_weight=linear.weight.data
    )
    last = [parts.pop()] if isinstance(parts[-1], Normalize) else []
    if not last and all(isinstance(end, Normalize) for end in _ends(parts[-1])):
        last = [Normalize()]
    for key in list(model._modules):
        del model._modules[key]
    for number, part in enumerate([*parts, head, *last]):
        model.add_module(str(number), part)
    return str(len(parts))


def _ends(part: nn.Module) -> Iterator[nn.Module]:
    """The last modules of all routes."""
    routes: Mapping[str, Any] = getattr(part, "sub_modules", {})
    if not len(routes):
        yield part
    for modules in routes.values():
        yield from _ends(list(modules)[-1])
