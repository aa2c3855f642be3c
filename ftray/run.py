"""A run, as seen from its record: in the process that made it, or in another one years later."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from ftray.errors import FtrayError, RunFailedError, RunNotFoundError, nearest
from ftray.events import EvaluationEnded
from ftray.record.reader import RecordReader
from ftray.record.session import STOP_FILE
from ftray.record.storage import Storage
from ftray.record.writer import DONE, side_of

__all__ = ["DONE", "Run", "find_run", "find_runs", "remove_run"]


class Run:
    """One fit: its status, logs, metrics, examples, history and artifact.

    Everything is read from the run directory, without Ray.

    Args:
        storage: the run directory.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._record = RecordReader(storage)

    def __repr__(self) -> str:
        return f"Run('{self.name}', {self.status()}, path='{self.path}')"

    @property
    def name(self) -> str:
        """The run's name: the last part of its path."""
        return self._storage.name

    @property
    def experiment(self) -> str:
        """The experiment's name: the folder that the run directory lies in."""
        return str(self._storage.root.rsplit("/", 2)[-2])

    @property
    def path(self) -> str:
        """The run directory: a path or a URI."""
        return self._storage.uri

    @property
    def config(self) -> dict[str, Any]:
        """The whole resolved configuration."""
        config: dict[str, Any] = self._record.config().get("config", {})
        return config

    @property
    def model(self) -> str:
        """The model's name as it was given; of a model object, the name that it was loaded by."""
        facts = self._record.config()
        return str(facts.get("model", {}).get("name") or facts.get("config", {}).get("model"))

    @property
    def facts(self) -> dict[str, Any]:
        """All of `run.yaml`: configuration, environment, data."""
        return self._record.config()

    def status(self) -> str:
        """CREATED, STARTED, FINISHED, FAILED or STOPPED."""
        return str(self._record.status()["status"])

    @property
    def details(self) -> str:
        """Why the run stopped or failed, or an empty text."""
        return str(self._record.status()["details"])

    @property
    def times(self) -> dict[str, float]:
        """Seconds since the epoch: created_s, started_s, ended_s, as far as known."""
        status = self._record.status()
        return {k: float(status[k]) for k in ("created_s", "started_s", "ended_s") if k in status}

    def logs(self) -> str:
        """The log so far."""
        return self._record.logs()

    def stream_logs(self, interval: float = 1.0) -> Iterator[str]:
        """Log lines as they come, until the run is done.

        Args:
            interval: seconds between two looks.
        """
        shown = 0
        while True:
            done = self.status() in DONE
            text = self.logs()
            end = len(text) if done else text.rfind("\n") + 1
            if end > shown:
                yield from text[shown:end].removesuffix("\n").split("\n")
            shown = max(shown, end)
            if done:
                return
            time.sleep(interval)

    def wait(self, interval: float = 0.5) -> Run:
        """Wait until the run is done, whichever process trains; returns the run itself.

        Ctrl-C ends the waiting, not a run in another process.

        Args:
            interval: seconds between two looks.
        """
        while self.status() not in DONE:
            time.sleep(interval)
        return self

    def stop(self) -> None:
        """Ask the run to stop at its next step; its checkpoint is kept, its status STOPPED.

        Returns at once; `wait()` waits. Nothing happens if the run is done.
        """
        if self.status() not in DONE:
            self._storage.write_text(STOP_FILE, "")

    def metrics(self) -> dict[str, dict[str, float]]:
        """`{"before": {...}, "after": {...}}`: "after" are those of the artifact's weights.

        Raises:
            RunFailedError: if the run failed, with the reason.
        """
        if self.status() == "FAILED":
            raise RunFailedError(f"Run '{self.name}' failed: {self.details}")
        return self._record.metrics()

    def display_metrics(self) -> None:
        """Show a table: before, after, change; of several evaluations each is a section.

        In a notebook it is an HTML table.

        Raises:
            RunFailedError: if the run failed, with the reason.
        """
        from ftray.report.tables import metrics_sheet, show

        if any(self.metrics().values()):
            show(metrics_sheet(self._record.metrics_by_evaluation()))
        else:
            print(f"Run '{self.name}' ({self.status()}) has no metrics of an EvaluationCallback")

    def example_results(self, evaluation: str | None = None) -> dict[str, dict[str, list[Any]]]:
        """`{"before": {query: [match, …]}, "after": {…}}` of an EvaluationCallback.

        Each match is {id, text, score, relevant}, one that is an image also has
        `image`, a small picture as a data URI. Empty without `gather_examples=True`; "after" is
        also empty where no evaluation has seen the artifact's weights.

        Args:
            evaluation: its caption; may be left out where there is one evaluation.

        Raises:
            FtrayError: for an unknown caption, or several evaluations and none named.
        """
        examples = self._record.examples()
        if not examples:
            return {"before": {}, "after": {}}
        if evaluation is None and len(examples) > 1:
            raise FtrayError(f"Several evaluations: name one of {', '.join(examples)}")
        name = evaluation or next(iter(examples))
        if name not in examples:
            raise FtrayError(f"There is no evaluation '{name}'.{nearest(name, examples)}")
        sides = examples[name]
        after = [e for e in self._record.final_evaluations() if e.name == name]
        key = side_of(after[-1]) if after else ""
        return {"before": sides.get("before", {}), "after": sides.get(key, {})}

    def display_examples(self, k: int = 5, evaluation: str | None = None) -> None:
        """Show tables of the best `k` matches of the example queries, before and after.

        In a notebook they are HTML tables.

        Args:
            k: how many matches of each query, at most; an evaluation keeps `limit` of them.
            evaluation: its caption; None shows those of all evaluations.

        Raises:
            FtrayError: for an unknown caption, or a k below 1.
        """
        from ftray.report.tables import examples_sheet, show

        if k < 1:
            raise FtrayError(f"k is {k}: at least 1 match of each query can be shown")
        names = [evaluation] if evaluation is not None else list(self._record.examples())
        if not names:
            print(
                f"Run '{self.name}' ({self.status()}) has no examples: they are kept by an "
                "EvaluationCallback with gather_examples=True"
            )
        pictures = self._record.query_images()
        for name in names:
            of = f" ({name})" if len(names) > 1 else ""
            for side, results in self.example_results(name).items():
                if results:
                    title = f"Results {side} fine-tuning{of}"
                    show(examples_sheet(title, results, k, pictures.get(name)))

    def history(self) -> pa.Table:
        """One row per step, evaluation and epoch, in order of arrival.

        `kind` says which; the other columns are `time_s`, `epoch`, `step`, `global_step`, `loss`,
        `learning_rate`, `grad_norm`, `rows`, `tokens`, one for each metric, and `weights` and
        `alpha`, which are null but for evaluations of weights that were derived from those of the
        step (`RecordReader.history` says it all). `to_pandas()` makes a DataFrame.
        """
        return self._record.history()

    def per_query(self, when: str = "after", evaluation: str = "evaluation") -> pa.Table:
        """One row per query of an evaluation: `query_id`, `query`, `relevant`, and its metrics.

        Of scored pairs one row per pair: `text_a`, `text_b`, `score` and `similarity`.

        Args:
            when: "before" or "after".
            evaluation: its caption, or "evaluation" where it has none.

        Raises:
            FtrayError: if there was no such evaluation.
        """
        if when == "before":
            found = self._record.first_evaluations()
        else:
            found = self._record.final_evaluations()
        of_it = [e for e in found if e.name == evaluation]
        if not of_it:
            raise FtrayError(f"Run '{self.name}' has no evaluation '{evaluation}' {when}")
        return self._record.per_query(evaluation, of_it[-1].global_step, of_it[-1].weights)

    def _evaluations(self) -> list[EvaluationEnded]:
        return [e for e in self._record.events() if isinstance(e, EvaluationEnded)]

    def report(self) -> str:
        """The path or URI of `report.html`, one page that needs no network.

        It is written when the run ends, and now and then before. Here it is written anew if it is
        missing, or not of the record as it stands (while the run goes on, always).

        Raises:
            StorageError: if it cannot be written.
        """
        from ftray.report.page import fresh_report

        return fresh_report(self._storage)

    @property
    def artifact_id(self) -> str:
        """What `ftray.get_model` takes: the place of the artifact."""
        return self._storage.under("artifact").uri

    def save_artifact(self, directory: str | Path = "artifacts") -> Path:
        """Copy the artifact to `directory/<run name>`; returns that folder.

        Raises:
            FtrayError: if there is no artifact yet, or the folder exists already.
        """
        if not self._storage.exists("artifact/ftray.json"):
            raise FtrayError(f"Run '{self.name}' ({self.status()}) has no artifact")
        folder = Path(directory) / self.name
        if folder.exists():
            raise FtrayError(f"'{folder}' exists already; nothing is overwritten")
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
        self._storage.download("artifact", folder)
        return folder


