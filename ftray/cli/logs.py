"""`ftray logs`."""

from __future__ import annotations

from ftray.run import find_run

__all__ = ["run"]


def run(name: str, follow: bool, storage_path: str, experiment: str | None) -> None:
    """Print the log, and go on printing with `follow`."""
    found = find_run(name, experiment, storage_path)
    if follow:
        for line in found.stream_logs():
            print(line, flush=True)
    else:
        print(found.logs(), end="")
