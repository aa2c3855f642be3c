"""What is done to a model before it is trained: heads, frozen weights, prompts; and its summary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import AutoModel

import ftray
from ftray.config import FitConfig, validated
from ftray.errors import ConfigError
from ftray.evaluation.encode import encode_texts
from ftray.media import Media
from ftray.models.artifact import save_encoder
from ftray.models.base import Encoder, Item
from ftray.models.registry import load_encoder
from ftray.models.routes import local_towers
from ftray.models.surgery import Surgery, is_all_at_rest
from ftray.training.job import prepare
from ftray.training.learner import Learner
from ftray.training.optim import build_optimizer
from tests.models.pictures import random_pictures
from tests.tiny import tiny_clip, tiny_image_model, tiny_text_model, tiny_two_towers

TEXTS = ["card bank", "where is my money please tell me now", "a", ""]
DIM = 8
MLP = {"input_size": 6, "hidden_sizes": [10]}
SMALL_NET = {"channels": [4, 8], "image_size": 16}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A tiny model of each make."""
    root = tmp_path_factory.mktemp("models")
    return {
        "text": str(tiny_text_model(root / "text", dropout=0.1)),
        "not normalised": str(tiny_text_model(root / "plain", normalize=False)),
        "two text towers": str(tiny_two_towers(root / "routes")),
        "resnet": str(tiny_image_model(root / "resnet")),
        "vit": str(tiny_image_model(root / "vit", "vit")),
        "clip": str(tiny_clip(root / "clip", dropout=0.1)),
        "convnet": "convnet",
        "pointnet": "pointnet-base",
        "mlp": "mlp",
    }


OPTIONS: dict[str, dict[str, Any]] = {
    "convnet": SMALL_NET,
    "mlp": MLP,
    "pointnet": {"points": 32, "width": 0.05},
}


def made(folders: dict[str, str], kind: str, **surgery: Any) -> Encoder:
    return load_encoder(
        folders[kind], options=OPTIONS.get(kind), surgery=Surgery(**surgery), seed=5
    )


def vector(values: Any) -> Media:
    data = np.asarray(values, "<f4")
    return Media(modality="features", address=f"sha256:{data.tobytes().hex()}", data=data.tobytes())


def things(encoder: Encoder) -> list[Item]:
    rng = np.random.default_rng(0)
    found: list[Any] = []
    if "text" in encoder.modalities:
        found += TEXTS
    if "image" in encoder.modalities:
        found += random_pictures(3)
    if "features" in encoder.modalities:
        found += [vector(row) for row in rng.normal(size=(3, 6))]
    if "points" in encoder.modalities:
        np.save(file := Path(_TEMPORARY[0]) / "cloud.npy", rng.normal(size=(40, 3)))
        found.append(Media(modality="points", address=str(file), data=file.read_bytes()))
    return [("", content) for content in found]


_TEMPORARY: list[str] = []


@pytest.fixture(autouse=True, scope="module")
def _a_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    _TEMPORARY[:] = [str(tmp_path_factory.mktemp("clouds"))]


def embedded(encoder: Encoder) -> Tensor:
    encoder.eval()
    with torch.no_grad():
        return encoder(encoder.collate(things(encoder)))


# ------------------------------------------------------------------ heads


@pytest.mark.parametrize(
    "kind",
    [
        *("text", "not normalised", "two text towers", "resnet", "vit", "clip"),
        *("convnet", "pointnet", "mlp"),
    ],
)
def test_embeddings_have_the_width_that_is_asked_for_and_the_artifact_keeps_it(
    folders: dict[str, str], tmp_path: Path, kind: str
) -> None:
    encoder = made(folders, kind, output_dim=DIM)
    found = embedded(encoder)
    assert found.shape[1] == DIM == encoder.embedding_dim
    assert torch.equal(embedded(made(folders, kind, output_dim=DIM)), found)  # by the seed alone
    save_encoder(encoder, tmp_path)
    again = load_encoder(str(tmp_path))
    assert again.embedding_dim == DIM
    assert torch.equal(embedded(again), found)
    assert set(again.state_dict()) == set(encoder.state_dict())
    frozen = [name for name, weight in again.named_parameters() if not weight.requires_grad]
    assert all("pooler" in name for name in frozen)  # BERT's, which its tokens do not go through


