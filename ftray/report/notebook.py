"""What a notebook shows: HTML beside the plain text, and one display that changes in place.

rich shows its bars in a notebook by ipywidgets alone, which nobody need have installed, and its
tables as text; IPython is there wherever there is a notebook.
"""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any

from rich.console import Console

__all__ = ["Changing", "in_notebook", "show_html", "without_widgets"]


def without_widgets() -> None:
    """Ray and tqdm ask for ipywidgets when they are imported in a notebook; nothing needs them."""
    warnings.filterwarnings("ignore", message="IProgress not found")
    logging.getLogger("ray.widgets").setLevel(logging.WARNING)


def in_notebook(console: Console) -> bool:
    """Whether what this console prints appears in a notebook."""
    return console.is_jupyter and console.file is sys.stdout


def show_html(html: str, text: str) -> None:
    """Show HTML; where it cannot be shown, the text stands for it."""
    _display(_bundle(html, text))


class Changing:
    """A place in the output of a cell whose content is replaced, not repeated."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._shown = ("", "")

    def show(self, html: str, text: str) -> None:
        """Put this in the place of what was there."""
        if (html, text) == self._shown:
            return
        self._shown = (html, text)
        if self._handle is None:
            self._handle = _display(_bundle(html, text), display_id=True)
        else:
            self._handle.update(_bundle(html, text), raw=True)


def _bundle(html: str, text: str) -> dict[str, str]:
    return {"text/html": html, "text/plain": text}


def _display(bundle: dict[str, str], **options: Any) -> Any:
    from IPython import display

    return display.display(bundle, raw=True, **options)  # type: ignore[no-untyped-call]
