"""The verbs that use a model, and their options: evaluate, encode, export."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from ftray.cli.options import Columns, Dims, Json, MaxLength, Model, Onnx, Quantize

__all__ = ["encode", "evaluate", "export"]


def evaluate(
    model: Model,
    query: Annotated[str, typer.Option(help="Queries: labelled, pairs, scored pairs, or BEIR.")],
    index: Annotated[Optional[str], typer.Option(help="Documents; default: the queries.")] = None,
    limit: Annotated[int, typer.Option(help="Cut-off k of the metrics.", min=1)] = 20,
    distance: Annotated[str, typer.Option(help="cosine, dot, euclidean or sqeuclidean.")] = (
        "cosine"
    ),
    metric: Annotated[
        Optional[list[str]], typer.Option(help="Only this metric; may be given again.")
    ] = None,
    query_sample_size: Annotated[
        Optional[int], typer.Option(help="Evaluate with this many of the queries.", min=1)
    ] = None,
    query_role: Annotated[
        Optional[str],
        typer.Option(help="Tower for queries: query, document, clip-text, clip-vision."),
    ] = None,
    index_role: Annotated[
        Optional[str], typer.Option(help="Tower for the index; default: as --query-role.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    max_length: MaxLength = None,
    dims: Dims = None,
    quantize: Quantize = None,
    rescore: Annotated[
        Optional[int],
        typer.Option(help="Of binary: so many times k documents are scored anew; 0: none.", min=0),
    ] = None,
    onnx: Onnx = False,
    column: Columns = None,
    as_json: Json = False,
) -> None:
    """Measure a model's quality, without training: retrieval, or scored pairs."""
    from ftray.cli.evaluate import run

    run(
        model,
        query,
        index,
        columns=column or [],
        as_json=as_json,
        limit=limit,
        distance=distance,
        metrics=metric or None,
        query_sample_size=query_sample_size,
        query_role=query_role,
        index_role=index_role,
        batch_size=batch_size,
        max_length=max_length,
        dims=dims,
        quantize=quantize,
        rescore=rescore,
        is_onnx=onnx,
    )


def encode(
    model: Model,
    data: Annotated[str, typer.Argument(help="What train_data may be; its first column counts.")],
    output: Annotated[str, typer.Option("--output", "-o", help="A .parquet or .npy file.")],
    role: Annotated[str, typer.Option(help="query or document, for models with prompts.")] = "",
    select_model: Annotated[
        Optional[str], typer.Option(help="One tower: query, document, clip-text, clip-vision.")
    ] = None,
    batch_size: Annotated[
        Optional[int], typer.Option(help="Items at a time; default: by their length.", min=1)
    ] = None,
    max_length: MaxLength = None,
    dims: Dims = None,
    normalize: Annotated[
        bool, typer.Option("--normalize", help="Bring each embedding to length one.")
    ] = False,
    precision: Annotated[str, typer.Option(help="Of the weights: fp32, bf16 or fp16.")] = "fp32",
    quantize: Quantize = None,
    ranges: Annotated[
        Optional[str],
        typer.Option(help="Of int8: a Parquet file of int8 embeddings, or a (2, D) .npy file."),
    ] = None,
    num_workers: Annotated[int, typer.Option(help="Processes that encode.", min=0)] = 0,
    on_ray: Annotated[
        bool, typer.Option("--on-ray", help="They are actors of a Ray cluster.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    onnx: Onnx = False,
    column: Columns = None,
) -> None:
    """Write the embeddings of texts, images, or what else a model takes, to a file."""
    from ftray.cli.encode import run

    run(
        model,
        data,
        output,
        role=role,
        max_length=max_length,
        columns=column or [],
        select_model=select_model,
        force=force,
        ranges=ranges,
        batch_size=batch_size,
        dims=dims,
        normalize=normalize,
        precision=precision,
        quantize=quantize,
        num_workers=num_workers,
        on_ray=on_ray,
        is_onnx=onnx,
    )


def export(
    model: Model,
    output: Annotated[str, typer.Option("--output", "-o", help="A folder, not there yet.")],
) -> None:
    """Write a model as ONNX, with its weights and tokenizer, and compare the two."""
    from ftray.cli.export import run

    run(model, output)
