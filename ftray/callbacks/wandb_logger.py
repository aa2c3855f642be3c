"""WandBLogger: the numbers of a run in Weights & Biases, without asking for a network."""

from __future__ import annotations

import http.client
import os
import shlex
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ftray.callbacks.base import Decision, Say, State
from ftray.callbacks.tracker import (
    EXAMPLE_COLUMNS,
    MetricsStep,
    Tracker,
    local_folder,
    run_options,
)
from ftray.errors import ConfigError, nearest

__all__ = ["INIT_OPTIONS", "WandBLogger"]

INIT_OPTIONS = (
    "entity project dir id name notes tags config config_exclude_keys config_include_keys "
    "allow_val_change group job_type mode force reinit resume resume_from fork_from save_code "
    "sync_tensorboard monitor_gym settings"
).split()
"""What `wandb.init` takes; known here so that a misspelt option is found before a run starts."""

SETTING_OF = {"project": "project", "name": "run_name", "group": "run_group", "id": "run_id"}
SETTING_OF |= {"dir": "root_dir", "mode": "mode", "resume": "resume", "reinit": "reinit"}
REACH_TIMEOUT_S = 10
QUIET = {
    "silent": True,  # ftray's log says where the run is
    "console": "off",  # the record has the log; nothing is put in the place of stdout
    "symlink": False,  # the run directory may be copied to where there are no links
    "disable_git": True,  # run.yaml has the commit
    "disable_code": True,
    "save_code": False,
    "label_disable": True,
    "init_timeout": 60.0,
    "finish_timeout": 60.0,  # what is not uploaded by then stays on disk, for `wandb sync`
}


class WandBLogger(Tracker):
    """Log losses, learning rates, metrics and examples to Weights & Biases.

    Offline unless `mode` is given, WANDB_MODE is set, or an API key is configured (WANDB_API_KEY,
    `wandb login`); then also where W&B cannot be reached. The files are under `wandb/` of the run
    directory; the log has the command that uploads them, or the address of the run. A run that is
    resumed goes on as the same W&B run. What fails here is a warning; the training goes on.

    Args:
        metrics_logger_step: training loss and learning rates once an "epoch", or each "batch".
        log_zero_shot: evaluations before training too.
        wandb_args: the same as `wandb_init_kwargs`, as a mapping.
        wandb_init_kwargs: options of `wandb.init`, such as `project`, `entity`, `tags`; they go
            before what is chosen here.

    Raises:
        ConfigError: for an option that `wandb.init` does not have, or an API key as an option.
    """

    def __init__(
        self,
        metrics_logger_step: MetricsStep = "epoch",
        log_zero_shot: bool = True,
        *,
        wandb_args: dict[str, Any] | None = None,
        **wandb_init_kwargs: Any,
    ) -> None:
        super().__init__(metrics_logger_step, log_zero_shot)
        if wandb_args and wandb_init_kwargs:
            raise ConfigError(
                "WandBLogger: give options of wandb.init by name or as wandb_args, not both"
            )
        options = dict(wandb_args or wandb_init_kwargs)
        for name in options:
            if name not in INIT_OPTIONS:
                known = (*INIT_OPTIONS, "metrics_logger_step", "log_zero_shot")
                raise ConfigError(
                    f"WandBLogger has no option '{name}', nor has wandb.init.{nearest(name, known)}"
                )
        if isinstance(options.get("settings"), Mapping) and "api_key" in options["settings"]:
            raise ConfigError(
                "WandBLogger: settings: an api_key would stand in run.yaml. Set WANDB_API_KEY, or "
                "call `wandb login`."
            )
        self.wandb_init_kwargs = options
        self._run: Any = None
        self._groups: set[str] = set()

    def start(self, state: State) -> list[Decision]:
        """Begin the W&B run, or take it up again."""
        # In offline mode, too, wandb would report its use and its errors.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        with _own_service():
            general = wandb.setup().settings
            given = self._given(general)
            mode, problem = _mode(given, general)
            options = {**self._chosen(state, given), **self.wandb_init_kwargs, "mode": mode}
            options["config"] = _merged(run_options(state), self.wandb_init_kwargs.get("config"))
            stop = {"stop_fn": lambda: _ask_to_stop(state.run_path)}
            options["settings"] = {**QUIET, **stop, **_settings(self.wandb_init_kwargs)}
            with _hushed(wandb, general):
                self._run = wandb.init(**options)
        self._define_steps()
        said: list[Decision] = [Say(f"W&B: {problem}; logging offline", "WARNING")]
        return [*(said if problem else []), Say(_where(self._run))]

    def _given(self, general: Any) -> dict[str, Any]:
        """The settings that the user gave: by environment and files, `settings`, or options."""
        found = {name: getattr(general, name) for name in general.model_fields_set}
        if mode := os.environ.get("WANDB_MODE"):  # wandb read it when it was first used
            found["mode"] = mode
        found |= _settings(self.wandb_init_kwargs)
        for option, value in self.wandb_init_kwargs.items():
            found[SETTING_OF.get(option, option)] = value
        return found

    def _chosen(self, state: State, given: Mapping[str, Any]) -> dict[str, Any]:
        """Options of `wandb.init` that the user left to us."""
        *_, experiment, name = f"/{state.run_path.partition('?')[0].rstrip('/')}".split("/")
        chosen = {
            "project": "ftray",
            "name": name,
            "group": experiment,
            "id": state.run_id,
            "resume": "allow",  # after a restart
            "reinit": "create_new",  # the user's own runs in this process go on beside it
        }
        if {"fork_from", "resume_from"} & {name for name, value in given.items() if value}:
            del chosen["resume"]  # wandb takes one of the three
        if "root_dir" not in given:
            chosen["dir"] = local_folder(state, "wandb")
        return {
            option: value
            for option, value in chosen.items()
            if option == "dir" or given.get(SETTING_OF[option]) is None
        }

    def _define_steps(self) -> None:
        """W&B's own steps must not go back: each value has its step beside it instead."""
        self._run.define_metric("global_step", hidden=True)
        self._run.define_metric("alpha", hidden=True)
        self._run.define_metric("epoch", step_metric="global_step")
        self._run.define_metric("wise_ft/*", step_metric="alpha")
        self._groups = set()

    def log(self, values: Mapping[str, float], *, global_step: int, epoch: int) -> None:
        """Tell values of one step."""
        for group in {key.partition("/")[0] for key in values} - self._groups:
            self._groups.add(group)
            self._run.define_metric(f"{group}/*", step_metric="global_step")
        self._run.log({**values, "epoch": epoch, "global_step": global_step})

    def log_interpolation(self, values: Mapping[str, float], *, alpha: float) -> None:
        """Tell the metrics of interpolated weights, over alpha."""
        self._run.log({**values, "alpha": alpha})

    def log_examples(self, name: str, rows: Sequence[Sequence[Any]], *, global_step: int) -> None:
        """Tell examples as a table."""
        import wandb

        table = wandb.Table(columns=list(EXAMPLE_COLUMNS), data=[list(row) for row in rows])
        self._run.log({name: table, "global_step": global_step})

    def finish(self, status: str) -> None:
        """Finish the W&B run, as failed where ours did."""
        run, self._run = self._run, None
        run.finish(exit_code=0 if status in ("FINISHED", "STOPPED") else 1)


