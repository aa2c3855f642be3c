"""`ftray doctor`."""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from ftray.models.catalogue import MODELS
from ftray.models.registry import locate_model
from ftray.record.environment import PACKAGES, version_of

__all__ = ["run"]

HUB_TIMEOUT_S = 4.0


def run(as_json: bool) -> None:
    """Print what ftray finds on this machine."""
    facts = _facts()
    if as_json:
        print(json.dumps(facts))
        return
    for name, value in facts.items():
        if isinstance(value, dict):
            print(f"{name}:")
            for key, entry in value.items():
                print(f"  {key:<26} {entry}")
        else:
            print(f"{name:<28} {value}")


def _facts() -> dict[str, Any]:
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "memory": _memory(),
        "free disk here": f"{shutil.disk_usage('.').free / 1e9:.1f} GB",
        "gpus": ", ".join(gpus) or "none (training runs on the CPU)",
        "torch threads": torch.get_num_threads(),
        "packages": {name: version_of(name) or "not installed" for name in PACKAGES},
        "models": {name: _model(name) for name in MODELS},
        "ray": _ray(),
        "hugging face hub": _hub(),
    }


def _memory() -> str:
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return f"{pages * size / 1e9:.1f} GB"


def _model(name: str) -> str:
    try:
        return locate_model(name)
    except Exception as error:
        return str(error)


def _ray() -> str:
    address = os.environ.get("RAY_ADDRESS")
    if address:
        return f"RAY_ADDRESS = {address}"
    noted = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
    running = noted.read_text().strip() if noted.is_file() else ""
    if running and _answers(running):
        return f"a cluster runs at {running} and is joined"
    return "no cluster runs here: ftray starts one for a fit and stops it again"


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
    except (OSError, ValueError):
        return False
    return True


def _hub() -> str:
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return "HF_HUB_OFFLINE is set: not asked"
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        with urllib.request.urlopen(endpoint, timeout=HUB_TIMEOUT_S):
            return f"{endpoint} can be reached"
    except (urllib.error.URLError, OSError, ValueError) as error:
        return f"{endpoint} cannot be reached ({error}): use local folders or registry names"
