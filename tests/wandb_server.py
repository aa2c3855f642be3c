"""A stand-in for W&B's server on this machine: it takes a run and keeps what was sent."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class WandBServer(ThreadingHTTPServer):
    """Answers what wandb's own process asks while it logs a run online.

    Attributes:
        runs: the variables of each request that made or changed a run.
        streamed: what came over the file stream, in order.
        stop: whether somebody stopped the run in W&B's pages.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.runs: list[dict[str, Any]] = []
        self.streamed: list[dict[str, Any]] = []
        self.stop = False

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows that were logged."""
        files = [message.get("files") or {} for message in self.streamed]
        lines = [
            line for f in files for line in f.get("wandb-history.jsonl", {}).get("content", [])
        ]
        return [json.loads(line) for line in lines]

    def answer(self, name: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The data of a GraphQL request."""
        if name == "UpsertBucket":
            self.runs.append(variables)
            project = {"name": "ftray", "entity": {"name": "somebody"}}
            bucket = {"id": "1", "name": variables["name"] or "", "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if name == "CreateRunFiles":
            files = [{"name": f, "uploadUrl": f"{self.address}/{f}"} for f in variables["files"]]
            return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}
        return {}


class _Handler(BaseHTTPRequestHandler):
    server: WandBServer

    def do_POST(self) -> None:
        body = json.loads(self._body())
        if self.path != "/graphql":
            self.server.streamed.append(body)
            self._send(200, {"stopped": self.server.stop})
            return
        data = self.server.answer(body.get("operationName", ""), body.get("variables") or {})
        self._send(200, {"data": data})

    def do_PUT(self) -> None:
        self._body()
        self._send(200, {})

    def do_GET(self) -> None:
        self._send(404, {})

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def _send(self, code: int, answer: dict[str, Any]) -> None:
        data = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing goes to the console."""


@contextmanager
def wandb_server() -> Iterator[WandBServer]:
    """A server that runs in a thread."""
    with WandBServer() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
