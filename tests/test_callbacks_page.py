"""docs/callbacks.md: its examples run as they are printed, and its table names tests that exist."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

import ftray
from ftray.callbacks import EarlyStopping, EvaluationCallback, base
from ftray.callbacks.base import HOOKS, Callback, Decision, Logger, State
from ftray.callbacks.registry import CALLBACKS, resolve_callbacks
from ftray.config_file import load_config
from ftray.errors import DataError, RunFailedError
from ftray.events import Progress
from ftray.models import registry as models
from ftray.record.facts import callback_facts
from tests.conftest import WORDS
from tests.evaluation.test_numbers_of_the_pages import RELATIONS
from tests.wandb_files import offline_runs

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "callbacks.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^#{2,4} (.+)\n((?:(?!#{2,4} ).*\n)*)", PAGE, re.MULTILINE))
EXAMPLES = [*CALLBACKS, "steps_per_interval", "overlap"]
BASE = PAGE.partition("\n## ")[0]


def blocks(text: str, kind: str) -> list[str]:
    """The code blocks of a kind, as they are printed."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


# ---------------------------------------------------------------- the place of a user


def labelled(count: int, seed: int, *, misled: bool = False) -> list[tuple[str, str]]:
    """Texts of four classes, each with a word of its own; or misled: no two of a class share it."""
    draw = random.Random(seed)
    return [
        (
            " ".join([*draw.choices(WORDS, k=draw.randint(2, 9)), *[WORDS[i % 4]] * 3]),
            f"c{i // 4 if misled else i % 4}",
        )
        for i in range(count)
    ]


DATA = {
    "train.csv": labelled(256, 0),
    "validation.csv": labelled(64, 1, misled=True),  # what is learned makes its loss worse
    "queries.csv": labelled(30, 2),
    "index.csv": labelled(60, 3),
    "other.csv": labelled(40, 4, misled=True),
}


def pairs(count: int = 60) -> list[tuple[str, str]]:
    draw = random.Random(5)
    return [tuple(" ".join(draw.choices(WORDS, k=k)) for k in (4, 9)) for _ in range(count)]  # type: ignore[misc]


def write_csv(path: Path, header: tuple[str, str], rows: list[tuple[str, str]]) -> None:
    path.write_text("".join(f"{first},{second}\n" for first, second in [header, *rows]))


@pytest.fixture
def place(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the files that the page names, the user's own, and a small `minilm`."""
    import wandb

    for name, rows in DATA.items():
        write_csv(tmp_path / name, ("text", "label"), rows)
    write_csv(tmp_path / "pairs.csv", ("query", "document"), pairs())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "_place_of", lambda name, entry: str(tiny_model))
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    wandb.teardown()  # its settings are those of the environment when it is first used
    yield tmp_path
    wandb.teardown()


def executed(code: str, **names: Any) -> dict[str, Any]:
    """What a block of the page defines."""
    space: dict[str, Any] = {"__name__": "__main__", **names}
    exec(compile(code, "docs/callbacks.md", "exec"), space)
    return space


def fit_of_the_page(callbacks: list[Any]) -> ftray.Run:
    """The call at the beginning of the page with these callbacks."""
    (code,) = blocks(BASE, "python")
    code, count = re.subn(r"callbacks=\[.*?\n    \],", "callbacks=callbacks,", code, flags=re.S)
    assert count == 1
    run: ftray.Run = executed(code, callbacks=callbacks)["run"]
    return run


def facts(callbacks: list[Any]) -> Any:
    """Callbacks as `run.yaml` names them."""
    found = resolve_callbacks(callbacks)
    return callback_facts(found, found, CALLBACKS)


def assert_logged(run: ftray.Run, text: str) -> None:
    """Each line is in the log; numbers may be others, and `…` is anything."""
    lines = [line.split("] ", 1)[1] for line in run.logs().splitlines() if line.startswith("[")]
    for line in text.splitlines():
        pattern = re.sub(r"\d+(\\\.\d+)?", r"\\d+(\\.\\d+)?", re.escape(line)).replace("…", ".*")
        assert any(re.fullmatch(pattern, seen) for seen in lines), line


# ---------------------------------------------------------------- the examples


