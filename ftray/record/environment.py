"""What a run was made with: versions, machine, git commit."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from typing import Any

__all__ = ["PACKAGES", "environment", "version_of"]

PACKAGES = (
    "ftray",
    "torch",
    "ray",
    "transformers",
    "sentence-transformers",
    "pytorch-metric-learning",
    "faiss-cpu",
    "pyarrow",
    "docarray",
    "numpy",
)


def version_of(package: str) -> str | None:
    """The installed version, without importing the package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def environment() -> dict[str, Any]:
    """Python, platform, processors, versions, the command, and the git commit of the folder."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "cpus": os.cpu_count(),
        "versions": {name: version_of(name) for name in PACKAGES},
        "command": sys.argv,
        "folder": os.getcwd(),
        "git_commit": _git_commit(),
    }


def _git_commit() -> str | None:
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
