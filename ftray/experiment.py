"""Experiments: the folders under `storage_path` that hold runs."""

from __future__ import annotations

from ftray.errors import ConfigError, ExperimentNotFoundError, FtrayError, nearest
from ftray.record.storage import Storage
from ftray.run import DONE, Run, find_run, find_runs, remove_run
from ftray.words import counted

__all__ = ["Experiment", "confirmed", "find_experiment", "find_experiments"]

OF_A_SWEEP = ("sweep", "control")
"""What a sweep keeps beside its runs."""


class Experiment:
    """Runs that belong together: those of one `experiment_name`.

    An experiment is the folder of its runs. It appears with the first of them, so that there is
    nothing to create.

    Args:
        name: its name.
        storage_path: the folder or URI under which runs are kept.
    """

    def __init__(self, name: str, storage_path: str = "runs") -> None:
        self.name = name
        self._storage_path = storage_path
        self._storage = Storage(storage_path).under(name)

    def __repr__(self) -> str:
        return f"Experiment('{self.name}', path='{self.path}')"

    @property
    def path(self) -> str:
        """The folder that holds the runs: a path or a URI."""
        return self._storage.uri

    def list_runs(self) -> list[Run]:
        """Its runs, oldest first."""
        return find_runs(self.name, self._storage_path)

    def get_run(self, name: str) -> Run:
        """One of its runs.

        Raises:
            RunNotFoundError: with the nearest name.
        """
        return find_run(name, self.name, self._storage_path)

    def delete(self, *, confirm: bool | None = None) -> bool:
        """Delete all its runs, with their checkpoints and artifacts.

        Args:
            confirm: True deletes; None asks.

        Returns:
            Whether it was deleted.

        Raises:
            FtrayError: while one of its runs goes on, or if the folder holds other things than
                runs; nothing is deleted then.
        """
        runs = self._removable()
        if confirm is None:
            what = f"{self.path}: {counted(len(runs), 'run')} with artifacts and checkpoints"
            confirm = confirmed(f"Delete {what}?")
        if confirm:
            for run in runs:
                remove_run(run)
            for name in OF_A_SWEEP:
                self._storage.delete(name)
            if not self._storage.names():  # a run may have begun meanwhile
                self._storage.delete("")
        return confirm

    def _removable(self) -> list[Run]:
        runs = self.list_runs()
        known = {*(run.name for run in runs), *OF_A_SWEEP}
        others = sorted(set(self._storage.names()) - known)
        if others:
            raise FtrayError(
                f"The folder '{self.path}' holds what is no run: {', '.join(others[:5])}"
                f"{' …' if len(others) > 5 else ''}. Nothing is deleted; runs can be deleted one "
                "by one"
            )
        going = [run.name for run in runs if run.status() not in DONE]
        if going:
            raise FtrayError(
                f"Experiment '{self.name}': {', '.join(going)} still running; stop that first. "
                "Nothing is deleted"
            )
        return runs


def find_experiments(storage_path: str = "runs") -> list[Experiment]:
    """All experiments that have a run, by name."""
    names = sorted({run.experiment for run in find_runs(None, storage_path)})
    return [Experiment(name, storage_path) for name in names]


def find_experiment(name: str, storage_path: str = "runs") -> Experiment:
    """The experiment of a name.

    Raises:
        ExperimentNotFoundError: with the nearest name.
    """
    known = [experiment.name for experiment in find_experiments(storage_path)]
    if name in known:
        return Experiment(name, storage_path)
    hint = nearest(name, known) if known else " There are no runs there."
    raise ExperimentNotFoundError(f"There is no experiment '{name}' under '{storage_path}'.{hint}")


def confirmed(question: str) -> bool:
    """Ask whoever sits there; anything but yes is no.

    Raises:
        ConfigError: if nobody can be asked.
    """
    try:
        answer = input(f"{question} [y/N] ")
    except (EOFError, RuntimeError):  # no terminal; a notebook that is executed by a program
        raise ConfigError(
            "Nobody is there to be asked: confirm=True, or --yes, deletes without asking"
        ) from None
    return answer.strip().lower() in ("y", "yes")
