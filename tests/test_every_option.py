"""No option is ignored: changing any field of a config changes what is named here, or is refused.

`FIELDS` and `CSV_FIELDS` have an entry for each field of `FitConfig` and `CsvOptions`: the change,
what must come out differently, and what must not. A new field without an entry turns
`test_every_field_has_an_entry` red; write one beside those of its kind.
"""

from __future__ import annotations

import copy
import hashlib
import io
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ftray
from ftray.config import CsvOptions, FitConfig, validated
from ftray.errors import ClusterError, ConfigError, FtrayError
from ftray.events import EpochEnded, EvaluationEnded, FitStarted, RankStep, StepEnded
from ftray.models.text import TextEncoder
from ftray.training.job import Job, prepare
from tests.conftest import WORDS
from tests.data.pictured import off, pictures
from tests.tiny import tiny_text_model

Seen = dict[str, Any]
"""What a fit did, by name: see `seen_in`."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One field's entry.

    Attributes:
        change: the field's other value; its name stands before it in the table.
        differs: what must then be different from the base fit.
        same: what must not; it tells that the change did no more than it should.
        besides: further fields, for both fits.
        refused: instead: a part of the message of the error.
        check: instead: a function that shows what the field does.
    """

    change: Any = None
    differs: tuple[str, ...] = ()
    same: tuple[str, ...] = ()
    besides: dict[str, Any] = field(default_factory=dict)
    refused: str = ""
    check: Callable[..., None] | None = None


# ---------------------------------------------------------------- what a fit did


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, labelled_rows: list[dict[str, str]]) -> Path:
    """A folder with the data and a second model.

    The data has what options can be about: quotes, an umlaut, a text under two labels, a third
    column, long texts, more classes than a step holds.
    """
    folder = tmp_path_factory.mktemp("options")
    draw = random.Random(2)
    lines = ["text,label,note"]
    for i, row in enumerate(labelled_rows[:48]):
        note = " ".join(draw.choices(WORDS, k=6))
        rest = "" if i % 4 else " " + " ".join(draw.choices(WORDS, k=30))
        lines.append(f'"{row["text"]}{rest}, please",c{i % 8},{note}')
    lines += ["wo ist die schöne karte,c1,card", "lost card,c2,pin", "lost card,c3,pin"]
    (folder / "train.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "other.csv").write_text("\n".join([lines[0], *lines[5:45]]) + "\n", encoding="utf-8")
    two = [f"{row['text']},{row['label']}" for row in labelled_rows[:48]]
    (folder / "two.csv").write_text("\n".join(["text,label", *two]) + "\n", encoding="utf-8")
    for i in range(24):
        picture = folder / "pictures" / f"c{i % 4}" / f"{i}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (8, 8), np.uint8)).save(picture)
    tiny_text_model(folder / "other", dropout=0.2, seed=1)
    return folder


@pytest.fixture(scope="module")
def options(place: Path, dropout_model: Path) -> dict[str, Any]:
    """The base fit."""
    return {
        "model": str(dropout_model),
        "train_data": str(place / "train.csv"),
        "loss": "SupConLoss",
        "epochs": 2,
        "batch_size": 16,
        "learning_rate": 1e-3,
        "num_workers": 0,
        "device": "cpu",
    }


def filled(values: dict[str, Any], place: Path) -> dict[str, Any]:
    """The entry's values with `{place}` put in."""

    def put(value: Any) -> Any:
        if isinstance(value, str):
            return value.replace("{place}", str(place))
        if isinstance(value, list):
            return [put(entry) for entry in value]
        return {k: put(v) for k, v in value.items()} if isinstance(value, dict) else value

    return {name: put(value) for name, value in values.items()}


@pytest.fixture(scope="module")
def seen(
    options: dict[str, Any], place: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Seen]:
    """`seen(epochs=1)`: what the fit does with these options; equal options are fitted once."""
    known: dict[str, Seen] = {}

    def run(**changed: Any) -> Seen:
        key = repr(sorted(changed.items()))
        if key not in known:
            given = {
                **options,
                "storage_path": str(tmp_path_factory.mktemp("storage")),
                "run_name": "run",
                **filled(changed, place),
            }
            known[key] = seen_in(given)
        return known[key]

    return run


def seen_in(given: dict[str, Any]) -> Seen:
    """Fit, and look at all that an option could be about."""
    largest = 0
    forward = TextEncoder.encode

    def watched(self: TextEncoder, features: dict[str, Any]) -> Any:
        nonlocal largest
        largest = max(largest, len(features["input_ids"]))
        return forward(self, features)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextEncoder, "encode", watched)
        run = ftray.fit(listeners=[], **given)
    events = run._record.events()
    steps = [event for event in events if isinstance(event, StepEnded)]
    epochs = [event for event in events if isinstance(event, EpochEnded)]
    (started,) = (event for event in events if isinstance(event, FitStarted))
    weights = Path(f"{run.artifact_id}/model.safetensors").read_bytes()
    return {
        **plan_of(prepare(validated(given), "")),
        "number of steps": len(steps),
        "losses": [step.loss for step in steps],
        "first loss": steps[0].loss,
        "gradient norms": [step.grad_norm for step in steps],
        "learning rates": [step.learning_rate for step in steps],
        "tokens": [step.tokens for step in steps],
        "padded tokens": [step.processed_tokens for step in steps],
        "texts in a forward": largest,
        "weights": hashlib.sha256(weights).hexdigest(),
        "validation loss": [epoch.metrics.get("val_loss") for epoch in epochs],
        "evaluations": [e.metrics for e in events if isinstance(e, EvaluationEnded)],
        "texts of each rank": [e.items for e in events if isinstance(e, RankStep)],
        "precision": started.hardware["precision"],
        "name": run.name,
        "experiment": run.experiment,
        "storage": str(Path(run.path).parent.parent),
        "description": run.config["description"],
    }


