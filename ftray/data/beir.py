"""BEIR folders as they are: corpus.jsonl, queries.jsonl, qrels/*.tsv.

The format is that of the BEIR benchmark (Thakur et al. 2021, arXiv:2104.08663): a document is its
title, a space, and its text. Judgements are BEIR's three columns (query-id, corpus-id, score, with
or without that header) or TREC's four (query, iteration, document, grade).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ftray.errors import DataError
from ftray.media import MARK
from ftray.words import counted

__all__ = ["PARTS", "BeirFolder", "is_like_beir", "read_corpus", "read_folder"]

PARTS = ("corpus.jsonl", "queries.jsonl", "qrels")


@dataclass(frozen=True, kw_only=True)
class BeirFolder:
    """The judged queries, all documents, and the judgements between them.

    Args:
        query_ids: ids of the queries that have a judgement, in the file's order; their texts
            are `query_texts`.
        document_ids: ids of the corpus; their texts are `document_texts`.
        queries: the query of each judgement, a position in `query_ids`, `(J,)`.
        documents: the document of each judgement, a position in `document_ids`, `(J,)`.
        grades: the grade of each judgement; 0 = judged and not relevant, `(J,)`.
        notes: what a user should know.
    """

    query_ids: list[str]
    query_texts: list[str]
    document_ids: list[str]
    document_texts: list[str]
    queries: npt.NDArray[np.int64]
    documents: npt.NDArray[np.int64]
    grades: npt.NDArray[np.float32]
    notes: tuple[str, ...]


def is_like_beir(folder: Path) -> bool:
    """Whether a part of such a folder is there, so that nothing else is meant."""
    return folder.is_dir() and any((folder / name).exists() for name in PARTS)


def read_corpus(folder: str | os.PathLike[str]) -> tuple[list[str], list[str]]:
    """Ids and texts of corpus.jsonl.

    Raises:
        DataError: with file and line.
    """
    return _texts(Path(folder) / "corpus.jsonl")


def read_folder(folder: str | os.PathLike[str], *, prefer: str) -> BeirFolder:
    """Read a BEIR folder with one of its qrels.

    Args:
        folder: the folder.
        prefer: the split to take, as `test`; where it is missing, the only one there is.

    Raises:
        DataError: a missing file, a line that cannot be read, or a judgement of a query or a
            relevant document that does not exist.
    """
    path = Path(folder)
    for name in PARTS:
        if not (path / name).exists():
            raise DataError(f"{path} is not a BEIR folder: '{name}' is missing in it.")
    qrels = _qrels_file(path / "qrels", prefer)
    document_ids, document_texts = _texts(path / "corpus.jsonl")
    all_ids, all_texts = _texts(path / "queries.jsonl")
    judged = _judgements(qrels, set(all_ids), set(document_ids))
    with_judgement = {query for query, _ in judged}
    kept = [i for i, query in enumerate(all_ids) if query in with_judgement]
    query_ids = [all_ids[i] for i in kept]
    query_at = {name: i for i, name in enumerate(query_ids)}
    document_at = {name: i for i, name in enumerate(document_ids)}
    notes = [
        f"{qrels}: {counted(len(judged), 'judgement')} of "
        f"{counted(len(kept), 'query', 'queries')} over {counted(len(document_ids), 'document')}"
    ]
    if len(kept) < len(all_ids):
        notes.append(f"queries without a judgement, left out: {len(all_ids) - len(kept):,}")
    return BeirFolder(
        query_ids=query_ids,
        query_texts=[all_texts[i] for i in kept],
        document_ids=document_ids,
        document_texts=document_texts,
        queries=np.array([query_at[query] for query, _ in judged], np.int64),
        documents=np.array([document_at[document] for _, document in judged], np.int64),
        grades=np.array(list(judged.values()), np.float32),
        notes=tuple(notes),
    )


def _qrels_file(folder: Path, prefer: str) -> Path:
    files = sorted(folder.glob("*.tsv"))
    chosen = [file for file in files if file.stem == prefer] or files
    if len(chosen) != 1:
        there = ", ".join(file.name for file in files) or "no .tsv file"
        raise DataError(
            f"{folder} holds {there}. Valid: {prefer}.tsv, or one .tsv file of any name."
        )
    return chosen[0]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error.reason}), which BEIR files are.") from None


def _texts(path: Path) -> tuple[list[str], list[str]]:
    ids: list[str] = []
    texts: list[str] = []
    lines: dict[str, int] = {}
    for number, line in _lines(path):
        place = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{place}: not valid JSON ({error.msg}).") from None
        ident, text = _fields(record, place)
        if ident in lines:
            raise DataError(f"{place}: the _id '{ident}' also stands at line {lines[ident]}.")
        lines[ident] = number
        ids.append(ident)
        texts.append(text)
    if not ids:
        raise DataError(f"{path} is empty.")
    return ids, texts


def _fields(record: Any, place: str) -> tuple[str, str]:
    if not isinstance(record, dict) or "_id" not in record or "text" not in record:
        raise DataError(f"{place}: a BEIR record is an object with _id and text.")
    title, text = record.get("title") or "", record["text"]
    if not isinstance(title, str) or not isinstance(text, str):
        raise DataError(f"{place}: title and text must be texts.")
    if MARK in title + text:
        raise DataError(f"{place}: a text with the character U+0000, which no text may hold.")
    return str(record["_id"]), f"{title} {text}".strip()


def _judgements(path: Path, queries: set[str], documents: set[str]) -> dict[tuple[str, str], float]:
    """(query, document) to grade, in the file's order."""
    judged: dict[tuple[str, str], float] = {}
    for number, line in _lines(path):
        place = f"{path}, line {number}"
        cells = line.strip().split("\t")
        cells = cells if len(cells) > 2 else line.split()
        if len(cells) not in (3, 4):
            raise DataError(
                f"{place}: {counted(len(cells), 'column')}. Valid: query-id, corpus-id, score; "
                "or TREC's query, iteration, document, grade."
            )
        query, document, written = cells[0], cells[-2], cells[-1]
        try:
            grade = float(written)
        except ValueError:
            if not judged and cells[-1].lower() in ("score", "grade", "relevance", "rel"):
                continue  # the header
            raise DataError(f"{place}: the grade '{written}' is not a number.") from None
        if query not in queries:
            raise DataError(f"{place}: the query '{query}' is not in queries.jsonl.")
        if document not in documents:
            if grade <= 0:
                continue
            raise DataError(f"{place}: the relevant document '{document}' is not in corpus.jsonl.")
        if judged.setdefault((query, document), grade) != grade:
            raise DataError(
                f"{place}: query '{query}' and document '{document}' have another grade above."
            )
    if not judged:
        raise DataError(f"{path} has no judgements.")
    return judged
