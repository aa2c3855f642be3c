"""Smaller embeddings: the codes are sentence-transformers', and what they lose is measured."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers.util import quantize_embeddings
from sentence_transformers.util.quantization import semantic_search_faiss

import ftray
from ftray.callbacks import EvaluationCallback
from ftray.errors import ConfigError, DataError
from ftray.evaluation.quantize import QUANTIZATIONS, dequantized, shortened
from ftray.evaluation.quantized import restored, search_quantized
from ftray.evaluation.search import ExactIndex
from ftray.evaluation.spec import DISTANCES
from ftray.training.matching import check_shards


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(400, 20)).astype(np.float32)


# ---------------------------------------------------------------- codes


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_codes_are_those_of_sentence_transformers(vectors: np.ndarray, name: str) -> None:
    codes = ftray.quantize(vectors, name)
    expected = quantize_embeddings(vectors, precision=name)
    assert codes.dtype == expected.dtype and np.array_equal(codes, expected)


def test_int8_codes_stand_for_a_value_within_half_a_bucket(vectors: np.ndarray) -> None:
    ranges = ftray.quantization_ranges(vectors)
    codes = ftray.quantize(vectors, "int8", ranges=ranges)
    back = dequantized(codes, "int8", dims=20, ranges=ranges)
    half = (ranges[1] - ranges[0]) / 255 / 2
    assert (np.abs(back - vectors) <= half * (1 + 1e-4)).all()
    assert np.array_equal(ftray.quantize(back, "int8", ranges=ranges), codes)
    outside = ftray.quantize(vectors * 2, "int8", ranges=ranges)
    assert outside.min() == -128 and outside.max() == 127


@pytest.mark.parametrize("name", ["binary", "ubinary"])
def test_bits_are_the_signs(vectors: np.ndarray, name: str) -> None:
    codes = ftray.quantize(vectors, name)
    assert codes.shape == (400, 3)  # 20 bits in 3 bytes
    back = dequantized(codes, name, dims=20)
    assert np.array_equal(back, np.where(vectors > 0, 1, -1))


def test_binary_is_ubinary_with_bit_7_of_each_byte_turned(vectors: np.ndarray) -> None:
    signs = np.pad(vectors > 0, ((0, 0), (0, 4)))
    unsigned, signed = (ftray.quantize(vectors, name) for name in ("ubinary", "binary"))
    assert np.array_equal(np.unpackbits(unsigned, axis=1), signs)
    assert np.array_equal(signed.astype(int), unsigned.astype(int) - 128)
    turned = signs.copy()
    turned[:, ::8] = ~signs[:, ::8]
    assert np.array_equal(np.unpackbits(signed.view(np.uint8), axis=1), turned)


def test_a_dimension_that_is_constant_keeps_its_value() -> None:
    given = np.array([[1.0, 0.25], [2.0, 0.25]], np.float32)
    assert np.array_equal(restored(given, "int8")[:, 1], given[:, 1])


def test_shortened_embeddings_are_sentence_transformers_truncation(tiny_model: Path) -> None:
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(tiny_model), device="cpu", truncate_dim=8)
    texts = ["lost card", "open the app"]
    for normalize in (False, True):
        ours = ftray.encode(str(tiny_model), texts, dims=8, normalize=normalize)
        expected = theirs.encode(texts, normalize_embeddings=normalize)
        assert np.abs(ours - expected).max() < 1e-6
        assert np.allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-5) is normalize


def test_mistakes_in_codes(vectors: np.ndarray) -> None:
    with pytest.raises(ConfigError, match=r"quantization = 'int4'.* Did you mean 'int8'"):
        ftray.quantize(vectors, "int4")
    with pytest.raises(DataError, match=r"int8 needs the range .* \(1, 20\)"):
        ftray.quantize(vectors[:1], "int8")
    with pytest.raises(ConfigError, match=r"ranges: an array of shape \(2, 7\), .* \(2, 20\)"):
        ftray.quantize(vectors, "int8", ranges=np.zeros((2, 7)))
    for wrong in ([["a"] * 20, [1] * 20], [[0] * 20, [1] * 19], {"min": 0}):
        with pytest.raises(ConfigError, match=r"ranges: no array of numbers, .* \(2, 20\)"):
            ftray.quantize(vectors, "int8", ranges=wrong)
    for call in (ftray.quantization_ranges, lambda given: ftray.quantize(given, "binary")):
        with pytest.raises(DataError, match=r"the vectors are no array of numbers, \(N, D\)"):
            call([[1.0, 2.0], [3.0]])
    with pytest.raises(ConfigError, match="first row must be the least"):
        ftray.quantize(vectors, "int8", ranges=ftray.quantization_ranges(vectors)[::-1])
    with pytest.raises(ConfigError, match="ranges are for int8"):
        ftray.quantize(vectors, "binary", ranges=ftray.quantization_ranges(vectors))
    with pytest.raises(DataError, match="NaN or infinity"):
        ftray.quantization_ranges(vectors * np.float32(np.nan))
    with pytest.raises(ConfigError, match="dims = 21: the model's embeddings have 20 dimensions"):
        shortened(vectors, 21)


# ---------------------------------------------------------------- search


def ids(count: int) -> list[str]:
    return [f"d{number}" for number in np.random.default_rng(1).permutation(count)]


@pytest.mark.parametrize("distance", DISTANCES)
def test_int8_ranks_by_what_the_codes_stand_for(vectors: np.ndarray, distance: str) -> None:
    queries, documents, names = vectors[:30], vectors[30:], ids(370)
    options = {"k": 7, "distance": distance, "quantization": "int8", "rescore": 4}
    found = search_quantized(queries, documents, names, **options)
    index = ExactIndex(20, distance)
    index.add(names, restored(documents, "int8"))
    for got, want in zip(found, index.search(queries, 7), strict=True):
        assert np.array_equal(got, want)


def by_hand(
    queries: np.ndarray, documents: np.ndarray, names: list[str], k: int, times: int
) -> list[list[int]]:
    """Hamming distance, then id; the best k x times by the query's dot product, then id."""
    rankings = []
    for query in queries:
        hamming = ((documents > 0) != (query > 0)).sum(axis=1)
        order = sorted(range(len(names)), key=lambda i: names[i], reverse=True)
        order = sorted(order, key=lambda i: hamming[i])[: k * max(times, 1)]
        if times:
            exact = query.astype(np.float64) @ np.where(documents > 0, 1.0, -1.0).T
            order = sorted(order, key=lambda i: names[i], reverse=True)
            order = sorted(order, key=lambda i: -np.float32(exact[i]))[:k]
        rankings.append(order)
    return rankings