def plan_of(job: Job) -> Seen:
    """What the steps hold: rows, texts and labels."""
    plan = job.plan()
    steps = [plan.rows(e, s) for e in range(2) for s in range(plan.steps_per_epoch)]
    held = [job.train.step_rows(rows, roles_differ=False) for rows in steps]
    return {
        "rows": [rows.tolist() for rows in steps],
        "texts": [step.texts for step in held],
        "all texts": sorted(job.train.texts.to_pylist()),
        "labels": [step.labels.tolist() for step in held],
    }


# ---------------------------------------------------------------- on Ray, without starting it


class FewCpus:
    """A cluster of one node, with a GPU of its kind if it has any."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, cpus: int, gpus: int = 0) -> None:
        from ftray.cluster import inventory

        has = {
            "CPU": float(cpus),
            "GPU": float(gpus),
            **({"accelerator_type:T4": 1} if gpus else {}),
        }
        nodes = [inventory.Node("node", has, {"zone": "a"})]
        monkeypatch.setattr(inventory, "alive", lambda: copy.deepcopy(nodes))
        monkeypatch.setattr(inventory, "free", lambda: copy.deepcopy(nodes))

    def trainer(self, options: dict[str, Any]) -> Any:
        """The `TorchTrainer` that a fit would run; it starts nothing."""
        from ftray.cluster.placement import place
        from ftray.cluster.trainer import _trainer

        job = prepare(validated(options), "/nowhere/runs/default/run")
        return _trainer(job, {"mailbox": None}, place(job.config), cleaner=True)

    def evaluators(self, options: dict[str, Any]) -> Any:
        """The actors of evaluations with overlap; starts them where there is room for them."""
        from ftray.cluster.evaluators import start_evaluators
        from ftray.cluster.placement import place

        job = prepare(validated(options), "/nowhere/runs/default/run")
        return start_evaluators(job, place(job.config))


def num_workers_of_the_trainer(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = FewCpus(monkeypatch, cpus=4)
    for given, workers, cpus in ((1, 1, 4), (2, 2, 2), (4, 4, 1), ("auto", 1, 4)):
        scaling = cluster.trainer({**options, "num_workers": given}).scaling_config
        assert (scaling.num_workers, scaling.resources_per_worker["CPU"]) == (workers, cpus)
    with pytest.raises(ClusterError, match=r"num_workers = 5, each with 1 CPU: .* room for 4"):
        cluster.trainer({**options, "num_workers": 5})


def num_workers_choose_who_trains(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from ftray.cluster import trainer

    class OnRay(Exception):
        pass

    def on_ray(job: Job, session: Any) -> None:
        raise OnRay(job.config.num_workers)

    monkeypatch.setattr(trainer, "fit_on_ray", on_ray)
    for workers in (1, 3, "auto"):
        with pytest.raises(OnRay, match=f"^{workers}$"):
            ftray.fit(listeners=[], **{**options, "num_workers": workers})
    assert ftray.fit(listeners=[], **{**options, "epochs": 0}).status() == "FINISHED"


def num_workers(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    num_workers_of_the_trainer(options, monkeypatch)
    num_workers_choose_who_trains(options, monkeypatch)


def device(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process torch's, on Ray a GPU for each worker, unless it is cpu."""
    here = {**options, "device": "cuda", "epochs": 0}
    if torch.cuda.is_available():
        started = [
            next(e for e in run._record.events() if isinstance(e, FitStarted)).device
            for run in (ftray.fit(listeners=[], **{**here, "device": d}) for d in ("cpu", "cuda"))
        ]
        assert [name.partition(":")[0] for name in started] == ["cpu", "cuda"]
    else:
        with pytest.raises(FtrayError, match="device = 'cuda', but torch sees no GPU here"):
            ftray.fit(listeners=[], **here)
    there = {**options, "num_workers": 2}
    cluster = FewCpus(monkeypatch, cpus=4, gpus=2)
    for name, gpu in (("auto", True), ("cuda", True), ("cpu", False)):
        scaling = cluster.trainer({**there, "device": name}).scaling_config
        assert scaling.use_gpu is gpu and ("GPU" in scaling.resources_per_worker) is gpu
    cluster = FewCpus(monkeypatch, cpus=4)
    with pytest.raises(ClusterError, match="device = 'cuda', but the Ray cluster has no GPU"):
        cluster.trainer({**there, "device": "cuda"})


