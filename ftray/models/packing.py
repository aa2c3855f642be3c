"""Packed rows: texts put end to end, each with positions and attention of its own.

What a transformer computes for a text must then be what it computes for the text alone. That holds
where positions are numbers of tokens, absolute or rotary, or distances between them (T5), and where
attention takes a mask for each pair of tokens. `EXACT` lists such encoders; MPNet, DeBERTa and
RoFormer, whose attention is their own, are not in it. What is in it is tried when a model is
loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ftray.errors import ModelError
from ftray.models.base import Encoder
from ftray.models.kinds import kind_of
from ftray.models.layout import Forward, Layout
from ftray.models.registry import locate_model
from ftray.models.routes import local_type

__all__ = ["EXACT", "PACKED", "Packer", "check_packable", "difference", "packed_embedding"]
__all__ += ["packer_of", "refused", "tried"]

EXACT = frozenset(
    {
        *("albert", "bert", "camembert", "distilbert", "electra", "ernie"),
        *("modernbert", "nomic_bert", "roberta", "t5", "xlm-roberta", "xlm-roberta-xl"),
    }
)
"""transformers' `model_type` of encoders that packed rows are exact for; a test tries each."""

FROM_PADDING = frozenset({"camembert", "roberta", "xlm-roberta", "xlm-roberta-xl"})
"""Of these the first position is the one after the number of the padding token."""

PACKED = "packed_segments"
"""The input by which a packed forward is known: the text of each token, `(R, T)`, -1 for none."""

TOLERANCE = 1e-4
"""Of embeddings of length one; float32 gives some 1e-7, a wrong position or mask more than 1e-2."""

TRIED = ("a", "a card that was lost", "how long does it take until money arrives in my account?")


def tried(path: Sequence[nn.Module]) -> tuple[str, ...]:
    """The texts that packed rows are tried with.

    Where layers look at a window of tokens alone, one of them is longer than that.

    Args:
        path: of a `SentenceTransformer`, the modules that a text goes through.
    """
    window = _window(getattr(path[0], "config", None))
    return TRIED if window is None else (*TRIED, " ".join(map(str, range(window + 2))))


