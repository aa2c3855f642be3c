"""Text encoders: any sentence-transformers folder, Hugging Face folder or id.

The module stack (transformer, pooling, normalisation, dense layers, routes for queries and for
documents), its prompts and its file format are sentence-transformers'. What is ours is the layout:
the texts of a step go through the stack in several forwards of similar length.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ftray.errors import ModelError
from ftray.media import Content, Media
from ftray.models.base import Draws, Encoder, Features, Item
from ftray.models.layout import Layout, cut_by_length
from ftray.models.options import checked
from ftray.models.quiet import quiet
from ftray.models.request import Request, not_loaded
from ftray.models.routes import ROLES, check_widths, path_of, takes_task

__all__ = ["TextEncoder", "load"]

NO_LIMIT = 1_000_000
"""Tokenizers without a limit give a very large number."""
SHORTEST = 8
"""The fewest tokens that `max_length` may be; less is a slip of the pen."""
PER_TEXT = ("input_ids", "attention_mask", "token_type_ids")


def load(request: Request) -> TextEncoder:
    """A `SentenceTransformer` folder, transformers folder, or hub id."""
    checked("text", request.options, request.name)
    with quiet():
        from sentence_transformers import SentenceTransformer

        try:
            model = SentenceTransformer(
                request.place,
                device="cpu",
                trust_remote_code=False,
                # what ftray wrote is safetensors: a pickle in its place is somebody else's
                model_kwargs={"use_safetensors": True} if request.facts else None,
            )
        except Exception as error:
            raise not_loaded(request, error) from error
    return TextEncoder(model.float(), request.name, request.max_length)


class TextEncoder(Encoder):
    """Texts to embeddings `(n, D)`.

    Args:
        model: a `sentence_transformers.SentenceTransformer`.
        name: what the user called it, for logs.
        max_length: longest text in tokens; None keeps the model's own limit.
    """

    kind = "text"
    modalities = frozenset({"text"})

    def __init__(self, model: Any, name: str, max_length: int | None = None) -> None:
        super().__init__(name)
        self.model = model
        self._by_task = takes_task(model)
        check_widths(model, name)
        if max_length is not None:
            self._limit(max_length)

    def _limit(self, max_length: int) -> None:
        if max_length < SHORTEST:
            raise ModelError(f"max_length = {max_length}: at least {SHORTEST} tokens")
        first = {id(part): part for part in (self._path(role)[0] for role in ROLES)}
        limited = [
            part for part in first.values() if getattr(part, "max_seq_length", 0) != math.inf
        ]
        if not limited:
            raise ModelError(f"max_length = {max_length}: '{self.name}' takes texts of any length")
        for part in limited:
            config = getattr(part, "config", None)
            positions = getattr(config, "max_position_embeddings", None)
            if positions is not None and max_length > positions:
                raise ModelError(
                    f"max_length = {max_length}, but '{self.name}' has only {positions} positions"
                )
            part.max_seq_length = max_length  # type: ignore[assignment]

    @property
    def embedding_dim(self) -> int:
        """Width D of an embedding."""
        return int(self.model.get_embedding_dimension())

    def freeze(self, weight: str) -> None:
        """Leave a weight, by its name in the sentence-transformers model, as it is."""
        self.model.get_parameter(weight).requires_grad_(False)

    @property
    def roles_differ(self) -> bool:
        """Whether a text is encoded differently as query and as document.

        By prompts, by routes (sentence-transformers' `Router`), or by how much of it is read.
        """
        query, document = (
            (self._prompt(role), list(map(id, self._path(role))), self.max_tokens(role))
            for role in ROLES
        )
        return query != document

    @property
    def towers(self) -> tuple[str, ...]:
        """What an evaluation may name as its `model`: the roles, where these differ, else none."""
        return ROLES if self.roles_differ else ()

    @property
    def default_tower(self) -> str | None:
        """Of two towers with weights of their own, the one of texts without a role; else None."""
        paths = {role: list(map(id, self._path(role))) for role in ROLES}
        if len(set(map(tuple, paths.values()))) == 1:
            return None
        default = list(map(id, self._path("")))
        return next((role for role in ROLES if paths[role] == default), None)

    def _path(self, role: str) -> list[nn.Module]:
        """The modules that a text of this role goes through."""
        return path_of(self.model, role, self.name)

    def _prompt(self, role: str) -> str:
        prompts = self.model.prompts or {}
        name = role if role in prompts else self.model.default_prompt_name
        return str(prompts.get(name) or "")

    @property
    def _prompts_are_pooled(self) -> bool:
        return all(getattr(module, "include_prompt", True) for module in self.model.modules())

    def max_tokens(self, role: str = "") -> int | None:
        """The most tokens of a text, prompt and special tokens among them, that are not cut.

        None if there is no limit.
        """
        first = self._path(role)[0]
        limit = getattr(first, f"{role}_length", None) or getattr(first, "max_seq_length", None)
        return None if limit is None or limit > NO_LIMIT else int(limit)

    def token_counts(self, texts: Sequence[str], role: str) -> list[int]:
        """How many tokens each text has, whole, with its role's prompt and special tokens."""
        prompt = self._prompt(role)
        tokenizer: Any = self._path(role)[0].tokenizer
        whole = [prompt + text for text in texts]
        if not callable(tokenizer):  # of the tokenizers library, which static embeddings have
            found = tokenizer.encode_batch(whole, add_special_tokens=False)
            return [len(encoding.ids) for encoding in found]
        found = tokenizer(
            whole,
            truncation=False,
            padding=False,
            return_attention_mask=False,
            verbose=False,  # it warns of texts that are too long: that is what is asked
        )
        return [len(ids) for ids in found["input_ids"]]

    def collate(
        self, items: Sequence[Item], layout: Layout = "bucketed", draws: Draws | None = None
    ) -> Features:
        """Tokenise and lay out; texts are not augmented."""
        groups: dict[tuple[str, str], list[int]] = {}
        for position, (role, _) in enumerate(items):
            groups.setdefault(self._of_one_forward(role), []).append(position)
        forwards: list[dict[str, Any]] = []
        order: list[int] = []
        tokens = processed = 0
        for members in groups.values():
            features = self._preprocess([items[i] for i in members])
            for forward, rows, real, whole in self._laid_out(
                features, items[members[0]][0], layout
            ):
                forwards.append(forward)
                order.extend(members[i] for i in rows)
                tokens += real
                processed += whole
        return Features(
            forwards=forwards,
            order=torch.tensor(order, dtype=torch.long),
            tokens=tokens,
            processed_tokens=processed,
        )

    def _of_one_forward(self, role: str) -> tuple[str, str]:
        """What the texts of one forward have in common.

        A forward knows one task, and, if the pooling is to leave the prompts out, one prompt.
        """
        prompt = "" if self._prompts_are_pooled else self._prompt(role)
        return prompt, role if self._by_task else ""

    def _preprocess(self, items: list[Item]) -> dict[str, Any]:
        """The texts of one group, tokenised."""
        task: dict[str, str | None] = {}
        if self._by_task:
            self._path(items[0][0])  # says clearly what is wrong, if there is no route
            task = {"task": items[0][0] or None}
        prompts = [self._prompt(role) for role, _ in items]
        texts = [self._text(content) for _, content in items]
        if len(set(prompts)) == 1:
            features = self.model.preprocess(texts, prompt=prompts[0] or None, **task)
        else:
            texts = [prompt + text for prompt, text in zip(prompts, texts, strict=True)]
            features = self.model.preprocess(texts, **task)
        if "attention_mask" not in features and "offsets" not in features:
            raise ModelError(f"'{self.name}' does not tokenise texts with an attention mask")
        return {**features, **task}

    def _text(self, content: Content) -> str:
        if isinstance(content, Media):
            raise ModelError(
                f"'{self.name}' encodes texts, and {content.name} is of the kind "
                f"'{content.modality}'"
            )
        return content

    def _laid_out(
        self, features: dict[str, Any], role: str, layout: Layout
    ) -> Iterator[tuple[dict[str, Any], list[int], int, int]]:
        """Forwards, each with its rows, its real tokens, and its tokens with padding."""
        if "attention_mask" not in features:  # texts end to end, as static embeddings take them
            count = len(features["input_ids"])
            yield features, list(range(len(features["offsets"]))), count, count
            return
        lengths = features["attention_mask"].sum(dim=1).tolist()
        left = getattr(self._path(role)[0].tokenizer, "padding_side", "right") == "left"
        for rows in cut_by_length(lengths, layout):
            width = max(lengths[i] for i in rows)
            columns = slice(-width, None) if left else slice(0, width)
            index = torch.tensor(rows)
            forward = {
                name: value[index][:, columns] if name in PER_TEXT else value
                for name, value in features.items()
            }
            yield forward, rows, sum(lengths[i] for i in rows), len(rows) * width

    def encode(self, inputs: dict[str, Any]) -> Tensor:
        """Embeddings of one forward pass through the stack."""
        embedding: Tensor = self.model(inputs)["sentence_embedding"]
        return embedding

    def save(self, folder: Path) -> dict[str, Any]:
        """Write a folder that `SentenceTransformer(folder)` loads; weights as safetensors."""
        with quiet():
            self.model.save(str(folder), create_model_card=False, safe_serialization=True)
        return {}
