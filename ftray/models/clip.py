"""Models of transformers with a tower for texts and one for images: CLIP, SigLIP and their like.

Towers, tokenizer and image processor are transformers'. What is ours is the dispatch: what an item
is decides which tower it goes through, so that a batch may hold both.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ftray.errors import ModelError
from ftray.media import Content
from ftray.models.augment import Augmentation, make_augmentation
from ftray.models.base import Draws, Encoder, Features, Item, joined
from ftray.models.kinds import TEXT_AND_IMAGE
from ftray.models.layout import Layout, cut_by_length
from ftray.models.options import checked
from ftray.models.pictures import decoded, image_of
from ftray.models.quiet import quiet
from ftray.models.request import Request, not_loaded

__all__ = ["ClipEncoder", "load"]

SHORTEST = 8
"""The fewest tokens that `max_length` may be; less is a slip of the pen."""
LAST_TOKEN = ("siglip", "siglip2")
"""Models that pool the last token, whatever it is: their texts are always padded to the limit."""
PARTS = {"text": ("text",), "image": ("vision", "visual")}
"""How the names of a tower's parts begin."""


def load(request: Request) -> ClipEncoder:
    """A transformers folder, or hub id, with a model of two towers and its processor."""
    options = checked("clip", request.options, request.name)
    augmentation = make_augmentation(request.augmentation, "clip")
    # what ftray wrote is safetensors: a pickle in its place is somebody else's
    weights = {"use_safetensors": True} if request.facts else {}
    with quiet():
        from transformers import AutoImageProcessor, AutoModel, AutoProcessor

        try:
            model, report = AutoModel.from_pretrained(
                request.place, trust_remote_code=False, output_loading_info=True, **weights
            )
            processor = AutoProcessor.from_pretrained(request.place, trust_remote_code=False)
            # Pillow's, so that an embedding does not depend on what is installed
            processor.image_processor = AutoImageProcessor.from_pretrained(
                request.place, trust_remote_code=False, backend="pil"
            )
        except Exception as error:
            raise not_loaded(request, error) from error
    _check(model, sorted(report["missing_keys"]), request.name)
    return ClipEncoder(
        model.float(),
        processor,
        request.name,
        max_length=request.max_length,
        frozen=options.frozen,
        augmentation=augmentation,
    )


def _check(model: Any, missing: list[str], name: str) -> None:
    """Refuse what is of another make, or not whole: transformers would draw weights at random."""
    for method in ("get_text_features", "get_image_features"):
        if not callable(getattr(model, method, None)):
            raise ModelError(
                f"'{name}' is a {type(model).__name__}, which does not embed texts and images "
                f"apart: it has no {method}, as CLIP and SigLIP have"
            )
    if missing:
        raise ModelError(
            f"The model '{name}' cannot be loaded: its files lack the weights '{missing[0]}'"
            + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
        )


