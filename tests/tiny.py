"""A text model of 30,000 weights, made on the spot: no network, loaded in milliseconds."""

from __future__ import annotations

import os
import shutil
import string
from collections.abc import Mapping
from pathlib import Path

__all__ = ["tiny_text_model", "tiny_two_towers"]

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
