"""docs/finetuner-migration.md: Finetuner's names all stand there, and those of ours exist."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import random
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import ftray
from ftray.callbacks.registry import CALLBACKS
from ftray.config import FORMERLY, CsvOptions, FitConfig, validated
from ftray.errors import ConfigError
from ftray.evaluation.metrics import METRICS
from ftray.losses.metric import MINERS
from ftray.losses.registry import LOSS_NAMES
from ftray.models import registry
from ftray.models.catalogue import ALIASES, MODELS
from ftray.models.options import OPTIONS
from ftray.training.optim import check_optimizer
from ftray.training.schedule import check_scheduler
from tests.conftest import WORDS

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "finetuner-migration.md").read_text(encoding="utf-8")
NAME = re.compile(r"[A-Za-z_][\w.\-+/:{}]*")

# What Finetuner has, by the tables of its documentation and its code; 0.8.1 unless it is said.
FINETUNER = {
    "fit": """
        model train_data eval_data val_split model_artifact run_name description
        experiment_name model_options loss miner miner_options optimizer optimizer_options
        learning_rate epochs batch_size callbacks scheduler scheduler_options freeze
        output_dim device num_workers to_onnx csv_options public num_items_per_class sampler
        loss_optimizer loss_optimizer_options create_run create_training_run
    """,
    "fit 0.4.1": """
        configure_optimizer scheduler_step preprocess_fn collate_fn to_embedding_model
        input_size input_dtype layer_name projection_head save display embed to_onnx
        validate_onnx_export vision_preprocessor toydata.generate_qa
        toydata.generate_fashion
    """,
    "data": """
        finetuner_label finetuner_score content uri chunks matches modality check_columns
        finetuner/tll-train-data finetuner/quora-train-da
    """,
    "CSVOptions": """
        size sampling_rate dialect encoding is_labeled convert_to_blob create_point_clouds
        point_cloud_size
    """,
    "models": """
        bert-base-en bert-base-multi distiluse-base-multi sbert-base-en
        jina-embedding-t-en-v1 jina-embedding-s-en-v1 jina-embedding-b-en-v1
        jina-embedding-l-en-v1 resnet-base resnet-large efficientnet-base efficientnet-large
        clip-base-en clip-large-en clip-base-multi pointnet-base mlp crossencoder-base-en
        crossencoder-base-ml list_models list_model_options describe_models
    """,
    "model options": """
        pooler pooler_options mean max cls GeM p eps input_size hidden_sizes bias activation
        l2 select_model clip-text clip-vision
    """,
    "losses": """
        CosFace NTXLoss Angular ArcFace MultipleLosses CentroidTriplet Circle Contrastive
        CrossBatchMemory FastAP GenericPair IntraPairVariance LargeMarginSoftmax
        GeneralizedLiftedStructure LiftedStructure Margin MultiSimilarity NPairs NCA
        NormalizedSoftmax ProxyAnchor ProxyNCA SignalToNoiseRatioContrastive SoftTriple
        SphereFace SupCon TripletMargin TupletMargin VICReg CLIPLoss CosineSimilarityLoss
        MarginMSELoss SiameseLoss TripletLoss NTXentLoss
    """,
    "miners": """
        AngularMiner BatchEasyHardMiner BatchHardMiner DistanceWeightedMiner HDCMiner
        MaximumLossMiner PairMarginMiner MultiSimilarityMiner TripletMarginMiner
        UniformHistogramMiner SiameseMiner TripletMiner SiameseEasyHardMiner
        TripletEasyHardMiner SiameseSessionMiner TripletSessionMiner
    """,
    "optimizers": """
        Adam AdamW Adadelta Adagrad Adamax ASGD NAdam RAdam RMSprop Rprop SGD SparseAdam
        LBFGS layer_wise_lr_decay
    """,
    "schedules": """
        linear cosine cosine_with_restarts polynomial constant constant_with_warmup
        num_warmup_steps num_training_steps scheduler_step
    """,
    "callbacks": """
        EvaluationCallback BestModelCheckpoint EarlyStopping TrainingCheckpoint WandBLogger
        WiSEFTCallback ProgressBarCallback metrics multi_modal num_workers
        output_model_names save_dir verbose query_data index_data model index_model
        batch_size exclude_self limit distance steps_per_interval gather_examples
        num_example_queries caption query_sample_size monitor mode patience min_delta
        baseline last_k_epochs metrics_logger_step wandb_args log_zero_shot alpha
    """,
    "metrics": """
        precision_at_k recall_at_k f1_score_at_k hit_at_k average_precision reciprocal_rank
        r_precision dcg_at_k ndcg_at_k
    """,
    "runs": """
        Run.name Run.config Run.status Run.logs Run.stream_logs Run.metrics
        Run.display_metrics Run.example_results Run.display_examples Run.save_artifact
        Run.artifact_id create_experiment get_experiment list_experiments delete_experiment
        delete_experiments get_run list_runs delete_run delete_runs
    """,
    "use": """
        synthesize num_relations synthesis_model_en synthesis_model_multi build_model
        get_model token batch_size select_model device logging_level is_onnx encode cos_sim
        FinetunerExecutor login get_token
    """,
}
# Options of their callbacks whose names and defaults are said to be the same.
SAME: dict[str, dict[str, Any]] = {
    "EvaluationCallback": {
        "index_data": None,
        "model": None,
        "index_model": None,
        "batch_size": 32,
        "exclude_self": True,
        "limit": 20,
        "distance": "cosine",
        "steps_per_interval": None,
        "gather_examples": False,
        "num_example_queries": 5,
        "caption": None,
        "query_sample_size": None,
    },
    "BestModelCheckpoint": {"monitor": "val_loss", "mode": "auto"},
    "EarlyStopping": {
        "monitor": "val_loss",
        "mode": "auto",
        "patience": 2,
        "min_delta": 0,
        "baseline": None,
    },
    "TrainingCheckpoint": {"last_k_epochs": 1},
    "WandBLogger": {"metrics_logger_step": "epoch", "wandb_args": None, "log_zero_shot": True},
    "WiSEFTCallback": {"alpha": 0.4},
}
SAMPLERS = ("ClassSampler", "SessionSampler", "InstanceSampler")


def tables() -> Iterator[tuple[list[str], list[list[str]]]]:
    """The heading and the rows of each table that has a column for Finetuner."""
    for block in re.findall(r"(?:^\|.*\n)+", PAGE, re.MULTILINE):
        head, _, *rows = (
            [c.strip() for c in line[1:-2].split("|")] for line in block.splitlines(True)
        )
        if "ftray" in head:
            yield head, rows


def quoted(text: str) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`]+)`", text)


def arguments_of(owner: Any) -> Mapping[str, inspect.Parameter]:
    """Those of a function, or of a class."""
    return inspect.signature(owner).parameters if callable(owner) else {}


def attribute(path: str) -> Any:
    """What a dotted name of ftray's is; None where there is no such thing."""
    owner: Any = ftray
    for part in path.split(".")[1:]:
        if not hasattr(owner, part):
            return None
        owner = getattr(owner, part)
    return owner