def max_failures(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = FewCpus(monkeypatch, cpus=4)
    for given in (0, 2, 7):
        trainer = cluster.trainer({**options, "num_workers": 1, "max_failures": given})
        assert trainer.run_config.failure_config.max_failures == given


def resources_per_worker(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """tests/cluster/test_placement.py has more of it, and of the following three."""
    there = {**options, "num_workers": 2, "device": "auto"}
    cluster = FewCpus(monkeypatch, cpus=8, gpus=4)
    for given, reserved in (
        (None, {"CPU": 4, "GPU": 1}),
        ({"CPU": 3}, {"CPU": 3, "GPU": 1}),
        ({"GPU": 2}, {"CPU": 4, "GPU": 2}),
        ({"CPU": 2, "GPU": 0}, {"CPU": 2}),
    ):
        scaling = cluster.trainer({**there, "resources_per_worker": given}).scaling_config
        assert scaling.resources_per_worker == reserved
        assert scaling.use_gpu is ("GPU" in reserved)
    only_on_ray("resources_per_worker", {"CPU": 1}, options)


def accelerator_type(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    there = {**options, "num_workers": 1, "device": "auto"}
    cluster = FewCpus(monkeypatch, cpus=8, gpus=1)
    scaling = cluster.trainer({**there, "accelerator_type": "T4"}).scaling_config
    assert scaling._resources_per_worker_not_none["accelerator_type:T4"] > 0
    with pytest.raises(ClusterError, match=r"accelerator_type = 'T5': no node .*'T4'"):
        cluster.trainer({**there, "accelerator_type": "T5"})
    only_on_ray("accelerator_type", "T4", options)


def label_selector(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    there = {**options, "num_workers": 1}
    cluster = FewCpus(monkeypatch, cpus=8)
    selector = {"zone": "in(a, b)"}
    scaling = cluster.trainer({**there, "label_selector": selector}).scaling_config
    assert scaling.label_selector == selector
    with pytest.raises(ClusterError, match=r"no node on nodes with label_selector .*zone=a"):
        cluster.trainer({**there, "label_selector": {"zone": "!a"}})
    only_on_ray("label_selector", selector, options)


def resources_per_evaluator(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    only_on_ray("resources_per_evaluator", {"GPU": 0.5}, options)
    from ftray.cluster import evaluators

    def evaluation(*, overlap: bool) -> list[Any]:
        return [{"EvaluationCallback": {"query_data": options["train_data"], "overlap": overlap}}]

    there = {**options, "num_workers": 1, "resources_per_evaluator": {"CPU": 1}}
    with pytest.raises(ConfigError, match="no EvaluationCallback has overlap"):
        prepare(validated({**there, "callbacks": evaluation(overlap=False)}), "/nowhere")
    cluster = FewCpus(monkeypatch, cpus=2)
    monkeypatch.setattr(evaluators, "FREE_TIMEOUT_S", 0.0)
    with pytest.raises(ClusterError, match="reserves 1 CPU, for which there is no room beside"):
        cluster.evaluators(
            {**there, "callbacks": evaluation(overlap=True), "resources_per_worker": {"CPU": 2}}
        )


def only_on_ray(name: str, value: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{name} is about the nodes of Ray, but num_workers = 0"):
        prepare(validated({**options, name: value}), "/nowhere")


def index_shards(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """tests/cluster/test_ray_fit.py fits with shards; here: how many, and what is refused."""
    from ftray.cluster import shards

    monkeypatch.setattr(shards, "start_actors", lambda count: ["actor"] * count)

    def evaluated(**extra: Any) -> list[Any]:
        return [{"EvaluationCallback": {"query_data": options["train_data"], **extra}}]

    def started(memory: float, **change: Any) -> int:
        """On three nodes, one of which has so much memory; 49 documents need 401,408 bytes."""
        sizes = [1e9, memory, 1e9]
        nodes = [{"Resources": {"CPU": 1.0, "memory": size}} for size in sizes]
        monkeypatch.setattr(shards, "roomy_nodes", lambda: nodes)
        given = {**options, "num_workers": 2, "callbacks": evaluated(), **change}
        job = prepare(validated(given), "/nowhere/runs/default/run")
        found = shards.start_shards(job.config.index_shards, job.evaluations)
        assert set(found) <= {0}
        return len(found.get(0, []))

    assert started(1e9) == started(1e4, index_shards=1) == 0
    assert [started(1e9, index_shards=count) for count in (2, 7)] == [2, 7]
    assert [started(memory) for memory in (2e6, 1e6, 1e4)] == [0, 2, 3]
    assert started(1e4, callbacks=evaluated(overlap=True)) == 0
    for change, message in (
        ({"num_workers": 0}, "index_shards = 2 needs Ray"),
        ({"callbacks": []}, "there is no index"),
        ({"callbacks": evaluated(overlap=True)}, "has overlap"),
    ):
        with pytest.raises(FtrayError, match=message):
            started(1e9, index_shards=2, **change)
    for wrong in (0, -1, 1025, 1.5, "many"):
        with pytest.raises(FtrayError, match="a number of shards from 1 to"):
            started(1e9, index_shards=wrong)


class Brightness(torch.nn.Module):
    """Two numbers of one pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 2)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(pixels)
        return out


def first_losses(options: dict[str, Any], **functions: Any) -> float:
    pictures = [
        {"image": np.full((4, 4), 9 * i, np.uint8), "label": f"c{i % 4}"} for i in range(16)
    ]
    torch.manual_seed(0)
    given = {**options, "model": Brightness(), "train_data": pictures, "data_workers": 0}
    run = ftray.fit(listeners=[], **{**given, **functions})
    return next(e.loss for e in run._record.events() if isinstance(e, StepEnded))


def preprocess_fn(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def made(scale: float) -> Callable[[Any], torch.Tensor]:
        return lambda image: torch.tensor([np.asarray(image.convert("L")).mean() * scale])

    first, second = (first_losses(options, preprocess_fn=made(scale)) for scale in (0.01, 0.5))
    assert first != second
    with pytest.raises(FtrayError, match=r"preprocess_fn belongs to a torch.nn.Module"):
        ftray.fit(listeners=[], **{**options, "preprocess_fn": len})


def collate_fn(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def made(scale: float) -> Callable[[list[Any]], torch.Tensor]:
        return lambda images: torch.tensor(
            [[np.asarray(image.convert("L")).mean() * scale] for image in images]
        )

    given = {**options, "preprocess_fn": lambda image: image}
    first, second = (first_losses(given, collate_fn=made(scale)) for scale in (0.01, 0.5))
    assert first != second
    with pytest.raises(FtrayError, match=r"collate_fn belongs to a torch.nn.Module"):
        ftray.fit(listeners=[], **{**options, "collate_fn": len})


def data_workers(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """How many batches this process makes itself: all, or none where others do."""
    from ftray.models.convnet import ConvNetEncoder

    made = []
    collate = ConvNetEncoder.collate

    def watched(self: ConvNetEncoder, *given: Any, **more: Any) -> Any:
        made.append(os.getpid())
        return collate(self, *given, **more)

    monkeypatch.setattr(ConvNetEncoder, "collate", watched)
    pictures = [{"image": np.full((4, 4), i, np.uint8), "label": f"c{i % 4}"} for i in range(16)]
    here = {**options, "model": "convnet", "train_data": pictures, "batch_size": 4}
    for workers, mine in ((0, 8), (1, 0), ("auto", 0)):
        made.clear()
        ftray.fit(listeners=[], **{**here, "data_workers": workers})
        assert len(made) == mine
    with pytest.raises(FtrayError, match=r"data_workers = -1: 0 .none., a number of processes"):
        ftray.fit(listeners=[], **{**here, "data_workers": -1})


def compiled(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled; tests/training/test_compiling.py compiles it, which takes a minute."""
    given: list[str] = []

    def watched(function: Any, **_: Any) -> Any:
        given.append(type(getattr(function, "__self__", None)).__name__)
        return function

    monkeypatch.setattr(torch, "compile", watched)
    for wanted, names in ((False, []), (True, ["NoneType", "BertModel"])):
        given.clear()
        ftray.fit(listeners=[], **{**options, "compile": wanted, "epochs": 1})
        assert given == names


def to_onnx(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """tests/models/test_onnx.py compares the graphs; here: who gets one, and what is refused."""
    pictures = str(Path(options["train_data"]).with_name("pictures"))
    there = {**options, "model": "convnet", "train_data": pictures, "epochs": 0}
    there |= {"model_options": {"channels": [4]}, "data_workers": 0}
    for wanted in (False, True):
        run = ftray.fit(listeners=[], **{**there, "to_onnx": wanted})
        assert Path(run.artifact_id, "onnx", "model.onnx").is_file() is wanted
    with pytest.raises(FtrayError, match="'pointnet-base' cannot be exported as ONNX"):
        given = {**there, "model": "pointnet-base", "model_options": {}, "to_onnx": True}
        prepare(validated(given), "/nowhere")


def model_artifact(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """tests/training/test_lineage.py has more of it."""
    first = ftray.fit(listeners=[], **{**options, "epochs": 1})
    again = {**options, "epochs": 1, "model_artifact": first.artifact_id}
    second = ftray.fit(listeners=[], **again)
    losses = [
        next(e.loss for e in run._record.events() if isinstance(e, StepEnded))
        for run in (first, second)
    ]
    assert losses[0] != losses[1]
    with pytest.raises(ConfigError, match=r"model = 'minilm', but .* was made from"):
        prepare(validated({**again, "model": "minilm"}), "/nowhere")


def resume(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A run cut off after its first epoch: refused, continued; and one that is not there."""
    from ftray.callbacks import Callback

    class CutOff(Callback):
        on = True

        def on_train_epoch_begin(self, state: Any) -> None:
            if self.on and state.epoch == 1:
                raise ValueError("cut off")

    given = {**options, "run_name": "cut", "callbacks": [CutOff()]}
    with pytest.raises(FtrayError, match="cut off"):
        ftray.fit(listeners=[], **given)
    CutOff.on = False
    with pytest.raises(FtrayError, match="cut exists"):
        ftray.fit(listeners=[], **given, resume="never")
    with pytest.raises(FtrayError, match="there is no run"):
        ftray.fit(listeners=[], **{**given, "run_name": "another"}, resume="must")
    run = ftray.fit(listeners=[], **given, resume="auto")
    started = [e.first_epoch for e in run._record.events() if isinstance(e, FitStarted)]
    assert started == [0, 1] and run.status() == "FINISHED"
    assert ftray.fit(listeners=[], **{**given, "run_name": "another"}, resume="auto").name


# ---------------------------------------------------------------- the tables


PLAN = ("rows", "texts", "labels")
TRAINED = ("losses", "weights")
EVALUATION = {"EvaluationCallback": {"query_data": "{place}/other.csv"}}
MINER = "TripletMarginMiner"

PROXIES = {"loss": "ProxyAnchorLoss"}
PICTURES = {"model": "convnet", "train_data": "{place}/pictures"}

FIELDS: dict[str, Case] = {
    # data
    "model": Case(change="{place}/other", differs=("first loss", *TRAINED), same=PLAN),
    "train_data": Case(change="{place}/other.csv", differs=("rows", "all texts", *TRAINED)),
    "eval_data": Case(
        change="{place}/other.csv", differs=("validation loss",), same=(*PLAN, *TRAINED)
    ),
    "val_split": Case(change=0.25, differs=("rows", "validation loss", *TRAINED)),
    "model_options": Case(
        change={"channels": [4, 8]}, besides=PICTURES, differs=("first loss", *TRAINED), same=PLAN
    ),
    "model_artifact": Case(check=model_artifact),
    "output_dim": Case(change=8, differs=("first loss", *TRAINED), same=PLAN),
    "freeze": Case(
        change=["*.embeddings.*"],
        differs=("gradient norms", *TRAINED),
        same=(*PLAN, "first loss"),
    ),
    "lora": Case(
        change={"r": 4},
        differs=("gradient norms", *TRAINED),
        same=(*PLAN, "first loss"),
    ),
    "preprocess_fn": Case(check=preprocess_fn),
    "collate_fn": Case(check=collate_fn),
    "columns": Case(change={"item": "note"}, differs=("texts", "all texts", *TRAINED)),
    "csv_options": Case(change={"size": 30}, differs=("rows", *TRAINED)),  # all: CSV_FIELDS
    # what is learned
    "loss": Case(change="TripletMarginLoss", differs=("first loss", *TRAINED), same=PLAN),
    "loss_options": Case(change={"temperature": 1.0}, differs=("first loss", *TRAINED), same=PLAN),
    "miner": Case(
        change="BatchHardMiner",
        differs=("first loss", *TRAINED),
        same=PLAN,
        besides={"loss": "TripletMarginLoss"},
    ),
    "miner_options": Case(
        change={"margin": 0.01, "type_of_triplets": "hard"},
        differs=("first loss", *TRAINED),
        same=PLAN,
        besides={"loss": "TripletMarginLoss", "miner": MINER},
    ),
    # steps
    "epochs": Case(change=1, differs=("number of steps", "weights"), same=("first loss",)),
    "batch_size": Case(change=24, differs=("rows", "number of steps", *TRAINED)),
    "micro_batch_size": Case(
        change=3,
        differs=("texts in a forward", "padded tokens"),
        same=(*PLAN, "tokens", "learning rates"),  # the mathematics: tests/proofs
    ),
    "sampler": Case(change="random", differs=("rows", *TRAINED), same=("all texts",)),
    "num_items_per_class": Case(change=2, differs=("rows", *TRAINED), same=("all texts",)),
    "packing": Case(
        change="padded",
        differs=("padded tokens",),
        same=(*PLAN, "tokens", "learning rates"),
    ),
    "max_length": Case(change=8, differs=("tokens", "first loss", *TRAINED), same=PLAN),
    "augmentation": Case(
        change={"shift": 0.4}, besides=PICTURES, differs=("first loss", *TRAINED), same=PLAN
    ),
    "data_workers": Case(check=data_workers),
    # the optimizer
    "optimizer": Case(change="SGD", differs=TRAINED, same=(*PLAN, "first loss")),
    "optimizer_options": Case(
        change={"weight_decay": 0.9}, differs=TRAINED, same=(*PLAN, "first loss")
    ),
    "loss_optimizer": Case(
        change="SGD", besides=PROXIES, differs=TRAINED, same=(*PLAN, "first loss", "learning rates")
    ),
    "loss_optimizer_options": Case(
        change={"lr": 0.5},
        besides=PROXIES,
        differs=TRAINED,
        same=(*PLAN, "first loss", "learning rates"),
    ),
    "learning_rate": Case(
        change=1e-4, differs=("learning rates", *TRAINED), same=(*PLAN, "first loss")
    ),
    "scheduler": Case(
        change="constant", differs=("learning rates", *TRAINED), same=(*PLAN, "first loss")
    ),
    "scheduler_options": Case(
        change={"warmup_ratio": 0.5},
        differs=("learning rates", *TRAINED),
        same=(*PLAN, "first loss"),
    ),
    "max_grad_norm": Case(change=0.05, differs=TRAINED, same=(*PLAN, "first loss")),
    "ema_decay": Case(change=0.9, differs=("weights",), same=(*PLAN, "losses", "gradient norms")),
    "compile": Case(check=compiled),
    "precision": Case(change="bf16", differs=("precision", "first loss", *TRAINED), same=PLAN),
    "seed": Case(change=1, differs=("rows", "first loss", *TRAINED), same=("all texts",)),
    "to_onnx": Case(check=to_onnx),
    "callbacks": Case(change=[EVALUATION], differs=("evaluations",), same=(*PLAN, *TRAINED)),
    # where
    "num_workers": Case(check=num_workers),
    "device": Case(check=device),
    "storage_path": Case(change="{place}/runs", differs=("storage",), same=TRAINED),
    "experiment_name": Case(change="second", differs=("experiment",), same=TRAINED),
    "run_name": Case(change="another", differs=("name",), same=TRAINED),
    "description": Case(change="why", differs=("description",), same=TRAINED),
    "resume": Case(check=resume),
    "max_failures": Case(check=max_failures),
    "resources_per_worker": Case(check=resources_per_worker),
    "accelerator_type": Case(check=accelerator_type),
    "label_selector": Case(check=label_selector),
    "resources_per_evaluator": Case(check=resources_per_evaluator),
    "index_shards": Case(check=index_shards),
    "log_rows": Case(change=True, differs=("texts of each rank",), same=TRAINED),
}

TWO_COLUMNS = {"train_data": "{place}/two.csv"}


def cells_read(folder: Path, lines: list[str], **csv_options: Any) -> list[Any]:
    """The items of a CSV file with these lines."""
    from ftray.data.readers import read_records
    from ftray.media import contents

    path = folder / "things.csv"
    path.write_text("\n".join(lines) + "\n")
    records = read_records(path, csv_options=csv_options)
    return contents(records.table["item"].to_pylist(), records.blobs)


def convert_to_blob(folder: Path) -> None:
    """Files that are read at the start may be gone afterwards."""
    content = (pictures(folder, ["0.png"]) / "0.png").read_bytes()
    lines = ["image,label", "0.png,a"]
    for given, kept in ((None, False), (False, False), (True, True)):
        (item,) = cells_read(folder, lines, convert_to_blob=given)
        assert (item.data is not None) is kept
        assert bytes(item.read()) == content


def fetch_urls(folder: Path) -> None:
    """tests/data/test_images.py fetches; here nobody answers."""
    lines = ["image,label", "http://127.0.0.1:9/0.png,a"]
    for given, message in ((False, "csv_options.fetch_urls = true"), (True, "cannot be fetched")):
        with pytest.raises(FtrayError, match=message):
            cells_read(folder, lines, fetch_urls=given)


def create_point_clouds(folder: Path) -> None:
    (folder / "0.off").write_text(off(0))
    lines = ["mesh,label", "0.off,a"]
    (made,), (kept,) = (
        cells_read(folder, lines, create_point_clouds=given) for given in (True, False)
    )
    assert made.data is not None and kept.data is None
    assert kept.address == str(folder / "0.off")


def point_cloud_size(folder: Path) -> None:
    (folder / "0.off").write_text(off(0))
    for size in (10, 300):
        (item,) = cells_read(folder, ["mesh,label", "0.off,a"], point_cloud_size=size)
        assert np.load(io.BytesIO(item.read())).shape == (size, 3)


CSV_FIELDS: dict[str, Case] = {
    "dialect": Case(change="excel-tab", refused="has one column of texts", besides=TWO_COLUMNS),
    "header": Case(change=False, differs=("rows", "all texts"), besides=TWO_COLUMNS),
    "delimiter": Case(change=";", refused="has one column of texts", besides=TWO_COLUMNS),
    "quotechar": Case(change="'", refused="4 columns, but the header has 3"),
    "encoding": Case(change="cp1252", differs=("all texts",), same=("rows",)),
    "is_labeled": Case(change=False, refused="csv_options.is_labeled is False, but the columns"),
    "label_conflicts": Case(change="error", refused="'lost card' has the label 'c3', but 'c2'"),
    "size": Case(change=30, differs=("rows", "all texts")),
    "sampling_rate": Case(change=0.7, differs=("rows", "all texts")),
    # things that are no texts
    "convert_to_blob": Case(check=convert_to_blob),
    "fetch_urls": Case(check=fetch_urls),
    "create_point_clouds": Case(check=create_point_clouds),
    "point_cloud_size": Case(check=point_cloud_size),
}


def test_every_field_has_an_entry() -> None:
    """For a new field, write one above."""
    assert set(FIELDS) == set(FitConfig.model_fields)
    assert set(CSV_FIELDS) == set(CsvOptions.model_fields)
    for name, case in {**FIELDS, **CSV_FIELDS}.items():
        assert case.differs or case.refused or case.check, f"{name} is not tested"


def test_a_fit_with_the_same_options_is_the_same(
    options: dict[str, Any], seen: Callable[..., Seen], tmp_path: Path
) -> None:
    """Else a difference would say nothing: two fits, in two places, differ in nothing else."""
    again = seen_in({**options, "storage_path": str(tmp_path), "run_name": "run"})
    base = seen()
    assert {k: v for k, v in again.items() if k != "storage"} == {
        k: v for k, v in base.items() if k != "storage"
    }
    assert len(base["losses"]) == base["number of steps"] > 3


@pytest.mark.parametrize("name", [name for name, case in FIELDS.items() if not case.check])
def test_a_field_changes_what_it_is_for(name: str, seen: Callable[..., Seen]) -> None:
    case = FIELDS[name]
    base, changed = seen(**case.besides), seen(**{**case.besides, name: case.change})
    assert [what for what in case.differs if base[what] == changed[what]] == []
    assert [what for what in case.same if base[what] != changed[what]] == []


@pytest.mark.parametrize("name", [name for name, case in FIELDS.items() if case.check])
def test_a_field_decides_how_training_runs(
    name: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = FIELDS[name].check
    assert check is not None
    check({**options, "storage_path": str(tmp_path)}, monkeypatch)


@pytest.mark.parametrize("name", [name for name, case in CSV_FIELDS.items() if case.check])
def test_a_csv_option_is_for_things(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    check = CSV_FIELDS[name].check
    assert check is not None
    check(tmp_path)


@pytest.mark.parametrize("name", [name for name, case in CSV_FIELDS.items() if not case.check])
def test_a_csv_option_changes_what_is_read(name: str, options: dict[str, Any], place: Path) -> None:
    case = CSV_FIELDS[name]
    base_options = {**options, **filled(case.besides, place)}
    given = {**base_options, "csv_options": {name: case.change}}
    if case.refused:
        with pytest.raises(FtrayError) as caught:
            prepare(validated(given), "")
        assert case.refused in str(caught.value)
        return
    base, changed = (plan_of(prepare(validated(one), "")) for one in (base_options, given))
    assert [what for what in case.differs if base[what] == changed[what]] == []
    assert [what for what in case.same if base[what] != changed[what]] == []
