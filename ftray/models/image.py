"""Image encoders: any vision model of transformers, with its own pre-processing."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ftray.errors import ConfigError, ModelError
from ftray.media import Content
from ftray.models.augment import Augmentation, make_augmentation
from ftray.models.base import Draws, Encoder, Features, Item
from ftray.models.layout import Layout
from ftray.models.norm import synced
from ftray.models.options import ImageOptions, kept
from ftray.models.pictures import Mode, decoded, image_of
from ftray.models.pooling import GeM
from ftray.models.quiet import quiet
from ftray.models.request import Request, not_loaded

__all__ = ["ImageEncoder", "load"]

Pooling = Literal["auto", "pooler", "cls", "mean", "max", "gem"]

POOLING = "pooling.safetensors"
"""The exponent of pooling gem, beside the folder that transformers load."""
GEM_NOTE = (
    f"Its pooling is GeM with the exponent in {POOLING}: ftray applies it, and transformers gives "
    "the features before."
)
_NEVER_TRAINED = ("mask_token",)
"""Weights for pretraining, which embeddings do not need."""
_CLASS_TOKENS = ("cls_token", "class_embedding")
_INTERPOLATE = "interpolate_pos_encoding"


def load(request: Request) -> ImageEncoder:
    """A transformers folder or hub id with its image processor."""
    options: ImageOptions = kept(
        "image", request.facts, request.options, request.name, may_change=("batch_norm",)
    )
    with quiet():
        from transformers import AutoImageProcessor, AutoModel

        try:
            model, report = AutoModel.from_pretrained(
                request.place,
                trust_remote_code=False,
                dtype=torch.float32,
                output_loading_info=True,
                # what ftray wrote is safetensors: a pickle in its place is somebody else's
                use_safetensors=True if request.facts else None,
            )
        except Exception as error:
            raise not_loaded(request, error) from error
        try:  # Pillow's processors, so that an embedding does not depend on what is installed
            processor = AutoImageProcessor.from_pretrained(
                request.place, trust_remote_code=False, backend="pil"
            )
        except Exception as error:
            reason = str(error).strip().splitlines()[0]
            raise ModelError(
                f"How '{request.name}' wants its images is not known, as its image processor "
                f"(preprocessor_config.json) cannot be loaded: {reason}"
            ) from error
    encoder = ImageEncoder(
        model,
        processor,
        request.name,
        options,
        pooler_is_trained=_pooler_is_trained(report, request.name),
        augmentation=make_augmentation(request.augmentation, "image"),
    )
    if encoder.pooling is not None and "options" in request.facts:
        try:
            encoder.pooling.load_state_dict(load_file(Path(request.place, POOLING)))
        except Exception as error:
            raise not_loaded(request, error) from error
    return encoder


def _pooler_is_trained(report: dict[str, Any], name: str) -> bool:
    """Whether the files held the weights of the pooler, where it has any.

    Raises:
        ModelError: if other weights were not there: transformers would draw them at random.
    """
    missing = [key for key in sorted(report["missing_keys"]) if not key.endswith(_NEVER_TRAINED)]
    others = [key for key in missing if "pooler." not in key]
    if others:
        raise ModelError(
            f"The model '{name}' cannot be loaded: its files lack the weights '{others[0]}'"
            + (f" and {len(others) - 1} more" if len(others) > 1 else "")
        )
    return not missing


class ImageEncoder(Encoder):
    """Images to embeddings `(n, D)`, which are not normalised.

    Args:
        model: a vision model of transformers.
        processor: its image processor.
        name: what the user called it.
        options: see `ImageOptions`.
        pooler_is_trained: whether pooling "auto" may take the output of the model's pooler.
        augmentation: of images in training; None = none.
    """

    kind = "image"
    modalities = frozenset({"image"})

    def __init__(
        self,
        model: Any,
        processor: Any,
        name: str,
        options: ImageOptions,
        *,
        pooler_is_trained: bool = True,
        augmentation: Augmentation | None = None,
    ) -> None:
        super().__init__(name)
        self.model = model
        self.processor = processor
        self._augmentation = augmentation
        self._frozen_norms = options.batch_norm == "frozen"
        self.couples_rows = False if self._frozen_norms else synced(model)
        self._more: dict[str, Any] = {}
        if options.image_size is not None:
            _resize(processor, options.image_size)
            if _INTERPOLATE in inspect.signature(model.forward).parameters:
                self._more = {_INTERPOLATE: True}
        self._mode: Mode = "L" if getattr(model.config, "num_channels", 3) == 1 else "RGB"
        example = self._example()
        pooling = options.pooling
        if pooling == "auto":
            pooling = self._own_pooling(example, pooler_is_trained)
        elif pooling == "pooler" and not pooler_is_trained:
            raise self._no_pooling("pooler", "has no trained pooler")
        if pooling != "pooler":
            self.leave_unused([getattr(model, "pooler", None)])
        self.options = options.model_copy(update={"pooling": pooling})
        self.pooling = GeM(options.pooling_p) if pooling == "gem" else None
        self._dim = int(self._pooled(example).shape[1])

    @property
    def own_dim(self) -> int:
        """Width of an embedding before there is a head."""
        return self._dim

    @property
    def backbones(self) -> dict[str, nn.Module]:
        """The model of transformers."""
        return {"": self.model}

    @torch.no_grad()
    def _example(self) -> Any:
        """What the model gives for one image."""
        self.model.eval()
        pixels = self._pixels([Image.new(self._mode, (64, 64))])
        try:
            return self.model(pixels, **self._more)
        except (ValueError, RuntimeError, TypeError) as error:
            shape = " x ".join(map(str, pixels.shape[1:]))
            raise ModelError(
                f"The model '{self.name}' takes no images of {shape}, as its image processor gives "
                f"them: {str(error).strip().splitlines()[0]}"
            ) from error

    def _own_pooling(self, example: Any, pooler_is_trained: bool) -> Pooling:
        if pooler_is_trained and getattr(example, "pooler_output", None) is not None:
            return "pooler"
        return "cls" if self._has_class_token else "mean"

    @property
    def _has_class_token(self) -> bool:
        return any(name.endswith(_CLASS_TOKENS) for name, _ in self.model.named_parameters())

    def _pooled(self, output: Any) -> Tensor:
        """Embeddings `(n, D)` of the output of the model."""
        how = self.options.pooling
        if how == "pooler":
            pooled: Tensor | None = getattr(output, "pooler_output", None)
            if pooled is None:
                raise self._no_pooling(how, "has no pooler")
            return pooled.flatten(1)
        last: Tensor = output.last_hidden_state
        if how == "cls":
            if last.ndim != 3 or not self._has_class_token:
                raise self._no_pooling(how, "has no class token")
            return last[:, 0]
        tokens = last.flatten(2).transpose(1, 2) if last.ndim == 4 else last  # maps (n, D, h, w)
        if self.pooling is not None:
            return self.pooling(tokens)  # type: ignore[no-any-return]
        return tokens.mean(1) if how == "mean" else tokens.amax(1)

    def _no_pooling(self, how: Pooling, why: str) -> ConfigError:
        return ConfigError(
            f"model_options.pooling = '{how}': '{self.name}' {why}. Valid: auto, mean, max, gem"
        )

    def train(self, mode: bool = True) -> ImageEncoder:
        """Switch the mode; batch normalisation stays as it is where its statistics are frozen."""
        super().train(mode)
        if self._frozen_norms:
            for layer in self.model.modules():
                if isinstance(layer, _BatchNorm):
                    layer.eval()
        return self

    def varies(self, content: Content) -> bool:
        """Whether images are augmented."""
        return self._augmentation is not None

    def collate(
        self, items: Sequence[Item], layout: Layout = "auto", draws: Draws | None = None
    ) -> Features:
        """Decode, augment where there are draws, and pre-process as the model does: one forward."""
        order = torch.arange(len(items))
        if not items:
            return Features(forwards=[], order=order)
        images = [decoded(image_of(content, self.name), self._mode) for _, content in items]
        if draws is not None and self._augmentation is not None:
            images = [self._augmentation(*pair) for pair in zip(images, draws, strict=True)]
        pixels = self._pixels(images)
        return Features(forwards=[{"pixel_values": pixels}], order=order)

    def _pixels(self, images: list[Image.Image]) -> Tensor:
        """Images made ready, `(n, C, H, W)` float32."""
        try:
            pixels: Tensor = self.processor(images=images, return_tensors="pt")["pixel_values"]
        except ValueError as error:
            raise ModelError(
                f"The image processor of '{self.name}' makes no batch of {len(images)} images: "
                f"{str(error).strip().splitlines()[0]}"
            ) from error
        return pixels.float()

    def encode(self, inputs: dict[str, Any]) -> Tensor:
        """Embeddings of images, `(rows, D)`."""
        return self._pooled(self.model(inputs["pixel_values"], **self._more))

    @property
    def caveat(self) -> str:
        """What transformers does not know of it."""
        gem = "" if self.pooling is None else f"{GEM_NOTE} "
        return (gem + super().caveat).strip()

    def freeze(self, weight: str) -> None:
        """Leave a weight, by its name in the transformers model, as it is."""
        self.model.get_parameter(weight).requires_grad_(False)

    def save(self, folder: Path) -> dict[str, Any]:
        """Write a folder that transformers' `AutoModel` and `AutoImageProcessor` load."""
        with quiet():
            self.model.save_pretrained(str(folder))
            self.processor.save_pretrained(str(folder))
        if self.pooling is not None:
            save_file(self.pooling.state_dict(), folder / POOLING)
        return {"options": self.options.model_dump(mode="json")}


def _resize(processor: Any, side: int) -> None:
    """Let an image processor give images of another height and width."""
    from transformers.image_utils import SizeDict

    resized, before = processor.size, getattr(processor, "crop_size", None)
    larger = 1.0
    if before and getattr(processor, "do_center_crop", False):
        # the image is resized to more than is kept: what is cut off stays the same share
        larger = (resized["shortest_edge"] or resized["height"] or side) / before["height"]
        processor.crop_size = SizeDict(height=side, width=side)
    side = round(larger * side)
    shortest = resized["shortest_edge"] is not None
    processor.size = SizeDict(shortest_edge=side) if shortest else SizeDict(height=side, width=side)
    processor.do_resize = True
