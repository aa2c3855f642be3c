"""What is told of a run that Ray Train gave up, and what ends one at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import ActorDiedError, RayTaskError
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerHealthCheckFailedError,
)
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from ftray.cluster.failures import FatalError, as_fatal
from ftray.cluster.placement import Placement
from ftray.cluster.trainer import SNAPSHOT, _readable, _tidy_snapshot, _try_to_tidy
from ftray.errors import ClusterError, DataError, RunFailedError
from ftray.record.storage import Storage
from ftray.runtime.process_group import LostWorkersError

WORKERS = Placement(num_workers=2, use_gpu=False, bundle={"CPU": 1.0})
MISSED = UserExceptionWithTraceback(
    LostWorkersError("A worker was lost: closed by peer\nframe #0"), "Traceback ..."
)
KILLED = ActorDiedError(
    ActorDiedErrorContext(error_message="It ran out of memory.", actor_id=bytes(16), pid=7)
)


def group(*failures: Exception) -> WorkerGroupError:
    return WorkerGroupError("[Rank 0 Error Snippet]: ...", dict(enumerate(failures)))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (group(MISSED), "LostWorkersError: A worker was lost: closed by peer"),
        (group(MISSED, WorkerHealthCheckFailedError("failed", KILLED)), "ran out of memory"),
        (ControllerError(group(ImportError("no torch"))), "ImportError: no torch"),
        (group(RayTaskError("f", "tb", KeyError("x"))), "KeyError: 'x'"),
        (OSError("no\nspace"), "OSError: no"),
        (OSError(), "OSError"),
    ],
)
def test_the_cause_is_told_and_not_its_wrappings(error: Exception, told: str) -> None:
    found = _readable(error, WORKERS)
    assert isinstance(found, RunFailedError)
    assert str(found).endswith(f"{told}. The last checkpoint is kept; continue with resume: auto")
    assert "Training failed" not in str(found) and "actor_id" not in str(found)


def test_an_error_of_ours_is_itself() -> None:
    found = _readable(group(MISSED, FatalError("DataError", "row 3: empty")), WORKERS)
    assert isinstance(found, DataError) and str(found) == "row 3: empty"


def test_a_module_that_a_node_lacks_ends_the_run_with_what_to_do() -> None:
    with pytest.raises(ModuleNotFoundError) as caught:
        import nobody_has_this  # noqa: F401
    fatal = as_fatal(caught.value, "host (12ab)")
    found = _readable(group(fatal), WORKERS)
    assert isinstance(found, ClusterError)
    assert "On the node host (12ab) there is no module 'nobody_has_this'" in str(found)
    assert "py_modules" in str(found)
    assert as_fatal(ValueError("x"), "n").message == "ValueError: x"


class Said:
    """What a record is told."""

    def __init__(self, folder: Path) -> None:
        self.storage = Storage(str(folder))
        self.lines: list[tuple[str, str]] = []

    def say(self, message: str, level: str) -> None:
        self.lines.append((message, level))


def test_pruned_checkpoints_leave_rays_own_list(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    _tidy_snapshot(storage)  # nothing there
    results = [{"checkpoint_dir_name": name} for name in ("pruned", "kept")]
    storage.write_text(
        SNAPSHOT,
        json.dumps({"checkpoint_results": results, "checkpoint_report_indices": [0, 1]}),
    )
    storage.write_text("checkpoints/kept/state.json", "{}")
    _tidy_snapshot(storage)
    left = json.loads(storage.read_text(SNAPSHOT))
    assert left == {"checkpoint_results": results[1:], "checkpoint_report_indices": [1]}


@pytest.mark.parametrize("content", ["{", "{}"])
def test_a_list_that_cannot_be_tidied_is_said_and_nothing_more(
    tmp_path: Path, content: str
) -> None:
    said: Any = Said(tmp_path)
    said.storage.write_text(SNAPSHOT, content)
    _try_to_tidy(said)
    ((line, level),) = said.lines
    assert SNAPSHOT in line and level == "WARNING"
