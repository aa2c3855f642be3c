"""A text model of 30,000 weights, made on the spot: no network, loaded in milliseconds."""

from __future__ import annotations

import os
import shutil
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["tiny_clip", "tiny_image_model", "tiny_siglip", "tiny_text_model", "tiny_two_towers"]

WORDS = """
a about account activate after again all also am amount an and any app are as at balance bank be
been before bill but by call can cancel card cash change charge check contact cost country currency
date day declined deposit did do document does exchange fee find for from get give go got had has
have help here how i if in is it just know late limit long lost mail make money month my need new
no not now of on one open or order other out pay payment pending phone pin please query receive
refund same send she should show so stolen take text than that the their them then there they this
time to today top track transfer true two use verify wait want was way we week were what when where
which who why will with work wrong yes you your
""".split()


def vocabulary() -> dict[str, int]:
    """WordPiece: common words, and every ASCII letter, digit and mark, so that nothing is lost."""
    signs = string.ascii_lowercase + string.digits
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *signs, *string.punctuation]
    pieces += [f"##{sign}" for sign in signs]
    pieces += [f"##{ending}" for ending in ("ed", "er", "es", "ing", "ly", "ment", "tion")]
    return {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}


def tiny_text_model(
    folder: Path | str,
    *,
    dim: int = 32,
    layers: int = 2,
    dropout: float = 0.0,
    pooling: str = "mean",
    normalize: bool = True,
    prompts: Mapping[str, str] | None = None,
    include_prompt: bool = True,
    seed: int = 0,
) -> Path:
    """Write a random BERT as a sentence-transformers folder, and return the folder.

    Args:
        folder: where to; made if it is not there.
        dim: width D of the embeddings; a multiple of 4.
        layers: number of layers.
        dropout: of hidden states and attention.
        pooling: "mean", "cls", "max", or another of sentence-transformers'.
        normalize: whether a Normalize module comes last.
        prompts: role to prompt, as {"query": "find: "}.
        include_prompt: whether the pooling counts the tokens of the prompt.
        seed: of the weights.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = Path(folder)
    vocab = vocabulary()
    config = BertConfig(
        vocab_size=len(vocab),
        hidden_size=dim,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=2 * dim,
        max_position_embeddings=64,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=0.3,  # texts come out far apart, as they do from a trained model
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        bert = BertModel(config)
    raw = folder / "raw"
    bert.save_pretrained(str(raw))
    BertTokenizer(vocab=vocab, model_max_length=64).save_pretrained(str(raw))
    transformer = Transformer(str(raw))
    parts = [transformer, Pooling(dim, pooling, include_prompt)]
    if normalize:
        parts.append(Normalize())
    model = SentenceTransformer(modules=parts, prompts=dict(prompts or {}), device="cpu")
    model.save(str(folder), create_model_card=False, safe_serialization=True)
    for file in raw.iterdir():
        os.remove(file)
    raw.rmdir()
    return folder


def tiny_two_towers(
    folder: Path | str,
    *,
    static_queries: bool = False,
    default_route: str | None = "document",
    prompts: Mapping[str, str] | None = None,
    dim: int = 32,
    query_dim: int | None = None,
    seed: int = 0,
) -> Path:
    """Write a model with a tower for queries and one for documents, and return the folder.

    Args:
        folder: where to; made if it is not there.
        static_queries: a bag of token embeddings instead of a BERT for queries.
        default_route: of texts without a role; None = they have none.
        prompts: role to prompt.
        dim: width D of the embeddings.
        query_dim: another width for queries.
        seed: of the weights.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize, Router
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    folder = Path(folder)
    towers = []
    for i, width in enumerate((query_dim or dim, dim)):
        path = tiny_text_model(folder / f"tower{i}", dim=width, normalize=False, seed=seed + i)
        towers.append(list(SentenceTransformer(str(path), device="cpu")))
        shutil.rmtree(path)
    if static_queries:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            towers[0] = [StaticEmbedding(towers[0][0].tokenizer, embedding_dim=dim)]
    router = Router.for_query_document(
        *towers, default_route=default_route, allow_empty_key=default_route is not None
    )
    model = SentenceTransformer(
        modules=[router, Normalize()], prompts=dict(prompts or {}), device="cpu"
    )
    model.save(str(folder), create_model_card=False, safe_serialization=True)
    return folder


