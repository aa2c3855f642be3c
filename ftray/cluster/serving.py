"""Serving an encoder over HTTP with Ray Serve: texts in, embeddings out.

`import_path: ftray.cluster.serving:build` in a Serve configuration, or `serve run
ftray.cluster.serving:build model=PATH`. Needs the extra `serve`.

    POST / {"texts": ["a", "b"], "role": "query"}  ->  {"embeddings": [[...], [...]]}

`role`, "query" or "document", is for models with prompts or two towers, and may be left out. A body
that is not understood gets status 400 and {"error": "..."}.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

from ftray.errors import ConfigError, ModelError
from ftray.evaluation.encode import encode_texts
from ftray.models.onednn import use_onednn
from ftray.models.registry import load_encoder
from ftray.runtime.local import local_device

Vectors = npt.NDArray[np.float32]

__all__ = ["Asked", "Embedder", "ServingArgs", "build"]

MAX_TEXTS = 1024
"""The most texts of one request; a client with more sends more requests, which share replicas."""


class ServingArgs(BaseModel):
    """What `args` of the application may hold."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(description="An artifact, its folder or URI, a registry name, or a hub id.")
    device: str = Field("auto", description="auto, cpu or cuda.")
    batch_size: int = Field(32, ge=1, description="Texts that are encoded at a time.")
    max_requests: int = Field(32, ge=1, description="Requests that are encoded together.")
    wait_s: float = Field(0.01, ge=0, description="How long a request waits for others.")


class Asked(BaseModel):
    """The body of a request."""

    model_config = ConfigDict(extra="forbid")

    texts: list[str] = Field(max_length=MAX_TEXTS)
    role: Literal["", "query", "document"] = ""


class Embedder:
    """One replica: an encoder, and the requests that wait for it."""

    def __init__(self, args: ServingArgs) -> None:
        self.batch_size = args.batch_size
        self.encoder = load_encoder(args.model, device=local_device(args.device))
        use_onednn(self.encoder)
        if "text" not in self.encoder.modalities:
            takes = ", ".join(sorted(self.encoder.modalities))
            raise ModelError(f"'{args.model}' takes {takes}, and texts are to be served.")
        self.together.set_max_batch_size(args.max_requests)
        self.together.set_batch_wait_timeout_s(args.wait_s)

    async def __call__(self, request: Request) -> JSONResponse:
        """Answer one request."""
        try:
            asked = Asked.model_validate_json(await request.body())
        except ValidationError as error:
            return JSONResponse({"error": _told(error, "body")}, status_code=400)
        vectors = await self.together(asked)
        return JSONResponse({"embeddings": vectors.tolist()})

    @serve.batch  # type: ignore[untyped-decorator]
    async def together(self, requests: list[Asked]) -> list[Vectors]:
        """Embeddings of each request, `(texts, D)`; requests that came together share forwards."""
        # A thread of its own: a replica answers health checks while it encodes.
        return await asyncio.to_thread(self._encode, requests)

    def _encode(self, requests: list[Asked]) -> list[Vectors]:
        results: dict[int, Vectors] = {}
        for role in {asked.role for asked in requests}:
            places = [i for i, asked in enumerate(requests) if asked.role == role]
            texts = [text for i in places for text in requests[i].texts]
            vectors = encode_texts(self.encoder, texts, role=role, batch_size=self.batch_size)
            ends = np.cumsum([len(requests[i].texts) for i in places])[:-1]
            results.update(zip(places, np.split(vectors, ends), strict=True))
        return [results[i] for i in range(len(requests))]


def build(args: Mapping[str, Any]) -> Any:
    """The application: what `import_path` of a Serve configuration names.

    Args:
        args: `args` of that configuration; the fields of `ServingArgs`.

    Raises:
        ConfigError: for a field that there is not, or a wrong value.
    """
    try:
        return serve.deployment(Embedder).bind(ServingArgs.model_validate(dict(args)))
    except ValidationError as error:
        raise ConfigError(
            f"{_told(error, 'args')}. Fields: {', '.join(ServingArgs.model_fields)}"
        ) from None


def _told(error: ValidationError, where: str) -> str:
    """What is wrong, in one line."""
    return "; ".join(
        ".".join(map(str, (where, *problem["loc"]))) + f": {problem['msg']}"
        for problem in error.errors(include_url=False)
    )
