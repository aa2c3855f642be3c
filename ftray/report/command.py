"""Commands as they work where they are printed."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

__all__ = ["command"]


def command() -> str:
    """How the user called ftray: by name where that finds it, else by its path."""
    called = Path(sys.argv[0])
    if called.name != "ftray" or shutil.which("ftray") == str(called):
        return "ftray"
    return shlex.quote(os.path.relpath(called))