def tiny_image_model(folder: Path | str, kind: str = "resnet", *, seed: int = 0) -> Path:
    """Write a random vision model for images of 32 x 32 with its processor; return the folder.

    Args:
        folder: where to; made if it is not there.
        kind: resnet, vit, dinov2 or efficientnet.
        seed: of the weights.
    """
    import torch
    from transformers import (
        AutoModel,
        Dinov2Config,
        EfficientNetConfig,
        ResNetConfig,
        ViTConfig,
    )
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
    from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
    from transformers.models.efficientnet.image_processing_pil_efficientnet import (
        EfficientNetImageProcessorPil,
    )
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    transformer = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.2,  # images come out far apart, as they do from a trained model
    }
    square = {"height": 32, "width": 32}
    config, processor = {
        "resnet": lambda: (
            ResNetConfig(
                embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic"
            ),
            ConvNextImageProcessorPil(size={"shortest_edge": 32}, crop_pct=0.875),
        ),
        "vit": lambda: (
            ViTConfig(**transformer, intermediate_size=64),
            ViTImageProcessorPil(size=square),
        ),
        "dinov2": lambda: (
            Dinov2Config(**transformer, mlp_ratio=2),
            BitImageProcessorPil(size={"shortest_edge": 36}, crop_size=square),
        ),
        "efficientnet": lambda: (
            EfficientNetConfig(
                image_size=32,
                width_coefficient=0.25,
                depth_coefficient=0.2,
                hidden_dim=320,  # 1280 x width_coefficient
                in_channels=[32, 16, 24],
                out_channels=[16, 24, 40],
                kernel_sizes=[3, 3, 5],
                strides=[1, 2, 2],
                expand_ratios=[1, 2, 2],
                num_block_repeats=[1, 1, 1],
                dropout_rate=0.0,
                drop_connect_rate=0.0,
                initializer_range=0.9,
            ),
            EfficientNetImageProcessorPil(size=square),
        ),
    }[kind]()
    folder = Path(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        AutoModel.from_config(config).save_pretrained(str(folder))
    processor.save_pretrained(str(folder))
    return folder


def tiny_clip(
    folder: Path | str, *, dim: int = 24, dropout: float = 0.0, size: int = 32, seed: int = 0
) -> Path:
    """Write a random CLIP with its processor as a transformers folder, and return the folder.

    Args:
        folder: where to; made if it is not there.
        dim: width D of the embeddings.
        dropout: of attention.
        size: height and width of images; a multiple of 8.
        seed: of the weights.
    """
    from transformers import (
        CLIPConfig,
        CLIPImageProcessorPil,
        CLIPModel,
        CLIPProcessor,
        CLIPTokenizer,
    )

    signs = string.ascii_lowercase + string.digits + string.punctuation
    pieces = [*signs, *(f"{sign}</w>" for sign in signs), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(
        vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], model_max_length=48
    )
    tower = _tiny_tower(dropout)
    begin, end = len(pieces) - 2, len(pieces) - 1
    text = {**tower, "vocab_size": len(pieces), "max_position_embeddings": 48}
    text |= {"bos_token_id": begin, "eos_token_id": end, "pad_token_id": end}
    config = CLIPConfig(
        text_config=text,
        vision_config={**tower, "image_size": size, "patch_size": 8},
        projection_dim=dim,
        initializer_factor=5.0,  # things come out far apart, as they do from a trained model
    )
    images = CLIPImageProcessorPil(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}
    )
    return _written(Path(folder), CLIPModel, config, CLIPProcessor(images, tokenizer), seed)


def tiny_siglip(
    folder: Path | str, *, dim: int = 32, dropout: float = 0.0, size: int = 32, seed: int = 0
) -> Path:
    """Write a random SigLIP; arguments as of `tiny_clip`, `dim` a multiple of 4.

    Its tokenizer knows whole words, and pads to 16 tokens.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import (
        PreTrainedTokenizerFast,
        SiglipConfig,
        SiglipImageProcessorPil,
        SiglipModel,
        SiglipProcessor,
    )

    words = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    whole = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    whole.normalizer = normalizers.Lowercase()
    whole.pre_tokenizer = pre_tokenizers.Whitespace()
    whole.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=whole,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="</s>",
        model_max_length=16,
        model_input_names=["input_ids"],
    )
    tower = {**_tiny_tower(dropout), "hidden_size": dim}
    text = {**tower, "vocab_size": len(words), "max_position_embeddings": 16}
    text |= {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    config = SiglipConfig(
        text_config=text, vision_config={**tower, "image_size": size, "patch_size": 8}
    )
    images = SiglipImageProcessorPil(size={"height": size, "width": size})
    return _written(Path(folder), SiglipModel, config, SiglipProcessor(images, tokenizer), seed)


def _tiny_tower(dropout: float) -> dict[str, Any]:
    return {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "attention_dropout": dropout,
    }


def _written(folder: Path, cls: Any, config: Any, processor: Any, seed: int) -> Path:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = cls(config)
    model.save_pretrained(str(folder))
    processor.save_pretrained(str(folder))
    return folder
