"""Batches by cost, and processes that encode: the embeddings of one process."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import ftray
from ftray.data.inputs import read_inputs
from ftray.errors import FtrayError, ModelError, RunFailedError
from ftray.evaluation.encode import BATCH_COST, BATCH_SIZES, MEDIA_BATCH, cut_batches, encode_texts
from ftray.evaluation.encoders import Processes, packed_encoder
from ftray.media import MEDIA_SIZE, Content, Media
from ftray.models.base import Encoder
from tests.conftest import WORDS


def texts(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 12))) for _ in range(count)]


# ---------------------------------------------------------------- batches


def test_batches_hold_many_short_items_and_few_long_ones() -> None:
    costs = [*[10] * 2000, *[400] * 40, *[10**5] * 40, *[MEDIA_SIZE] * 70]
    draw = random.Random(0)
    draw.shuffle(costs)
    batches = cut_batches(costs, None)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(costs)))
    longest = [max(costs[i] for i in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True)
    least, most = BATCH_SIZES
    for batch, cost in list(zip(batches, longest, strict=True))[:-1]:
        wanted = {MEDIA_SIZE: MEDIA_BATCH, 10**5: least, 400: BATCH_COST // 400, 10: most}[cost]
        assert len(batch) == wanted
    assert cut_batches([], None) == [] == cut_batches([], 4)
    assert [len(batch) for batch in cut_batches(costs, 1000)] == [1000, 1000, 150]


def test_the_batch_size_is_a_choice_of_speed(tiny_model: Path) -> None:
    model, given = ftray.get_model(str(tiny_model)), texts(90)
    expected = encode_texts(model, given, batch_size=1)
    for size in (None, 7, 200):
        assert np.abs(encode_texts(model, given, batch_size=size) - expected).max() < 1e-6


# ---------------------------------------------------------------- processes


@pytest.fixture(scope="module")
def model() -> Encoder:
    """Of vectors: its processes need not import transformers."""
    return ftray.get_model("mlp", model_options={"input_size": 6, "hidden_sizes": [8]})


@pytest.fixture(scope="module")
def two(model: Encoder) -> Iterator[Processes]:
    with Processes(model, 2) as processes:
        yield processes


def vectors(count: int) -> list[Content]:
    given = list(np.random.default_rng(count).normal(size=(count, 6)).astype(np.float32))
    return read_inputs(given, modalities=frozenset({"features"})).part(0, count).items


def test_two_processes_give_the_embeddings_of_one(model: Encoder, two: Processes) -> None:
    for count, size in ((200, 8), (3, None)):  # more than one window by the same processes
        given, done = vectors(count), []
        found = two.encode(given, role="", batch_size=size, on_done=done.append)
        assert np.abs(found - encode_texts(model, given, batch_size=size)).max() < 1e-6
        assert sum(done) == count
    assert two.encode([], role="", batch_size=None, on_done=done.append).shape == (0, 8)


def test_what_a_process_finds_wrong_is_raised_here(two: Processes) -> None:
    """And it is there for the next."""
    image = Media(modality="image", address="a.png", data=b"")
    with pytest.raises(FtrayError, match="image"):
        two.encode([image], role="", batch_size=None, on_done=lambda n: None)
    found = two.encode(vectors(1), role="", batch_size=1, on_done=lambda n: None)
    assert found.shape == (1, 8)


def test_a_process_that_dies_is_an_error_and_none_is_left(model: Encoder) -> None:
    processes = Processes(model, 2)
    with processes, pytest.raises(RunFailedError, match=r"died \(signal 9\).* fewer num_workers"):
        pids = [one.popen.pid for one in processes._processes]
        processes._processes[0].popen.kill()
        processes.encode(vectors(500), role="", batch_size=2, on_done=lambda n: None)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.slow
def test_a_script_without_a_main_guard_encodes_texts_by_processes(
    tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "script.py").write_text(
        f"""
import numpy as np, ftray

texts = {texts(200)}
model = ftray.get_model({str(tiny_model)!r})
two = ftray.encode(model, texts, num_workers=2)
print(np.abs(two - ftray.encode(model, texts)).max() < 1e-6)
"""
    )
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0 and done.stdout == "True\n", done.stderr


def test_a_model_that_cannot_be_pickled_says_so(model: Encoder) -> None:
    model.hook = (n for n in range(3))  # a generator
    try:
        with pytest.raises(
            ModelError, match=r"cannot be sent to other processes .*num_workers = 0"
        ):
            packed_encoder(model)
    finally:
        del model.hook
