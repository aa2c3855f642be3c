"""The launcher files of `clusters/`: what `ray up` would take, and what they promise."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.manifests import CLUSTERS, cluster_problems, documents, image, misspelt, pinned

FILES = sorted(CLUSTERS.glob("*.yaml"))
CLOUD = [f for f in FILES if f.stem != "local"]
# (CPUs, GPUs) of the machines, as their makers say.
MACHINES = {
    "m7i.xlarge": (4, 0),
    "m7i.2xlarge": (8, 0),
    "m7i.4xlarge": (16, 0),
    "g6.2xlarge": (8, 1),
    "n2-standard-4": (4, 0),
    "n2-standard-8": (8, 0),
    "n2-standard-16": (16, 0),
    "g2-standard-8": (8, 1),
}
# The names of node types, and places of files, are the user's own.
OWN_NAMES = re.compile(r"available_node_types\.[^.]+|file_mounts\.[^.]+")


def name(file: Path) -> str:
    return file.stem


def load(file: Path) -> dict:
    (config,) = documents(file.read_text())
    return config


def test_there_is_a_file_for_each_place_and_kind():
    assert [f.stem for f in FILES] == ["aws-cpu", "aws-gpu", "gcp-cpu", "gcp-gpu", "local"]


@pytest.mark.parametrize("file", FILES, ids=name)
def test_ray_takes_it(file):
    assert cluster_problems(load(file)) == []


@pytest.mark.parametrize("file", FILES, ids=name)
def test_no_misspelt_key_gets_through_at_any_depth(file):
    tried = [(where, changed) for where, changed in misspelt(load(file))]
    through = [where for where, changed in tried if not cluster_problems(changed)]
    assert [where for where in through if not OWN_NAMES.fullmatch(where)] == []
    depth = max(where.count(".") for where, _ in tried)
    assert len(tried) > 15 and depth >= (1 if file.stem == "local" else 5)


def test_the_check_sees_wrong_values():
    config = load(CLUSTERS / "aws-gpu.yaml")
    for key, value in [("max_workers", "eight"), ("head_node_type", "heda"), ("provider", {})]:
        assert cluster_problems({**config, key: value})


@pytest.mark.parametrize("file", CLOUD, ids=name)
def test_machines_have_the_resources_that_are_stated(file):
    config = load(file)
    for kind, node in config["available_node_types"].items():
        machine = node["node_config"].get("InstanceType") or node["node_config"]["machineType"]
        cpus, gpus = MACHINES[machine]
        stated = node["resources"]
        if kind == "head" and file.stem.endswith("gpu"):
            assert stated == {"CPU": 0}  # trains nothing
        else:
            assert (stated["CPU"], stated.get("GPU", 0)) == (cpus, gpus)
    gpus = config["available_node_types"]["worker"]["resources"].get("GPU", 0)
    assert bool(gpus) == file.stem.endswith("gpu")


@pytest.mark.parametrize("file", CLOUD, ids=name)
def test_workers_come_and_go_on_spot_machines_and_the_head_stays(file):
    config = load(file)
    assert 0 < config["idle_timeout_minutes"] <= 30
    head, worker = (config["available_node_types"][k] for k in ("head", "worker"))
    assert config["head_node_type"] == "head" and head["max_workers"] == 0
    assert worker["min_workers"] == 0 < worker["max_workers"] == config["max_workers"]
    if config["provider"]["type"] == "aws":
        assert worker["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
        assert "InstanceMarketOptions" not in head["node_config"]
        assert config["provider"]["cache_stopped_nodes"] is False
    else:
        assert worker["node_config"]["scheduling"]["provisioningModel"] == "SPOT"
        assert "scheduling" not in head["node_config"]


@pytest.mark.parametrize("file", CLOUD, ids=name)
def test_workers_may_write_to_the_buckets(file):
    """Ray gives rights of its own making to the head alone."""
    worker = load(file)["available_node_types"]["worker"]["node_config"]
    if file.stem.startswith("aws"):
        assert worker["IamInstanceProfile"] == {"Name": "ftray-worker"}
    else:
        (account,) = worker["serviceAccounts"]
        assert account["email"].startswith("ftray-worker@")


@pytest.mark.parametrize("file", FILES, ids=name)
def test_versions_are_those_of_the_constraints(file):
    config, text = load(file), file.read_text()
    assert f"ray.__version__ == '{pinned('ray')}'" in " ".join(config["setup_commands"])
    assert set(re.findall(r"\b\d+\.\d+\.\d+\b", text)) <= {pinned("ray"), "0.1.0", "127.0.0"}
    images = [v for k, v in config.get("docker", {}).items() if k.endswith("image")]
    kinds = {"cpu": ["cpu"], "gpu": ["cpu", "gpu"]}.get(file.stem[-3:], [])
    assert [i.rpartition("/")[2] for i in images] == [image(kind) for kind in kinds]
    if not images:  # installed on the machines themselves
        commands = " ".join(config["setup_commands"])
        assert "python3.11 -m venv" in commands and "constraints.txt" in commands


@pytest.mark.parametrize("file", FILES, ids=name)
def test_the_head_of_each_file_says_what_to_do(file):
    head = file.read_text().partition("\n\n")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    for words in ("Fill in:", "storage_path", f"ray up clusters/{file.name}"):
        assert words in head
    assert f"ray down clusters/{file.name}" in head and "ftray submit train.yaml --address" in head
    assert "ray job submit --address http://127.0.0.1:8265 --working-dir . -- ftray fit" in head


def test_local_machines_mount_the_shared_folder_and_the_sources_stay_small():
    config = load(CLUSTERS / "local.yaml")
    assert len(config["provider"]["worker_ips"]) == config["max_workers"] == config["min_workers"]
    assert "/srv/ftray" in config["initialization_commands"][0]
    left_out = set(config["rsync_exclude"])
    assert {".git/", ".venv/", ".env*", "/data/", "runs/"} <= left_out
    folders = {f.name for f in (CLUSTERS.parent / "ftray").rglob("*") if f.is_dir()} - {
        "__pycache__"
    }
    assert "data" in folders and not {f"{folder}/" for folder in folders} & left_out


@pytest.mark.parametrize("amounts", [("--cpus", "0"), ("--cpus", "-1", "--gpus", "1")])
def test_workers_without_anything_are_refused(amounts):
    command = [sys.executable, str(CLUSTERS / "workers.py"), "2", *amounts]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "one of them more than 0" in done.stderr


@pytest.mark.parametrize("file", FILES, ids=name)
def test_options_of_ray_start_are_rays(file):
    from ray.scripts.scripts import start

    known = {option for parameter in start.params for option in parameter.opts}
    config = load(file)
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        (command,) = (c for c in config[key] if "ray start" in c)
        options = re.findall(r"--[a-z-]+", command.partition("ray start")[2])
        assert options and set(options) <= known
    assert "--dashboard-host=127.0.0.1" in " ".join(config["head_start_ray_commands"])