class ClipEncoder(Encoder):
    """Texts and images to embeddings `(n, D)` of one space, not normalised.

    The `logit_scale` of the pre-trained model, and its `logit_bias`, are kept as they are: losses
    have a temperature of their own, which starts where their options say.

    Args:
        model: with `get_text_features` and `get_image_features`.
        processor: with `tokenizer` and `image_processor`.
        name: what the user called it, for messages.
        max_length: longest text in tokens; None keeps the model's own limit. SigLIP pads all texts
            to it.
        frozen: towers whose weights are not trained, and whose dropout is off.
        augmentation: what is done to images in training.

    Raises:
        ModelError: for a `max_length` that the model cannot take.
    """

    kind = "clip"
    modalities = TEXT_AND_IMAGE

    def __init__(
        self,
        model: Any,
        processor: Any,
        name: str,
        *,
        max_length: int | None = None,
        frozen: Collection[str] = (),
        augmentation: Augmentation | None = None,
    ) -> None:
        super().__init__(name)
        self.model = model
        self._processor = processor
        self._tokenizer = processor.tokenizer
        self._augmentation = augmentation
        self._limit = self._limited(max_length)
        self._tokenizer.model_max_length = self._limit  # the artifact keeps it
        self._whole_length = model.config.model_type in LAST_TOKEN
        if self._whole_length:
            self.not_packed = f"it takes them padded to {self._limit} tokens"
        self._frozen_towers = tuple(frozen)
        self._frozen = [
            part
            for part_name, part in model.named_children()
            if any(part_name.startswith(PARTS[tower]) for tower in frozen)
        ]
        for part in self._frozen:
            part.requires_grad_(False)
        self.train(self.training)
        self._dim = self._width()

    def _limited(self, max_length: int | None) -> int:
        positions = int(self.model.config.text_config.max_position_embeddings)
        if max_length is None:
            return min(int(self._tokenizer.model_max_length), positions)
        if max_length < SHORTEST:
            raise ModelError(f"max_length = {max_length}: at least {SHORTEST} tokens")
        if max_length > positions:
            raise ModelError(
                f"max_length = {max_length}, but '{self.name}' has only {positions} positions"
            )
        return max_length

    @torch.no_grad()
    def _width(self) -> int:
        """Width D; each make of these models keeps it elsewhere in its configuration."""
        training = self.training
        width = self.eval()(self.collate([("", "")])).shape[1]
        self.train(training)
        return int(width)

    @property
    def backbones(self) -> dict[str, nn.Module]:
        """The model of transformers, with both towers."""
        return {"": self.model}

    @property
    def own_dim(self) -> int:
        """Width of an embedding before there is a head."""
        return self._dim

    @property
    def towers(self) -> tuple[str, ...]:
        """One for each modality."""
        return ("text", "image")

    @property
    def branches(self) -> tuple[str, ...]:
        """The towers."""
        return self.towers

    def branch_of(self, inputs: dict[str, Any]) -> str:
        """The tower that a forward goes through."""
        return "image" if "pixel_values" in inputs else "text"

    def branch_of_content(self, content: Content) -> str:
        """The tower that a thing goes through."""
        return "text" if isinstance(content, str) else "image"

    def varies(self, content: Content) -> bool:
        """Whether it is an image, and images are augmented."""
        return not isinstance(content, str) and self._augmentation is not None

    @property
    def frozen_branches(self) -> tuple[str, ...]:
        """All, or the tower that the options freeze."""
        return super().frozen_branches or self._frozen_towers

    def max_tokens(self, role: str = "") -> int:
        """The most tokens of a text, special ones among them, that are not cut."""
        return self._limit

    def token_counts(self, texts: Sequence[str], role: str) -> list[int]:
        """How many tokens each text has, whole, with special tokens."""
        found = self._tokenizer(list(texts), truncation=False, padding=False, verbose=False)
        return [len(ids) for ids in found["input_ids"]]

    def train(self, mode: bool = True) -> ClipEncoder:
        """Training or evaluation mode; frozen towers stay in the latter."""
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self

    def freeze(self, weight: str) -> None:
        """Leave a weight, by its name in the transformers model, as it is."""
        self.model.get_parameter(weight).requires_grad_(False)

    def collate(
        self, items: Sequence[Item], layout: Layout = "auto", draws: Draws | None = None
    ) -> Features:
        """Tokenise texts, decode images, and lay both out; roles make no difference."""
        texts = [i for i, (_, content) in enumerate(items) if isinstance(content, str)]
        images = [i for i, (_, content) in enumerate(items) if not isinstance(content, str)]
        parts = []
        if texts:
            parts.append((texts, self._tokenised([str(items[i][1]) for i in texts], layout)))
        if images:
            own = None if draws is None else draws[images]
            parts.append((images, self._pictured([items[i] for i in images], own)))
        return joined(parts)

    def _tokenised(self, texts: list[str], layout: Layout) -> Features:
        tokens = dict(
            self._tokenizer(
                texts,
                padding="max_length" if self._whole_length else "longest",
                max_length=self._limit,
                truncation=True,
                return_attention_mask=True,
                return_tensors="pt",
            )
        )
        lengths = tokens["attention_mask"].sum(dim=1).tolist()
        if "attention_mask" not in self._tokenizer.model_input_names:
            del tokens["attention_mask"]
        widths = [self._limit] * len(texts) if self._whole_length else lengths
        left = self._tokenizer.padding_side == "left"
        forwards, order, processed = [], [], 0
        for rows in cut_by_length(widths, layout):
            width = max(widths[i] for i in rows)
            columns = slice(-width, None) if left else slice(0, width)
            forwards.append({name: value[rows][:, columns] for name, value in tokens.items()})
            order.extend(rows)
            processed += len(rows) * width
        return Features(
            forwards=forwards,
            order=torch.tensor(order, dtype=torch.long),
            tokens=sum(lengths),
            processed_tokens=processed,
        )

    def _pictured(self, items: list[Item], draws: Draws | None) -> Features:
        images = [decoded(image_of(content, self.name)) for _, content in items]
        if draws is not None and self._augmentation is not None:
            changed = self._augmentation
            images = [changed(image, draw) for image, draw in zip(images, draws, strict=True)]
        inputs = self._processor.image_processor(images=images, return_tensors="pt")
        return Features(forwards=[dict(inputs)], order=torch.arange(len(images)))

    def encode(self, inputs: dict[str, Any]) -> Tensor:
        """Embeddings of one forward pass through one tower."""
        pictures = "pixel_values" in inputs
        tower = self.model.get_image_features if pictures else self.model.get_text_features
        found = tower(**inputs)
        embeddings: Tensor = found if isinstance(found, Tensor) else found.pooler_output
        return embeddings

    def save(self, folder: Path) -> dict[str, Any]:
        """Write a folder that `AutoModel` and `AutoProcessor` load; weights as safetensors."""
        with quiet():
            self.model.save_pretrained(str(folder))
            self._processor.save_pretrained(str(folder))
        return {}
