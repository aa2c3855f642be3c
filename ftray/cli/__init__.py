"""The command line. Exit codes: 0 done, 1 the run failed, 2 the input is wrong, 130 interrupted."""

from __future__ import annotations

import atexit
import gc
import os
import sys

__all__ = ["main"]


def main() -> None:
    """Entry point of the `ftray` command."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read once, when torch is imported
    try:
        from ftray.cli.app import app

        atexit.register(gc.freeze)  # nothing to be gained by looking through all of torch again
        app(prog_name="ftray")
    except KeyboardInterrupt:  # of a verb: see `ftray.cli.app.Verbs`
        print("ftray: interrupted", file=sys.stderr)
        sys.exit(130)