def test_the_fit_at_the_beginning_is_the_same_in_yaml(place: Path) -> None:
    (code,), (text,) = blocks(BASE, "python"), blocks(BASE, "yaml")
    run = executed(code)["run"]
    Path("train.yaml").write_text(text)
    again = ftray.fit(load_config("train.yaml"), listeners=[])
    assert again.metrics() == run.metrics() and run.metrics()["after"] != run.metrics()["before"]
    other = {"run_name"}
    assert {k: v for k, v in run.config.items() if k not in other} == {
        k: v for k, v in again.config.items() if k not in other
    }


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_as_printed_and_is_the_same_in_yaml(place: Path, name: str) -> None:
    code, *_ = blocks(SECTIONS[name], "python")
    (text,) = blocks(SECTIONS[name], "yaml")
    callbacks = executed(code)["callbacks"]
    assert facts(yaml.safe_load(text)["callbacks"]) == facts(callbacks)
    run = fit_of_the_page(callbacks)
    assert run.status() == "FINISHED"
    (lines,) = blocks(SECTIONS[name], "text")
    assert_logged(run, lines)


def test_the_callbacks_of_ones_own_do_what_is_said(place: Path) -> None:
    (code,) = blocks(SECTIONS["A callback of your own"], "python")
    found = executed(code)
    gaps = [
        row["val_loss"] - row["train_loss"]
        for row in found["run"].history().to_pylist()
        if row["kind"] == "epoch"
    ]
    assert len(gaps) == 3 and max(gaps) < 5
    assert [gap for gap in found["run"].history()["gap"].to_pylist() if gap is not None] == gaps
    budget = found["Budget"](minutes=0)
    run = ftray.fit(**_small(), run_name="budget", callbacks=[budget], listeners=[])
    assert run.status() == "FINISHED" and run.details == "the 0 minutes are over"
    (checkpoint,) = Path(run.path, "checkpoints").iterdir()
    assert checkpoint.name == "epoch-0000-step-000001"
    (kept,) = json.loads((checkpoint / "state.json").read_text())["callbacks"]
    assert kept == {"name": "Budget", "state": {"seconds": budget.seconds}}


class Crash(Callback):
    """Fails at the beginning of the second epoch, the first time."""

    def __init__(self) -> None:
        self.crashed = False

    def on_epoch_begin(self, state: State) -> None:
        if state.epoch == 1 and not self.crashed:
            self.crashed = True
            raise ValueError("power cut")


def test_the_budget_goes_on_after_a_restart(place: Path) -> None:
    (code,) = blocks(SECTIONS["A callback of your own"], "python")
    first, second = (executed(code)["Budget"](minutes=30) for _ in range(2))
    first.seconds = 1000.0
    crash = Crash()
    fields = {**_small(), "epochs": 2, "run_name": "again", "listeners": []}
    with pytest.raises(RunFailedError, match="power cut"):
        ftray.fit(**fields, callbacks=[first, crash])
    ftray.fit(**fields, callbacks=[second, crash], resume="must")
    assert 1000 < first.seconds < second.seconds < 1000 + 60


def test_a_logger_that_fails_is_the_warning_that_is_printed(place: Path) -> None:
    (code,) = blocks(SECTIONS["Loggers"], "python")
    run = executed(code)["run"]
    (lines,) = blocks(SECTIONS["Loggers"], "text")
    assert_logged(run, lines)
    assert len(Path("losses.csv").read_text().splitlines()) == 2
    assert run.status() == "FINISHED" and run.logs().count("hears no more") == 1


def _small() -> dict[str, Any]:
    return {"model": "minilm", "train_data": "train.csv", "loss": "SupConLoss", "num_workers": 0}


class Forgetful(Logger):
    """Can neither say its state nor take it up."""

    def state_dict(self) -> dict[str, Any]:
        raise OSError("no disk")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise ValueError(f"nothing in {state}")


def test_a_logger_without_a_state_is_a_warning_too(place: Path) -> None:
    fields = {**_small(), "epochs": 2, "run_name": "again", "listeners": []}
    callbacks = [Forgetful(), Crash()]
    with pytest.raises(RunFailedError, match="power cut"):
        ftray.fit(**fields, callbacks=callbacks)
    run = ftray.fit(**fields, callbacks=callbacks, resume="must")
    warnings = [line.split("WARNING  ")[1] for line in run.logs().splitlines() if "WARNING" in line]
    assert warnings == [
        "Forgetful.state_dict failed: OSError: no disk. It hears no more; the run goes on.",
        "Forgetful.load_state_dict failed: ValueError: nothing in {}. It hears no more; the run "
        "goes on.",
    ]


