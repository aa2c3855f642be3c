"""clusters/workers.py on a Ray of this machine, which cannot grow."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.manifests import CLUSTERS

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_workers_that_are_there_are_found_and_others_are_missed_in_time():
    import ray

    context = ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", address="local")
    try:
        environment = {**os.environ, "RAY_ADDRESS": context.address_info["gcs_address"]}

        def ask(*arguments: str) -> tuple[int, str]:
            command = [sys.executable, str(CLUSTERS / "workers.py"), *arguments]
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=60
            )
            return done.returncode, done.stdout

        code, said = ask("2", "--cpus", "1")
        assert code == 0 and "room for 2 workers" in said
        code, said = ask("2", "--cpus", "1", "--gpus", "1", "--timeout-s", "0.2")
        assert code == 1 and "0 of 2 after 0.2 s" in said
    finally:
        ray.shutdown()
