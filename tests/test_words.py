"""Counts, shares and durations read as a person would say them."""

from __future__ import annotations

import pytest

from ftray.words import about, brief_seconds, counted, percent


def test_one_is_singular_and_everything_else_plural() -> None:
    assert [counted(n, "row") for n in (0, 1, 2, 2000)] == [
        "0 rows",
        "1 row",
        "2 rows",
        "2,000 rows",
    ]
    assert [counted(n, "query", "queries") for n in (1, 2)] == ["1 query", "2 queries"]


def test_a_share_is_never_rounded_to_nothing() -> None:
    assert percent(31, 1000) == "3.1 %"
    assert percent(1, 5000) == "less than 0.1 %"
    assert percent(0, 5000) == "0.0 %"
    assert percent(7, 7) == "100.0 %"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "1 second"),
        (40, "40 seconds"),
        (89, "89 seconds"),
        (150, "2 minutes"),
        (3601, "60 minutes"),
        (9000, "2.5 hours"),
        (7200, "2 hours"),
        (200_000, "2.3 days"),
    ],
)
def test_a_duration_has_the_unit_that_suits_it(seconds: float, words: str) -> None:
    assert about(seconds) == words


def test_short_times_keep_two_digits() -> None:
    assert [brief_seconds(s) for s in (0.0347, 2.14, 13.9, 120.4)] == [
        "0.035 s",
        "2.1 s",
        "14 s",
        "120 s",
    ]
