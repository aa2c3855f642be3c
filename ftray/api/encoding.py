"""Embeddings: of lists, documents, files and streams; in memory, part by part, or to a file."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftray.api.models import data_workers, get_model
from ftray.errors import ConfigError, DataError, nearest

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ftray.data.inputs import Part
    from ftray.evaluation.encoders import Encoders
    from ftray.media import Modality
    from ftray.models.base import Encoder

__all__ = ["WINDOW", "cos_sim", "encode", "encode_stream"]

WINDOW = 1 << 14
"""Items that are read, sorted by length and encoded together; all that is held of a stream."""
NO_RANGES = (
    "quantize = 'int8' without ranges: the codes go by those of these embeddings, which are not "
    "returned, so that no others can be compared with them. Give ranges = "
    "ftray.quantization_ranges(…) of a sample, or write a .parquet file, which keeps them"
)


def encode(
    model: Encoder | str | Path,
    data: Any,
    *,
    role: str = "",
    batch_size: int | None = None,
    dims: int | None = None,
    normalize: bool = False,
    precision: str = "fp32",
    quantize: str | None = None,
    ranges: npt.ArrayLike | None = None,
    num_workers: int = 0,
    on_ray: bool = False,
    columns: Mapping[str, str] | None = None,
    output: str | Path | None = None,
    force: bool = False,
    progress: bool | None = None,
    on_progress: Callable[[int, int | None], None] | None = None,
) -> npt.NDArray[Any] | Any:
    """Embeddings of texts, images, or whatever else the model takes.

    Args:
        model: what `get_model` gives or takes.
        data: a list of texts, of images (paths, bytes, PIL, arrays) or of other things, anything
            `train_data` may be (its first column), a DocList, or an iterator over such things,
            which is read `WINDOW` items at a time. What strings are, the model decides; one that
            takes texts and images takes those for images that name image files.
        role: "query" or "document", for models with prompts or with two towers.
        batch_size: items at a time; None takes more of short texts than of long ones.
        dims: how many of the first dimensions are kept, as for models trained with MatryoshkaLoss;
            None keeps all. As sentence-transformers' `truncate_dim`, it does not normalise anew.
        normalize: divide each embedding by its length, after `dims`.
        precision: type of the weights meanwhile: "fp32", "bf16" (faster where the processor
            multiplies it) or "fp16". Embeddings are float32 all the same.
        quantize: "int8", "binary" or "ubinary": what sentence-transformers' `quantize_embeddings`
            makes of them.
        ranges: of int8, the least and the largest value of each dimension, `(2, D)`; see
            `quantization_ranges`. None takes those of the embeddings; of what is written or is a
            stream, of the first `WINDOW`. A Parquet file keeps them. Codes in memory come without
            them, which is warned of: only codes of the same ranges can be compared.
        num_workers: processes that encode, each with the whole model and its share of the cores;
            0 is this process. They take seconds to start.
        on_ray: they are actors of the Ray cluster that `RAY_ADDRESS` names, or that is started on
            this machine; each has a GPU where there are enough, else its share of the CPUs.
        columns: our column names to those of the data, as in {"item": "body"}.
        output: a .parquet or .npy file to write to, part by part; Parquet has the columns `id` (if
            the data has), `item` and `embedding`.
        force: whether a file that is there may be replaced.
        progress: whether to show a bar; None does so in a terminal.
        on_progress: called with (items done, items in all); the latter is None of a stream.

    Returns:
        `(N, D)` float32 in the order given, or the codes, see `ftray.quantize`; for a DocList a
        copy of it with `.embedding` set; with `output` its path.

    Raises:
        FtrayError: for data, a model or options that cannot be used.
    """
    from ftray.evaluation.embeddings_file import check_output

    target = None if output is None else check_output(output, force=force)
    if target is None and quantize == "int8" and ranges is None:
        warnings.warn(NO_RANGES, stacklevel=2)
    with _Work(
        model,
        role=role,
        batch_size=batch_size,
        precision=precision,
        num_workers=num_workers,
        on_ray=on_ray,
        out={"dims": dims, "normalize": normalize, "quantize": quantize, "ranges": ranges},
        shown=(progress, on_progress),
    ) as work:
        if target is None:
            return _in_memory(work, data, columns)
        return _in_file(work, data, columns, target)


def encode_stream(
    model: Encoder | str | Path,
    data: Any,
    *,
    role: str = "",
    batch_size: int | None = None,
    dims: int | None = None,
    normalize: bool = False,
    precision: str = "fp32",
    quantize: str | None = None,
    ranges: npt.ArrayLike | None = None,
    num_workers: int = 0,
    on_ray: bool = False,
    columns: Mapping[str, str] | None = None,
) -> Iterator[npt.NDArray[Any]]:
    """Embeddings part by part, so that neither data nor embeddings are in memory as a whole.

    Args: as of `encode`, but int8 needs `ranges`.

    Yields:
        `(n, D)` of the next `WINDOW` items of `data`; of the last ones fewer.

    Raises:
        FtrayError: as `encode` does, when the first part is asked for.
    """
    if quantize == "int8" and ranges is None:
        raise ConfigError(
            "encode_stream: quantize = 'int8' needs ranges: nothing would keep those of the first "
            "part. Give ftray.quantization_ranges of a sample, or have encode write a .parquet file"
        )
    with _Work(
        model,
        role=role,
        batch_size=batch_size,
        precision=precision,
        num_workers=num_workers,
        on_ray=on_ray,
        out={"dims": dims, "normalize": normalize, "quantize": quantize, "ranges": ranges},
        shown=(False, None),
    ) as work:
        for _, vectors in work.vectors(data, columns):
            yield work.out.of(vectors)


def _in_memory(work: _Work, data: Any, columns: Mapping[str, str] | None) -> Any:
    """An array, or copies of documents."""
    import numpy as np

    names: list[str] = []
    found = []
    out = work.out
    # the ranges of int8 are those of all embeddings, but of a stream those of its first part
    at_once = out.quantize == "int8" and out.ranges is None and not isinstance(data, Iterator)
    for part, vectors in work.vectors(data, columns):
        found.append(vectors if at_once else out.of(vectors))
        names.extend(part.names)
    if not found:
        found = [np.zeros((0, out.width), out.dtype)]
    joint = found[0] if len(found) == 1 else np.concatenate(found)
    embeddings = out.of(joint) if at_once and names else joint
    if not type(data).__module__.startswith("docarray"):
        return embeddings
    from ftray.data.documents import with_embeddings

    return with_embeddings(data, names, embeddings)


def _in_file(work: _Work, data: Any, columns: Mapping[str, str] | None, target: Path) -> Path:
    """A file, written part by part."""
    from ftray.evaluation.embeddings_file import EmbeddingsFile

    out = work.out
    if target.suffix == ".npy" and out.quantize == "int8" and out.ranges is None:
        raise ConfigError(
            "int8 embeddings mean nothing without their ranges, which a .npy file has no place "
            "for: give ranges, or write a .parquet file"
        )
    with EmbeddingsFile(target, width=out.width, dtype=out.dtype, facts=work.facts) as file:
        for part, vectors in work.vectors(data, columns):
            file.add(out.of(vectors), part.names, part.ids)
        return file.finish()


class _Work(ExitStack):
    """A model that is used, and who uses it; leave its `with` to end their processes.

    Args: as of `encode`; `out` are those of `Embedding`, `shown` is progress and on_progress.
    """

    def __init__(
        self,
        model: Encoder | str | Path,
        *,
        role: str,
        batch_size: int | None,
        precision: str,
        num_workers: int,
        on_ray: bool,
        out: Mapping[str, Any],
        shown: tuple[bool | None, Callable[[int, int | None], None] | None],
    ) -> None:
        super().__init__()
        from ftray.evaluation.embedding import Embedding, with_weights

        _check_role(role)
        _check_counts(batch_size, num_workers, on_ray)
        encoder = get_model(model) if isinstance(model, str | Path) else model
        self.out = Embedding(encoder.embedding_dim, **out)
        self._encoder = with_weights(encoder, precision, own=encoder is not model)
        self._role, self._batch_size, self._precision = role, batch_size, precision
        self._workers = num_workers, on_ray
        self._shown = shown

    def facts(self) -> dict[str, Any]:
        """What the metadata of a file says."""
        return {
            "model": self._encoder.name,
            "role": self._role,
            "dims": self.out.dims,
            "normalize": self.out.normalize,
            "precision": self._precision,
            "quantize": self.out.quantize,
            "ranges": None if self.out.ranges is None else self.out.ranges.tolist(),
        }

    def vectors(
        self, data: Any, columns: Mapping[str, str] | None
    ) -> Iterator[tuple[Part, npt.NDArray[np.float32]]]:
        """The model's embeddings of everything, a part at a time."""
        from ftray.report.bar import progress_bar

        parts, total = _parts(data, columns, self._encoder.modalities)
        encoders = self.enter_context(_encoders(self._encoder, *self._workers))
        show, on_progress = self._shown
        bar = self.enter_context(progress_bar("Encoding", total, show=show))
        done = 0

        def on_done(count: int) -> None:
            nonlocal done
            done += count
            bar(done)
            if on_progress is not None:
                on_progress(done, total)

        for part in parts:
            yield (
                part,
                encoders.encode(
                    part.items, role=self._role, batch_size=self._batch_size, on_done=on_done
                ),
            )


