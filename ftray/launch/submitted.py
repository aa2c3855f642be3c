"""A fit as a Ray job: the job's side, `python -m ftray.launch.submitted`. See `submit`."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import platform
import time
from pathlib import Path
from typing import Any

from ftray import __version__
from ftray.config import validated
from ftray.errors import ClusterError, ConfigError, FtrayError, StorageError
from ftray.launch.drive import drive
from ftray.launch.packing import HERE, Packed, unwrapped, with_places
from ftray.launch.start import made_ready
from ftray.launch.submit import ABOUT, FILES_PACKAGE, FIT, FIT_PACKAGE, ON_RECORD
from ftray.record.environment import version_of
from ftray.record.session import RunSession
from ftray.record.storage import Storage
from ftray.report.console import RunConsole

__all__ = ["main"]

SEEN_WITHIN_S = 5.0


def main() -> None:
    """Drive the fit that lies in the package of the job; answers by lines of its output."""
    versions = f"Python {platform.python_version()}, Ray {version_of('ray')}"
    print(f"ftray {__version__}, {versions}, on {platform.node()}", flush=True)
    try:
        _run(_package(FIT_PACKAGE))
    except FtrayError as error:
        print(f"ftray: {type(error).__name__}: {' '.join(str(error).split())}", flush=True)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ClusterError(
            f"The package {name} is missing: this is the command of a job, which `ftray submit` "
            "starts. To train here: `ftray fit`"
        )
    return Path(spec.origin).parent


def _run(package: Path) -> None:
    about = json.loads((package / ABOUT).read_text())
    _check_versions(about)
    _check_storage(about)
    config = validated(_unpacked(about, _fields(package)))

    def opened(session: RunSession) -> None:
        session.say(f"Ray job {about['job_id']}, submitted from {about['host']}")
        print(f"ftray: {ON_RECORD}: {session.storage.uri}", flush=True)

    with made_ready(config) as start:
        drive(start, [RunConsole()], opened)


def _check_versions(about: dict[str, Any]) -> None:
    if about["ftray"] != __version__:
        raise ClusterError(
            f"The cluster has ftray {__version__}, and the job was submitted by ftray "
            f"{about['ftray']}: the two must be the same"
        )
    here = ".".join(platform.python_version_tuple()[:2])
    if about["python"] != here and about["has_objects"]:
        raise ClusterError(
            f"The cluster has Python {here}, and the job was submitted by Python "
            f"{about['python']}: objects (callbacks, models, tables) can only be handed over "
            "between equal versions. Give paths and names"
        )


def _check_storage(about: dict[str, Any]) -> None:
    """What the other side wrote into the folder of runs must be seen here."""
    path = about["storage_path"]
    why = "is not there"
    deadline = time.monotonic() + SEEN_WITHIN_S
    while True:
        try:
            if Storage(path).read_text(about["sign"]) == about["nonce"]:
                return
            why = "is another one"
        except (OSError, StorageError) as error:
            why = why if isinstance(error, FileNotFoundError) else str(error)
        if time.monotonic() > deadline:
            break
        time.sleep(0.5)
    raise StorageError(
        f"storage_path '{path}' is not shared: what {about['host']} wrote there, the job on "
        f"{platform.node()} does not see ({why}). Give a folder on a file system that both have "
        "under this path, or a URI such as s3://bucket/runs, with the credentials in "
        "runtime_env: {env_vars: ...}. Nothing was trained. Without shared storage: "
        "`ray job submit -- ftray fit CONFIG.yaml`"
    )


def _fields(package: Path) -> dict[str, Any]:
    try:
        fields: dict[str, Any] = pickle.loads((package / FIT).read_bytes())
    except Exception as error:
        raise ConfigError(
            f"The job cannot load what it was given ({type(error).__name__}: {error}). Modules of "
            "your own travel with working_dir: the folder that they lie in"
        ) from error
    return unwrapped(fields)


def _unpacked(about: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """The fields with the places where the files lie here.

    They are named from the folder `here/`, and this process goes there, so that the record says
    the same wherever Ray has put them. With a working_dir it stays there.
    """
    if not about["has_files"]:
        return fields
    files = _package(FILES_PACKAGE)
    here = files / HERE
    if not about["has_working_dir"]:
        os.chdir(here)

    def found(where: str, value: Any) -> Any:
        if not isinstance(value, Packed):
            return value
        path = files / value.place
        return str(path) if about["has_working_dir"] else os.path.relpath(path, here)

    return with_places(fields, found)


if __name__ == "__main__":
    main()
