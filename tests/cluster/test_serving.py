"""Serving an encoder: real HTTP requests to a real Serve application on this machine."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def address(tiny_model):
    import ray
    from ray import serve

    from ftray.cluster.serving import build

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", address="local")
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        # A generous wait, so that requests sent together are encoded together on a busy machine.
        args = {"model": str(tiny_model), "device": "cpu", "max_requests": 8, "wait_s": 0.3}
        serve.run(build(args), route_prefix="/")
        yield f"http://127.0.0.1:{port}/"
    finally:
        serve.shutdown()
        ray.shutdown()


def test_a_misspelt_argument_is_refused():
    from ftray.cluster.serving import build
    from ftray.errors import ConfigError

    with pytest.raises(ConfigError, match=r"args\.modle"):
        build({"modle": "minilm"})


def post(address: str, body: object) -> dict:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(address, data), timeout=60) as answer:
        return json.load(answer)


def refused(address: str, body: object) -> str:
    with pytest.raises(urllib.error.HTTPError) as error:
        post(address, body)
    assert error.value.code == 400
    return json.load(error.value)["error"]


def test_embeddings_are_those_of_encode_for_every_request_that_came_together(address, tiny_model):
    import ftray

    asked = [["card lost"], ["bank", "alpha beta gamma"], [], ["pin", "rate", "cash fee"]]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda texts: post(address, {"texts": texts}), asked))
    expected = ftray.encode(str(tiny_model), [text for texts in asked for text in texts])
    assert [len(a["embeddings"]) for a in answers] == [1, 2, 0, 3]
    got = np.array([vector for a in answers for vector in a["embeddings"]], np.float32)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    query = post(address, {"texts": ["card lost"], "role": "query"})["embeddings"]
    np.testing.assert_allclose(query, expected[:1], atol=1e-5)


def test_a_body_that_is_not_understood_is_told_and_harms_nobody(address):
    assert "texts" in refused(address, {"text": ["misspelt"]})
    assert "role" in refused(address, {"texts": ["a"], "role": "querry"})
    assert "1024" in refused(address, {"texts": ["a"] * 1025})
    assert "JSON" in refused(address, b"not json")
    assert len(post(address, {"texts": ["card"]})["embeddings"]) == 1
