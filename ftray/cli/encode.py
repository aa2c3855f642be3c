"""`ftray encode`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ftray.cli.columns import parse_columns
from ftray.words import counted

__all__ = ["run"]


def run(
    model: str,
    data: str,
    output: str,
    *,
    role: str,
    max_length: int | None,
    columns: Sequence[str],
    select_model: str | None,
    force: bool,
    ranges: str | None,
    is_onnx: bool,
    **options: Any,
) -> None:
    """Embed what is in a file; `options` are `encode`'s."""
    from ftray.api import encode, get_model
    from ftray.evaluation.embeddings_file import check_output, ranges_in

    check_output(output, force=force, setting="-o")  # before a model is loaded
    done = 0

    def on_progress(so_far: int, _: int | None) -> None:
        nonlocal done
        done = so_far

    encoder = get_model(model, select_model, max_length=max_length, is_onnx=is_onnx)
    encode(
        encoder,
        data,
        role=role,
        columns=parse_columns(columns),
        output=output,
        force=force,
        ranges=None if ranges is None else ranges_in(ranges),
        on_progress=on_progress,
        **options,
    )
    width = options["dims"] or encoder.embedding_dim
    codes = f" as {options['quantize']}" if options["quantize"] else ""
    print(f"{counted(done, 'embedding')} of width {width}{codes} in {output}")
