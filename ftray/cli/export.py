"""`ftray export`."""

from __future__ import annotations

from ftray.words import counted

__all__ = ["run"]


def run(model: str, output: str) -> None:
    """Write a model with its ONNX graphs into a new folder."""
    from ftray.api import to_onnx

    files = to_onnx(model, output)
    names = ", ".join(str(file) for file in files)
    print(f"{counted(len(files), 'ONNX graph')}, equal to the model: {names}")