@pytest.mark.parametrize("times", [0, 1, 3, 1000])
def test_binary_codes_rank_by_hamming_distance_and_are_scored_anew(
    vectors: np.ndarray, times: int
) -> None:
    queries, documents, names = vectors[:30], vectors[30:], ids(370)
    _, found = search_quantized(
        queries, documents, names, k=5, distance="dot", quantization="binary", rescore=times
    )
    assert found.tolist() == by_hand(queries, documents, names, 5, times)


def test_binary_search_finds_what_sentence_transformers_finds(vectors: np.ndarray) -> None:
    """With every document a candidate; no two of them score alike."""
    queries, documents = vectors[:30], vectors[30:]
    theirs, *_ = semantic_search_faiss(
        queries,
        quantize_embeddings(documents, precision="ubinary"),
        corpus_precision="ubinary",
        top_k=5,
        rescore_multiplier=74,
    )
    _, found = search_quantized(
        queries, documents, ids(370), k=5, distance="dot", quantization="ubinary", rescore=74
    )
    assert found.tolist() == [[hit["corpus_id"] for hit in hits] for hits in theirs]


def test_a_query_does_not_find_its_own_document(vectors: np.ndarray) -> None:
    own = np.arange(400)
    for name in ("int8", "binary"):
        options = {"k": 3, "distance": "cosine", "quantization": name, "rescore": 2}
        _, found = search_quantized(vectors, vectors, ids(400), exclude=own, **options)
        assert not (found == own[:, None]).any()
        _, found = search_quantized(vectors, vectors, ids(400), **options)
        assert (found[:, 0] == own).mean() > 0.99


# ---------------------------------------------------------------- evaluation


def test_an_evaluation_measures_the_embeddings_that_it_is_asked_for(
    tiny_model: Path, labelled_rows: list[dict[str, str]]
) -> None:
    model = ftray.get_model(str(tiny_model))
    data = EvaluationCallback(labelled_rows).prepare(0).data
    vectors = ftray.encode(model, data.document_texts.to_pylist())
    names, own = data.document_ids, data.own_document
    relevant = [set(data.relevant(query)[0].tolist()) for query in range(len(names))]
    options = {"limit": 10, "metrics": ["precision_at_k"]}
    for dims, name in ((None, "int8"), (16, None), (16, "binary"), (None, "ubinary")):
        short = shortened(vectors, dims)
        if name is None:
            index = ExactIndex(dims)
            index.add(names, short)
            _, found = index.search(short, 10, own)
        else:
            codes = {"k": 10, "distance": "cosine", "quantization": name, "rescore": 4}
            _, found = search_quantized(short, short, names, exclude=own, **codes)
        hits = [
            len(wanted.intersection(ranking))
            for wanted, ranking in zip(relevant, found.tolist(), strict=True)
        ]
        got = ftray.evaluate(model, labelled_rows, dims=dims, quantize=name, **options)
        assert got["precision_at_k"] == pytest.approx(np.mean(hits) / 10, abs=1e-9)
    sizes = ftray.compare_sizes(
        model,
        labelled_rows,
        dims=[None, 16],
        quantize=[None, "binary"],
        rescore=[0, None],
        **options,
    )
    assert [(one.dims, one.quantize, one.bytes, one.rescore) for one in sizes] == [
        (32, None, 128, None),
        (32, "binary", 4, 0),
        (32, "binary", 4, 4),
        (16, None, 64, None),
        (16, "binary", 2, 0),
        (16, "binary", 2, 4),
    ]
    assert sizes[1].metrics != sizes[2].metrics
    for one in sizes:
        alone = {"dims": one.dims, "quantize": one.quantize, "rescore": one.rescore}
        assert one.metrics == ftray.evaluate(model, labelled_rows, **alone, **options)


