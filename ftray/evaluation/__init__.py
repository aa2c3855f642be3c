"""Evaluation: encode queries and index, search exactly, judge the rankings, report the metrics."""
