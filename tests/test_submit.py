"""What `ftray.submit` takes along and refuses, and the job's side of it.

The job's side runs here as it does in a job, but for Ray: its packages lie in a folder of
`sys.path`. Real jobs: tests/cluster/test_jobs.py.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import ftray
from ftray.callbacks import EvaluationCallback
from ftray.config import validated
from ftray.errors import ClusterError, ConfigError, DataError, ModelError, StorageError
from ftray.launch import submit as client
from ftray.launch import submitted
from ftray.launch.packing import Luggage, Packed, with_places
from ftray.launch.submit import JobOptions
from ftray.run import Run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def luggage(*, shared: tuple[Path, ...] = (), kept: Path | None = None, limit: float = 1.0):
    return Luggage(shared, None if kept is None else str(kept), limit)


# ---------------------------------------------------------------- which files travel, and where


def test_files_below_the_current_folder_keep_their_places(here: Path) -> None:
    (here / "data").mkdir()
    (here / "data" / "a.csv").touch()
    bag = luggage()
    assert bag.pack("train_data", "data/a.csv") == Packed("here/data/a.csv")
    assert bag.pack("train_data", here / "data") == Packed("here/data")


def test_files_elsewhere_get_a_folder_named_after_their_own(here: Path, tmp_path: Path) -> None:
    for name in ("one/a.csv", "one/b.csv", "two/a.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    bag = luggage()
    places = [bag.pack("data", tmp_path / n).place for n in ("one/a.csv", "one/b.csv", "two/a.csv")]
    assert len(set(places)) == 3 and all(p.startswith("elsewhere/") for p in places)
    assert Path(places[0]).parent == Path(places[1]).parent != Path(places[2]).parent
    again = luggage()
    assert again.pack("data", tmp_path / "two/a.csv").place == places[2]
    bag.write(tmp_path / "package")
    assert (tmp_path / "package" / places[2]).read_text() == "two/a.csv"


def test_what_the_cluster_sees_stays_where_it_is(here: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    (runs / "default" / "r" / "artifact").mkdir(parents=True)
    (runs / "default" / "r" / "artifact" / "ftray.json").write_text("{}")
    bag = luggage(shared=(tmp_path / "nfs",), kept=runs)
    artifact = str(runs / "default" / "r" / "artifact")
    assert bag.pack("model", artifact) == artifact and not bag.relies_on_shared
    there = str(tmp_path / "nfs" / "huge.csv")  # which is not here
    assert bag.pack("train_data", there) == there and bag.relies_on_shared
    assert bag.pack("model", str(tmp_path / "nfs" / "model")) == str(tmp_path / "nfs" / "model")
    assert not bag


def test_names_and_addresses_stay_as_they_are(here: Path, tmp_path: Path) -> None:
    bag = luggage(shared=(tmp_path,))  # the current folder is below
    for name in ("convnet", "someone/some-model"):
        assert bag.pack("model", name) == name
    assert bag.pack("train_data", "s3://bucket/a.csv") == "s3://bucket/a.csv"
    rows = [{"text": "a", "label": "b"}]
    assert bag.pack("train_data", rows) is rows and not bag and not bag.relies_on_shared


def test_what_is_not_there_is_said_as_fit_says_it(here: Path) -> None:
    (here / "train.csv").touch()
    with pytest.raises(DataError, match=r"train_data: there is no file .*Did you mean 'train.csv'"):
        luggage().pack("train_data", "trian.csv")
    with pytest.raises(ModelError, match=r"There is no model folder '\./tiny'"):
        luggage().pack("model", "./tiny")
    with pytest.raises(ModelError, match="Did you mean 'convnet'"):
        luggage().pack("model", "convnt")


def test_all_places_of_data_are_found_and_the_users_objects_stay_as_they_were() -> None:
    callback = EvaluationCallback("q.csv", "i.csv", caption="x")
    fields = {
        "model": "m",
        "train_data": "t.csv",
        "eval_data": None,
        "callbacks": [callback, "EarlyStopping", {"EvaluationCallback": {"query_data": "p.csv"}}],
    }
    seen: dict[str, Any] = {}

    def change(where: str, value: Any) -> Any:
        seen[where] = value
        return f"changed {value}"

    changed = with_places(fields, change)
    assert seen == {
        "model": "m",
        "train_data": "t.csv",
        "callbacks[0]: query_data": "q.csv",
        "callbacks[0]: index_data": "i.csv",
        "callbacks[2]: EvaluationCallback: query_data": "p.csv",
    }
    assert changed["callbacks"][0].query_data == "changed q.csv"
    assert changed["callbacks"][2] == {"EvaluationCallback": {"query_data": "changed p.csv"}}
    assert callback.query_data == "q.csv" and fields["train_data"] == "t.csv"


def test_too_much_is_refused_with_each_file_and_its_size(here: Path) -> None:
    (here / "big.csv").write_bytes(b"x" * (3 << 20))
    (here / "small.csv").write_bytes(b"x" * (1 << 19))
    bag = luggage(limit=2)
    bag.pack("train_data", "big.csv")
    bag.pack("eval_data", "small.csv")
    said = (
        r"3\.5 MB .*train_data 'big\.csv': 3\.0 MB, eval_data 'small\.csv': 0\.5 MB.*2 MB.*shared"
    )
    with pytest.raises(ConfigError, match=said):
        bag.check()
    small = luggage(limit=2)
    small.pack("eval_data", "small.csv")
    small.check(objects=1 << 20)
    with pytest.raises(ConfigError, match=r"objects in the call: 2\.0 MB"):
        small.check(objects=2 << 20)


def test_files_that_data_names_travel_with_it(here: Path, tmp_path: Path) -> None:
    outside = tmp_path / "set"
    for name in (outside / "a.csv", outside / "img" / "1.png", here / "2.png", tmp_path / "3.png"):
        name.parent.mkdir(exist_ok=True)
        name.write_text(name.name)
    bag = luggage()
    place = bag.pack("train_data", outside / "a.csv").place
    bag.add_named([str(outside / "img" / "1.png"), str(here / "2.png")])
    bag.write(tmp_path / "package")
    assert (tmp_path / "package" / place).parent.joinpath("img/1.png").read_text() == "1.png"
    assert (tmp_path / "package" / "here" / "2.png").read_text() == "2.png"
    with pytest.raises(ConfigError, match=r"names the file '.*3\.png'.*shared"):
        bag.add_named([str(tmp_path / "3.png")])


def test_gitignore_does_not_decide_what_travels(here: Path, tmp_path: Path) -> None:
    (here / "images").mkdir()
    (here / "images" / ".gitignore").write_text("*.png")
    (here / "images" / "1.png").write_text("1")
    bag = luggage()
    bag.pack("train_data", "images")
    bag.write(tmp_path / "package")
    found = sorted(p.name for p in (tmp_path / "package" / "here" / "images").iterdir())
    assert found == ["1.png"]


def test_what_is_weighed_of_a_folder_is_what_travels(here: Path, tmp_path: Path) -> None:
    images, linked = here / "images", tmp_path / "linked"
    for name in (".git/objects/1", ".env", ".rayignore", "__pycache__/a.pyc", "in/.more/2.png"):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        (images / name).write_bytes(b"x" * (1 << 20))
    linked.mkdir()
    (linked / "3.png").write_bytes(b"x" * (1 << 19))
    (images / "linked").symlink_to(linked)
    (images / "gone.png").symlink_to(tmp_path / "nothing")
    (images / "around").symlink_to(images)
    bag = luggage(limit=0.6)
    bag.pack("train_data", "images")
    bag.check()
    with pytest.raises(ConfigError, match=r"0\.6 MB \(train_data 'images': 0\.5 MB"):
        bag.check(objects=110 << 10)
    bag.add_named([str(images / "in" / ".more" / "2.png"), str(images / "linked" / "3.png")])
    bag.write(tmp_path / "package")
    below = tmp_path / "package" / "here" / "images"
    travelled = sorted(str(p.relative_to(below)) for p in below.rglob("*") if p.is_file())
    assert travelled == ["in/.more/2.png", "linked/3.png"]


def test_the_work_for_a_named_file_does_not_grow_with_their_number(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "a.csv").touch()
    names = [here / f"{number}.png" for number in range(300)]
    for name in names:
        name.touch()
    bag = luggage()
    bag.pack("train_data", "a.csv")
    calls = 0
    original = Path.is_relative_to

    def counted(self: Path, *other: Any) -> bool:
        nonlocal calls
        calls += 1
        return original(self, *other)

    monkeypatch.setattr(Path, "is_relative_to", counted)
    bag.add_named(map(str, names))
    assert len(bag._places) == 301 and calls <= 3 * len(names)


# ---------------------------------------------------------------- the job's side


def fields(model: Path, data: Any, **more: Any) -> dict[str, Any]:
    return {
        "model": str(model),
        "train_data": data,
        "loss": "SupConLoss",
        "epochs": 1,
        "batch_size": 32,
        "num_workers": 0,
        **more,
    }


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: Path) -> Iterator[Any]:
    """Packs a fit as `submit` does, and runs the job's side of it in this process."""

    def run(given: dict[str, Any], about: dict[str, Any] | None = None, **options: Any) -> Path:
        config, place = client._placed(validated({"storage_path": str(tmp_path / "runs"), **given}))
        chosen = JobOptions(**options)
        bag, sent = client._packed(config, chosen)
        facts = {
            "ftray": ftray.__version__,
            "python": ".".join(map(str, sys.version_info[:2])),
            "has_objects": client._has_objects(config),
            "job_id": "ftray-x",
            "storage_path": config.storage_path,
            "sign": ".ftray-x.tmp/nonce",
            "nonce": "1234",
            "has_files": bool(bag),
            "has_working_dir": "working_dir" in client._runtime_env(chosen),
            "host": "laptop",
            **(about or {}),
        }
        sign = Path(config.storage_path, facts["sign"])
        if facts["nonce"] == "1234":
            sign.parent.mkdir(parents=True, exist_ok=True)
            sign.write_text("1234")
        packages = tmp_path / "packages"
        packages.mkdir()
        client._write_packages(packages, facts, client._pickled(sent), bag)
        monkeypatch.syspath_prepend(str(packages))
        importlib.invalidate_caches()
        submitted.main()
        return Path(place.storage.uri)

    yield run
    for name in (client.FIT_PACKAGE, client.FILES_PACKAGE):
        sys.modules.pop(name, None)