@pytest.mark.parametrize("kind", ["text", "not normalised", "two text towers"])
def test_the_head_of_a_text_model_is_one_of_sentence_transformers(
    folders: dict[str, str], tmp_path: Path, kind: str
) -> None:
    encoder = made(folders, kind, output_dim=DIM)
    save_encoder(encoder, tmp_path)
    theirs = SentenceTransformer(str(tmp_path), device="cpu")
    for role, encode in (("query", theirs.encode_query), ("document", theirs.encode_document)):
        assert np.abs(encode(TEXTS) - encode_texts(encoder, TEXTS, role=role)).max() < 1e-6
    names = [type(part).__name__ for part in theirs]
    assert (
        names[-2:] == ["Dense", "Normalize"] if kind != "not normalised" else names[-1] == "Dense"
    )
    lengths = embedded(encoder).norm(dim=1)
    assert bool((lengths - 1).abs().max() < 1e-6) == (kind != "not normalised")


@pytest.mark.parametrize("kind", ["vit", "clip"])
def test_other_libraries_load_the_model_without_its_head(
    folders: dict[str, str], tmp_path: Path, kind: str
) -> None:
    encoder = made(folders, kind, output_dim=DIM)
    save_encoder(encoder, tmp_path)
    facts = json.loads((tmp_path / "ftray.json").read_text())
    assert facts["head"] == {"dim": DIM, "file": "head.safetensors"}
    assert "head.safetensors" in facts["note"]
    theirs = AutoModel.from_pretrained(tmp_path).state_dict()
    ours = encoder.model.state_dict()  # type: ignore[union-attr, operator]
    assert all(torch.equal(theirs[name], value) for name, value in ours.items())  # type: ignore


def test_a_new_head_keeps_angles_where_it_is_wide_enough(folders: dict[str, str]) -> None:
    plain = torch.nn.functional.normalize(embedded(made(folders, "clip")))
    for width in (24, 40):
        wide = embedded(made(folders, "clip", output_dim=width, freeze=True))
        wide = torch.nn.functional.normalize(wide)
        # of texts with images too: both towers have the same head at first
        assert torch.allclose(wide @ wide.T, plain @ plain.T, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "width"), [("text", 32), ("resnet", 32), ("clip", 24), ("mlp", 10), ("convnet", 64)]
)
def test_the_models_own_width_needs_no_head(folders: dict[str, str], kind: str, width: int) -> None:
    encoder, plain = made(folders, kind, output_dim=width), made(folders, kind)
    assert encoder.head_prefix is None
    assert torch.equal(embedded(encoder), embedded(plain))


def test_a_net_from_scratch_gets_its_own_last_layer(
    folders: dict[str, str], tmp_path: Path
) -> None:
    encoder = made(folders, "convnet", output_dim=DIM)
    assert encoder.head_prefix is None
    assert encoder.get_parameter("net.output.weight").shape[0] == DIM
    with pytest.raises(ConfigError, match=r"output_dim = 8, but model_options.output_dim = 7"):
        load_encoder("convnet", options={"output_dim": 7}, surgery=Surgery(output_dim=8))
    save_encoder(encoder, tmp_path)
    trained = load_encoder(str(tmp_path), surgery=Surgery(output_dim=5))
    assert (trained.head_prefix, trained.embedding_dim) == ("heads.", 5)


@pytest.mark.parametrize("kind", ["text", "vit"])
def test_a_head_is_trained_on_and_not_put_upon_a_head(
    folders: dict[str, str], tmp_path: Path, kind: str
) -> None:
    save_encoder(made(folders, kind, output_dim=DIM), tmp_path)
    again = load_encoder(str(tmp_path), surgery=Surgery(freeze=True))
    trained = [name for name, weight in again.named_parameters() if weight.requires_grad]
    assert len(trained) == 1 and trained[0].startswith(again.head_prefix or "-")
    assert again.embedding_dim == DIM
    with pytest.raises(ConfigError, match="has a head already, of the width 8"):
        load_encoder(str(tmp_path), surgery=Surgery(output_dim=5))


def test_the_perceptrons_embeddings_have_length_one_behind_the_head() -> None:
    encoder = load_encoder("mlp", options={**MLP, "l2": True}, surgery=Surgery(output_dim=4))
    assert torch.allclose(embedded(encoder).norm(dim=1), torch.ones(3))


# ------------------------------------------------------------------ frozen weights