def is_function(place: str) -> bool:
    """Whether `module:function` is one; read, for the module of Ray Serve takes long to import."""
    module, _, function = place.partition(":")
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None, module
    return f"\ndef {function}(" in Path(spec.origin).read_text(encoding="utf-8")


def exists(token: str) -> bool:
    """Whether a name of ours is one, with the arguments that it is shown with."""
    name, _, shown = token.partition("(")
    head, _, rest = name.partition(".")
    if ":" in name:
        return is_function(name)
    if rest and head in ("csv_options", "model_options"):
        models: list[type[BaseModel]]
        models = [CsvOptions] if head == "csv_options" else [*OPTIONS.values()]
        return any(rest in model.model_fields for model in models)
    if head in ("ftray", "run"):
        owner = attribute(name if head == "ftray" else f"ftray.Run.{rest}")
    else:
        named = {*FitConfig.model_fields, *LOSS_NAMES, *MINERS, *MODELS, *METRICS}
        owner = CALLBACKS.get(name) or (name in named)
    return bool(owner) and all(
        argument in arguments_of(owner)
        and (value == "…" or ast.literal_eval(value) == arguments_of(owner)[argument].default)
        for argument, value in re.findall(r"(\w+)=([^,)]+)", shown)
    )


def defaults_of(token: str) -> list[Any]:
    """Of a field of ours, of a function's argument, or of an option of several kinds of models."""
    name, _, shown = token.partition("(")
    head, _, rest = name.partition(".")
    if head == "ftray":
        return [arguments_of(attribute(name))[shown.split("=")[0]].default]
    owners: dict[str, list[type[BaseModel]]]
    owners = {"csv_options": [CsvOptions], "model_options": [*OPTIONS.values()]}
    field = rest or head
    fields = [
        owner.model_fields[field]
        for owner in (owners[head] if rest else [FitConfig])
        if field in owner.model_fields
    ]
    found = [each.get_default(call_default_factory=True) for each in fields]
    return [list(value) if isinstance(value, tuple) else value for value in found]


@pytest.mark.parametrize("of", FINETUNER)
def test_every_name_of_finetuners_is_in_a_row(of: str) -> None:
    """In its first column; what is an argument of a callback, or an option's value, in any."""
    anywhere = of == "callbacks"
    cells = [
        cell for _, rows in tables() for row in rows for cell in (row if anywhere else row[:1])
    ]
    held = {name for cell in cells for text in quoted(cell) for name in NAME.findall(text)}
    if of == "fit":
        held |= set(quoted(PAGE.partition("## finetuner.fit\n")[2].partition("\n|")[0]))
    assert [name for name in FINETUNER[of].split() if name not in held] == []


def test_the_first_column_has_every_argument_of_a_fit_and_every_sampler() -> None:
    (rows,) = [rows for head, rows in tables() if rows[0][0] == "`model`" and len(head) == 5]
    arguments = set(FINETUNER["fit"].split()) - {"create_run", "create_training_run"}
    assert arguments == {name for row in rows for name in quoted(row[0])}
    first = " ".join(row[0] for _, rows in tables() for row in rows)
    assert [name for name in SAMPLERS if name not in first] == []


