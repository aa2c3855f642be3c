from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from ftray.evaluation import intervals
from ftray.evaluation.intervals import paired_change, paired_changes


def test_an_interval_covers_the_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        before = rng.random(80)
        after = before + rng.normal(0.1, 0.3, 80)
        change = paired_change(before, after, resamples=500, seed=trial)
        covered += change.low <= 0.1 <= change.high
    assert 0.9 <= covered / 200 <= 0.99


def test_no_change_is_an_interval_of_nothing():
    change = paired_change([0.5, 0.1], [0.5, 0.1])
    assert (change.mean, change.low, change.high) == (0, 0, 0)


def test_queries_are_paired():
    before = np.linspace(0, 1, 50)
    change = paired_change(before, before + 0.01)
    assert change.low == pytest.approx(0.01) and change.high == pytest.approx(0.01)


def test_metrics_of_the_same_queries_share_their_resamples():
    rng = np.random.default_rng(1)
    before, after = rng.random((2, 60, 3))
    together = paired_changes(before, after, resamples=400)
    for column, found in enumerate(together):
        alone = paired_change(before[:, column], after[:, column], resamples=400)
        assert found.mean == pytest.approx(alone.mean)
        assert (found.low, found.high) == pytest.approx((alone.low, alone.high))


def test_resamples_are_the_same_however_many_are_held_at_a_time(monkeypatch):
    before, after = np.random.default_rng(2).random((2, 50))
    whole = paired_change(before, after, resamples=300)
    monkeypatch.setattr(intervals, "MAX_COUNTS", 50 * 7)
    few = paired_change(before, after, resamples=300)
    assert (few.mean, few.low, few.high) == pytest.approx((whole.mean, whole.low, whole.high))


BESIDE_FORKS = """
import os, threading
import os
import subprocess
import sys

import numpy as np
from ftray.evaluation.intervals import paired_changes

sides = np.random.default_rng(0).random((2, 1000, 8))
over = threading.Event()
def change():
    paired_changes(*sides)
    over.set()
threading.Thread(target=change, daemon=True).start()
forks = 0
while not over.wait(0.002) and forks < 5000:
    if (child := os.fork()) == 0:
        os._exit(0)
    os.waitpid(child, 0)
    forks += 1
print("over" if over.is_set() else "hangs", forks, flush=True)
os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_thread_can_do_it_while_processes_are_forked():
    """As a report does beside training on images; numpy's own matrix product hangs."""
    words = [sys.executable, "-c", BESIDE_FORKS]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)
    answer, forks = done.stdout.split()
    assert answer == "over" and int(forks) > 0
