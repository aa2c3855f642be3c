"""Text encoders: any sentence-transformers folder, Hugging Face folder or id.

The module stack (transformer, pooling, normalisation, dense layers), its prompts and its file
format are sentence-transformers'. What is ours is the layout: the texts of a step go through the
stack in several forwards of similar length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ftray.errors import ModelError
from ftray.models.layout import Layout, cut_by_length
from ftray.models.quiet import quiet

__all__ = ["Features", "TextEncoder"]

Item = tuple[str, str]
"""(role, text); the role is "query", "document" or ""."""

NO_LIMIT = 1_000_000
"""Tokenizers without a limit give a very large number."""
SHORTEST = 8
"""The fewest tokens that `max_length` may be; less is a slip of the pen."""
PER_TEXT = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True, kw_only=True)
class Features:
    """Tokenised texts, laid out.

    Attributes:
        forwards: one feature dict per forward pass.
        order: position in the batch of each row of the forwards, one after the other, `(n,)`.
        tokens: real tokens. processed_tokens: with padding.
    """

    forwards: list[dict[str, Any]]
    order: Tensor
    tokens: int
    processed_tokens: int


class TextEncoder(nn.Module):
    """Texts to embeddings `(n, D)`.

    Args:
        model: a `sentence_transformers.SentenceTransformer`.
        name: what the user called it, for logs.
        max_length: longest text in tokens; None keeps the model's own limit.
    """

    def __init__(self, model: Any, name: str, max_length: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.name = name
        if max_length is not None:
            self._limit(max_length)

    def _limit(self, max_length: int) -> None:
        if max_length < SHORTEST:
            raise ModelError(f"max_length = {max_length}: at least {SHORTEST} tokens")
        positions = getattr(getattr(self.model[0], "config", None), "max_position_embeddings", None)
        if positions is not None and max_length > positions:
            raise ModelError(
                f"max_length = {max_length}, but '{self.name}' has only {positions} positions"
            )
        self.model.max_seq_length = max_length

    @property
    def embedding_dim(self) -> int:
        """Width D of an embedding."""
        return int(self.model.get_embedding_dimension())

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def roles_differ(self) -> bool:
        """Whether a text is encoded differently as query and as document (by prompts)."""
        return self._prompt("query") != self._prompt("document")

    def _prompt(self, role: str) -> str:
        prompts = self.model.prompts or {}
        name = role if role in prompts else self.model.default_prompt_name
        return str(prompts.get(name) or "")

    @property
    def _prompts_are_pooled(self) -> bool:
        return all(getattr(module, "include_prompt", True) for module in self.model)

    @property
    def max_tokens(self) -> int | None:
        """The most tokens of a text, prompt and special tokens among them, that are not cut.

        None if there is no limit.
        """
        limit = self.model.max_seq_length
        return None if limit is None or limit > NO_LIMIT else int(limit)

    def token_counts(self, texts: Sequence[str], role: str) -> list[int]:
        """How many tokens each text has, whole, with its role's prompt and special tokens."""
        prompt = self._prompt(role)
        found = self.model.tokenizer(
            [prompt + text for text in texts],
            truncation=False,
            padding=False,
            return_attention_mask=False,
            verbose=False,  # it warns of texts that are too long: that is what is asked
        )
        return [len(ids) for ids in found["input_ids"]]

    def collate(self, items: Sequence[Item], layout: Layout = "bucketed") -> Features:
        """Tokenise and lay out; safe to call outside the training thread."""
        prompts = [self._prompt(role) for role, _ in items]
        groups: dict[str, list[int]]
        if not items:
            groups = {}
        elif self._prompts_are_pooled or len(set(prompts)) == 1:
            groups = {"": list(range(len(items)))}
        else:  # the pooling must leave each prompt out: one forward knows one prompt
            groups = {}
            for position, prompt in enumerate(prompts):
                groups.setdefault(prompt, []).append(position)
        forwards: list[dict[str, Any]] = []
        order: list[int] = []
        tokens = processed = 0
        for members in groups.values():
            features = self._preprocess(
                [items[i][1] for i in members], [prompts[i] for i in members]
            )
            lengths = features["attention_mask"].sum(dim=1).tolist()
            tokens += sum(lengths)
            for cut in cut_by_length(lengths, layout):
                width = max(lengths[i] for i in cut)
                forwards.append(self._cut(features, cut, width))
                order.extend(members[i] for i in cut)
                processed += len(cut) * width
        return Features(
            forwards=forwards,
            order=torch.tensor(order, dtype=torch.long),
            tokens=tokens,
            processed_tokens=processed,
        )

    def _preprocess(self, texts: list[str], prompts: list[str]) -> dict[str, Any]:
        if len(set(prompts)) == 1:
            features = self.model.preprocess(texts, prompt=prompts[0] or None)
        else:
            features = self.model.preprocess([p + t for p, t in zip(prompts, texts, strict=True)])
        if "attention_mask" not in features:
            raise ModelError(f"'{self.name}' does not tokenise texts with an attention mask")
        return dict(features)

    def _cut(self, features: dict[str, Any], rows: list[int], width: int) -> dict[str, Any]:
        left = getattr(self.model.tokenizer, "padding_side", "right") == "left"
        columns = slice(-width, None) if left else slice(0, width)
        index = torch.tensor(rows)
        return {
            name: value[index][:, columns] if name in PER_TEXT else value
            for name, value in features.items()
        }

    def forward(self, features: Features) -> Tensor:
        """Embeddings `(n, D)` in the order of the items given to `collate`; n may be 0.

        They are never of half precision, whatever autocast gives: ranks with texts and ranks
        without exchange equal types.
        """
        dtype = torch.promote_types(next(self.parameters()).dtype, torch.float32)
        if not features.forwards:
            return torch.zeros(0, self.embedding_dim, dtype=dtype, device=self.device)
        joined = torch.cat([self._encode(forward) for forward in features.forwards]).to(dtype)
        return joined[torch.argsort(features.order).to(joined.device)]

    def _encode(self, features: dict[str, Any]) -> Tensor:
        moved = {
            name: value.to(self.device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in features.items()
        }
        embedding: Tensor = self.model(moved)["sentence_embedding"]
        return embedding

    def save(self, folder: Path) -> None:
        """Write a folder that `SentenceTransformer(folder)` loads; weights as safetensors."""
        with quiet():
            self.model.save(str(folder), create_model_card=False, safe_serialization=True)