@pytest.mark.parametrize(
    ("kind", "patterns", "some", "not_these"),
    [
        (
            "text",
            ("0.model.embeddings", "*.layer.[0-0].*"),
            ["model.0.model.embeddings.LayerNorm.bias"],
            ["model.0.model.encoder.layer.1.output.dense.weight"],
        ),
        ("text", ("model.0.model.encoder.layer.1",), ["output.dense.weight"], ["embeddings.W"]),
        ("resnet", ("*.embedder", "*.stages.0.*"), ["stages.0.layers.0"], ["stages.1.layers.0"]),
        ("clip", ("model.vision_model.*",), ["vision_model.embeddings"], ["text_model"]),
        ("convnet", ("net.stage1",), ["net.stage1.conv.weight"], ["net.stage2", "net.output"]),
    ],
)
def test_weights_are_frozen_by_the_names_of_layers(
    folders: dict[str, str],
    kind: str,
    patterns: tuple[str, ...],
    some: list[str],
    not_these: list[str],
) -> None:
    encoder = made(folders, kind, freeze=patterns)
    frozen = [name for name, weight in encoder.named_parameters() if not weight.requires_grad]
    for part in some:
        assert any(part in name for name in frozen), frozen
    for part in not_these:
        assert not any(part in name for name in frozen), frozen
    assert 0 < len(frozen) < len(list(encoder.parameters())) and encoder.head_prefix is None


def test_frozen_weights_have_no_gradient_and_no_place_in_the_optimizer(
    folders: dict[str, str],
) -> None:
    encoder = made(folders, "text", freeze=("*.embeddings.*",), output_dim=DIM)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    config = FitConfig(model="tiny", train_data="-", optimizer_options={"weight_decay": 0.5})
    optimizer = build_optimizer(config, encoder, nn.Linear(1, 1))
    encoder.train()
    encoder(encoder.collate(things(encoder))).square()[:, 0].sum().backward()
    optimizer.step()
    known = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    for name, weight in encoder.named_parameters():
        frozen = ".embeddings." in name or ".pooler." in name
        assert (weight.grad is None) == frozen, name
        assert (id(weight) in known) != frozen, name
        assert (weight in optimizer.state) == (weight.grad is not None), name
        assert torch.equal(weight, before[name]) == (weight.grad is None), name


@pytest.mark.parametrize("kind", ["text", "resnet", "vit", "clip", "convnet", "pointnet", "mlp"])
def test_a_model_that_is_frozen_as_a_whole_gives_the_same_in_training(
    folders: dict[str, str], kind: str
) -> None:
    """No dropout, statistics as they are, rows that do not depend on each other, and a head."""
    encoder = made(folders, kind, freeze=True)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    still = embedded(encoder)
    encoder.train()
    moving = encoder(encoder.collate(things(encoder)))
    assert torch.equal(moving, still) and moving.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert not encoder.couples_rows and is_all_at_rest(encoder)
    trained = [name for name, weight in encoder.named_parameters() if weight.requires_grad]
    assert all(name.startswith(encoder.head_prefix or "-") for name in trained)
    assert len(trained) == (2 if kind == "clip" else 1)


def test_frozen_batch_normalisation_keeps_its_statistics_and_the_rest_does_not() -> None:
    encoder = load_encoder("convnet", options=SMALL_NET, surgery=Surgery(freeze=("net.stage1",)))
    assert encoder.couples_rows  # the second stage's
    encoder.train()
    encoder(encoder.collate(things(encoder)))
    norms = {n: m for n, m in encoder.named_modules() if isinstance(m, _BatchNorm)}
    assert not norms["net.stage1.norm"].running_mean.any()  # type: ignore[union-attr]
    assert norms["net.stage2.norm"].running_mean.any()  # type: ignore[union-attr]
    both = load_encoder("convnet", options=SMALL_NET, surgery=Surgery(freeze=("*.norm",)))
    assert not both.couples_rows


def test_a_name_that_nothing_has_is_refused_with_the_nearest(folders: dict[str, str]) -> None:
    said = r"'\*.layers.0.\*' is the name of no weight .* Did you mean 'layer'"
    with pytest.raises(ConfigError, match=said):
        made(folders, "text", freeze=("*.embeddings.*", "*.layers.0.*"))