def test_the_job_trains_with_the_files_it_was_given(
    job: Any, here: Path, tmp_path: Path, tiny_model: Path, labelled_csv: Path, capsys: Any
) -> None:
    (here / "models").mkdir()
    (here / "models" / "mine").symlink_to(tiny_model)
    evaluation = EvaluationCallback(labelled_csv)
    run = Run(
        client.Storage(str(job(fields(Path("models/mine"), labelled_csv, callbacks=[evaluation]))))
    )
    printed = capsys.readouterr().out
    assert run.status() == "FINISHED" and run.metrics()["after"]["ndcg_at_k"] > 0
    assert f"ftray: on record: {run.path}\n" in printed and "Done" in printed
    assert client.ANSWER.search(printed)[1] == client.ON_RECORD
    assert "Ray job ftray-x, submitted from laptop" in run.logs()
    assert run.config["model"] == "models/mine"  # wherever Ray has put it
    assert Path.cwd() == tmp_path / "packages" / client.FILES_PACKAGE / "here"
    assert evaluation.query_data == labelled_csv


def test_images_named_by_a_table_are_found_in_the_job(job: Any, here: Path, tmp_path: Path) -> None:
    data = tmp_path / "set"
    (data / "img").mkdir(parents=True)
    for number in range(12):
        Image.new("L", (8, 8), number * 20).save(data / "img" / f"{number}.png")
    rows = [f"img/{n}.png,{'dark' if n < 6 else 'bright'}" for n in range(12)]
    (data / "a.csv").write_text("\n".join(["image,label", *rows]) + "\n")
    given = fields(Path("convnet"), data / "a.csv", batch_size=8, epochs=1, augmentation="none")
    given["model_options"] = {"image_size": 8}
    given |= {"data_workers": 0}
    path = job(given)
    assert json.loads((path / "status.json").read_text())["status"] == "FINISHED"