@dataclass(frozen=True, kw_only=True)
class Packer:
    """How the rows of one transformer are packed.

    Attributes:
        first_position: the position of a text's first token.
    """

    first_position: int

    def inputs(self, features: dict[str, Any], lengths: Sequence[int], forward: Forward) -> Any:
        """One packed forward.

        Args:
            features: of all texts, padded on the right: `input_ids`, maybe `token_type_ids`,
                `(n, L)`.
            lengths: tokens of each text, `(n,)`.
            forward: which texts are in which row.

        Returns:
            Of the rows `packed_input_ids`, `packed_positions`, `packed_segments` (and
            `packed_token_type_ids`), `(R, T)`; of the texts in the order of `forward.texts` where
            each token is, `packed_places` `(m, l)`, and `attention_mask` `(m, l)`.
        """
        texts = np.array(forward.texts)
        sizes = np.asarray(lengths)[texts]
        starts = np.concatenate(
            [
                row * forward.width + np.cumsum([0, *(lengths[i] for i in packed[:-1])])
                for row, packed in enumerate(forward.rows)
            ]
        )
        number = np.repeat(np.arange(len(texts)), sizes)
        offset = np.arange(len(number)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        places = torch.from_numpy(starts[number] + offset)
        source = (torch.from_numpy(texts[number]), torch.from_numpy(offset))
        shape = (len(forward.rows), forward.width)

        def laid(values: Tensor, empty: int) -> Tensor:
            flat = torch.full((shape[0] * shape[1],), empty, dtype=values.dtype)
            flat[places] = values
            return flat.reshape(shape)

        known = {
            f"packed_{name}": laid(features[name][source], 0)
            for name in ("input_ids", "token_type_ids")
            if name in features
        }
        steps = np.arange(int(sizes.max()))
        real = steps < sizes[:, None]
        return {
            **known,
            "packed_positions": laid(torch.from_numpy(offset + self.first_position), 0),
            PACKED: laid(torch.from_numpy(number), -1),
            "packed_places": torch.from_numpy(np.where(real, starts[:, None] + steps, 0)),
            "attention_mask": torch.from_numpy(real.astype(np.int64)),
        }


def packer_of(path: Sequence[nn.Module], left: bool) -> Packer | str:
    """How the texts of a stack of modules are packed, or why they are not.

    Args:
        path: of a `SentenceTransformer`, the modules that a text goes through.
        left: whether its tokenizer pads on the left.
    """
    config: Any = getattr(path[0], "config", None)
    kind = getattr(config, "model_type", None)
    if kind is None:
        return "its first module is no transformer"
    if kind not in EXACT:
        return _not_exact(kind)
    if getattr(config, "_attn_implementation", None) != "sdpa":
        return "its attention is not transformers' 'sdpa'"
    relative = getattr(config, "position_embedding_type", None) not in (None, "absolute")
    if relative or getattr(config, "is_decoder", False):
        return "its positions are relative, or it reads from left to right"
    if getattr(config, "output_hidden_states", False) or left:
        return "it uses the states of all layers, or pads on the left"
    first = int(config.pad_token_id) + 1 if kind in FROM_PADDING else 0
    return Packer(first_position=first)


def _not_exact(kind: str) -> str:
    return f"packed rows are not exact, or not known to be, for models of the type '{kind}'"


def refused(name: str, reason: str) -> ModelError:
    """What `packing = 'packed'` gives where texts cannot be packed."""
    return ModelError(
        f"packing = 'packed', but '{name}' cannot be packed: {reason}. With packing: auto its "
        "texts go in buckets"
    )


def check_packable(name: str, place: str, options: Mapping[str, Any]) -> None:
    """Refuse packed rows as far as the files of a model tell that there can be none.

    Args:
        name: what the user called the model.
        place: as `locate_model` gives it.
        options: of the model.

    Raises:
        ModelError: with the reason.
    """
    kind, facts = kind_of(place)
    if kind == "two-towers":
        new = "options" not in facts
        text = locate_model(options.get("text", "minilm")) if new else str(Path(place, "text"))
        check_packable(name, text, {})
    elif kind == "clip":
        raise refused(name, Encoder.not_packed)
    elif kind in ("text", None) and (made_of := local_type(place)) not in (None, *EXACT):
        raise refused(name, _not_exact(str(made_of)))


def packed_embedding(path: Sequence[nn.Module], inputs: dict[str, Any]) -> Tensor:
    """Embeddings `(m, D)` of one packed forward, texts in the order of its rows."""
    segments = inputs[PACKED]
    same = segments[:, None, :, None] == segments[:, None, None, :]
    known = {"input_ids": inputs["packed_input_ids"], "position_ids": inputs["packed_positions"]}
    if "packed_token_type_ids" in inputs:
        known["token_type_ids"] = inputs["packed_token_type_ids"]
    rest = {name: value for name, value in inputs.items() if not name.startswith("packed_")}
    masks = _masks(path[0], same)
    features = path[0]({**rest, **known, "attention_mask": masks})
    tokens = features["token_embeddings"]
    places = inputs["packed_places"]
    picked = tokens.reshape(-1, tokens.shape[-1])[places.reshape(-1)]
    features = {**rest, "token_embeddings": picked.reshape(*places.shape, -1)}
    for part in path[1:]:
        features = part(features)
    embedding: Tensor = features["sentence_embedding"]
    return embedding


def _window(config: Any) -> int | None:
    """How far tokens see in layers that do not see all; None where there are no such layers."""
    if "sliding_attention" not in (getattr(config, "layer_types", None) or ()):
        return None
    return int(config.sliding_window)


def _masks(part: Any, same: Tensor) -> Any:
    """Which tokens see each other, `(R, 1, T, T)`; by kind of layer, where there are two."""
    window = _window(part.config)
    if window is None:
        return same
    steps = torch.arange(same.shape[-1], device=same.device)
    near = (steps[:, None] - steps).abs() <= window
    return {"full_attention": same, "sliding_attention": same & near}


def difference(embed: Callable[[Layout], Tensor]) -> str:
    """Try packed rows: what is wrong with them, or "".

    Args:
        embed: embeddings of what is `tried` in a layout.
    """
    ways: tuple[Layout, Layout] = ("padded", "packed")
    try:
        with torch.no_grad():
            plain, packed = (nn.functional.normalize(embed(way)) for way in ways)
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError) as error:
        return f"packed rows fail: {str(error).splitlines()[0]}"
    off = float((plain - packed).abs().max())
    return "" if off < TOLERANCE else f"packed rows give other embeddings, by {off:.1e}"
