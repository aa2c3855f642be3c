"""Options that several verbs have."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

__all__ = ["Columns", "Dims", "Experiment", "Json", "MaxLength", "Model", "Onnx", "Quantize"]
__all__ += ["RunName", "StoragePath"]

Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
StoragePath = Annotated[str, typer.Option(help="Folder or URI under which runs are kept.")]
Experiment = Annotated[Optional[str], typer.Option(help="Look only in this experiment.")]
Columns = Annotated[
    Optional[list[str]],
    typer.Option("--column", help="A column of the data by its role, as in item=body."),
]
Dims = Annotated[
    Optional[int], typer.Option(help="Keep so many dimensions, the first ones.", min=1)
]
Onnx = Annotated[bool, typer.Option("--onnx", help="By onnxruntime, from the model's onnx/.")]
Quantize = Annotated[Optional[str], typer.Option(help="int8, binary or ubinary.")]
RunName = Annotated[str, typer.Argument(help="A run's name, or its path.", metavar="RUN")]
Model = Annotated[str, typer.Argument(help="An artifact, a folder, a name, or a hub id.")]
MaxLength = Annotated[Optional[int], typer.Option(help="Longest text in tokens.")]