def test_the_job_ends_before_training_where_storage_is_not_shared(
    job: Any, tiny_model: Path, labelled_csv: Path, capsys: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.setattr(submitted, "SEEN_WITHIN_S", 0.0)
    with pytest.raises(SystemExit) as ended:
        job(fields(tiny_model, labelled_csv), {"nonce": "other"})
    answer = client.ANSWER.search(capsys.readouterr().out)
    error = client._as_here(answer[2], answer[3])
    assert ended.value.code == 2 and isinstance(error, StorageError)
    assert "is not shared" in str(error) and "laptop" in str(error) and "s3://" in str(error)
    assert not (tmp_path / "runs" / "default").exists()


@pytest.mark.parametrize(
    ("about", "rows", "said"),
    [
        ({"ftray": "0.0.1"}, False, "submitted by ftray 0.0.1: the two must be the same"),
        ({"python": "3.5"}, True, "submitted by Python 3.5: objects"),
    ],
)
def test_other_versions_are_refused(
    job: Any, tiny_model: Path, labelled_rows: Any, about: Any, rows: bool, said: str, capsys: Any
) -> None:
    callbacks = [EvaluationCallback(labelled_rows)] if rows else []
    with pytest.raises(SystemExit):
        job(fields(tiny_model, labelled_rows, callbacks=callbacks), about)
    answer = client.ANSWER.search(capsys.readouterr().out)
    assert answer[2] == "ClusterError" and said in answer[3]


def test_modules_that_the_job_does_not_have_are_named(tmp_path: Path) -> None:
    (tmp_path / client.FIT).write_bytes(b"cno_such_module\nThing\n.")
    with pytest.raises(ConfigError, match=r"no_such_module.*working_dir"):
        submitted._fields(tmp_path)


def test_the_jobs_command_outside_of_a_job_says_what_it_is(capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        submitted.main()
    assert ended.value.code == 2 and "`ftray submit`" in capsys.readouterr().out


# ---------------------------------------------------------------- before anything is sent


def test_a_model_object_is_sent_from_the_cpu_and_stays_as_it_was(
    here: Path, tiny_model: Path, labelled_rows: Any, tmp_path: Path
) -> None:
    import torch

    class Moved(torch.nn.Linear):
        was_moved = False

        def cpu(self) -> Any:
            self.was_moved = True
            return super().cpu()

    model = Moved(4, 4)
    rows = [{"item": [float(i), 0.0, 1.0, 2.0], "label": f"c{i % 4}"} for i in range(32)]
    config, _ = client._placed(
        validated(fields(tiny_model, rows, storage_path=str(tmp_path / "runs")))
    )
    config = config.model_copy(update={"model": model})
    _, sent = client._packed(config, JobOptions())
    assert sent["model"] is not model and torch.equal(sent["model"].weight, model.weight)
    assert sent["model"].was_moved and not model.was_moved


def test_memory_is_no_place_for_the_runs_of_a_job(tiny_model: Path, labelled_rows: Any) -> None:
    config = validated(fields(tiny_model, labelled_rows, storage_path="mock://runs"))
    with pytest.raises(StorageError, match="is memory of one process"):
        client._placed(config)


def test_a_relative_storage_path_is_one_of_this_machine(
    here: Path, tiny_model: Path, labelled_rows: Any
) -> None:
    config, place = client._placed(validated(fields(tiny_model, labelled_rows)))
    assert config.storage_path == str(here / "runs")
    assert place.storage.uri == f"{here}/runs/default/{config.run_name}"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_upload_mb": 0}, "max_upload_mb = 0: more than 0, and at most 512"),
        ({"max_upload_mb": 600}, "max_upload_mb = 600"),
        ({"working_dir": "no/folder"}, "working_dir = 'no/folder' is no folder"),
        ({"working_dir": ".", "runtime_env": {"working_dir": "."}}, "not both"),
        ({"runtime_env": "env.yaml"}, "runtime_env: a mapping"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        client._check_options(JobOptions(**options), 512)


def test_ray_job_stop_gives_a_run_time_for_its_checkpoint() -> None:
    assert client._runtime_env(JobOptions())["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "120"}
    mine = {"env_vars": {"A": "1", "RAY_JOB_STOP_WAIT_TIME_S": "9"}, "pip": ["x"]}
    given = client._runtime_env(JobOptions(runtime_env=mine, working_dir="~"))
    assert given["env_vars"] == mine["env_vars"] and given["pip"] == ["x"]
    assert given["working_dir"] == str(Path.home())


@pytest.mark.parametrize(("status", "raises"), [("FINISHED", False), ("FAILED", True)])
def test_waiting_for_a_job_ends_as_a_fit_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str, raises: bool
) -> None:
    (tmp_path / "status.json").write_text(json.dumps({"status": status, "details": "no memory"}))
    run = client.SubmittedRun(client.Storage(str(tmp_path)), Any, "ftray-x")
    monkeypatch.setattr(client, "submit", lambda config, options: run)
    if not raises:
        assert ftray.submit(model="minilm", train_data="a.csv", wait=True) is run
        return
    with pytest.raises(ftray.errors.RunFailedError, match="failed: no memory"):
        ftray.submit(model="minilm", train_data="a.csv", wait=True)


def test_the_page_about_jobs_says_what_the_code_does() -> None:
    page = (Path(__file__).parents[1] / "docs" / "jobs.md").read_text()
    from typer.main import get_command

    from ftray.cli.app import app
    from ftray.cluster.jobs import MAX_PACKAGE_BYTES

    root = Path(ftray.__file__).parent
    code = "".join((root / name).read_text() for name in ("launch/submit.py", "cluster/jobs.py"))
    code += (root / "launch" / "submitted.py").read_text()
    table = page.partition("## When it does not work")[2]
    for message in re.findall(r"^\| `(.*?)`", table, re.MULTILINE):
        for part in message.split("…"):
            assert part.strip() in re.sub(r"\{.*?\}", "", code), part
    known = {o for p in get_command(app).commands["submit"].params for o in p.opts}
    for line in page.splitlines():
        if "ftray submit" in line:
            assert set(re.findall(r"(--[a-z-]+)", line)) <= known, line
    assert f"jobs of `ftray submit`\nhave {client.STOP_WAIT_S} s" in page
    assert f"Up to `max_upload_mb` ({client.MAX_UPLOAD_MB:g}) travels" in page
    assert f"at\nmost {MAX_PACKAGE_BYTES // 2**20} MiB" in page
    assert f"python -m {submitted.__name__}" in page


def test_help_names_every_option() -> None:
    import inspect

    names = set(inspect.signature(ftray.submit).parameters)
    assert {"model", "train_data", "storage_path", "address", "shared", "wait"} <= names
    assert "fields" not in names


# ---------------------------------------------------------------- the address


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("ray://host:10001", "of a Ray Client"),
        ("host:6379", "of another kind"),
        ("auto", "of another kind"),
        ("http://", "of another kind"),
        ("http://host:99999", "of another kind"),
    ],
)
def test_an_address_of_another_kind_is_refused(address: str, said: str) -> None:
    from ftray.cluster.jobs import dashboard_address

    with pytest.raises(ClusterError, match=rf"address = '{address}' .*{said}.*http://host:8265"):
        dashboard_address(address)


def test_which_address_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    from ftray.cluster.jobs import dashboard_address

    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert dashboard_address(None) == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert dashboard_address(None) == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_ADDRESS", "http://a:1/")
    assert dashboard_address(None) == "http://a:1"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "https://b")
    assert dashboard_address(None) == "https://b"
    assert dashboard_address("http://c:3") == "http://c:3"