def find_run(name: str, experiment_name: str | None = None, storage_path: str = "runs") -> Run:
    """The run of a name.

    Args:
        name: the run's name, or the path of its directory.
        experiment_name: where to look; None looks in all experiments.
        storage_path: under which folder or URI.

    Raises:
        RunNotFoundError: with the nearest name; also if several experiments have the name, or if
            a folder is given that is no run directory.
    """
    direct = Storage(name) if "/" in name else None
    if direct is not None and RecordReader(direct).exists():
        return Run(direct)
    if direct is not None and direct.exists():
        raise RunNotFoundError(
            f"The folder '{name}' is no run directory: run.yaml and status.json are missing there"
        )
    found = [run for run in find_runs(experiment_name, storage_path) if run.name == name]
    if len(found) == 1:
        return found[0]
    if found:
        places = ", ".join(run.path for run in found)
        raise RunNotFoundError(f"Several runs are named '{name}': {places}. Give one's path.")
    known = [run.name for run in find_runs(experiment_name, storage_path)]
    last = name.rstrip("/").rsplit("/", 1)[-1]
    hint = nearest(last, known) if known else " There are no runs there."
    raise RunNotFoundError(f"There is no run '{name}' under '{storage_path}'.{hint}")


def find_runs(experiment_name: str | None = None, storage_path: str = "runs") -> list[Run]:
    """All runs on record, oldest first."""
    root = Storage(storage_path)
    experiments = [experiment_name] if experiment_name else root.names()
    runs = [
        Run(root.under(experiment, name))
        for experiment in experiments
        for name in root.names(experiment)
        if RecordReader(root.under(experiment, name)).exists()
    ]
    return sorted(runs, key=lambda run: run.times.get("created_s", 0.0))


def remove_run(run: Run) -> None:
    """Delete a run's directory with everything in it.

    Raises:
        RunNotFoundError: if the folder is no run directory.
        FtrayError: while the run goes on.
    """
    if not run._record.exists():
        raise RunNotFoundError(f"The folder '{run.path}' is no run directory: it is not deleted")
    if run.status() not in DONE:
        raise FtrayError(f"Run '{run.name}' is {run.status()}; stop it first")
    run._storage.delete("")
