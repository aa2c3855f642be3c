"""An encoder whose forward is an ONNX graph, run by onnxruntime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ftray.errors import ConfigError, ModelError
from ftray.media import Content
from ftray.models.base import Draws, Encoder, Features, Item
from ftray.models.layout import Layout
from ftray.models.registry import check_options, load_encoder, locate_model
from ftray.record.storage import Storage

__all__ = ["EMBEDDING", "FOLDER", "GraphSession", "OnnxEncoder", "Sessions"]
__all__ += ["graph_of", "load_onnx"]

CUDA = "CUDAExecutionProvider"
FOLDER = "onnx"
EMBEDDING = "sentence_embedding"
"""The output that holds the embeddings, `(n, D)`, also of images."""


def load_onnx(
    name: str,
    *,
    device: torch.device | str = "cpu",
    max_length: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> OnnxEncoder:
    """Load a model whose folder holds `onnx/`; its tokenizer and processor are those beside it.

    Args:
        name: of the folder, or its URI.
        device: "cuda" or "cpu"; "auto" is the GPU where there is one, and onnxruntime can use it.
        max_length: longest text in tokens; None keeps the model's own limit.
        options: of the model: `prompts` alone, all else is in the graphs.

    Raises:
        ModelError: if there are no graphs, they cannot be read, onnxruntime is missing, or it
            cannot use the GPU that is asked for.
        ConfigError: for options that the graphs would not follow.
    """
    place = locate_model(name)
    if "://" in place:
        with Storage(place).local_copy("") as copy:
            return _load(str(copy), name, device, max_length, options)
    return _load(place, name, device, max_length, options)


def _load(
    place: str,
    name: str,
    device: torch.device | str,
    max_length: int | None,
    options: Mapping[str, Any] | None,
) -> OnnxEncoder:
    files = sorted(Path(place, FOLDER).glob("*.onnx")) if Path(place).is_dir() else []
    if not files:
        raise ModelError(
            f"'{name}' holds no ONNX graphs (onnx/*.onnx). A fit with to_onnx=True writes them, "
            f"and so does: ftray export {name} -o FOLDER"
        )
    _check_options(name, place, options or {})
    kind = _device_for(device)
    sessions = {file.stem: GraphSession(file, kind) for file in files}
    return OnnxEncoder(
        load_encoder(place, max_length=max_length, options=options, called=name), sessions
    )


def _check_options(name: str, place: str, options: Mapping[str, Any]) -> None:
    """Refuse what would be ignored: a graph holds all that comes after the tokenizer."""
    check_options(name, place, options)
    for option in options:
        if option != "prompts":
            raise ConfigError(
                f"model_options.{option}: '{name}' is loaded as ONNX, and its graphs were made "
                "without it; prompts alone can be given. Leave it out, or load the weights "
                "(is_onnx=False)"
            )


def _device_for(device: torch.device | str) -> str:
    """Where to compute; "auto" is the GPU if both torch and onnxruntime have it."""
    if device != "auto":
        return torch.device(device).type
    has_gpu = torch.cuda.is_available() and CUDA in _onnxruntime().get_available_providers()
    return "cuda" if has_gpu else "cpu"


class GraphSession:
    """A graph that is ready to run; in another process it is opened anew, from its file.

    Args:
        file: of the graph.
        device: "cpu" or "cuda".

    Raises:
        ModelError: if onnxruntime is missing, cannot use the device, or cannot read the file.
    """

    def __init__(self, file: Path, device: str = "cpu") -> None:
        self._made_of = (file, device)
        self._session = _session(file, device)
        self._inputs = [value.name for value in self._session.get_inputs()]

    def __reduce__(self) -> tuple[Any, ...]:
        return GraphSession, self._made_of

    def __call__(self, inputs: Mapping[str, Any]) -> npt.NDArray[np.float32]:
        """Embeddings of one forward, `(rows, D)`; inputs that it does not have are left out."""
        feed = {name: inputs[name].cpu().numpy() for name in self._inputs}
        (found,) = self._session.run([EMBEDDING], feed)
        result: npt.NDArray[np.float32] = found
        return result


Sessions = Mapping[str, GraphSession]
"""The graphs of a model, by the names of their files."""


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise ModelError(
            "ONNX needs onnxruntime, not installed here: pip install 'ftray[onnx]'"
        ) from None
    return onnxruntime


def _session(file: Path, device: str) -> Any:
    onnxruntime = _onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    # as many threads as torch has: whoever limits these means the process
    options.intra_op_num_threads = torch.get_num_threads()
    there = onnxruntime.get_available_providers()
    if device == "cuda" and CUDA not in there:
        raise ModelError(
            "device = 'cuda': the onnxruntime that is installed here computes on the CPU alone. "
            "Install onnxruntime-gpu in its place, or give device = 'cpu'"
        )
    providers = [*([CUDA] if device == "cuda" else []), "CPUExecutionProvider"]
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=providers)
    except Exception as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"'{file}' is no ONNX graph that can be run: {said}") from error
    if device == "cuda" and CUDA not in session.get_providers():  # it goes on with the CPU
        raise ModelError(
            "device = 'cuda': onnxruntime cannot use the GPU here (its libraries of CUDA or cuDNN "
            "do not load); give device = 'cpu'"
        )
    return session


def graph_of(encoder: Encoder, inputs: Mapping[str, Any], graphs: Sessions) -> str:
    """The graph that the inputs of a forward are for.

    Args:
        encoder: whose `collate` made them.
        inputs: of one forward.
        graphs: those that there are.
    """
    if "model" in graphs:
        return "model"
    if encoder.kind == "text":
        return str(inputs.get("task") or encoder.default_tower)
    if "tower" in inputs:
        return str(inputs["tower"])
    return "image" if "pixel_values" in inputs else "text"


class OnnxEncoder(Encoder):
    """Things to embeddings as the model does that was exported; it cannot be trained.

    Args:
        whole: the model, which makes the inputs of the graphs: its prompts, tokenizer and image
            processor count, and its weights are let go.
        sessions: one for each graph.
    """

    def __init__(self, whole: Encoder, sessions: Sessions) -> None:
        super().__init__(whole.name)
        self._dim = whole.embedding_dim
        self.whole = whole.eval().to("meta")
        self.modalities = whole.modalities
        self.sessions = dict(sessions)

    @property
    def kind(self) -> str:  # type: ignore[override]
        """That of the model which was exported."""
        return self.whole.kind

    @property
    def own_dim(self) -> int:
        """Width D of an embedding; a head is part of the graph."""
        return self._dim

    @property
    def device(self) -> torch.device:
        """Where inputs are handed over; onnxruntime takes them where it computes."""
        return torch.device("cpu")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Stay as it is, wherever a model is moved to; another precision is refused.

        Raises:
            ModelError: for one.
        """
        if (dtype := fn(torch.zeros(1)).dtype) != torch.float32:
            raise ModelError(
                f"'{self.name}' was loaded as ONNX: its graphs compute in float32, not in "
                f"{str(dtype).removeprefix('torch.')}"
            )
        return self

    @property
    def roles_differ(self) -> bool:
        """Whether a thing is encoded differently as query and as document."""
        return self.whole.roles_differ

    @property
    def towers(self) -> tuple[str, ...]:
        """What an evaluation may name as its `model`."""
        return self.whole.towers

    @property
    def default_tower(self) -> str | None:
        """Of two towers for the same modality, the one of things without a role; else None."""
        return self.whole.default_tower

    def max_tokens(self, role: str = "") -> int | None:
        """The most tokens of a text that are not cut; None without a limit, and without texts."""
        return self.whole.max_tokens(role)

    def token_counts(self, texts: Sequence[str], role: str) -> list[int]:
        """How many tokens each text has."""
        return self.whole.token_counts(texts, role)

    def cost(self, content: Content) -> int:
        """How much a thing is to encode, beside others."""
        return self.whole.cost(content)

    def collate(
        self, items: Sequence[Item], layout: Layout = "bucketed", draws: Draws | None = None
    ) -> Features:
        """Tokenise or decode; each text has a row of its own, as the graphs want it."""
        return self.whole.collate(items, "padded" if layout == "padded" else "bucketed", draws)

    def encode(self, inputs: dict[str, Any]) -> Tensor:
        """Embeddings of one forward pass, by onnxruntime."""
        graph = graph_of(self.whole, inputs, self.sessions)
        if graph not in self.sessions:
            raise ModelError(f"'{self.name}' has no ONNX graph '{graph}' (onnx/{graph}.onnx)")
        return torch.from_numpy(self.sessions[graph](inputs))

    def save(self, folder: Path) -> dict[str, Any]:
        """Refused: the weights are in the graphs.

        Raises:
            ModelError: always.
        """
        raise ModelError(f"'{self.name}' was loaded as ONNX: copy its folder to keep it")