class Again(Callback):
    """Wants something evaluated on a result, which comes late of an evaluation with overlap."""

    def __init__(self, weights: Any = None) -> None:
        self.weights = weights

    def on_evaluation_end(self, state: State, result: base.EvaluationResult) -> Any:
        if result.caption == "often" and result.when == "step":
            return base.Evaluate(1, self.weights)
        return None


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("weights", [None, base.Interpolation(0.5)])
def test_what_is_evaluated_on_a_result_are_the_weights_of_its_step(
    place: Path, overlap: bool, weights: Any
) -> None:
    data = ("queries.csv", "index.csv")
    callbacks = [
        EvaluationCallback(*data, caption="often", steps_per_interval=3, overlap=overlap),
        EvaluationCallback(*data, caption="other"),
        Again(weights),
    ]
    fields = {**_small(), "epochs": 1, "learning_rate": 1e-2, "listeners": []}
    run = ftray.fit(**fields, callbacks=callbacks)
    rows = run.history().to_pylist()
    often, other = (
        [
            r[f"{name}_ndcg_at_k"]
            for r in rows
            if r["kind"] == "evaluation"
            and r["global_step"] == 3
            and r[f"{name}_ndcg_at_k"] is not None
        ]
        for name in ("often", "other")
    )
    assert len(often) == len(other) == 1 and (often == other) == (weights is None)


# ---------------------------------------------------------------- what the page says of the code


class Trace(Callback):
    """Every hook that is called, ours as well."""

    def __init__(self) -> None:
        self.hooks: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if name in HOOKS:
            return lambda state, *rest: self.hooks.append(name)
        return super().__getattribute__(name)


def test_the_order_of_the_hooks_is_that_of_a_fit(place: Path) -> None:
    trace = Trace()
    ftray.fit(
        **_small(),
        eval_data="validation.csv",
        epochs=2,
        batch_size=128,
        callbacks=[trace, EvaluationCallback("queries.csv", "index.csv")],
        listeners=[],
    )
    epoch = ["on_epoch_begin", "on_train_epoch_begin"]
    epoch += ["on_train_batch_begin", "on_train_batch_end"] * 2
    epoch += ["on_train_epoch_end"]
    epoch += ["on_val_begin", "on_val_batch_begin", "on_val_batch_end", "on_val_end"]
    epoch += ["on_evaluation_end", "on_metrics", "on_epoch_end"]
    wanted = ["on_fit_begin", "on_evaluation_end", *epoch * 2, "on_fit_end", "on_run_end"]
    assert trace.hooks == wanted
    (block,) = blocks(SECTIONS["The order of the hooks"], "")
    written = re.findall(r"on_\w+", block)
    assert set(written) == set(HOOKS)
    instead = ("on_keyboard_interrupt", "on_exception")
    once = ["on_fit_begin", "on_evaluation_end", *dict.fromkeys(epoch), "on_fit_end", "on_run_end"]
    assert [hook for hook in written if hook not in instead] == once


def test_orders_are_those_of_the_classes() -> None:
    (line,) = re.findall(r"called by their class attribute `order`(.*?)\n\n", PAGE, re.S)
    written = {name: int(order) for name, order in re.findall(r"(\w+)\s(\d+)", line)}
    assert written.pop("own") == Callback.order
    assert written.pop("loggers") == Logger.order
    loggers = {"WandBLogger", "TensorBoardLogger"}
    assert written == {name: c.order for name, c in CALLBACKS.items() if name not in loggers}
    assert all(CALLBACKS[name].order == Logger.order for name in loggers)


def test_every_field_of_the_state_and_of_a_result_is_named() -> None:
    rows = table_of(SECTIONS["What a hook sees"])
    assert set(re.findall(r"`(\w+)`", " ".join(row[0] for row in rows))) == fields_of(State)
    assert fields_of(base.EvaluationResult) <= set(re.findall(r"`(\w+)`", PAGE))


def fields_of(cls: type) -> set[str]:
    return set(inspect.signature(cls).parameters)


def test_every_decision_is_named_with_its_fields() -> None:
    rows = table_of(SECTIONS["What a hook may decide"])
    written = {ast.unparse(ast.parse(row[0].strip("`"))) for row in rows}
    own = [c for c in Decision.__subclasses__() if c.__module__ == base.__name__]
    assert {text.partition("(")[0] for text in written} == {cls.__name__ for cls in own}
    for cls in own:
        parameters = inspect.signature(cls).parameters.values()
        said = ", ".join(
            p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters
        )
        assert f"{cls.__name__}({said})" in written


