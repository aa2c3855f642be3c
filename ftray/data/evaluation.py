"""What an evaluation is given: things to be found, or pairs with scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ftray.data.readers import CsvOptions, read_records
from ftray.data.relevance import RetrievalSet
from ftray.data.retrieval import is_folder, is_same, retrieval_set
from ftray.data.scored import PairSet, pair_set
from ftray.errors import ConfigError

__all__ = ["evaluation_data"]


def evaluation_data(
    query_data: Any,
    index_data: Any = None,
    *,
    columns: Mapping[str, str] | None = None,
    csv_options: CsvOptions | Mapping[str, Any] | None = None,
) -> RetrievalSet | PairSet:
    """Read the data of an evaluation: a `PairSet` if the queries are scored pairs.

    Args:
        query_data: labelled texts, pairs, scored pairs, or a BEIR folder.
        index_data: what is searched; see `retrieval_set`. Scored pairs have none.
        columns: roles to columns.
        csv_options: how to read both.

    Raises:
        ConfigError: for an index beside scored pairs.
        DataError: for data that cannot be read or does not fit together.
    """
    if is_folder(query_data):
        return retrieval_set(query_data, index_data, columns=columns, csv_options=csv_options)
    records = read_records(query_data, columns=columns, csv_options=csv_options, where="query_data")
    if records.kind == "scored":
        if index_data is not None:
            raise ConfigError(
                f"index_data: query_data ({records.source}) holds scored pairs, whose similarities "
                "are compared with their scores: nothing is searched. Leave index_data away, or "
                "name the two texts alone with `columns` to search for the documents of pairs."
            )
        return pair_set(records)
    index = None if is_same(query_data, index_data) else index_data
    return retrieval_set(records, index, columns=columns, csv_options=csv_options)
