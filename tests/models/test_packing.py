"""Packed rows: exact for the architectures that are listed, and never used for others."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import Tensor

import ftray
from ftray.config import FitConfig
from ftray.errors import ModelError
from ftray.models import packing
from ftray.models.packing import EXACT, check_packable
from ftray.models.registry import load_encoder
from ftray.models.selection import selected
from ftray.models.text import TextEncoder
from ftray.training.job import prepare
from ftray.training.opening import tell_opening
from tests.conftest import WORDS
from tests.tiny import (
    tiny_clip,
    tiny_image_model,
    tiny_siglip,
    tiny_text_model,
    tiny_two_towers,
    vocabulary,
)

SIZES = {
    "vocab_size": len(vocabulary()),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 80,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
PADDING_IS_1 = {"pad_token_id": 1}
OWN: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 16},
    "camembert": PADDING_IS_1,
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    "electra": {"embedding_size": 16},
    # windows of 9 tokens, and layers of both kinds
    "modernbert": {
        "num_hidden_layers": 4,
        "local_attention": 8,
        "global_attn_every_n_layers": 2,
        **{f"{name}_token_id": 0 for name in ("cls", "sep", "bos", "eos")},
    },
    "roberta": PADDING_IS_1,
    "t5": {
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 4,
        "decoder_start_token_id": 0,
    },
    "xlm-roberta": PADDING_IS_1,
    "xlm-roberta-xl": PADDING_IS_1,
}
OTHERS: dict[str, dict[str, Any]] = {
    "mpnet": PADDING_IS_1,
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "roformer": {"embedding_size": 32},
}


WITHOUT_TYPES = {"camembert", "distilbert", "modernbert", "roberta", "t5"}
WITHOUT_TYPES |= {"xlm-roberta", "xlm-roberta-xl"}
"""Their tokenizers give no `token_type_ids`."""


def made(
    folder: Path, kind: str, options: dict[str, Any], token_types: bool | None = None
) -> TextEncoder:
    """A small random model of a class, loaded as any other is."""
    config = transformers.AutoConfig.for_model(kind, **SIZES | options)
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config)
    raw = folder / "raw"
    model.save_pretrained(str(raw))
    words = vocabulary()
    if options.get("pad_token_id") == 1:  # these models' positions begin behind it
        words["[PAD]"], words["[UNK]"] = words["[UNK]"], words["[PAD]"]
    without = kind in WITHOUT_TYPES if token_types is None else not token_types
    inputs = {"model_input_names": ["input_ids", "attention_mask"]} if without else {}
    tokenizer = transformers.BertTokenizer(vocab=words, model_max_length=64, **inputs)
    tokenizer.save_pretrained(str(raw))
    stack = SentenceTransformer(modules=[Transformer(str(raw)), Pooling(32, "mean")], device="cpu")
    stack.save(str(folder / "st"), create_model_card=False)
    encoder = load_encoder(str(folder / "st"))
    assert isinstance(encoder, TextEncoder)
    return encoder


@pytest.fixture(scope="module")
def texts() -> list[str]:
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 40))) for _ in range(24)]


def embedded(encoder: TextEncoder, texts: list[str], layout: Any) -> Tensor:
    encoder.eval()
    with torch.no_grad():
        result: Tensor = encoder(encoder.collate([("", text) for text in texts], layout))
    return result


@pytest.mark.parametrize(
    ("kind", "token_types"),
    [*((kind, kind not in WITHOUT_TYPES) for kind in sorted(EXACT)), ("bert", False)],
)
def test_packed_rows_are_exact_for_each_architecture_listed(
    tmp_path: Path, texts: list[str], kind: str, token_types: bool
) -> None:
    encoder = made(tmp_path, kind, OWN.get(kind, {}), token_types).double()
    assert encoder.not_packed == ""
    features = encoder.collate([("", text) for text in texts], "packed")
    packed = [forward for forward in features.forwards if packing.PACKED in forward]
    assert packed
    assert all(("packed_token_type_ids" in forward) is token_types for forward in packed)
    own = torch.from_numpy(
        encoder.model.encode(texts, convert_to_numpy=True).astype("float64")
    )  # sentence-transformers', padded
    got = embedded(encoder, texts, "packed")
    assert torch.allclose(got, own, atol=1e-6 * float(own.abs().max()), rtol=0)
    assert torch.allclose(got, embedded(encoder, texts, "padded"), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("kind", sorted(OTHERS))
def test_others_fall_back_to_buckets_and_say_so(
    tmp_path: Path, texts: list[str], kind: str
) -> None:
    encoder = made(tmp_path, kind, OTHERS[kind])
    assert f"'{encoder.model[0].config.model_type}'" in encoder.not_packed
    features = encoder.collate([("", text) for text in texts], "auto")
    assert not any(packing.PACKED in forward for forward in features.forwards)
    assert torch.allclose(
        embedded(encoder, texts, "auto"), embedded(encoder, texts, "padded"), atol=1e-5
    )


def test_the_trial_at_the_start_finds_attention_that_goes_astray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a model that takes no such mask: the list alone is not trusted."""
    monkeypatch.setattr(packing, "_masks", lambda part, same: torch.ones_like(same))
    encoder = made(tmp_path, "bert", {})
    assert "packed rows give other embeddings" in encoder.not_packed


