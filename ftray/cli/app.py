"""The verbs and their options; what they do is in one file each, imported when called.

Those that use a model are in `ftray.cli.using`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Optional

import typer
from typer.core import TyperGroup

from ftray.cli.options import Experiment, Json, RunName, StoragePath
from ftray.cli.using import encode, evaluate, export
from ftray.errors import ConfigError, FtrayError


class Verbs(TyperGroup):
    """Ends the process with our exit codes, whatever the version of typer makes of Ctrl-C."""

    def make_context(self, *args: Any, **options: Any) -> Any:
        """Read the command line."""
        with _exit_codes():
            return super().make_context(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        """Run the verb."""
        with _exit_codes():
            return super().invoke(ctx)


@contextmanager
def _exit_codes() -> Iterator[None]:
    try:
        yield
    except FtrayError as error:
        print(f"ftray: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        print("ftray: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


app = typer.Typer(
    name="ftray",
    cls=Verbs,
    help="Fine-tune embedding models for retrieval on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from ftray import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    ask: Annotated[
        Optional[str], typer.Option(help="Search with the demo's model instead of training.")
    ] = None,
    num_workers: Annotated[
        str, typer.Option(help="0 = this process, N workers on Ray, or auto.")
    ] = "auto",
    epochs: Annotated[int, typer.Option(min=1)] = 2,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    storage_path: StoragePath = "runs",
) -> None:
    """Fine-tune code search on the standard library of this Python: no download, minutes."""
    from ftray.cli.demo import run

    run(ask, num_workers, epochs, seed, storage_path)


@app.command(context_settings={"allow_extra_args": True})
def fit(
    context: typer.Context,
    config: Annotated[str, typer.Argument(help="A YAML file with the fields of FitConfig.")],
    set_: Annotated[
        Optional[list[str]], typer.Option("--set", help="Override a field: a.b=c.")
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Return at once; the run goes on by itself.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Fine-tune a model as a YAML file says."""
    if context.args:
        raise ConfigError(
            f"'{context.args[0]}' stands beside the YAML file '{config}': a field is set with "
            "--set key=value, as in --set epochs=3"
        )
    from ftray.cli.fit import run

    run(config, set_ or [], detach, as_json)


@app.command()
def submit(
    config: Annotated[str, typer.Argument(help="A YAML file with the fields of FitConfig.")],
    address: Annotated[
        Optional[str],
        typer.Option(help="The cluster's dashboard, as http://host:8265; default: this machine's."),
    ] = None,
    set_: Annotated[
        Optional[list[str]], typer.Option("--set", help="Override a field: a.b=c.")
    ] = None,
    working_dir: Annotated[
        Optional[str], typer.Option(help="A folder of your code that the job is to see.")
    ] = None,
    runtime_env: Annotated[
        Optional[str], typer.Option(help="A YAML file with Ray's runtime_env: env_vars, pip, ...")
    ] = None,
    shared: Annotated[
        Optional[list[str]],
        typer.Option(help="A folder that the cluster sees under the same path; not uploaded."),
    ] = None,
    max_upload_mb: Annotated[float, typer.Option(help="How much may be uploaded.")] = 200.0,
    python: Annotated[
        Optional[str], typer.Option(help="What runs Python on the cluster's head.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print its log.")] = False,
    as_json: Json = False,
) -> None:
    """Fine-tune as a job of a Ray cluster; returns once the run is on record."""
    from ftray.cli.submit import run

    run(
        config,
        set_ or [],
        follow=follow,
        as_json=as_json,
        address=address,
        working_dir=working_dir,
        runtime_env=runtime_env,
        shared=shared or [],
        max_upload_mb=max_upload_mb,
        python=python,
    )


@app.command()
def sweep(
    config: Annotated[
        str, typer.Argument(help="A YAML file: fit, space, metric, and how to search.")
    ],
    set_: Annotated[
        Optional[list[str]], typer.Option("--set", help="Override a field: fit.epochs=2.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the sweep of this name, if there is one.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Try values of a fit's fields on Ray Tune, and compare the runs."""
    from ftray.cli.sweep import run

    run(config, set_ or [], resume, as_json)


@app.command()
def runs(
    storage_path: StoragePath = "runs", experiment: Experiment = None, as_json: Json = False
) -> None:
    """List the runs on record."""
    from ftray.cli.runs import run

    run(storage_path, experiment, as_json)


@app.command()
def show(
    name: RunName,
    storage_path: StoragePath = "runs",
    experiment: Experiment = None,
    as_json: Json = False,
) -> None:
    """Show a run: status, data, metrics before and after, artifact."""
    from ftray.cli.show import run

    run(name, storage_path, experiment, as_json)


@app.command()
def logs(
    name: RunName,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until it ends.")] = False,
    storage_path: StoragePath = "runs",
    experiment: Experiment = None,
) -> None:
    """Print a run's log."""
    from ftray.cli.logs import run

    run(name, follow, storage_path, experiment)


@app.command()
def stop(name: RunName, storage_path: StoragePath = "runs", experiment: Experiment = None) -> None:
    """Ask a run to stop at its next step; its checkpoint is kept."""
    from ftray.cli.stop import run

    run(name, storage_path, experiment)


@app.command()
def delete(
    name: RunName,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    storage_path: StoragePath = "runs",
    experiment: Experiment = None,
) -> None:
    """Delete a run with its checkpoints and artifact; asks first."""
    from ftray.cli.delete import run

    run(name, yes, storage_path, experiment)


@app.command()
def report(
    name: RunName,
    storage_path: StoragePath = "runs",
    experiment: Experiment = None,
    as_json: Json = False,
) -> None:
    """Write a run's report.html if it is not up to date, and print where it is."""
    from ftray.cli.report import run

    run(name, storage_path, experiment, as_json)


for _verb in (evaluate, encode, export):
    app.command()(_verb)


@app.command()
def models(
    name: Annotated[Optional[str], typer.Argument(help="Show the options of this model.")] = None,
    task: Annotated[
        Optional[str], typer.Option(help="text-to-text, image-to-image, text-to-image, ...")
    ] = None,
    summary: Annotated[
        bool, typer.Option("--summary", help="Show the layers of the model and their weights.")
    ] = False,
    override: Annotated[
        Optional[list[str]],
        typer.Option(
            "--set", help="With --summary, what fit is told of the model, as in freeze=true."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the models that have a short name, or the options or the layers of one."""
    from ftray.cli.models import run, run_summary

    if summary or override:
        run_summary(name, task, override or [], as_json, asked=summary)
    else:
        run(name, task, as_json)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what ftray sees: Python, torch, Ray, GPUs, hub, disk."""
    from ftray.cli.doctor import run

    run(as_json)