def test_nobody_there_is_said_at_once() -> None:
    from ftray.cluster.jobs import Jobs

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ClusterError, match=rf"No Ray dashboard answers at http://127.0.0.1:{port}"):
        Jobs(f"http://127.0.0.1:{port}")


def test_another_server_is_no_dashboard() -> None:
    from ftray.cluster.jobs import Jobs

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'"hello"')

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Other)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(ClusterError, match="is no Ray dashboard"):
            Jobs(f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        server.server_close()


class Slow(BaseHTTPRequestHandler):
    """A dashboard that never says how a job stands, and takes its time for an upload."""

    done = threading.Event()

    def do_GET(self) -> None:
        if self.path != "/api/version":
            self.done.wait(30)
        self.answer({"ray_version": "2.60.0"})

    def do_PUT(self) -> None:
        time.sleep(0.6)
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer({})

    def answer(self, said: dict[str, str]) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(said).encode())

    def log_message(self, *args: object) -> None:
        pass


def test_a_dashboard_that_falls_silent_is_not_waited_for_but_an_upload_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ftray.cluster import jobs

    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        there = jobs.Jobs(f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(jobs, "CONNECT_TIMEOUT_S", 0.2)
        monkeypatch.setattr(jobs, "REQUEST_TIMEOUT_S", 0.2)
        with pytest.raises(ClusterError, match=r"does not answer: .*timed out"):
            there.state("x")
        sent = there._client._do_request("PUT", "/api/packages/gcs/a.zip", data=bytes(32 << 20))
        assert sent.status_code == 200
    finally:
        Slow.done.set()
        server.shutdown()
        server.server_close()


# ---------------------------------------------------------------- the job's command, and its answer


class Cluster:
    """Stands for `Jobs`: a job prints what it is told to; with None nobody answers."""

    address, is_loopback = "http://127.0.0.1:8265", True

    def __init__(self, *answers: str | None) -> None:
        self.answers = list(answers)

    def __call__(self, address: str | None) -> Cluster:
        return self

    def submit(self, command: str, job_id: str, **options: Any) -> None:
        pass

    def state(self, job_id: str) -> Any:
        from ftray.cluster.jobs import JobState

        return JobState(status="RUNNING", message="", exit_code=None)

    def logs(self, job_id: str) -> str:
        answer = self.answers.pop(0)
        if answer is None:
            raise ClusterError("The Ray cluster at x does not answer")
        return answer


REFUSED = "ftray: ConfigError: no such thing\n"


@pytest.mark.parametrize(
    ("answers", "kind", "said", "kept"),
    [
        ([None] * 4 + ["", *[None] * 4, REFUSED], ConfigError, "no such thing", False),
        ([None] * 5, ClusterError, r"the job may go on .*`ray job stop ftray-a-.* --addr", True),
    ],
)
def test_a_job_is_not_given_up_at_once(
    answers: list[Any],
    kind: type[Exception],
    said: str,
    kept: bool,
    monkeypatch: pytest.MonkeyPatch,
    tiny_model: Path,
    labelled_rows: Any,
    tmp_path: Path,
) -> None:
    cluster = Cluster(*answers)
    monkeypatch.setattr("ftray.cluster.jobs.Jobs", cluster)
    monkeypatch.setattr(client, "TRY_AGAIN_S", 0.0)
    given = fields(tiny_model, labelled_rows, storage_path=str(tmp_path / "runs"), run_name="a")
    with pytest.raises(kind, match=said):
        client.submit(validated(given), JobOptions())
    nonces = list((tmp_path / "runs").glob(".*.tmp/nonce"))
    assert cluster.answers == [] and bool(nonces) == kept  # the job may still have to read it


def test_a_long_output_is_fetched_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    class Talks(Cluster):
        def state(self, job_id: str) -> Any:
            status = "RUNNING" if len(self.answers) > 1 else "SUCCEEDED"
            return dataclasses.replace(super().state(job_id), status=status)

    first, second = "short\n", "x" * (3 * client.LOG_RATE - 1) + "\n"
    job = Talks(first, first + second, first + second)
    run = client.SubmittedRun(client.Storage("/nowhere"), job, "x")
    waits: list[float] = []
    monkeypatch.setattr(client.time, "sleep", waits.append)
    assert len(list(run.stream_job_logs(1.0))) == 2
    assert waits == [1.0, pytest.approx(3.0, rel=0.01)]


def test_the_head_runs_this_interpreter_only_if_it_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through a tunnel the address is a loopback one, and the head is another machine."""
    mine, other = tmp_path / "my env's" / "python", tmp_path / "path" / "python"
    for python in (mine, other):
        python.parent.mkdir()
        python.write_text(f'#!/bin/sh\necho "{python.parent.name}" "$@"\n')
        python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(mine))

    def ran(**options: Any) -> str:
        command = client._command(JobOptions(**options), Cluster())
        path = f"{other.parent}:/usr/bin:/bin"
        return subprocess.check_output(["/bin/sh", "-c", command], env={"PATH": path}, text=True)

    assert ran() == "my env's -m ftray.launch.submitted\n"
    assert ran(python="python -X dev") == "path -X dev -m ftray.launch.submitted\n"
    mine.unlink()
    assert ran() == "path -m ftray.launch.submitted\n"


def test_what_a_job_says_when_it_cannot_run_ftray() -> None:
    missing = "/usr/bin/python: Error while finding module specification: No module named 'ftray'"
    error = client._gone("j", missing, 1, "python")
    assert isinstance(error, ClusterError) and "`python` has no ftray" in str(error)
    assert isinstance(client._gone("j", "sh: 1: python: not found", 127, "python"), ClusterError)
    other = client._gone("j", "a\nb\n", 137, "python")
    assert isinstance(other, ftray.errors.RunFailedError)
    assert "exit code 137" in str(other) and "a | b" in str(other)
