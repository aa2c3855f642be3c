"""Text encoders: any sentence-transformers folder, Hugging Face folder or id.

The module stack (transformer, pooling, normalisation, dense layers, routes for queries and for
documents), its prompts and its file format are sentence-transformers'. What is ours is the layout:
the texts of a step go through the stack packed, or in several forwards of similar length.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ftray.errors import ModelError
from ftray.media import Content, Media
from ftray.models.base import Draws, Encoder, Features, Item
from ftray.models.layout import Layout, forwards_of
from ftray.models.options import TextOptions, checked
from ftray.models.packing import (
    PACKED,
    Packer,
    difference,
    packed_embedding,
    packer_of,
    tried,
)
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
    options: TextOptions = checked("text", request.options, request.name)
    with quiet():
        from sentence_transformers import SentenceTransformer

        from ftray.models import stack

        try:
            # it has no public way to take classes of ours without trusting the code of folders
            model = SentenceTransformer._load_with_module_classes(
                request.place,
                stack.OWN_MODULES,
                device="cpu",
                trust_remote_code=False,
                # what ftray wrote is safetensors: a pickle in its place is somebody else's
                model_kwargs={"use_safetensors": True} if request.facts else None,
            )
        except Exception as error:
            raise not_loaded(request, error) from error
        stack.changed(model, options, request.name)
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
        self.leave_unused(_pooler_passed_over(part) for part in self._firsts.values())
        self._head: str | None = None
        self._packer: Packer | None = None
        self.not_packed = self._try_packing()
        """Why texts are not packed; "" where they are."""

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
    def _firsts(self) -> dict[str, Any]:
        """What texts enter first; several, by their roles, where there are."""
        firsts = {role: self._path(role)[0] for role in ROLES}
        if firsts["query"] is firsts["document"]:
            firsts = {"": firsts["query"]}
        return firsts

    @property
    def backbones(self) -> dict[str, nn.Module]:
        """The models of transformers; several, by the roles of their texts, where there are."""
        from sentence_transformers.base.modules import Transformer

        firsts = self._firsts
        return {
            role: first.model for role, first in firsts.items() if isinstance(first, Transformer)
        }

    @property
    def static_embeddings(self) -> list[nn.Module]:
        """Those of the roles without a model of transformers."""
        with_one = self.backbones
        return [first for role, first in self._firsts.items() if role not in with_one]

    @property
    def own_dim(self) -> int:
        """Width of an embedding before there is a head."""
        return int(self.model.get_embedding_dimension())

    def attach_head(self, dim: int) -> None:
        """Put a `Dense` of sentence-transformers behind the model, before its normalisation."""
        from ftray.models import stack

        self._head = stack.insert_head(self.model, self.own_dim, dim)

    @property
    def head_prefix(self) -> str | None:
        """How the names of the head's weights begin; None without a head that ftray attached."""
        return None if self._head is None else f"model.{self._head}."

    def adopt_head(self, facts: Mapping[str, Any], folder: Path) -> None:
        """Know again which module is the head."""
        self._head = str(facts["module"])

    @property
    def caveat(self) -> str:
        """What sentence-transformers needs to load it: it has no GeM."""
        from ftray.models import stack

        return stack.GEM_NOTE if stack.has_gem(self.model) else ""

    def save_head(self, folder: Path) -> dict[str, Any] | None:
        """What `ftray.json` says of the head: it is a module of the model like the others."""
        return None if self._head is None else {"dim": self.own_dim, "module": self._head}

    def freeze(self, weight: str) -> None:
        """Leave a weight, by its name in the sentence-transformers model, as it is."""
        self.model.get_parameter(weight).requires_grad_(False)

    @property
    def roles_differ(self) -> bool:
        """Whether a text is encoded differently as query and as document.

        By prompts, by routes (sentence-transformers' `Router`), or by how much of it is read. Also
        where only a text without a role is: then too it takes the role to encode it.
        """
        return self._tells_apart(*ROLES) or self._tells_apart("query", "")

    def _tells_apart(self, one: str, other: str) -> bool:
        first, second = (
            (self._prompt(role), list(map(id, self._path(role))), self.max_tokens(role))
            for role in (one, other)
        )
        return first != second

    @property
    def towers(self) -> tuple[str, ...]:
        """What an evaluation may name as its `model`: the roles, where these differ, else none."""
        return ROLES if self._tells_apart(*ROLES) else ()

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

    def _try_packing(self) -> str:
        """Find out whether packed rows give the same embeddings; the reason where they do not."""
        if self._by_task:
            return "its queries and documents go separate ways"
        path = self._path("")
        left = getattr(getattr(path[0], "tokenizer", None), "padding_side", "right") == "left"
        packer = packer_of(path, left)
        if isinstance(packer, str):
            return packer
        self._packer = packer
        items = [("", text) for text in tried(path)]
        was_training = self.training
        self.eval()
        found = difference(lambda layout: self(self.collate(items, layout)))
        self.train(was_training)
        if found:
            self._packer = None
        return found

    def collate(
        self, items: Sequence[Item], layout: Layout = "auto", draws: Draws | None = None
    ) -> Features:
        """Tokenise and lay out; texts are not augmented."""
        together = {role: self._of_one_forward(role) for role in {role for role, _ in items}}
        groups: dict[tuple[str, str], list[int]] = {}
        for position, (role, _) in enumerate(items):
            groups.setdefault(together[role], []).append(position)
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
        shared = {name: value for name, value in features.items() if name not in PER_TEXT}
        packer = self._packer
        if packer is None and layout != "padded":
            layout = "bucketed"
        for laid in forwards_of(lengths, layout):
            texts = laid.texts
            if packer is not None and laid.is_packed:
                forward = shared | packer.inputs(features, lengths, laid)
            else:
                columns = slice(-laid.width, None) if left else slice(0, laid.width)
                index = torch.tensor(texts)
                own = {name: features[name] for name in PER_TEXT if name in features}
                forward = shared | {name: value[index][:, columns] for name, value in own.items()}
            yield forward, texts, sum(lengths[i] for i in texts), laid.tokens

    def encode(self, inputs: dict[str, Any]) -> Tensor:
        """Embeddings of one forward pass through the stack."""
        if PACKED in inputs:
            return packed_embedding(self._path(""), inputs)
        embedding: Tensor = self.model(inputs)["sentence_embedding"]
        return embedding

    def varies(self, content: Content) -> bool:
        """No text is augmented."""
        return False

    @property
    def _parts(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """The modules before the head that ftray attached, and the head with what follows it."""
        modules = list(self.model)
        names = [name for name, _ in self.model.named_children()]
        cut = len(names) if self._head is None else names.index(self._head)
        return modules[:cut], modules[cut:]

    def first_part(self, inputs: dict[str, Any]) -> Tensor:
        """What comes out before the head, `(rows, F)`."""
        before, _ = self._parts
        if PACKED in inputs:
            return packed_embedding(before, inputs)
        for module in before:
            inputs = module(inputs)
        embedding: Tensor = inputs["sentence_embedding"]
        return embedding

    def last_part(self, features: Tensor, branch: str) -> Tensor:
        """The head, and what follows it."""
        found = {"sentence_embedding": features}
        for module in self._parts[1]:
            found = module(found)
        return found["sentence_embedding"]

    def save(self, folder: Path) -> dict[str, Any]:
        """Write a folder that `SentenceTransformer(folder)` loads; weights as safetensors."""
        with quiet():
            self.model.save(str(folder), create_model_card=False, safe_serialization=True)
        return {}


def _pooler_passed_over(first: Any) -> nn.Module | None:
    """The pooler of a model of transformers, where the features of its tokens are taken."""
    taken = getattr(first, "modality_config", {}).get("text", {}).get("method_output_name")
    pooler = getattr(getattr(first, "model", None), "pooler", None)
    return pooler if taken == "last_hidden_state" and isinstance(pooler, nn.Module) else None