@pytest.mark.parametrize("name", CALLBACKS)
def test_every_option_is_listed_with_its_default(name: str) -> None:
    rows = table_of(SECTIONS[name])
    written: dict[str, str] = {}
    for names, defaults, _ in rows:
        options = re.findall(r"`(\w+)`", names)
        values = re.findall(r"`([^`]*)`", defaults) or ["–"]
        values = values * len(options) if len(values) == 1 else values
        written |= dict(zip(options, values, strict=True))
    parameters = inspect.signature(CALLBACKS[name]).parameters.values()
    assert written == {p.name: "–" if p.default is p.empty else repr(p.default) for p in parameters}


def table_of(text: str) -> list[list[str]]:
    """The rows below the header of the first table in a section."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [cells(line) for line in lines[2:]]


def cells(line: str) -> list[str]:
    """The cells of a row; a pipe within one is written `\\|`."""
    parts = re.split(r"(?<!\\)\|", line)
    assert parts[0] == parts[-1] == "", line
    return [part.strip() for part in parts[1:-1]]


def test_tables_are_whole_and_lines_short() -> None:
    fenced = False
    width = 0
    for line in PAGE.splitlines():
        fenced ^= line.startswith("```")
        if fenced or line.startswith("```"):
            continue
        if not line.startswith("|"):
            width = 0
            assert len(line) <= 100, line
            continue
        width = width or len(cells(line))
        assert len(cells(line)) == width and line.count("`") % 2 == 0, line


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        name, _, anchor = target.partition("#")
        file = ROOT / "docs" / (name or "callbacks.md")
        assert file.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {slug(title) for title in titles}, target


def slug(title: str) -> str:
    """How GitHub names the place of a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


# ---------------------------------------------------------------- the table of statements

TABLE = [
    row for row in table_of(SECTIONS["Finetuner's two pages, statement by statement"]) if row[0]
]
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)(?:\[(.+?)\])?`")


def functions(file: str) -> set[str]:
    """The tests of a file."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def ids(file: str, test: str) -> set[str]:
    """What pytest adds to the name of a test that has one parametrisation."""
    module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    (mark,) = (m for m in getattr(module, test).pytestmark if m.name == "parametrize")
    _, values = mark.args
    name: Any = mark.kwargs.get("ids", str)
    return {name(value) for value in values}


def test_every_statement_has_a_test_and_what_holds_here() -> None:
    assert len(TABLE) == 70
    for page, statement, here, tests in TABLE:
        assert page in ("F", "D", "F, D") and len(statement) > 10
        assert here[0].isupper() and here[-1] in ".?", here
        assert TEST.search(tests) and TEST.sub("", tests).replace("<br>", "") == "", tests


def test_every_test_that_the_page_names_exists() -> None:
    named = TEST.findall(PAGE)
    assert len(named) > 100
    for file, test, case in named:
        assert test in functions(file), f"{file}::{test}"
        assert not case or case in ids(file, test), f"{file}::{test}[{case}]"


def test_the_page_names_no_file_that_is_not_there() -> None:
    for name in re.findall(r"`((?:benchmarks|docs|tests)/[\w/]+\.\w+)", PAGE):
        assert (ROOT / name).exists(), name
    assert "finetuner-callbacks" not in PAGE and "/work" not in PAGE


# ---------------------------------------------------------------- what Finetuner's users type