@pytest.mark.parametrize("pattern", ["embeddings", "encoder", "layer.0", "layer.[0-1].*"])
def test_the_end_of_a_name_is_told_how_to_become_a_pattern(
    folders: dict[str, str], pattern: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        made(folders, "text", freeze=(pattern,))
    assert f" Did you mean '*.{pattern}'? " in str(caught.value)
    assert made(folders, "text", freeze=(f"*.{pattern}",)).kind == "text"


def test_one_name_is_a_list_of_one_and_what_is_none_is_refused_in_one_sentence() -> None:
    def frozen(value: Any) -> Any:
        return validated({"model": "tiny", "train_data": "-", "freeze": value}).freeze

    assert frozen("*.embeddings") == frozen(("*.embeddings",)) == ["*.embeddings"]
    assert (frozen(True), frozen("true"), frozen(None), frozen([])) == (True, True, False, [])
    for wrong in (3, [True], {"embeddings": True}):
        with pytest.raises(ConfigError) as caught:
            frozen(wrong)
        said = "true, false, or names of layers are expected, as ['*.embeddings']"
        assert str(caught.value) == f"freeze = {wrong!r}: {said}"


def test_something_must_be_left_to_train(folders: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"freeze = \['\*'\] leaves nothing of '.*' to train"):
        made(folders, "text", freeze=("*",))
    assert made(folders, "text", freeze=("*",), output_dim=DIM).embedding_dim == DIM
    # what is left of these is a pooler that no embedding goes through
    with pytest.raises(ConfigError, match="leaves nothing"):
        made(folders, "text", freeze=("*.embeddings", "*.encoder"))
    with pytest.raises(ConfigError, match="leaves nothing"):
        load_encoder(
            folders["vit"],
            options={"pooling": "cls"},
            surgery=Surgery(freeze=("*.embeddings", "*.layers", "*.layernorm")),
        )


def test_a_pooler_that_is_passed_over_is_kept_and_never_trained(
    folders: dict[str, str], tmp_path: Path
) -> None:
    encoder = made(folders, "text")
    found = ftray.model_summary(encoder, show=False)
    idle = [layer for layer in found.layers if not layer.trained]
    assert [layer.name for layer in idle] == ["model.0.model.pooler.dense"]
    save_encoder(encoder, tmp_path)
    before, after = (AutoModel.from_pretrained(at) for at in (folders["text"], tmp_path))
    assert before.state_dict().keys() == after.state_dict().keys()
    assert torch.equal(before.pooler.dense.weight, after.pooler.dense.weight)
    vit = [load_encoder(folders["vit"], options={"pooling": how}) for how in ("pooler", "cls")]
    assert [len(encoder.unused) for encoder in vit] == [0, 1]


# ------------------------------------------------------------------ prompts


def test_prompts_are_kept_and_tell_the_towers(tmp_path: Path) -> None:
    folder = str(tiny_text_model(tmp_path / "own", prompts={"query": "find: ", "document": "d: "}))
    for options, towers in (
        ({}, ("query", "document")),
        ({"prompts": {"query": "x: "}}, ("query", "document")),
        ({"prompts": {"query": "same: ", "document": "same: "}}, ()),
        ({"prompts": {"query": "d: "}}, ()),
    ):
        encoder = load_encoder(folder, options=options)
        assert encoder.towers == local_towers(folder, options) == towers
    encoder = load_encoder(folder, options={"prompts": {"query": "where: "}})
    save_encoder(encoder, tmp_path / "again")
    theirs = SentenceTransformer(str(tmp_path / "again"), device="cpu")
    assert theirs.prompts == {"query": "where: ", "document": "d: "}
    got = encode_texts(encoder, TEXTS, role="query")
    assert np.abs(theirs.encode_query(TEXTS) - got).max() < 1e-6
    assert np.abs(got - encode_texts(load_encoder(folder), TEXTS, role="query")).max() > 1e-3
    with pytest.raises(ConfigError, match=r"model_options.prompts.passage"):
        load_encoder(folder, options={"prompts": {"passage": "p: "}})


# ------------------------------------------------------------------ a module of the user's


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(6, 12), nn.BatchNorm1d(12)
        self.last = nn.Linear(12, 9)

    def forward(self, rows: Tensor) -> Tensor:
        return self.last(torch.relu(self.norm(self.first(rows))))


def features_of(n: int = 40) -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    rows = [(int(label), rng.normal(size=6) + 2 * int(label)) for label in rng.integers(0, 4, n)]
    return [{"item": row.astype(np.float32), "label": f"c{label}"} for label, row in rows]


def test_a_fit_of_a_module_attaches_a_head_as_wide_as_it_is(tmp_path: Path) -> None:
    given = Net()
    run = ftray.fit(
        model=given,
        train_data=features_of(),
        loss="SupConLoss",
        freeze=["first"],
        output_dim=4,
        epochs=1,
        batch_size=16,
        num_workers=0,
        storage_path=tmp_path,
        listeners=[],
    )
    encoder = ftray.get_model(run.artifact_id, module=Net())
    assert encoder.embedding_dim == 4
    trained = encoder.state_dict()
    assert torch.equal(trained["module.first.weight"], given.first.weight)
    assert not torch.equal(trained["module.last.weight"], given.last.weight)
    log = (Path(run.path) / "logs.txt").read_text(encoding="utf-8")
    assert "weights: 261, of which 177 are trained" in log
    assert "head.safetensors: ftray applies it" in log


def test_a_fit_of_a_frozen_text_model_trains_its_head_alone(
    folders: dict[str, str], tmp_path: Path
) -> None:
    rows = [{"item": f"{text} {i}", "label": text} for text in TEXTS[:3] for i in range(8)]
    config = FitConfig(model=folders["text"], train_data=rows, freeze=True, num_workers=0)
    learner = _learner(config)
    assert learner.encoder.embedding_dim == 32
    trained = [name for name, w in learner.encoder.named_parameters() if w.requires_grad]
    assert trained == ["model.2.linear.weight"]


def _learner(config: FitConfig) -> Learner:
    from ftray.runtime.process_group import SingleProcess

    job = prepare(config, "")
    return Learner(job, SingleProcess(torch.device("cpu")), 10, job.model)


def test_a_frozen_model_that_would_couple_rows_takes_micro_batches() -> None:
    pictures = [
        {"item": data.data, "label": f"c{i % 2}"} for i, data in enumerate(random_pictures(8))
    ]
    options = {"model": "convnet", "train_data": pictures, "model_options": SMALL_NET}
    options |= {"micro_batch_size": 2, "batch_size": 4, "num_workers": 0}
    with pytest.raises(ConfigError, match="micro_batch_size"):
        prepare(FitConfig(**options), "")
    learner = _learner(FitConfig(**options, freeze=True))
    assert not learner.encoder.couples_rows


# ------------------------------------------------------------------ the summary


def test_the_summary_counts_weights(capsys: pytest.CaptureFixture[str]) -> None:
    found = ftray.model_summary("convnet")
    assert [
        (layer.name, layer.kind, layer.shape, layer.parameters) for layer in found.layers[:2]
    ] == [
        ("net.stage1.conv", "Conv2d", "32 x 1 x 3 x 3", 320),
        ("net.stage1.norm", "GlobalBatchNorm", "32", 64),
    ]
    assert (found.parameters, found.trained, found.embedding_dim) == (224_256, 224_256, 64)
    shown = capsys.readouterr().out
    assert "net.stage1.conv" in shown and "224,256" in shown
    assert "convnet: 0.22 M weights; embeddings of 64" in shown


def test_the_summary_shows_what_a_surgery_would_do(
    folders: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = {"freeze": True, "output_dim": DIM, "model_options": {"pooling": "gem"}, "show": False}
    found = ftray.model_summary(folders["text"], **kinds)
    assert found.trained == 32 * DIM
    assert [layer.name for layer in found.layers if layer.trained] == ["model.2.linear"]
    assert found.layers[-2].kind == "GeM" and capsys.readouterr().out == ""
    again = ftray.model_summary(SentenceTransformer(folders["text"], device="cpu"), **kinds)
    assert again.layers == found.layers
    net = Net()
    module = ftray.model_summary(net, freeze=["first"], show=False)
    assert module.parameters == 216 + 9 and module.embedding_dim is None
    assert module.trained == module.parameters - 84
    assert all(weight.requires_grad for weight in net.parameters())
    loaded = load_encoder(folders["vit"])
    assert ftray.model_summary(loaded, freeze=True, show=False).trained == 32 * 32
    assert all(weight.requires_grad for weight in loaded.parameters())
    with pytest.raises(ConfigError, match="a name, a folder, an encoder or a module is expected"):
        ftray.model_summary(3)
    for wrong, said in (
        ({"output_dim": 0}, "output_dim = 0: input should be greater than or equal to 1"),
        ({"output_dim": 32.5}, "output_dim = 32.5: "),
        ({"lora": True}, "lora = True: input should be a valid dictionary"),
        ({"freeze": [True]}, r"freeze = \[True\]: true, false, or names"),
    ):
        with pytest.raises(ConfigError, match=said):
            ftray.model_summary(folders["text"], show=False, **wrong)  # type: ignore[arg-type]
    frozen = ftray.model_summary(folders["text"], freeze="*.encoder", output_dim="8", show=False)  # type: ignore[arg-type]
    assert frozen.embedding_dim == 8 and frozen.trained < frozen.parameters


def test_weights_that_two_layers_share_count_once() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    assert ftray.model_summary(net, show=False).parameters == 16 + 4 + 4