def _check_role(role: str) -> None:
    """Refuse a role that there is not; a model without prompts or routes takes them all alike."""
    from ftray.models.routes import ROLES

    if role not in ("", *ROLES):
        raise ConfigError(f"role = {role!r}: there is no such role.{nearest(str(role), ROLES)}")


def _check_counts(batch_size: int | None, num_workers: int, on_ray: bool) -> None:
    for name, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
        if value is None and name == "batch_size":
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"{name} = {value!r}: a whole number, at least {least}")
    if not isinstance(on_ray, bool):
        raise ConfigError(f"on_ray = {on_ray!r}: True or False")
    if on_ray and not num_workers:
        raise ConfigError("on_ray = True needs num_workers: how many actors encode")


def _encoders(encoder: Encoder, num_workers: int, on_ray: bool) -> Encoders:
    """Who encodes."""
    if on_ray:
        from ftray.cluster.encoders import Actors

        return Actors(encoder, num_workers)
    from ftray.evaluation.encoders import Here, Processes

    if num_workers:
        return Processes(encoder, num_workers)
    return Here(encoder, data_workers(encoder))


def _parts(
    data: Any, columns: Mapping[str, str] | None, modalities: frozenset[Modality]
) -> tuple[Iterator[Part], int | None]:
    """What is to be encoded, `WINDOW` items at a time, and how many items there are."""
    from ftray.data.inputs import read_inputs

    if isinstance(data, Iterator):
        return _parts_of_stream(data, columns, modalities), None
    inputs = read_inputs(data, columns=columns, modalities=modalities)
    return inputs.parts(WINDOW), len(inputs)


def _parts_of_stream(
    stream: Iterator[Any], columns: Mapping[str, str] | None, modalities: frozenset[Modality]
) -> Iterator[Part]:
    from ftray.data.inputs import read_inputs

    start = 0
    while chunk := list(islice(stream, WINDOW)):
        end = start + len(chunk)
        try:
            inputs = read_inputs(chunk, columns=columns, modalities=modalities)
        except DataError as error:
            where = f"data, items {start:,} to {end - 1:,} of the stream"
            raise DataError(f"{where}: {error}") from None
        yield inputs.part(0, len(inputs))
        start = end


def cos_sim(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """The cosine of the angle between two embeddings, as Finetuner's `cos_sim`; 0 if one is zero.

    Args:
        a: `(D,)`.
        b: `(D,)`.

    Raises:
        DataError: for other shapes.
    """
    import numpy as np

    from ftray.evaluation.similarity import similarities

    first, second = np.asarray(a), np.asarray(b)
    if first.ndim != 1 or first.shape != second.shape:
        raise DataError(
            f"cos_sim: two vectors of one width are expected, not {first.shape} and {second.shape}"
        )
    return float(similarities(first[None], second[None], "cosine")[0])
