"""`ftray submit`."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

from ftray.cli.fit import shortest_name
from ftray.config_file import load_config, read_yaml
from ftray.errors import ConfigError
from ftray.report.command import command

if TYPE_CHECKING:
    from ftray.launch.submit import SubmittedRun

__all__ = ["run"]


def run(
    config: str,
    overrides: Sequence[str],
    *,
    follow: bool,
    as_json: bool,
    runtime_env: str | None,
    **options: Any,
) -> None:
    """Submit, then print how to follow the run; with `follow` its log, until it is done.

    Exits with 1 if a run that is followed fails. Ctrl-C ends the following, not the run.
    """
    if follow and as_json:
        raise ConfigError("--follow prints the log, --json the run's name for a script: give one")
    loaded = load_config(config, overrides)
    env = None if runtime_env is None else read_yaml(runtime_env)
    from ftray.api import submit

    with redirect_stdout(sys.stderr if as_json else sys.stdout):  # what libraries print
        submitted = submit(loaded, runtime_env=env, **options)
    if as_json:
        print(json.dumps(_facts(submitted)))
        return
    name = shlex.quote(shortest_name(submitted))
    print(f"Run '{submitted.name}' goes on as the job {submitted.job_id}: {submitted.path}")
    if follow:
        _follow(submitted, name)
        return
    _print_how(submitted, name)


def _facts(run: SubmittedRun) -> dict[str, str]:
    return {
        "name": run.name,
        "path": run.path,
        "status": run.status(),
        "artifact": run.artifact_id,
        "job_id": run.job_id,
        "address": run.address,
    }


def _print_how(run: SubmittedRun, name: str) -> None:
    print(f"Follow it:  {command()} logs -f {name}")
    print(f"Stop it:    {command()} stop {name}")
    print(f"Its output: ray job logs {run.job_id} --address {run.address}")


def _follow(run: SubmittedRun, name: str) -> None:
    try:
        for line in run.stream_logs():
            print(line, flush=True)
    except KeyboardInterrupt:
        print("\nThe run goes on.")
        _print_how(run, name)
        raise
    if run.status() == "FAILED":
        raise SystemExit(1)
