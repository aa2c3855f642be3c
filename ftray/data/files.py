"""Where the files lie that data names: below a folder, or in an archive."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ftray.errors import DataError

__all__ = ["Files", "LocalFiles"]

_THREADS = 8
_PART = 256


class Files(ABC):
    """Files by the names that data gives them.

    Attributes:
        lasting: whether the files can be read later, by other processes, at `located`.
    """

    lasting: bool

    @abstractmethod
    def located(self, name: str) -> str:
        """Where a file is, by a name that the data gives it; equal files have one place."""

    @abstractmethod
    def sizes(self, located: Sequence[str]) -> list[int | None]:
        """Bytes of each file; None where there is none."""

    @abstractmethod
    def contents(self, located: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """Each file with its content, in any order.

        Raises:
            DataError: for a file that cannot be read.
        """

    def elsewhere(self) -> Files | None:
        """Where to look if the first file is not here."""
        return None


class LocalFiles(Files):
    """Files of this machine.

    Args:
        folder: what relative names are relative to.
    """

    lasting = True

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = os.path.abspath(folder)

    def located(self, name: str) -> str:
        """See `Files`."""
        return os.path.abspath(os.path.join(self._folder, os.path.expanduser(name)))

    def sizes(self, located: Sequence[str]) -> list[int | None]:
        """See `Files`."""
        parts = [located[i : i + _PART] for i in range(0, len(located), _PART)]
        with ThreadPoolExecutor(_THREADS) as pool:  # file systems of a network answer slowly
            found = pool.map(lambda part: [_size(path) for path in part], parts)
            return [size for sizes in found for size in sizes]

    def contents(self, located: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """See `Files`."""
        for path in located:
            try:
                yield path, Path(path).read_bytes()
            except OSError as error:
                raise DataError(f"'{path}' cannot be read: {error.strerror}.") from None

    def elsewhere(self) -> Files | None:
        """This process's folder."""
        here = os.getcwd()
        return LocalFiles(here) if here != self._folder else None


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size if os.path.isfile(path) else None
    except (OSError, ValueError):
        return None
