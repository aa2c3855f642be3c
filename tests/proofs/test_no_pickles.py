"""Nothing is unpickled from a file: whatever holds a payload in place of weights or of data.

Each file is put where ftray, or a library that it calls, would look for one like it. What it holds
leaves a file behind when it is unpickled; that never happens, and the error is one for people.
"""

from __future__ import annotations

import gzip
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import nn

import ftray
from ftray.data.readers import read_records
from ftray.errors import DataError, FtrayError, ModelError
from ftray.models.artifact import save_encoder
from ftray.models.module import ModuleParts, keep_module
from ftray.models.onnx import load_onnx
from ftray.models.registry import load_encoder
from ftray.models.surgery import Surgery
from tests.tiny import tiny_clip, tiny_image_model, tiny_text_model, tiny_two_towers


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.canary), "w")


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


def as_pickle(canary: Path, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(pickle.dumps(Trap(canary)))


def as_torch_file(canary: Path, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"weight": Trap(canary)}, file)


FORMS = {"pickle": as_pickle, "torch": as_torch_file}


@pytest.mark.parametrize("form", FORMS)
def test_the_traps_work(tmp_path: Path, canary: Path, form: str) -> None:
    FORMS[form](canary, tmp_path / "trap")
    torch.load(tmp_path / "trap", weights_only=False) if form == "torch" else pickle.loads(
        (tmp_path / "trap").read_bytes()
    ).close()
    assert canary.exists()


# ---------------------------------------------------------------- models


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.layer(batch)


def text(folder: Path) -> Any:
    return load_encoder(str(tiny_text_model(folder)), surgery=Surgery(output_dim=5))


def gem(folder: Path) -> Any:
    return load_encoder(str(tiny_text_model(folder)), options={"pooling": "gem"})


def image(folder: Path) -> Any:
    return load_encoder(str(tiny_image_model(folder)), surgery=Surgery(output_dim=5))


def towers(folder: Path) -> Any:
    text, picture = tiny_text_model(folder / "t"), tiny_image_model(folder / "i")
    return load_encoder("two-towers", options={"text": str(text), "image": str(picture)})


def net(folder: Path) -> Any:
    folder.mkdir(parents=True)
    parts = ModuleParts(module=Net())
    keep_module(parts, folder / "kept")
    return load_encoder(str(folder / "kept"), module=parts)


MADE: dict[str, Callable[[Path], Any]] = {
    "text": text,
    "gem": gem,
    "routes": lambda folder: load_encoder(str(tiny_two_towers(folder))),
    "image": image,
    "clip": lambda folder: load_encoder(str(tiny_clip(folder))),
    "two-towers": towers,
    "convnet": lambda folder: load_encoder("convnet"),
    "mlp": lambda folder: load_encoder("mlp", options={"input_size": 3}),
    "pointnet": lambda folder: load_encoder("pointnet-base", options={"width": 0.1}),
    "module": net,
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a model of a kind, as an artifact is."""
    root, known = tmp_path_factory.mktemp("kept"), dict[str, Path]()

    def folder(kind: str) -> Path:
        if kind not in known:
            known[kind] = root / kind / "artifact"
            save_encoder(MADE[kind](root / kind / "base"), known[kind])
        return known[kind]

    return folder


def loaded(kind: str, folder: Path) -> Any:
    return load_encoder(str(folder), module=ModuleParts(module=Net()) if kind == "module" else None)


@pytest.mark.parametrize("kind", MADE)
def test_weights_that_are_a_pickle_are_refused_wherever_they_lie(
    kept: Callable[[str], Path], tmp_path: Path, canary: Path, kind: str
) -> None:
    """Every file of weights in its turn: replaced by a pickle, by name and beside its name."""
    files = [f.relative_to(kept(kind)) for f in kept(kind).rglob("*.safetensors")]
    assert files
    loaded(kind, kept(kind))
    for number, weights in enumerate(files):
        for form, trap in FORMS.items():
            folder = tmp_path / f"{number}{form}"
            shutil.copytree(kept(kind), folder)
            trap(canary, folder / weights)
            with pytest.raises(ModelError):
                loaded(kind, folder)
            (folder / weights).unlink()
            for name in ("pytorch_model.bin", "model.pt", "model.pkl", "weights.joblib"):
                trap(canary, folder / weights.parent / name)
            with pytest.raises(ModelError):
                loaded(kind, folder)
            assert not canary.exists(), weights


def test_pickles_beside_the_weights_are_left_alone(
    kept: Callable[[str], Path], tmp_path: Path, canary: Path
) -> None:
    folder = tmp_path / "artifact"
    shutil.copytree(kept("text"), folder)
    for name in ("pytorch_model.bin", "adapter/adapter_model.bin", "adapter/weights.joblib"):
        as_torch_file(canary, folder / name)
    loaded("text", folder)
    assert not canary.exists()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("make", [tiny_text_model, tiny_image_model, tiny_clip])
def test_a_folder_of_others_with_a_pickle_for_weights_does_no_harm(
    tmp_path: Path, canary: Path, form: str, make: Callable[[Path], Path]
) -> None:
    """transformers reads such weights as tensors alone (`weights_only`)."""
    folder = make(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    FORMS[form](canary, folder / "pytorch_model.bin")
    with pytest.raises(ModelError):
        load_encoder(str(folder))
    assert not canary.exists()


@pytest.mark.parametrize("form", FORMS)
def test_a_graph_that_is_a_pickle_is_refused(
    kept: Callable[[str], Path], tmp_path: Path, canary: Path, form: str
) -> None:
    folder = tmp_path / "artifact"
    shutil.copytree(kept("mlp"), folder)
    FORMS[form](canary, folder / "onnx" / "model.onnx")
    with pytest.raises(ModelError, match="no ONNX graph that can be run"):
        load_onnx(str(folder))
    assert not canary.exists()


# ---------------------------------------------------------------- data


def as_array(canary: Path, file: Path) -> None:
    np.save(file, np.array([Trap(canary)], dtype=object), allow_pickle=True)
    if file.suffix != ".npy":
        file.with_name(f"{file.name}.npy").rename(file)


def as_archive(canary: Path, file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("000.pyd", pickle.dumps(Trap(canary)))
        archive.writestr("000.pkl", pickle.dumps(Trap(canary)))


def as_parquet(canary: Path, file: Path) -> None:
    """A column of the type that pyarrow once made of a pickle in the file's metadata."""
    metadata = {
        "ARROW:extension:name": "arrow.py_extension_type",
        "ARROW:extension:metadata": pickle.dumps(Trap(canary)),
    }
    fields = [pa.field("text", pa.string(), metadata=metadata), pa.field("label", pa.string())]
    table = pa.table([["a", "b"], ["x", "y"]], schema=pa.schema(fields))
    pq.write_table(table, file)


def as_documents(canary: Path, file: Path) -> None:
    """A DocList in docarray's own format, which holds pickles."""
    file.write_bytes(b"\x01" + (1).to_bytes(8, "big") + pickle.dumps(Trap(canary)))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("data.pkl", as_pickle),
        ("data.pickle", as_pickle),
        ("data.joblib", as_pickle),
        ("data.pt", as_torch_file),
        ("data.npy", as_array),
        ("data.npz", as_array),
        ("data.zip", as_archive),
        ("data.bin", as_documents),
        ("data.docs", as_documents),
        ("data.arrow", as_pickle),
        ("data.feather", as_pickle),
        ("data.h5", as_pickle),
    ],
)
def test_a_file_of_data_is_not_unpickled(
    tmp_path: Path, canary: Path, name: str, write: Callable[[Path, Path], None]
) -> None:
    write(canary, tmp_path / name)
    with pytest.raises(FtrayError):
        read_records(tmp_path / name)
    assert not canary.exists()


