"""The one entry point. Each command is a few lines here that call the house; what goes wrong becomes cause, value and fix."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from atlas_dist import __version__
from atlas_dist.cli.bank import bank_app
from atlas_dist.core.types import TaskKind
from atlas_dist.errors import AtlasError

app = typer.Typer(
    name="atlas-dist",
    help="Learn a sequence of vision-language tasks with a bank of adapters, on this machine or a cluster, without forgetting.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
shards_app = typer.Typer(help="Pack, check and list the data as WebDataset shards.", no_args_is_help=True)
app.add_typer(shards_app, name="shards")
app.add_typer(bank_app, name="bank")

Overrides = Annotated[
    list[str] | None, typer.Argument(help="key=value, as in experiment=demo train.workers=4", show_default=False)
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say only how it ended.")]
INTERRUPTED = 130


@app.command()
def run(overrides: Overrides = None, quiet: Quiet = False) -> None:
    """Learn a sequence; the same command again attaches or resumes."""
    from atlas_dist.cli.run import run_experiment

    run_experiment(overrides or [], _console(), quiet=quiet)


@app.command()
def demo(overrides: Overrides = None) -> None:
    """Pack small data, learn three tasks, transfer to a fourth, and show what happened: minutes on a laptop."""
    from atlas_dist.cli.pack import pack_experiment
    from atlas_dist.cli.run import run_experiment

    words = ["experiment=demo", *(overrides or [])]
    pack_experiment(words, _console())
    run_experiment(words, _console())


@app.command()
def plan(overrides: Overrides = None) -> None:
    """Show which jobs a run would do and which are already facts; start nothing."""
    from atlas_dist.cli.run import show_plan

    show_plan(overrides or [], _console())


@app.command()
def status(overrides: Overrides = None) -> None:
    """How a run stands, read from its store; needs no cluster."""
    from atlas_dist.cli.run import show_status

    show_status(overrides or [], _console())


@app.command()
def report(overrides: Overrides = None) -> None:
    """Write the report of a run again, from its store."""
    from atlas_dist.cli.run import write_run_report

    write_run_report(overrides or [], _console())


def _request_command(name: str, about: str) -> Callable[..., None]:
    def command(
        overrides: Overrides = None, reason: Annotated[str, typer.Option(help="Kept in the ledger.")] = "asked for"
    ) -> None:
        from atlas_dist.cli.run import send_request

        send_request(overrides or [], name, reason, _console())

    command.__doc__ = about
    return command


for _name, _about in (
    ("pause", "Ask a running run to checkpoint and stop."),
    ("resume", "Let a paused or halted run go on when it is started again."),
    ("cancel", "End a run for good; what it has learnt stays."),
):
    app.command(_name)(_request_command(_name, _about))


@app.command()
def config(overrides: Overrides = None) -> None:
    """Print the composed, validated configuration, and the groups to choose from."""
    from atlas_dist.cli.run import show_config

    show_config(overrides or [], _console())


@app.command("verify-resume")
def verify_resume(
    overrides: Overrides = None,
    kills: Annotated[int, typer.Option(help="Processes to kill.")] = 3,
    seed: Annotated[int, typer.Option(help="Of the random choices.")] = 0,
) -> None:
    """Run twice, once with kill -9 at random points, and compare every file of both banks."""
    from atlas_dist.cli.verify_resume import verify_resume as verify

    verify(overrides or [], _console(), kills=kills, seed=seed)


@app.command()
def doctor(
    url: Annotated[str, typer.Argument(help="Store to check: a folder or s3://bucket/prefix")], endpoint_url: str = ""
) -> None:
    """Check that a store keeps its promises before a run trusts it."""
    from atlas_dist.cli.run import check_store

    check_store(url, endpoint_url, _console())


@shards_app.command("pack")
def shards_pack(overrides: Overrides = None) -> None:
    """Pack every task of an experiment that has a `raw` section; what is packed already is left alone."""
    from atlas_dist.cli.pack import pack_experiment

    pack_experiment(overrides or [], _console())


@shards_app.command("ls")
def shards_ls(overrides: Overrides = None) -> None:
    """List the shard sets of an experiment."""
    from atlas_dist.cli.pack import list_shards

    list_shards(overrides or [], _console())


@shards_app.command("verify")
def shards_verify(overrides: Overrides = None) -> None:
    """Re-read every shard of an experiment and name every damaged part."""
    from atlas_dist.cli.pack import verify_shards

    verify_shards(overrides or [], _console())


@shards_app.command("index")
def shards_index(
    dataset: Annotated[str, typer.Argument(help="Folder of the data set below the shards URL")],
    split: Annotated[str, typer.Argument(help="Split whose tars are indexed")],
    kind: Annotated[TaskKind, typer.Option(help="What its samples are")] = TaskKind.SINGLE,
    overrides: Overrides = None,
) -> None:
    """Make a manifest for ordinary WebDataset tars that are already in place."""
    from atlas_dist.cli.pack import index_shards

    index_shards(dataset, split, kind, overrides or [], _console())


@shards_app.command("converters")
def shards_converters() -> None:
    """List the raw data set formats that can be packed."""
    from atlas_dist.cli.pack import list_converters

    list_converters(_console())


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and the libraries' own logs.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit()
    if debug:
        os.environ["ATLAS_DEBUG"] = "1"


def main() -> NoReturn:
    """Run the command line and exit: 0 done, 2 config, 3 data, 4 auth, 5 training, 6 store, 7 fenced, 8 paused, 130 Ctrl-C."""
    try:
        app()
        sys.exit(0)
    except AtlasError as error:
        _tell(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        Console(stderr=True).print("Interrupted.")
        sys.exit(INTERRUPTED)


def _tell(error: AtlasError) -> None:
    """Cause, value and fix; the traceback only with --debug."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if os.environ.get("ATLAS_DEBUG"):
        traceback.print_exception(error)
    console.print(f"[bold red]{type(error).__name__}[/bold red]: ", end="")
    console.print(error.message, markup=False)
    if error.fix:
        console.print("[bold]Fix[/bold]: ", end="")
        console.print(error.fix, markup=False)


def _console() -> Console:
    # Piped output is read by programs and by people's pagers: do not fold it at 80 columns.
    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=160)
