"""torch.compile: what of each model is compiled, and that names, numbers and artifacts stay."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import ftray
from ftray.errors import ConfigError
from ftray.events import StepEnded
from ftray.models.registry import load_encoder
from ftray.training.compiling import check_compiler, nets_of
from tests.test_fit_local import fit
from tests.tiny import tiny_clip, tiny_image_model, tiny_text_model, tiny_two_towers

torch.set_num_threads(1)


def names(encoder: Any) -> list[str]:
    return [type(net).__name__ for net in nets_of(encoder)]


def test_the_nets_that_are_called_are_compiled(tmp_path: Path) -> None:
    text, image = tiny_text_model(tmp_path / "text"), tiny_image_model(tmp_path / "vit", "vit")
    assert names(load_encoder(str(text))) == ["BertModel"]
    assert names(load_encoder(str(tiny_two_towers(tmp_path / "two")))) == ["BertModel"] * 2
    assert names(load_encoder(str(image))) == ["ViTModel"]
    assert names(load_encoder("convnet")) == ["Sequential"]
    clip = names(load_encoder(str(tiny_clip(tmp_path / "clip"))))
    assert len(clip) == 2 and all("Transformer" in name or "Model" in name for name in clip)
    towers = load_encoder("two-towers", options={"text": str(text), "image": str(image)})
    assert {"BertModel", "ViTModel"} <= set(names(towers))


def test_without_a_compiler_the_error_says_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("\nNo working C++ compiler found\nmore")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(ConfigError) as caught:
        check_compiler(torch.device("cpu"))
    assert str(caught.value) == (
        "compile = true, but torch.compile does not work here; it needs a C++ compiler (g++) and "
        "Python's headers: No working C++ compiler found"
    )


@pytest.mark.slow
def test_without_a_compiler_there_is_such_an_error(tmp_path: Path) -> None:
    code = "import torch; from ftray.training.compiling import check_compiler as c; "
    code += "c(torch.device('cpu'))"
    places = {"CXX": "/nowhere/g++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **places}, capture_output=True, text=True
    )
    assert "ConfigError: compile = true, but torch.compile does not work here" in done.stderr


@pytest.mark.slow
def test_a_compiled_fit_gives_the_same_with_dropout_micro_batches_and_lengths(
    tmp_path: Path, dropout_model: Path, labelled_rows: list[Any]
) -> None:
    given = {
        "model": str(dropout_model),
        "train_data": labelled_rows,
        "micro_batch_size": 12,
        "epochs": 1,
    }
    losses = []
    for compiled in (False, True):
        run = fit(tmp_path, compile=compiled, **given)
        losses.append([e.loss for e in run._record.events() if isinstance(e, StepEnded)])
        assert ftray.encode(run.artifact_id, ["lost card"]).shape[0] == 1
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
