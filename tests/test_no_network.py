"""A fit with every callback that could want a network works without one, and does not ask for it.

Twice: with Python's own sockets watched, which works everywhere, and in a network namespace that
has a loopback and nothing else, where the kernel counts what any process tries, also those that are
not Python (wandb's own).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.callbacks.test_tensorboard_logger import scalars
from tests.wandb_files import offline_runs

REPOSITORY = Path(__file__).parents[1]
OUTSIDE = "192.0.2.1"  # RFC 5737: an address that is nobody's

WATCH = """
import os, socket

LOCAL = {"localhost", "127.0.0.1", "::1", "", None}

def watched(original, host_of):
    def call(*arguments, **options):
        host = host_of(*arguments)
        if host not in LOCAL:
            with open(os.environ["ATTEMPTS"], "a") as file:
                file.write(f"{host}\\n")
            raise OSError(f"the network is out of bounds: {host}")
        return original(*arguments, **options)
    return call

def of_address(sock, *arguments):
    inet = sock.family in (socket.AF_INET, socket.AF_INET6)
    return arguments[-1][0] if inet and isinstance(arguments[-1], tuple) else None

for name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, name, watched(getattr(socket.socket, name), of_address))
for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex"):
    setattr(socket, name, watched(getattr(socket, name), lambda host, *_: host))
"""

ALONE = """
import fcntl, socket, struct, subprocess, sys
from pathlib import Path

IFF_UP, SIOCSIFFLAGS = 1, 0x8914
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))
done = subprocess.run([sys.executable, *sys.argv[2:]])

# What everybody in here tried, until the last one was gone: to leave, or to ask for a name.
found = {}
lines = Path("/proc/net/snmp").read_text().splitlines()
for names, counts in zip(lines[::2], lines[1::2]):
    group, *names = names.split()
    found |= {group + name: n for name, n in zip(names, counts.split()[1:])}
found |= dict(line.split() for line in Path("/proc/net/snmp6").read_text().splitlines())
counted = "Ip:OutNoRoutes", "Ip6OutNoRoutes", "Udp:OutDatagrams", "Udp6OutDatagrams"
Path(sys.argv[1]).write_text(" ".join(found[name] for name in counted))
sys.exit(done.returncode)
"""

FIT = f"""
import contextlib, json, socket, sys
from pathlib import Path
import ftray
from ftray.callbacks import (
    BestModelCheckpoint, EarlyStopping, EvaluationCallback, TensorBoardLogger, WandBLogger
)

if __name__ == "__main__":
    folder, model, workers = sys.argv[1:]
    with contextlib.suppress(OSError), socket.socket() as sock:
        sock.settimeout(0.1)
        sock.connect(("{OUTSIDE}", 80))  # shows that who watches sees
    rows = json.loads(Path(folder, "rows.json").read_text())
    run = ftray.fit(
        model=model, train_data=rows, val_split=0.25, loss="SupConLoss", epochs=2, batch_size=32,
        num_workers=int(workers), storage_path=f"{{folder}}/runs",
        callbacks=[
            EvaluationCallback(rows[:40], rows[40:], gather_examples=True),
            BestModelCheckpoint("ndcg_at_k"),
            EarlyStopping("val_loss", patience=5),
            WandBLogger(),
            TensorBoardLogger(),
        ],
    )
    seen = {{"status": run.status(), "path": run.path, "log": run.logs().splitlines()}}
    Path(folder, "seen.json").write_text(json.dumps(seen))
"""


@pytest.fixture
def place(tmp_path: Path, labelled_rows: list[dict[str, str]]) -> Path:
    (tmp_path / "rows.json").write_text(json.dumps(labelled_rows))
    (tmp_path / "fit.py").write_text(FIT)
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch" / "sitecustomize.py").write_text(WATCH)
    (tmp_path / "home").mkdir()
    return tmp_path


def fit(place: Path, model: Path, workers: int, before: list[str], *paths: Path) -> dict[str, Any]:
    """Run the fit as somebody who never used W&B; what it saw."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "RAY_ADDR"))}
    environment |= {
        "HOME": str(place / "home"),
        "ATTEMPTS": str(place / "attempts"),
        "PYTHONPATH": os.pathsep.join(map(str, [*paths, REPOSITORY])),
    }
    command = [*before, str(place / "fit.py"), str(place), str(model), str(workers)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=place, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    seen: dict[str, Any] = json.loads((place / "seen.json").read_text())
    return seen


def check(seen: dict[str, Any]) -> None:
    """It finished, nothing went wrong on the way, and the loggers have what they should."""
    assert seen["status"] == "FINISHED"
    assert [line for line in seen["log"] if "WARNING" in line or "ERROR" in line] == []
    path = Path(seen["path"])
    (logged,) = offline_runs(path)
    assert logged.of("exit")[0].exit_code == 0
    assert len(logged.series("train/loss")) == len(logged.series("val/loss")) == 2
    steps = [step for step, _ in logged.series("metrics/ndcg_at_k")]
    assert steps[0] == 0 and len(steps) == 3
    assert [step for step, _ in scalars(path / "tensorboard")["metrics/ndcg_at_k"]] == steps


@pytest.fixture
def alone(tmp_path: Path) -> list[str]:
    """The beginning of a command that runs Python with a loopback and no other network."""
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("there is no unshare (util-linux), which makes network namespaces")
    command = [unshare, "--user", "--map-root-user", "--net", sys.executable, "-c", ALONE]
    command.append(str(tmp_path / "tried"))
    probe = subprocess.run([*command, "-c", ""], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"network namespaces are not permitted here: {probe.stderr.strip()[-200:]}")
    return command


def test_no_python_of_a_fit_opens_a_socket_to_the_outside(place, tiny_model):
    seen = fit(place, tiny_model, 0, [sys.executable], place / "watch")
    check(seen)
    assert (place / "attempts").read_text().split() == [OUTSIDE]  # the script's own, to see it work


def test_no_process_of_a_fit_tries_to_leave_the_machine(place, tiny_model, alone):
    check(fit(place, tiny_model, 0, alone))
    assert (place / "tried").read_text().split() == ["1", "0", "0", "0"]  # the script's own


@pytest.mark.ray
@pytest.mark.slow
def test_a_fit_on_ray_needs_no_network_but_loopback(place, tiny_model, alone):
    seen = fit(place, tiny_model, 1, alone)
    check(seen)
    assert any("1 Ray worker" in line for line in seen["log"])
    assert int((place / "tried").read_text().split()[0]) >= 1  # it was shut in
