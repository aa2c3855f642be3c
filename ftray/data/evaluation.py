"""What an evaluation is given: things to be found, or pairs with scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from ftray.data.columns import MissingColumnError
from ftray.data.readers import CsvOptions, Records, read_records
from ftray.data.relevance import RetrievalSet
from ftray.data.retrieval import is_folder, is_same, retrieval_set
from ftray.data.scored import PairSet, pair_set
from ftray.errors import ConfigError, DataError
from ftray.media import Modality

__all__ = ["evaluation_data"]


def evaluation_data(
    query_data: Any,
    index_data: Any = None,
    *,
    columns: Mapping[str, str] | None = None,
    inherited: Mapping[str, str] | None = None,
    csv_options: CsvOptions | Mapping[str, Any] | None = None,
    modalities: frozenset[Modality] | None = None,
) -> RetrievalSet | PairSet:
    """Read the data of an evaluation: a `PairSet` if the queries are scored pairs.

    Args:
        query_data: labelled texts, pairs, triplets, scored pairs, or a BEIR folder.
        index_data: what is searched; see `retrieval_set`. Scored pairs have none.
        columns: roles to columns.
        inherited: the same of the training data, for data that has all these columns; names decide
            where it lacks one.
        csv_options: how to read both.
        modalities: what the model takes; None = not known.

    Raises:
        ConfigError: for an index beside scored pairs.
        DataError: for data that cannot be read or does not fit together.
    """
    if is_folder(query_data):
        return retrieval_set(query_data, index_data, columns=columns, csv_options=csv_options)
    read = partial(read_records, csv_options=csv_options, modalities=modalities, where="query_data")
    options = dict(csv_options or {})
    told = options.get("header") is False or options.get("is_labeled") is not None
    taken = None if columns or told else inherited
    records = _inherited(query_data, taken, options, modalities) if taken else None
    if records is None:
        taken = None
        records = read(query_data, columns=columns)
    if records.kind == "scored":
        if index_data is not None:
            raise ConfigError(
                f"index_data: query_data ({records.source}) holds scored pairs, whose similarities "
                "are compared with their scores: nothing is searched. Leave index_data away, or "
                "name the two texts alone with `columns` to search for the documents of pairs."
            )
        return pair_set(records)
    index = None if is_same(query_data, index_data) else index_data
    judge = partial(retrieval_set, records, index, csv_options=csv_options, modalities=modalities)
    if taken is None:
        return judge(columns=columns)
    try:
        return judge(columns=taken)
    except MissingColumnError:  # of an index of another layout
        return judge()


def _inherited(
    data: Any,
    columns: Mapping[str, str],
    options: Mapping[str, Any],
    modalities: frozenset[Modality] | None,
) -> Records | None:
    """The data read by the columns of the training data; None where these do not fit it.

    Data that names alone tell to be scored pairs stay that: two texts named by the training data
    would leave the score unread.
    """
    try:
        records = read_records(
            data, columns=columns, csv_options=options, modalities=modalities, where="query_data"
        )
    except MissingColumnError:
        return None
    if records.kind == "pairs" and _is_scored(data, options):
        return None
    said = ", ".join(f"{role}: {name}" for role, name in columns.items())
    return replace(records, notes=(*records.notes, f"columns as of the training data: {said}"))


def _is_scored(data: Any, options: Mapping[str, Any]) -> bool:
    """Whether names alone tell so, of its first row."""
    try:
        return read_records(data, csv_options={**options, "size": 1}).kind == "scored"
    except DataError:  # they do not tell
        return False