# Their code, with another import, model and data; `num_workers=0` is ours.
FIRST = """
import ftray
from ftray.callbacks import EvaluationCallback

run = ftray.fit(
    model='minilm',
    train_data='train.csv',
    num_workers=0,
    callbacks=[
        EvaluationCallback(
            query_data='queries.csv',
            index_data='index.csv'
        ),
    ]
)
"""
STOPPING = """
import ftray
from ftray import callbacks as callback
from ftray.callbacks import EarlyStopping, EvaluationCallback

run = ftray.fit(
    model='minilm',
    run_name='clip-fashion-early',
    train_data=train_data,
    epochs=10,
    learning_rate= 1e-5,
    loss=loss,
    device='cpu',
    num_workers=0,
    callbacks= [
        callback.EarlyStopping(
            monitor = "train_loss",
            mode = "min",
            patience=2,
            min_delta=1,
            baseline=1.5
        )
    ]
)
"""
WANDB = """
import ftray
from ftray.callbacks import WandBLogger, EvaluationCallback

run = ftray.fit(
    model='minilm',
    run_name = 'resnet-tll-early-6',
    train_data = 'train.csv',
    epochs = 5,
    learning_rate = 1e-6,
    num_workers=0,
    callbacks=[
        EvaluationCallback(
            query_data='queries.csv',
            index_data='index.csv'
        ),
        WandBLogger(),
    ]
)

# stream the logs, or use run.logs() to get logs
for entry in run.stream_logs():
    print(entry)
"""
BEST = """
import ftray
from ftray.callbacks import BestModelCheckpoint

run = ftray.fit(
    model='minilm',
    train_data='train.csv',
    eval_data='validation.csv',
    loss='SupConLoss',
    epochs=6,
    num_workers=0,
    learning_rate=2e-4,
    callbacks=[BestModelCheckpoint()]
)
"""
METRICS = (
    "average_precision dcg_at_k f1_score_at_k hit_at_k ndcg_at_k precision_at_k r_precision "
    "recall_at_k reciprocal_rank"
).split()


def printed(capsys: pytest.CaptureFixture[str], code: str, **names: Any) -> tuple[Any, str]:
    """The run of a block, and what the user saw."""
    capsys.readouterr()
    run = executed(code, **names)["run"]
    return run, capsys.readouterr().out