def test_every_name_of_ours_exists() -> None:
    seen = 0
    for head, rows in tables():
        for row in rows:
            assert len(row) == len(head), row
            for token in quoted(row[head.index("ftray")]):
                assert exists(token), f"{token}: {row}"
                seen += 1
    assert seen > 150


def test_a_row_without_an_equivalent_says_what_to_do() -> None:
    for head, rows in tables():
        for row in rows:
            if row[head.index("ftray")] == "–":
                assert row[-1], row


def test_the_defaults_are_those_of_the_code() -> None:
    seen = 0
    for head, rows in tables():
        if "default" not in head:
            continue
        for row in rows:
            (default,) = quoted(row[head.index("default")]) or ("",)
            tokens = quoted(row[head.index("ftray")])
            if default:
                assert ast.literal_eval(default) in defaults_of(tokens[0]), row
                seen += 1
    assert seen > 45


def test_every_field_of_a_fit_is_on_the_page() -> None:
    assert [name for name in FitConfig.model_fields if f"`{name}`" not in PAGE] == []
    table, _, new = (
        PAGE.partition("## finetuner.fit\n")[2].partition("\n## ")[0].partition("New here:")
    )
    theirs = {*quoted(table), *FINETUNER["fit 0.4.1"].split()}
    assert set(FitConfig.model_fields) - theirs <= set(quoted(new))


def test_what_finetuner_took_for_a_batch_size_is_explained() -> None:
    with pytest.raises(ConfigError, match=r"batch_size = None: .*Finetuner's None is 'auto' here"):
        validated({"model": "minilm", "train_data": "train.csv", "batch_size": None})


@pytest.mark.parametrize("name", SAME)
def test_the_options_of_callbacks_are_theirs(name: str) -> None:
    (row,) = [row for _, rows in tables() for row in rows if row[0] == f"`{name}`"]
    arguments = arguments_of(CALLBACKS[name])
    for option, default in SAME[name].items():
        assert arguments[option].default == default and f"`{option}`" in row[-1], option
    assert set(quoted(row[-1])) - {"val_loss", "eval_data", "resume"} <= set(arguments), row


def test_the_widths_are_those_of_the_models() -> None:
    (rows,) = [rows for head, rows in tables() if "D" in head]
    for _, _, width, name, _ in rows:
        if width:
            entry = MODELS[name.strip("`")]
            option = OPTIONS[entry.kind].model_fields.get("output_dim")
            assert int(width) == (entry.dim if option is None else option.default), name


def test_what_it_says_of_names_is_so() -> None:
    section = PAGE.partition("## Optimizers, schedules, samplers")[2]
    optimizers, refused, _, schedules = [quoted(line) for line in section.split("\n| ")[2:6]]
    for name in optimizers[:-1]:
        check_optimizer(name, {})
    for name in refused:
        with pytest.raises(ConfigError, match="cannot be used here"):
            check_optimizer(name, {})
    for name in (name for name in schedules if name != "scheduler"):
        check_scheduler(name, {})
    descriptors = [row[1] for head, rows in tables() if "D" in head for row in rows]
    known = {*ALIASES, *MODELS, *(entry.hub_id for entry in MODELS.values())}
    foreign = [d for (d,) in map(quoted, descriptors) if d not in known]
    assert foreign == [
        "xlm-roberta-base-ViT-B-32::laion5b_s13b_b90k",
        "ms-marco-MiniLM-L-6-v2",
        "mmarco-mMiniLMv2-L12-H384-v1",
    ]


def test_its_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", PAGE.replace("\n", " "))
    assert len(links) > 20
    for file, place in links:
        text = (DOCS / file).read_text(encoding="utf-8") if file else PAGE
        titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        places = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
        assert not place or place in places, (file, place)


@pytest.mark.parametrize("argument", FORMERLY)
def test_an_argument_that_is_gone_is_told_so(argument: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validated({"model": "minilm", "train_data": "train.csv", argument: "batch"})
    assert str(caught.value) == f"there is no option '{argument}'. {FORMERLY[argument]}"
    assert f"`{argument}`" in PAGE and argument not in FitConfig.model_fields


def test_the_fit_runs_as_printed(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(0)
    for name, count in {"train": 256, "validation": 64, "queries": 20, "index": 40}.items():
        lines = [
            f"{' '.join(draw.choices(WORDS, k=5))} {WORDS[i % 9]},c{i % 9}" for i in range(count)
        ]
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_place_of", lambda name, entry: str(tiny_model))
    (theirs,) = re.findall(r"^```text\n(import finetuner.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (ours,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    given = [set(re.findall(r"^    (\w+)=", code, re.MULTILINE)) for code in (theirs, ours)]
    assert given[0] == given[1], "the same arguments"
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(ours, "docs/finetuner-migration.md", "exec"), space)
    assert space["run"].status() == "FINISHED" and space["vectors"].shape == (1, 32)
    assert space["run"].metrics()["after"] != space["run"].metrics()["before"]