def test_the_trial_looks_beyond_the_window_of_layers_that_have_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A window is seldom as short as a text of the trial: ModernBERT's is 64 tokens each way."""
    whole = {"full_attention": None, "sliding_attention": None}
    monkeypatch.setattr(packing, "_masks", lambda part, same: dict.fromkeys(whole, same))
    encoder = made(tmp_path, "modernbert", OWN["modernbert"] | {"local_attention": 60})
    assert encoder.model[0].config.sliding_window > max(
        len(encoder.model[0].tokenizer(text)["input_ids"]) for text in packing.TRIED
    )
    assert "packed rows give other embeddings" in encoder.not_packed


def test_positions_behind_the_padding_token_are_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "FROM_PADDING", frozenset())
    encoder = made(tmp_path, "roberta", OWN["roberta"])
    assert "packed rows give other embeddings" in encoder.not_packed


@pytest.mark.parametrize("pooling", ["mean", "max", "cls", "weightedmean", "lasttoken"])
def test_every_pooling_sees_each_text_alone(tmp_path: Path, texts: list[str], pooling: str) -> None:
    encoder = load_encoder(str(tiny_text_model(tmp_path / "m", pooling=pooling))).double()
    assert isinstance(encoder, TextEncoder) and not encoder.not_packed
    packed, padded = (embedded(encoder, texts, way) for way in ("packed", "padded"))
    assert torch.allclose(packed, padded, atol=1e-12)


def test_packing_that_was_asked_for_and_cannot_be_is_an_error(
    tmp_path: Path, pair_rows: list[dict[str, str]]
) -> None:
    made(tmp_path, "mpnet", OTHERS["mpnet"])
    options = {"train_data": pair_rows, "loss": "InfoNCE", "packing": "packed", "num_workers": 0}
    said = r"packing = 'packed', but .* type 'mpnet'.*in buckets"
    with pytest.raises(ModelError, match=said):  # by its files, before anything is loaded
        ftray.fit(model=str(tmp_path / "st"), storage_path=str(tmp_path / "runs"), **options)
    assert not (tmp_path / "runs").exists()
    bert = tiny_text_model(tmp_path / "bert")
    text, clip = str(tmp_path / "st"), str(tiny_clip(tmp_path / "clip"))
    for model, of_model, why in (
        ("two-towers", {"text": text}, "type 'mpnet'"),
        (clip, {}, "only text encoders of sentence-transformers are"),
    ):
        with pytest.raises(ModelError, match=f"cannot be packed: .*{why}"):
            prepare(FitConfig(model=model, model_options=of_model, **options), "")
    check_packable("two-towers", "new:two-towers", {"text": str(bert)})
    check_packable("tiny", str(bert), {})


def test_two_towers_pack_as_their_text_model_does(tmp_path: Path) -> None:
    image = str(tiny_image_model(tmp_path / "image"))
    for name, text in (
        ("packs", tiny_text_model(tmp_path / "packs")),
        ("not", tiny_two_towers(tmp_path / "not")),
    ):
        alone = load_encoder(str(text))
        both = load_encoder("two-towers", options={"text": str(text), "image": image})
        assert both.not_packed == alone.not_packed == selected(both, "text").not_packed
        assert (both.not_packed == "") is (name == "packs")
        assert selected(both, "image").not_packed


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (tiny_clip, "only text encoders of sentence-transformers are"),
        (tiny_siglip, "it takes them padded to 16 tokens"),
    ],
)
def test_the_log_says_of_every_encoder_of_texts_why_it_does_not_pack(
    tmp_path: Path, make: Any, why: str
) -> None:
    folder = str(make(tmp_path / "model"))
    rows = [{"query": text, "document": f"the {text}"} for text in ("card", "phone", "bill")]
    options = {"train_data": rows, "loss": "InfoNCE", "num_workers": 0, "batch_size": 3}
    lines: list[str] = []
    job = prepare(FitConfig(model=folder, **options), "")
    tell_opening(job, load_encoder(folder), lambda line, level: lines.append(line))
    assert f"Texts go in buckets by length, not packed: {why}" in lines
