"""Bring up workers of a cluster that grows, and wait until they are there.

A fit asks the cluster what it has when it starts, and a cluster that starts from zero has nothing.
Runs on the cluster, as a job:

    ray job submit --address http://127.0.0.1:8265 --working-dir clusters -- \
        python workers.py 4 --gpus 1

They stay until the same is asked for `0`; then idle ones go after the cluster's time-out.
"""

from __future__ import annotations

import argparse
import sys
import time

import ray
from ray.autoscaler.sdk import request_resources


def room(bundle: dict[str, float]) -> int:
    """For how many such workers the nodes that are there have room, none split over nodes."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(
        min(int(node.get(name, 0) // amount) for name, amount in bundle.items()) for node in nodes
    )


def main() -> int:
    """0: they are there; 1: not in time."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("count", type=int, help="workers; 0 = none are kept")
    parser.add_argument("--cpus", type=int, default=1, help="CPUs of each worker")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs of each worker")
    parser.add_argument("--timeout-s", type=float, default=1200, help="how long to wait")
    asked = parser.parse_args()
    bundle = {name: n for name, n in (("CPU", asked.cpus), ("GPU", asked.gpus)) if n}
    if not bundle or min(bundle.values()) < 0:
        parser.error("--cpus and --gpus: 0 or more, and one of them more than 0")
    ray.init(logging_level="ERROR")
    request_resources(bundles=[bundle] * asked.count)
    deadline = time.monotonic() + asked.timeout_s
    while (there := room(bundle)) < asked.count:
        if time.monotonic() > deadline:
            print(f"{there} of {asked.count} after {asked.timeout_s:g} s; `ray status` says why.")
            return 1
        print(f"{there} of {asked.count} …", flush=True)
        time.sleep(min(15, asked.timeout_s))
    print(f"There is room for {there} workers with {bundle}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