def test_a_zipped_pickle_is_not_unpickled(tmp_path: Path, canary: Path) -> None:
    with gzip.open(tmp_path / "data.pkl.gz", "wb") as file:
        pickle.dump(Trap(canary), file)
    with pytest.raises(DataError):
        read_records(tmp_path / "data.pkl.gz")
    assert not canary.exists()


def test_a_type_in_a_parquet_file_is_not_unpickled(tmp_path: Path, canary: Path) -> None:
    as_parquet(canary, tmp_path / "data.parquet")
    assert read_records(tmp_path / "data.parquet").table.num_rows == 2
    assert not canary.exists()


@pytest.mark.parametrize("write", [as_array, as_pickle, as_torch_file])
@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt"])
def test_features_are_not_unpickled(
    tmp_path: Path, canary: Path, write: Callable[[Path, Path], None], suffix: str
) -> None:
    for number in range(4):
        write(canary, tmp_path / f"{number}{suffix}")
    rows = [f"{tmp_path}/{number}{suffix},c{number % 2}" for number in range(4)]
    (tmp_path / "data.csv").write_text("\n".join(["features,label", *rows]) + "\n")
    with pytest.raises(FtrayError):
        ftray.fit(model="mlp", train_data=str(tmp_path / "data.csv"), num_workers=0, listeners=[])
    assert not canary.exists()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_pictures_are_not_unpickled(tmp_path: Path, canary: Path, suffix: str) -> None:
    """The third of four is none; the others show that they are read."""
    for number in range(4):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}{suffix}")
    as_pickle(canary, tmp_path / f"2{suffix}")
    encoder = load_encoder("convnet")
    with pytest.raises(DataError, match=f"2{suffix}"):
        ftray.encode(encoder, [str(tmp_path / f"{number}{suffix}") for number in range(4)])
    assert not canary.exists()


@pytest.mark.parametrize("suffix", [".ply", ".npy", ".xyz", ".off", ".obj"])
def test_points_are_not_unpickled(tmp_path: Path, canary: Path, suffix: str) -> None:
    for write in (as_pickle, as_array):
        write(canary, tmp_path / f"cloud{suffix}")
        encoder = load_encoder("pointnet-base", options={"width": 0.1})
        with pytest.raises(FtrayError):
            ftray.encode(encoder, [str(tmp_path / f"cloud{suffix}")])
        assert not canary.exists()
