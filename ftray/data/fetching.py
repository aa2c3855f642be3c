"""Files from the web, fetched once when data is read; only where the user asks for it."""

from __future__ import annotations

import urllib.error
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    UnknownHandler,
)

__all__ = ["fetched"]

TIMEOUT_S = 20
MAX_BYTES = 64 << 20
_THREADS = 16
_HANDLERS = (
    *(ProxyHandler, UnknownHandler, HTTPHandler, HTTPSHandler, HTTPRedirectHandler),
    *(HTTPDefaultErrorHandler, HTTPErrorProcessor),
)
"""Those of urllib that speak HTTP: a redirection to `file:` or `ftp:` leads nowhere."""


def fetched(urls: Sequence[str]) -> Iterator[tuple[str, bytes | str]]:
    """Each URL in order, with its content, or with the reason why there is none."""
    opener = OpenerDirector()
    for handler in _HANDLERS:
        opener.add_handler(handler())
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            yield from zip(urls, pool.map(lambda url: _fetch(opener, url), urls), strict=True)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _fetch(opener: OpenerDirector, url: str) -> bytes | str:
    request = Request(url, headers={"User-Agent": "ftray"})
    try:
        with opener.open(request, timeout=TIMEOUT_S) as response:
            data: bytes = response.read(MAX_BYTES + 1)
    except urllib.error.HTTPError as error:
        return f"the server answers {error.code} {error.reason}"
    except urllib.error.URLError as error:
        return f"it cannot be fetched ({error.reason})"
    except (OSError, HTTPException, ValueError) as error:
        return f"it cannot be fetched ({error or type(error).__name__})"
    if len(data) > MAX_BYTES:
        return f"it is larger than {MAX_BYTES >> 20} MB"
    return data or "it is empty"
