"""The command line. Exit codes: 0 done, 1 the run failed, 2 the input is wrong, 130 interrupted."""

from __future__ import annotations

import os
import sys

__all__ = ["main"]


def main() -> None:
    """Entry point of the `ftray` command."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read once, when torch is imported
    from ftray.cli.app import app
    from ftray.errors import FtrayError

    try:
        app(standalone_mode=True)
    except FtrayError as error:
        print(f"ftray: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("ftray: interrupted", file=sys.stderr)
        sys.exit(130)