def test_one_size_alone_is_a_list_of_one(
    tiny_model: Path, labelled_rows: list[dict[str, str]]
) -> None:
    model = ftray.get_model(str(tiny_model))
    alone = ftray.compare_sizes(model, labelled_rows, dims=16, quantize="ubinary", rescore=2)
    listed = ftray.compare_sizes(model, labelled_rows, dims=[16], quantize=["ubinary"], rescore=[2])
    assert alone == listed and [(one.dims, one.bytes, one.rescore) for one in alone] == [(16, 2, 2)]
    for options, message in (
        ({"dims": []}, r"dims = \[\]: at least one"),
        ({"quantize": ()}, r"quantize = \(\): at least one"),
        ({"quantize": "binary", "rescore": []}, r"rescore = \[\]: at least one"),
        ({"dims": "16"}, "dims = '16': a positive number"),
        ({"quantize": "int9"}, "quantize = 'int9': .* Did you mean 'int8'"),
        ({"limt": 3}, r"compare_sizes has no option 'limt'\. Did you mean 'limit'"),
        ({"gather_examples": True}, "compare_sizes has no option 'gather_examples'"),
        ({"max_length": 8}, "max_length = 8: '.*' is loaded already. Give it to get_model"),
    ):
        with pytest.raises(ConfigError, match=message):
            ftray.compare_sizes(model, labelled_rows, **options)
    with pytest.raises(ConfigError, match=r"max_length = 8: '.*' is loaded already"):
        ftray.evaluate(model, labelled_rows, max_length=8)


def test_scored_pairs_are_compared_by_their_codes(tiny_model: Path) -> None:
    model = ftray.get_model(str(tiny_model))
    texts = ["lost card", "card stolen", "open app", "app money", "send rate"]
    rows = [(a, b, float(i)) for i, (a, b) in enumerate(itertools.pairwise(texts))]
    vectors = {text: vector for text, vector in zip(texts, ftray.encode(model, texts), strict=True)}
    signs = {text: np.where(vector > 0, 1, -1) for text, vector in vectors.items()}
    expected = np.corrcoef([signs[a] @ signs[b] for a, b, _ in rows], range(4))[0, 1]
    found = ftray.evaluate(model, rows, quantize="binary")
    assert found["pearson"] == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ConfigError, match="rescore: scored pairs are compared, not searched"):
        ftray.evaluate(model, rows, quantize="binary", rescore=2)


def test_mistakes_in_an_evaluation(tiny_model: Path, labelled_rows: list[dict[str, str]]) -> None:
    with pytest.raises(
        ConfigError, match=r"quantize = 'bnary'.* Did you mean 'binary' or 'ubinary'"
    ):
        EvaluationCallback(labelled_rows, quantize="bnary")
    with pytest.raises(ConfigError, match="dims = 0: a positive number"):
        EvaluationCallback(labelled_rows, dims=0)
    with pytest.raises(ConfigError, match="rescore = 2 is for quantize = 'binary'"):
        EvaluationCallback(labelled_rows, quantize="int8", rescore=2)
    with pytest.raises(ConfigError, match="rescore = -1: 0 or a positive number"):
        EvaluationCallback(labelled_rows, quantize="binary", rescore=-1)
    with pytest.raises(ConfigError, match="dims = 33: the model's embeddings have 32 dimensions"):
        ftray.evaluate(str(tiny_model), labelled_rows, dims=33)


def test_an_index_in_shards_is_not_quantised(labelled_rows: list[dict[str, str]]) -> None:
    from ftray.config import FitConfig

    spec = EvaluationCallback(labelled_rows, quantize="int8").prepare(0)
    config = FitConfig(model="minilm", train_data="a.csv", num_workers=1, index_shards=2)
    with pytest.raises(ConfigError, match=r"index_shards = 2, but .* has quantize"):
        check_shards(config, [spec])


def test_an_index_that_is_quantised_stays_whole_where_the_number_of_shards_is_chosen(
    labelled_rows: list[dict[str, str]],
) -> None:
    from ftray.cluster.shards import shard_counts

    nodes = [{"Resources": {"memory": 1e6}}] * 3
    plain, small = (
        EvaluationCallback(labelled_rows, quantize=n).prepare(0) for n in (None, "int8")
    )
    assert shard_counts("auto", [plain, small], nodes) == {0: 3}
