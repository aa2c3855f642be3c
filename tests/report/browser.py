"""A page in a real browser: Chromium without a window, spoken to by the DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

__all__ = ["BROWSER", "Visit", "visit"]

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None
)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--remote-debugging-port=0"
).split()
PATIENCE_S = 60.0


@dataclass
class Visit:
    """What came of showing a page.

    `complaints` are errors and warnings of the console, and exceptions; `requests` all that the
    page asked for, `blocked` why the browser did not even send some; `values` of the expressions
    that were asked; `picture` a PNG of the whole page, `paper` a PDF.
    """

    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    blocked: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    picture: bytes = b""
    paper: bytes = b""


def visit(
    page: Path, *, width: int = 1200, dark: bool = False, ask: dict[str, str] | None = None
) -> Visit:
    """Show a page.

    Args:
        page: a local file.
        width: of the window, in pixels.
        dark: whether the reader prefers dark pages.
        ask: expressions of JavaScript by name; the page itself has none.
    """
    with tempfile.TemporaryDirectory(prefix="ftray-browser-", ignore_cleanup_errors=True) as home:
        assert BROWSER is not None
        process = subprocess.Popen(
            [BROWSER, *FLAGS, f"--user-data-dir={home}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            return asyncio.run(_visit(Path(home), page, width, dark, ask or {}))
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


async def _visit(home: Path, page: Path, width: int, dark: bool, ask: dict[str, str]) -> Visit:
    port = await _port(home)
    seen = Visit()
    async with aiohttp.ClientSession() as http:
        async with http.get(f"http://127.0.0.1:{port}/json/list") as answer:
            target = next(t for t in await answer.json() if t["type"] == "page")
        url = target["webSocketDebuggerUrl"]
        async with http.ws_connect(url, max_msg_size=0) as socket:
            talk = _Talk(socket, seen)
            for domain in ("Page", "Network", "Runtime", "Log"):
                await talk(f"{domain}.enable")
            await talk(
                "Emulation.setDeviceMetricsOverride",
                width=width,
                height=900,
                deviceScaleFactor=1,
                mobile=width < 600,
            )
            scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
            await talk("Emulation.setEmulatedMedia", features=[scheme])
            await talk("Page.navigate", url=page.as_uri())
            await talk.until("Page.loadEventFired")
            for name, expression in ask.items():
                got = await talk("Runtime.evaluate", expression=expression, returnByValue=True)
                seen.values[name] = got["result"].get("value")
            shot = await talk("Page.captureScreenshot", captureBeyondViewport=True)
            seen.picture = base64.b64decode(shot["data"])
            paper = await talk("Page.printToPDF", printBackground=False)
            seen.paper = base64.b64decode(paper["data"])
    return seen


class _Talk:
    """Calls, and the events that come in between."""

    def __init__(self, socket: Any, seen: Visit) -> None:
        self._socket, self._seen = socket, seen
        self._number = 0
        self._events: set[str] = set()

    async def __call__(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": params})
        while True:
            message = await self._next()
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]

    async def until(self, event: str) -> None:
        while event not in self._events:
            await self._next()

    async def _next(self) -> dict[str, Any]:
        message = await asyncio.wait_for(self._socket.receive_json(), PATIENCE_S)
        method, params = message.get("method", ""), message.get("params", {})
        self._events.add(method)
        if method == "Network.requestWillBeSent":
            self._seen.requests.append(params["request"]["url"])
        elif method == "Network.loadingFailed":
            self._seen.blocked.append(params.get("blockedReason", ""))
        elif method == "Log.entryAdded":
            self._seen.complaints.append(params["entry"]["text"])
        elif method == "Runtime.exceptionThrown":
            self._seen.complaints.append(params["exceptionDetails"]["text"])
        elif method == "Runtime.consoleAPICalled":
            self._seen.complaints.append(str(params["args"]))
        return message


async def _port(home: Path) -> int:
    end = time.monotonic() + PATIENCE_S
    file = home / "DevToolsActivePort"
    while time.monotonic() < end:
        lines = file.read_text().split() if file.exists() else []
        if lines:
            return int(lines[0])
        await asyncio.sleep(0.05)
    raise TimeoutError("the browser did not start")
