"""What there is to choose from: names, tasks, options."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import ftray
from ftray.cli.app import app
from ftray.errors import ConfigError, ModelError
from ftray.models.artifact import save_encoder
from ftray.models.catalogue import ALIASES, MODELS
from ftray.models.kinds import kind_of
from ftray.models.options import OPTIONS, checked
from ftray.models.registry import LOADERS, load_encoder, locate_model

FINETUNERS = (
    "bert-base-en bert-base-multi distiluse-base-multi sbert-base-en jina-embedding-t-en-v1 "
    "jina-embedding-s-en-v1 jina-embedding-b-en-v1 jina-embedding-l-en-v1 resnet-base resnet-large "
    "efficientnet-base efficientnet-large clip-base-en clip-large-en clip-base-multi pointnet-base "
    "mlp"
).split()


def test_finetuners_names_are_kept() -> None:
    assert set(FINETUNERS) <= set(ftray.list_models())


@pytest.mark.parametrize("name", sorted(MODELS))
def test_each_name_leads_to_a_place_and_a_kind_that_has_a_loader_and_options(name: str) -> None:
    if MODELS[name].package:
        pytest.importorskip(MODELS[name].package or "")
    kind, _ = kind_of(locate_model(name))
    assert kind == MODELS[name].kind
    assert kind in LOADERS and kind in OPTIONS


def test_each_alias_is_of_a_model() -> None:
    assert set(ALIASES.values()) <= set(MODELS)
    for alias, name in ALIASES.items():
        assert locate_model(alias) == locate_model(name)


def test_models_are_listed_by_task() -> None:
    images = ftray.list_models("image-to-image")
    assert "resnet-base" in images and "minilm" not in images
    with pytest.raises(ConfigError, match=r"no task 'text-to-imgae'. Did you mean 'text-to-image'"):
        ftray.list_models("text-to-imgae")


def test_the_table_says_what_finetuners_said(capsys: pytest.CaptureFixture[str]) -> None:
    ftray.describe_models("mesh-to-mesh")
    shown = capsys.readouterr().out
    for word in ("name", "task", "output_dim", "architecture", "pointnet-base", "PointNet++"):
        assert word in shown
    assert "resnet" not in shown


def test_options_have_name_type_default_and_whether_they_must_be_given() -> None:
    (options,) = ftray.list_model_options("mlp").values()
    found = {option["name"]: option for option in options}
    assert found["hidden_sizes"]["type"] == "list of int" and found["hidden_sizes"]["default"] == []
    assert found["activation"]["type"] == "'relu' | 'tanh' | 'sigmoid' | None"
    assert not any(option["required"] for option in options)
    assert set(ftray.list_model_options()) == set(MODELS)
    with pytest.raises(ModelError, match="Did you mean 'convnet'"):
        ftray.list_model_options("convent")


def test_an_unknown_option_or_value_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'convnet' has no option 'chanels'. Did you mean"):
        load_encoder("convnet", options={"chanels": [8]})
    with pytest.raises(ConfigError, match=r"model_options.norm = 'layer'.*'batch'"):
        checked("convnet", {"norm": "layer"}, "convnet")
    with pytest.raises(ConfigError, match=r"'minilm' has no option 'poling'. Did you mean"):
        checked("text", {"poling": "cls"}, "minilm")


def test_the_command_lists_names_and_options() -> None:
    runner = CliRunner()
    rows = json.loads(runner.invoke(app, ["models", "--task", "any", "--json"]).stdout)
    assert [row["name"] for row in rows] == ["mlp"]
    shown = runner.invoke(app, ["models", "convnet"]).stdout
    assert "channels" in shown and "[32, 64, 128]" in shown
    assert "pooling_p" in runner.invoke(app, ["models", "minilm"]).stdout


def test_an_artifacts_options_are_its_own(tmp_path: Path) -> None:
    save_encoder(load_encoder("convnet", options={"channels": [4]}), tmp_path)
    found = {
        o["name"]: o["default"] for o in ftray.list_model_options(str(tmp_path))[str(tmp_path)]
    }
    assert found["channels"] == [4] and found["norm"] == "batch"


def test_a_kind_that_is_not_known_is_named(tmp_path: Path) -> None:
    (tmp_path / "ftray.json").write_text('{"kind": "video"}')
    with pytest.raises(ModelError, match="of the kind 'video', which this ftray does not know"):
        load_encoder(str(tmp_path))


def test_one_tower_at_least_is_trained() -> None:
    with pytest.raises(ConfigError, match="frozen"):
        checked("clip", {"frozen": ["text", "image"]}, "clip-base-en")
