"""What can be told once the model is loaded: how many texts it will cut, and its licence."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ftray.media import texts_of
from ftray.models.base import Encoder
from ftray.models.licence import read_licence
from ftray.models.summary import millions, summarised
from ftray.training.job import Job
from ftray.words import percent

__all__ = ["Lengths", "measure_lengths", "tell_opening"]

SAMPLED = 5_000
LONGEST = 1_000
MAX_CHARACTERS = 4_000_000
"""How much is tokenised for the sample, and for the longest: a few seconds, however long the texts
are."""
AT_A_TIME = 256

Numbers = npt.NDArray[np.int64]
Part = tuple[str, pa.Array]
"""Texts in one role."""


def tell_opening(job: Job, encoder: Encoder, say: Callable[[str, str], None]) -> None:
    """Say what a run should know before its first step.

    Args:
        job: with the texts.
        encoder: the model that will encode them.
        say: takes a line and its level.
    """
    _, sentence = read_licence(job.model)
    if sentence and sentence not in job.notes:  # the card of a hub id came with the weights
        say(sentence, "INFO")
    if _lays_out_texts(job, encoder) and encoder.not_packed and job.config.packing == "auto":
        say(f"Texts go in buckets by length, not packed: {encoder.not_packed}", "INFO")
    weights = summarised(encoder, encoder.name)
    unused = {id(weight) for module in encoder.unused for weight in module.parameters()}
    if any(not w.requires_grad and id(w) not in unused for w in encoder.parameters()):
        trained = millions(weights.trained)
        say(f"weights: {millions(weights.parameters)}, of which {trained} are trained", "INFO")
    if encoder.caveat:
        say(f"The artifact: {encoder.caveat}", "INFO")
    tower = None if job.train.has_queries else encoder.default_tower
    if tower is not None and job.config.epochs:
        what = "labelled texts have" if job.train.kind == "labelled" else "scored pairs have"
        line = f"Only the tower '{tower}' is trained: {what} no queries, which pairs have"
        say(line, "WARNING")
    for what, parts in (
        ("training", _training_texts(job, encoder.roles_differ)),
        ("evaluation", _evaluation_texts(job)),
    ):
        # two towers may read texts of different lengths
        parts = [part for part in parts if len(part[1])]
        limits = [encoder.max_tokens(role) for role, _ in parts]
        for limit in dict.fromkeys(limits):
            if limit is not None:
                those = [part for part, own in zip(parts, limits, strict=True) if own == limit]
                say(*_length_words(what, measure_lengths(encoder, those, limit), limit))


def _lays_out_texts(job: Job, encoder: Encoder) -> bool:
    """Whether a step has texts, and ftray lays them out: a module of the user's does so itself."""
    held = frozenset().union(*job.train.modalities)
    return "text" in encoder.modalities & held and encoder.kind != "module"


def _training_texts(job: Job, roles_differ: bool) -> list[Part]:
    """The distinct texts of the training rows, in the roles in which they are encoded."""
    data = job.train
    columns = [("", data.rows.ravel())]
    if data.has_queries and roles_differ:
        columns = [("query", data.rows[:, 0]), ("document", data.rows[:, 1:].ravel())]
    found = [(role, data.texts.take(pa.array(np.unique(cells)))) for role, cells in columns]
    return [(role, texts_of(cells)) for role, cells in found]


def _evaluation_texts(job: Job) -> list[Part]:
    sides = [side for spec in job.evaluations for side in spec.sides]
    roles = dict.fromkeys(side.role for side in sides)
    found = [(role, pc.unique(_joined(s.texts for s in sides if s.role == role))) for role in roles]
    return [(role, texts_of(cells)) for role, cells in found]


def _joined(arrays: Iterable[pa.Array]) -> pa.Array:
    return pa.concat_arrays([array.cast(pa.large_string()) for array in arrays])


class Lengths(NamedTuple):
    """How long texts are, in tokens.

    Attributes:
        texts: how many there are.
        sampled: how many of them were drawn for the share; all, if they are few.
        cut: how many of these are longer than the limit.
        known_cut: how many are known to be longer: the longest were looked at besides.
        longest: the most tokens that any has.
    """

    texts: int
    sampled: int
    cut: int
    known_cut: int
    longest: int


def measure_lengths(encoder: Encoder, parts: list[Part], limit: int) -> Lengths:
    """Count the tokens of a sample of texts, the same every time, and of the longest ones.

    Args:
        encoder: whose tokenizer and prompts count.
        parts: the texts, by role.
        limit: the most tokens that are not cut.
    """
    texts = _joined(array for _, array in parts)
    roles = np.repeat(np.arange(len(parts)), [len(array) for _, array in parts])
    characters = pc.utf8_length(texts).to_numpy().astype(np.int64)
    count = len(texts)
    drawn = np.arange(count)
    if count > SAMPLED:
        drawn = np.random.default_rng(0).choice(count, SAMPLED, replace=False)
    drawn = _affordable(drawn, characters)
    longest = np.argsort(-characters, kind="stable")[:LONGEST]
    looked_at = np.union1d(drawn, _affordable(longest, characters))
    tokens = np.zeros(count, np.int64)
    for number, (role, _) in enumerate(parts):
        own = looked_at[roles[looked_at] == number]
        for start in range(0, len(own), AT_A_TIME):
            rows = own[start : start + AT_A_TIME]
            tokens[rows] = encoder.token_counts(texts.take(pa.array(rows)).to_pylist(), role)
    return Lengths(
        texts=count,
        sampled=len(drawn),
        cut=int((tokens[drawn] > limit).sum()),
        known_cut=int((tokens > limit).sum()),
        longest=int(tokens.max()),
    )


def _affordable(rows: Numbers, characters: Numbers) -> Numbers:
    """The first of the rows, at least one, that are no more than can be tokenised soon."""
    total = np.cumsum(characters[rows])
    return rows[: max(1, int(np.searchsorted(total, MAX_CHARACTERS, side="right")))]


def _length_words(what: str, found: Lengths, limit: int) -> tuple[str, str]:
    """The line and its level: nobody needs to know of texts that all fit."""
    sampled = " sampled" if found.sampled < found.texts else ""
    if not found.known_cut:
        who = f"{found.texts:,} {what} texts"
        seen = f" ({found.sampled:,} sampled, and the longest)" if sampled else ""
        line = f"None of {who}{seen} is longer than {limit:,} tokens (max_length); the longest has "
        return f"{line}{found.longest:,}", "DEBUG"
    if found.cut:
        share = percent(found.cut, found.sampled)
        who = f"{share} of the {what} texts ({found.cut:,} of {found.sampled:,}{sampled})"
    else:
        who = f"Few {what} texts (at least {found.known_cut:,} of {found.texts:,})"
    line = f"{who} are longer than {limit:,} tokens (max_length) and will be cut; the longest has "
    return f"{line}{found.longest:,}", "INFO"