def test_their_first_block_prints_what_their_page_shows(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = printed(capsys, FIRST)
    bar = r"Training \[5/5\] ━+ 4/4 0:00:00 \d:\d\d:\d\d • loss: \d\.\d{3}"
    number = r"\d\.\d{5}"
    lines = [
        bar,
        r"INFO     Building the artifact \.\.\.",
        "INFO     Done ✨",
        r"DEBUG    Finetuning took 0 days, 0 hours 0 minutes and \d+ seconds?",
        *(
            f"DEBUG    Metric: 'minilm_{name}' before fine-tuning: {number} "
            f"after fine-tuning: {number}"
            for name in METRICS
        ),
    ]
    for text in (out, run.logs()):
        places = [re.search(rf"{line}$", text, re.MULTILINE) for line in lines]
        assert all(places), lines[places.index(None)]
        starts = [found.start() for found in places if found]
        assert starts == sorted(starts), "in this order"
    assert "Hubble" not in out and "__main__.py" not in out
    sides = json.loads(json.dumps(run.metrics()))
    assert sides.keys() == {"before", "after"} and sides["after"].keys() == set(METRICS)
    for name in METRICS:
        assert f"'minilm_{name}' before fine-tuning: {sides['before'][name]:.5f} after" in out


def test_their_best_model_prints_what_their_page_shows(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = printed(capsys, BEST)
    losses = [row["val_loss"] for row in run.history().to_pylist() if row["kind"] == "epoch"]
    best = min(losses)
    assert losses[-1] > best, "the last model is not the best one"
    assert "Finetuning ... 6 epochs of 4 steps" in out
    assert f"INFO     Model improved from inf to {losses[0]:.3f}!" in out
    assert f"INFO     Model improved from {losses[0]:.3f} to {losses[1]:.3f}!" in out
    assert out.count("INFO     Model did not improve\n") == sum(
        loss >= min(losses[:i]) for i, loss in enumerate(losses) if i
    )
    assert re.search(
        rf"Training \[6/6\] ━+ 4/4 .* • loss: \S+ • val_loss: {losses[-1]:.3f}$", out, re.M
    )
    facts = json.loads(Path(run.artifact_id, "ftray.json").read_text())
    assert facts["metrics"]["val_loss"] == best
    assert run.metrics() == {"before": {}, "after": {}}, "eval_data evaluates the loss alone"


@pytest.mark.parametrize(
    ("loss", "data", "epochs"),
    [("CLIPLoss", "pairs.csv", 2), ("TripletMarginLoss", "train.csv", 10)],
)
def test_their_early_stopping_block_stops_where_its_options_say(
    place: Path, capsys: pytest.CaptureFixture[str], loss: str, data: str, epochs: int
) -> None:
    """An improvement is a loss below 1.5 - 1: either there is none, and two epochs are enough, or
    each epoch is one. Their log, 10 of 20 epochs, cannot come from these options.
    """
    run, out = printed(capsys, STOPPING, loss=loss, train_data=data)
    told = [row["train_loss"] for row in run.history().to_pylist() if row["kind"] == "epoch"]
    assert len(told) == epochs
    assert (max(told) < 0.5) if epochs == 10 else (min(told) >= 0.5)
    assert ("8 of 10 epochs saved" in out) == (epochs == 2)
    assert ("(now" in out and ", baseline 1.50000)" in out) == (epochs == 2)
    assert f"Training [{epochs}/10] ━" in out and run.status() == "FINISHED"


def test_their_wandb_block_streams_its_log_and_tracks_every_metric(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = printed(capsys, WANDB)
    assert out.endswith(run.logs()), "the loop prints each line of the log"
    assert re.search(r"W&B: offline, in \S+/wandb/offline-run-\S+; to upload: wandb sync ", out)
    assert "wandb: " not in out and "anony" not in out
    (logged,) = offline_runs(Path(run.path))
    assert len(logged.series("train/loss")) == 5
    assert logged.series("val/loss") == [], "without eval_data there is none"
    for name in METRICS:
        found = [value for _, value in logged.series(f"metrics/{name}")]
        assert len(found) == 6 and found[0] == run.metrics()["before"][name]
    assert not any("mrr" in key for row in logged.history for key in row)


def test_an_evaluation_has_their_three_bars(place: Path) -> None:
    seen: list[str] = []

    def listen(event: Any) -> None:
        if isinstance(event, Progress):
            seen.append(event.task)

    callbacks = [EvaluationCallback("queries.csv", "index.csv")]
    ftray.fit(**_small(), epochs=1, callbacks=callbacks, listeners=[listen])
    bars = ["Embedding queries", "Embedding index", "Matching"]
    order = [task for i, task in enumerate(seen) if i == 0 or seen[i - 1] != task]
    assert order == bars * 2, "before training, and at the end of the epoch"


def test_no_callback_is_needed(place: Path) -> None:
    run = ftray.fit(**_small(), epochs=1, listeners=[])
    assert run.status() == "FINISHED" and run.config["callbacks"] == []
    assert run.metrics() == {"before": {}, "after": {}}
    assert "Training [1/1] ━" in run.logs()


# What their second page shows for a run of two epochs.
SHOWN = {
    "average_precision": 0.15114,
    "dcg_at_k": 0.21535,
    "f1_score_at_k": 0.03291,
    "hit_at_k": 0.34551,
    "ndcg_at_k": 0.21535,
    "precision_at_k": 0.01728,
    "recall_at_k": 0.34551,
    "reciprocal_rank": 0.15114,
}


@pytest.mark.parametrize("name", RELATIONS)
def test_their_second_block_keeps_the_relations(name: str) -> None:
    assert SHOWN[name] == pytest.approx(RELATIONS[name](SHOWN), abs=1e-5)


def test_the_arithmetic_of_their_prose() -> None:
    assert 0.284 / 0.272 < 1.05, "less than five percent higher"
    assert 294 / 150 == pytest.approx(2, abs=0.05), "nearly twice the time"
    assert 95 / 218 < 0.5, "more than halving the time"
    assert 0.007 / 0.003 > 2, "more than twice as high"


def test_early_stopping_does_not_keep_the_best_model(place: Path) -> None:
    callbacks = [EarlyStopping("train_loss", patience=2, baseline=0.0)]
    run = ftray.fit(**_small(), epochs=5, callbacks=callbacks, listeners=[])
    facts = json.loads(Path(run.artifact_id, "ftray.json").read_text())
    assert (
        facts["best"] is None
        and facts["global_step"] == 8 == run.history()["global_step"][-1].as_py()
    )
    last = load_file(f"{run.path}/checkpoints/epoch-0002/model.safetensors")
    kept = load_file(f"{run.artifact_id}/model.safetensors")
    names = {name: [n for n in last if n.endswith(f".{name}")] for name in kept}
    assert all(tensor.equal(last[names[name][0]]) for name, tensor in kept.items())


def test_a_name_of_the_cloud_is_a_file_that_is_not_there(place: Path) -> None:
    callbacks = [EvaluationCallback(query_data="finetuner/tll-test-query-da")]
    for fields in (
        {"train_data": "finetuner/tll-train-da"},
        {"train_data": "train.csv", "callbacks": callbacks},
    ):
        with pytest.raises(DataError, match=r"there is no file 'finetuner/tll-"):
            ftray.fit(**{**_small(), **fields}, listeners=[])
    assert not Path("runs").exists()
