"""`ftray.encode`: lists, documents, files and streams; in memory, in parts, and to a file."""

from __future__ import annotations

import copy
import itertools
import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import ftray
from ftray.api import encoding
from ftray.errors import ConfigError, DataError, StorageError
from ftray.evaluation.embedding import with_weights
from ftray.evaluation.embeddings_file import FACTS, EmbeddingsFile, ranges_in
from ftray.models.base import Encoder
from tests.tiny import tiny_text_model


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Encoder:
    return ftray.get_model(str(tiny_model))


@pytest.fixture(scope="module")
def texts(labelled_rows: list[dict[str, str]]) -> list[str]:
    return [row["text"] for row in labelled_rows]


@pytest.fixture(scope="module")
def expected(model: Encoder, texts: list[str]) -> np.ndarray:
    return ftray.encode(model, texts, batch_size=1)


@pytest.fixture
def window(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(encoding, "WINDOW", 20)
    return 20


class Stream(Iterator[str]):
    """Texts, and how many of them were taken."""

    def __init__(self, texts: list[str]) -> None:
        self._texts = iter(texts)
        self.taken = 0

    def __next__(self) -> str:
        text = next(self._texts)
        self.taken += 1
        return text


def embeddings_in(path: Path) -> np.ndarray:
    column = pq.read_table(path)["embedding"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1)


# ---------------------------------------------------------------- what goes in


def test_a_stream_a_list_and_a_file_give_the_same(
    model: Encoder, texts: list[str], labelled_csv: Path, expected: np.ndarray, window: int
) -> None:
    for data in (texts, iter(texts), (text for text in texts), str(labelled_csv)):
        found = ftray.encode(model, data)
        assert found.dtype == np.float32 and np.abs(found - expected).max() < 1e-6
    assert ftray.encode(model, iter([])).shape == ftray.encode(model, []).shape == (0, 32)


def test_of_a_stream_a_window_is_held(
    model: Encoder, texts: list[str], expected: np.ndarray, window: int
) -> None:
    stream = Stream(texts)
    parts = ftray.encode_stream(model, stream)
    for number, part in enumerate(itertools.islice(parts, 2)):
        assert stream.taken == window * (number + 1)
        rows = slice(number * window, (number + 1) * window)
        assert np.abs(part - expected[rows]).max() < 1e-6
    assert [len(part) for part in parts] == [20, 20, 16]


def test_a_mistake_in_a_stream_is_named_by_its_place(model: Encoder, window: int) -> None:
    given = [*["a"] * 25, "b\0c"]
    with pytest.raises(DataError, match=r"items 20 to 25 of the stream: .*index 5: .* U\+0000"):
        ftray.encode(model, iter(given))


def test_documents_come_back_with_quantised_embeddings(model: Encoder) -> None:
    from docarray import DocList
    from docarray.documents import TextDoc

    docs = DocList[TextDoc]([TextDoc(text="card lost"), TextDoc(text="send money")])
    out = ftray.encode(model, docs, quantize="ubinary")
    codes = ftray.encode(model, ["card lost", "send money"], quantize="ubinary")
    assert np.array_equal(np.stack([doc.embedding for doc in out]), codes)


# ---------------------------------------------------------------- how it is made


def test_weights_in_bf16_give_about_the_same_and_leave_the_model_as_it_was(
    model: Encoder, texts: list[str], expected: np.ndarray
) -> None:
    found = ftray.encode(model, texts, precision="bf16", normalize=True)
    assert found.dtype == np.float32
    cosines = (found * expected).sum(axis=1)
    assert 0.99 < cosines.min() < 0.999999
    assert np.abs(ftray.encode(model, texts) - expected).max() < 1e-6
    assert next(model.parameters()).dtype.itemsize == 4


def test_progress_counts_items(model: Encoder, texts: list[str], window: int) -> None:
    told: list[tuple[int, int | None]] = []
    ftray.encode(model, texts, on_progress=lambda *now: told.append(now), batch_size=10)
    assert [done for done, _ in told] == [10, 20, 30, 40, 50, 60, 70, 80, 90, 96]
    assert {total for _, total in told} == {96}
    told.clear()
    ftray.encode(model, iter(texts), on_progress=lambda *now: told.append(now))
    assert told[-1] == (96, None)


def test_a_bar_is_shown_where_it_is_asked_for(
    model: Encoder, texts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    ftray.encode(model, texts)
    assert capsys.readouterr().err == "", "no terminal, no bar"
    ftray.encode(model, texts, progress=True)
    assert "96/96" in capsys.readouterr().err


def test_a_model_in_bf16_is_converted_where_fp32_is_asked_for(
    model: Encoder, texts: list[str], tmp_path: Path
) -> None:
    half = copy.deepcopy(model).to(torch.bfloat16)
    rounded = copy.deepcopy(half).to(torch.float32)
    found = ftray.encode(half, texts, output=tmp_path / "a.parquet")
    assert np.abs(embeddings_in(found) - ftray.encode(rounded, texts)).max() < 1e-6
    assert json.loads(pq.read_schema(found).metadata[FACTS])["precision"] == "fp32"
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}
    found = ftray.encode(half, texts, precision="bf16")
    assert np.abs(found - ftray.encode(rounded, texts)).max() > 1e-4
    assert with_weights(half, "bf16", own=False) is half, "no copy is made"


def test_a_role_is_one_of_three(tmp_path: Path) -> None:
    prompted = ftray.get_model(str(tiny_text_model(tmp_path / "m", prompts={"query": "find "})))
    as_query, plain = (ftray.encode(prompted, ["a card"], role=role) for role in ("query", ""))
    assert np.abs(as_query - plain).max() > 1e-3
    for call in (ftray.encode, lambda *given, **more: next(ftray.encode_stream(*given, **more))):
        with pytest.raises(ConfigError, match=r"role = 'querry': .* Did you mean 'query'\?"):
            call(prompted, ["a card"], role="querry")


def test_mistakes(model: Encoder) -> None:
    for options, message in (
        ({"normalize": "no"}, "normalize = 'no': True or False"),
        ({"on_ray": "no", "num_workers": 1}, "on_ray = 'no': True or False"),
        ({"output": "a.npy", "force": "no"}, "force = 'no': True or False"),
        ({"batch_size": 0}, "batch_size = 0: a whole number, at least 1"),
        ({"num_workers": -1}, "num_workers = -1: a whole number, at least 0"),
        ({"on_ray": True}, "on_ray = True needs num_workers"),
        ({"precision": "bf61"}, "precision = 'bf61'.* Did you mean 'bf16'"),
        ({"quantize": "int4"}, "quantize = 'int4'.* Did you mean 'int8'"),
        ({"dims": 33}, "dims = 33: the model's embeddings have 32"),
        ({"ranges": [[0], [1]]}, "ranges are for quantize = 'int8'"),
    ):
        with pytest.raises(ConfigError, match=message):
            ftray.encode(model, ["a", "b"], **options)


def test_texts_alone_have_no_columns(model: Encoder) -> None:
    for data in (["a", "b"], iter(["a", "b"])):
        with pytest.raises(
            DataError, match=r"columns = \{'item': 'body'\}: a list of 2 .*no columns"
        ):
            ftray.encode(model, data, columns={"item": "body"})
    rows = [{"body": "a", "text": "b"}]
    found = ftray.encode(model, iter(rows), columns={"item": "body"})
    assert np.array_equal(found, ftray.encode(model, ["a"]))


# ---------------------------------------------------------------- to a file


def test_a_stream_is_written_window_by_window(
    model: Encoder, texts: list[str], expected: np.ndarray, tmp_path: Path, window: int
) -> None:
    for name in ("a.npy", "a.parquet"):
        stream, seen = Stream(texts), set()

        def look(done: int, total: int | None, seen: set[int] = seen, s: Stream = stream) -> None:
            seen.add(s.taken)

        path = ftray.encode(model, stream, output=tmp_path / name, on_progress=look)
        assert path == tmp_path / name and seen == {20, 40, 60, 80, 96}
    assert np.abs(np.load(tmp_path / "a.npy") - expected).max() < 1e-6
    table = pq.read_table(tmp_path / "a.parquet")
    assert table["item"].to_pylist() == texts and table.column_names == ["item", "embedding"]
    assert str(table.schema.field("embedding").type).startswith("fixed_size_list<element: float")
    assert np.abs(np.array(table["embedding"].to_pylist()) - expected).max() < 1e-6
    assert pq.ParquetFile(tmp_path / "a.parquet").num_row_groups == 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npy", "a.parquet"]


def test_ids_of_the_data_are_written(model: Encoder, tmp_path: Path) -> None:
    rows = [{"id": f"q{i}", "text": text} for i, text in enumerate(["a card", "a bank"])]
    table = pq.read_table(ftray.encode(model, rows, output=tmp_path / "a.parquet"))
    assert table.select(["id", "item"]).to_pylist() == [
        {"id": "q0", "item": "a card"},
        {"id": "q1", "item": "a bank"},
    ]


def test_int8_codes_are_written_with_their_ranges(
    model: Encoder, texts: list[str], expected: np.ndarray, tmp_path: Path, window: int
) -> None:
    path = tmp_path / "index.parquet"
    ftray.encode(model, texts, output=path, quantize="int8", dims=16)
    short = expected[:, :16]
    ranges = ftray.quantization_ranges(short[:window])
    assert np.allclose(ranges_in(path), ranges, atol=1e-6), "those of the first window"
    codes = np.array(pq.read_table(path)["embedding"].to_pylist())
    near = ftray.quantize(short, "int8", ranges=ranges).astype(int)
    assert np.abs(codes - near).max() <= 1 and (codes == near).mean() > 0.99
    facts = json.loads(pq.read_schema(path).metadata[FACTS])
    assert (facts["dims"], facts["quantize"], facts["precision"]) == (16, "int8", "fp32")
    queries = ftray.encode(model, ["lost card"], quantize="int8", dims=16, ranges=ranges_in(path))
    assert queries.shape == (1, 16) and queries.dtype == np.int8


def test_int8_codes_of_a_stream_go_by_its_first_window_wherever_they_go(
    model: Encoder, texts: list[str], tmp_path: Path, window: int
) -> None:
    path = ftray.encode(model, iter(texts), output=tmp_path / "a.parquet", quantize="int8")
    written = embeddings_in(path)
    with pytest.warns(UserWarning, match="int8' without ranges: .* ftray.quantization_ranges"):
        found = ftray.encode(model, iter(texts), quantize="int8")
    assert found.dtype == np.int8 and np.array_equal(found, written)
    with pytest.warns(UserWarning):  # a list's are those of all of it
        of_all = ftray.encode(model, texts, quantize="int8")
    assert np.array_equal(of_all, ftray.quantize(ftray.encode(model, texts), "int8"))
    assert not np.array_equal(of_all, written)


def test_ranges_that_are_given_or_kept_are_not_warned_of(
    model: Encoder, texts: list[str], tmp_path: Path, window: int
) -> None:
    with pytest.raises(ConfigError, match="encode_stream: quantize = 'int8' needs ranges"):
        next(ftray.encode_stream(model, texts, quantize="int8"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        path = ftray.encode(model, texts, output=tmp_path / "a.parquet", quantize="int8")
        given = {"quantize": "int8", "ranges": ranges_in(path)}
        parts = [*ftray.encode_stream(model, texts, **given)]
        assert np.array_equal(np.concatenate(parts), ftray.encode(model, texts, **given))
        assert np.array_equal(np.concatenate(parts), embeddings_in(path))


@pytest.mark.parametrize("quantize", [None, "int8", "binary", "ubinary"])
def test_of_nothing_come_no_embeddings_of_the_type_asked_for(
    model: Encoder, quantize: str | None
) -> None:
    ranges = np.array([[0] * 16, [1] * 16]) if quantize == "int8" else None
    more = {"quantize": quantize, "ranges": ranges, "dims": 16}
    one = ftray.encode(model, ["a"], **more)
    for data in ([], iter([])):
        found = ftray.encode(model, data, **more)
        assert (len(found), found.shape[1], found.dtype) == (0, one.shape[1], one.dtype)


def test_ids_are_of_all_items_of_a_stream_or_of_none(
    model: Encoder, texts: list[str], tmp_path: Path, window: int
) -> None:
    named = [{"id": str(i), "text": text} for i, text in enumerate(texts[:window])]
    unnamed = [{"text": text} for text in texts[:window]]
    for rows, message in (
        (
            named + unnamed,
            "items from 20 on of the stream: they have no ids, and those before them",
        ),
        (
            unnamed + named,
            "items from 20 on of the stream: they have ids, and those before them none",
        ),
    ):
        with pytest.raises(DataError, match=message):
            ftray.encode(model, iter(rows), output=tmp_path / "a.parquet")
    assert list(tmp_path.iterdir()) == []


def test_ranges_of_a_numpy_file(model: Encoder, tmp_path: Path) -> None:
    ranges = np.array([[0.0, 1.0], [2.0, 3.0]])
    for name, value, message in (
        ("good", ranges, None),
        ("wide", np.zeros((5, 32)), r"holds float64 of shape \(5, 32\), not numbers, \(2, D\)"),
        ("texts", np.array([["a"], ["b"]]), r"holds <U1 of shape \(2, 1\), not numbers"),
        ("objects", np.array([{}]), r"is no \.npy file of numbers, \(2, D\)"),
    ):
        np.save(path := tmp_path / f"{name}.npy", value)
        if message is None:
            assert np.array_equal(ranges_in(path), ranges)
            continue
        with pytest.raises(DataError, match=message):
            ranges_in(path)
    (tmp_path / "hello.npy").write_text("hello")
    (tmp_path / "empty.npy").write_text("")
    for name, message in (("hello", "is no "), ("empty", "is no "), ("none", "cannot be read")):
        with pytest.raises(DataError, match=rf"ranges: '.*{name}\.npy' {message}"):
            ranges_in(tmp_path / f"{name}.npy")


def test_a_file_is_whole_or_not_there(
    model: Encoder, texts: list[str], tmp_path: Path, window: int
) -> None:
    def broken() -> Iterator[str]:
        yield from texts[:30]
        raise KeyError("lost")

    for name in ("a.npy", "a.parquet"):
        with pytest.raises(KeyError):
            ftray.encode(model, broken(), output=tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_unless_told_so(model: Encoder, tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    ftray.encode(model, ["a"], output=path)
    with pytest.raises(StorageError, match="exists already; nothing is overwritten"):
        ftray.encode(model, ["a", "b"], output=path)
    assert np.load(path).shape == (1, 32)
    ftray.encode(model, ["a", "b"], output=path, force=True, quantize="binary")
    assert np.load(path).shape == (2, 4) and np.load(path).dtype == np.int8
    with pytest.raises(ConfigError, match=r"int8 embeddings mean nothing .* a \.parquet file"):
        ftray.encode(model, ["a", "b"], output=tmp_path / "b.npy", quantize="int8")
    with pytest.raises(DataError, match="holds no int8 embeddings"):
        ranges_in(ftray.encode(model, ["a"], output=tmp_path / "c.parquet"))


def test_a_numpy_file_may_grow_to_any_length(tmp_path: Path) -> None:
    """Its header is written before the number of rows is known."""
    with EmbeddingsFile(tmp_path / "a.npy", width=2, dtype=np.int8, facts=dict) as file:
        for _ in range(3):
            file.add(np.ones((50_000, 2), np.int8))
        file.finish()
    found = np.load(tmp_path / "a.npy")
    assert found.shape == (150_000, 2) and (found == 1).all()


# ---------------------------------------------------------------- two vectors


def test_cos_sim_is_finetuners() -> None:
    assert ftray.cos_sim([1.0, 0.0], [1.0, 1.0]) == pytest.approx(0.5**0.5)
    assert ftray.cos_sim(np.array([3, 4]), np.array([-3, -4])) == -1.0
    assert ftray.cos_sim([0.0, 0.0], [1.0, 1.0]) == 0.0
    with pytest.raises(DataError, match=r"\(2,\) and \(3,\)"):
        ftray.cos_sim([1.0, 0.0], [1.0, 1.0, 1.0])