def _settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """The option `settings`, a mapping or a `wandb.Settings`, as a mapping."""
    given = options.get("settings") or {}
    if isinstance(given, Mapping):
        return dict(given)
    return {name: getattr(given, name) for name in given.model_fields_set}


def _merged(ours: Mapping[str, Any], given: Any) -> Any:
    """Our config with the user's entries; a path of a YAML file, which W&B takes, stays alone."""
    return given if isinstance(given, str) else {**ours, **dict(given or {})}


def _mode(given: Mapping[str, Any], general: Any) -> tuple[str, str]:
    """The mode, and why it is offline although the user may have expected otherwise."""
    from wandb.sdk.lib import wbauth

    wanted = given.get("mode")
    if wanted not in (None, "online", "shared"):
        return str(wanted), ""
    address = str(given.get("base_url") or general.base_url)
    key = given.get("api_key") or wbauth.authenticate_session(
        host=address, source="ftray", prompt=False, update_session=False
    )
    if not key:
        missing = f"mode is '{wanted}' but no API key is configured (`wandb login`, WANDB_API_KEY)"
        return "offline", missing if wanted else ""
    if given.get("http_proxy") or given.get("https_proxy") or _reached(address):
        return wanted or "online", ""
    return "offline", f"{address} cannot be reached"


def _reached(address: str) -> bool:
    """Whether anything answers there; `wandb.init` itself would try for a long time."""
    try:
        with urllib.request.urlopen(address, timeout=REACH_TIMEOUT_S):
            return True
    except (urllib.error.HTTPError, http.client.HTTPException):
        return True
    except OSError:
        return False


def _where(run: Any) -> str:
    """A line for the log: how to see the run."""
    if run.disabled:
        return "W&B: disabled"
    if not run.offline:
        return f"W&B: View run at {run.url}"
    folder = Path(run.settings.sync_dir)
    parts = sorted(str(path) for path in folder.parent.glob(f"offline-run-*-{run.id}*"))
    return f"W&B: offline, in {folder}; to upload: wandb sync {shlex.join(parts)}"


def _ask_to_stop(run_path: str) -> None:
    """A stop in W&B's pages is a stop from outside; wandb would interrupt the main thread."""
    from ftray.record.session import STOP_FILE
    from ftray.record.storage import Storage

    Storage(run_path).write_text(STOP_FILE, "")


@contextmanager
def _own_service() -> Iterator[None]:
    """Neither take the wandb service of another process, which may end first, nor hand ours on."""
    before = os.environ.pop("WANDB_SERVICE", None)
    try:
        yield
    finally:
        os.environ.pop("WANDB_SERVICE", None)
        if before is not None:
            os.environ["WANDB_SERVICE"] = before


@contextmanager
def _hushed(wandb: Any, general: Any) -> Iterator[None]:
    """Keep `wandb.init` from the console; the user's own runs stay as they are."""
    wandb.termsetup(wandb.Settings(silent=True), None)
    try:
        yield
    finally:
        wandb.termsetup(general, None)
