"""The commands: each is a few lines here that call the house. How they end is in `entry_point.py`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from atlas_dist import __version__
from atlas_dist.cli.bank import bank_app
from atlas_dist.cli.complete import complete_key, complete_word
from atlas_dist.cli.shards import shards_app
from atlas_dist.cli.words import Many, Overrides
from atlas_dist.errors import ConfigError

app = typer.Typer(
    name="atlas-dist",
    help="Learn a sequence of vision-language tasks with a bank of adapters, on this machine or a cluster, without forgetting.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(shards_app, name="shards")
app.add_typer(bank_app, name="bank")

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say only how it ended.")]


@app.command()
def run(overrides: Overrides = None, quiet: Quiet = False, many: Many = False) -> None:
    """Learn a sequence; the same command again attaches or resumes."""
    from atlas_dist.cli.run import run_experiment

    run_experiment(overrides, quiet=quiet, many=many)


@app.command()
def search(
    overrides: Overrides = None,
    task: Annotated[str, typer.Option(help="Whose validation score decides.")] = "",
    stage: Annotated[int, typer.Option(help="Which of its stages is tried.", min=1, max=2)] = 2,
    trials: Annotated[int, typer.Option(help="Candidates of the first rung.", min=2, max=1000)] = 9,
    factor: Annotated[int, typer.Option(help="Of so many candidates one goes on, for so many times as long.", min=2)] = 3,
    rounds: Annotated[
        int, typer.Option(help="Further rounds look where earlier ones did well (Optuna: atlas-dist[optuna]).", min=1, max=100)
    ] = 1,
    seed: Annotated[int, typer.Option(help="Of the draw; the same one finds what was learnt before.")] = 0,
    dry: Annotated[bool, typer.Option("--dry", help="Show the candidates and the first rung; start nothing.")] = False,
) -> None:
    """Look for good settings of one stage by successive halving: "tasks.NAME.stage2.lr=log(1e-4,1e-2)" --task NAME."""
    from atlas_dist.cli.search import show_search

    show_search(overrides, task=task, stage=stage, trials=trials, factor=factor, rounds=rounds, seed=seed, dry=dry)


@app.command()
def demo(overrides: Overrides = None) -> None:
    """Pack small data, learn three tasks, transfer to a fourth, and show what happened: minutes on a laptop."""
    from atlas_dist.cli.run import pack_and_run

    pack_and_run(["experiment=demo", *(overrides or [])])


@app.command()
def plan(
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document instead of a tree.")] = False,
    memory: Annotated[bool, typer.Option("--memory", help="Also what a step needs of a worker's memory.")] = False,
    many: Many = False,
) -> None:
    """Show which jobs a run would do, which are already facts, and about what the rest costs; start nothing."""
    from atlas_dist.cli.plan import show_plan

    show_plan(overrides, as_json=as_json, many=many, memory=memory)


@app.command()
def status(
    overrides: Overrides = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Look again and again, until the run is over.")] = False,
    interval: Annotated[float, typer.Option(help="Seconds between looks.")] = 5.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document a look.")] = False,
    many: Many = False,
) -> None:
    """How a run stands, read from its store; needs no cluster."""
    from atlas_dist.cli.status import show_status

    show_status(overrides, watch=max(interval, 0.1) if watch else 0.0, as_json=as_json, many=many)


@app.command()
def logs(
    overrides: Overrides = None,
    last: Annotated[int, typer.Option("--last", "-n", help="The newest so many; 0 = all.", min=0)] = 0,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The ledger's own JSON, an entry a line.")] = False,
    attempt: Annotated[
        str, typer.Option(help="What the workers of an attempt said: the beginning of its id, or a word of its job's label.")
    ] = "",
    driver: Annotated[bool, typer.Option("--driver", help="What the drivers said, each start of the run apart.")] = False,
    many: Many = False,
) -> None:
    """What was decided in a run, and why: its ledger in words, from the store."""
    from atlas_dist.cli.logs import show_kept_logs, show_logs

    if attempt or driver:
        show_kept_logs(overrides, attempt=attempt, driver=driver, last=last, as_json=as_json, many=many)
        return
    show_logs(overrides, last=last, follow=follow, as_json=as_json, many=many)


@app.command()
def track(
    overrides: Overrides = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run is over.")] = False,
    many: Many = False,
) -> None:
    """Bring a run's curves from its store to TensorBoard's files here, and to MLflow or W&B where track.* names them."""
    from atlas_dist.cli.track import show_track

    show_track(overrides, follow=follow, many=many)


@app.command()
def predict(
    overrides: Overrides = None,
    task: Annotated[str, typer.Option(help="Which task answers; left out = the one that the sample looks like.")] = "",
    image: Annotated[list[Path] | None, typer.Option(help="A picture's file; twice for a pair.")] = None,
    text: Annotated[str | None, typer.Option(help="Question or sentence.")] = None,
    choice: Annotated[list[str] | None, typer.Option(help="A text to choose; once for each.")] = None,
    folder: Annotated[Path | None, typer.Option("--from", help="Exported bank; left out = the run's own store.")] = None,
    jsonl: Annotated[Path | None, typer.Option(help="Many samples, of any tasks: an object a line; - = standard input.")] = None,
    coefficients: Annotated[bool, typer.Option("--coefficients", help="Also show how much each adapter adds.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="An object a line.")] = False,
) -> None:
    """Ask a learnt task, from an exported bank or straight from a run's store."""
    from atlas_dist.cli.predict import predict as answer

    answer(
        overrides,
        folder=folder,
        task=task,
        images=image or [],
        text=text,
        choices=choice or [],
        lines=jsonl,
        coefficients=coefficients,
        as_json=as_json,
    )


@app.command()
def serve(
    folder: Annotated[Path, typer.Option("--from", help="Exported bank (`bank export`).", show_default=False)],
    host: Annotated[str, typer.Option(help="Others reach any but loopback: they need ATLAS_SERVE_TOKEN.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 = one that is free.", min=0, max=65535)] = 8000,
    metrics_port: Annotated[int, typer.Option(help="Of the metrics for Prometheus; 0 = one that is free.", min=0, max=65535)] = 0,
    replicas: Annotated[int, typer.Option(help="Processes that each hold the bank.", min=1)] = 1,
    cpus: Annotated[float, typer.Option(help="Cores a replica.")] = 1.0,
    gpus: Annotated[float, typer.Option(help="GPUs a replica; 0.5 = two replicas share one.", min=0)] = 0.0,
    max_batch: Annotated[int, typer.Option(help="Samples in one batch at most, of any tasks.")] = 16,
    wait_ms: Annotated[float, typer.Option(help="How long a sample waits for others.")] = 5.0,
    max_body_mb: Annotated[float, typer.Option(help="Of a request's body.")] = 32.0,
    max_megapixels: Annotated[float, typer.Option(help="Of a picture.")] = 64.0,
    cluster: Annotated[str, typer.Option(help="local = a Ray of its own; auto = RAY_ADDRESS or the one here.")] = "local",
) -> None:
    """Answer over HTTP with an exported bank: JSON or forms, samples of any tasks in one forward pass. Ctrl-C stops it."""
    from atlas_dist.cli.serve import serve_folder

    given = {"replicas": replicas, "cpus_per_replica": cpus, "gpus_per_replica": gpus, "max_batch": max_batch}
    given |= {"wait_ms": wait_ms, "max_body_mb": max_body_mb, "max_megapixels": max_megapixels}
    serve_folder(folder, given, host=host, port=port, metrics_port=metrics_port, address=cluster)


@app.command()
def init(
    experiment: Annotated[str, typer.Argument(help="Name of the experiment", show_default=False)],
    data: Annotated[list[Path], typer.Argument(help="Folders of data, one a task, in the order of learning", show_default=False)],
    held_out: Annotated[
        float, typer.Option(help="Share kept for validation where there is one file of records only.", min=0.01, max=0.9)
    ] = 0.2,
) -> None:
    """Write the configuration of an experiment on your own data: folders of pictures and .jsonl files."""
    from atlas_dist.cli.init import write_experiment

    write_experiment(experiment, data, held_out)


@app.command()
def report(overrides: Overrides = None, many: Many = False) -> None:
    """Write the report of a run again, from its store."""
    from atlas_dist.cli.run import write_run_report

    write_run_report(overrides, many=many)


@app.command()
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="RUN of the store, or STORE#RUN of another one; key=value as everywhere",
            show_default=False,
            autocompletion=complete_word,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to write the page to.")] = Path("compare"),
) -> None:
    """Put several runs side by side on one page: measures, matrices, curves, and the settings that differ."""
    from atlas_dist.cli.compare import show_compared

    show_compared(runs, out)


@app.command()
def manifest(
    overrides: Overrides = None,
    image: Annotated[
        str, typer.Option(help="With its tag: REGISTRY/atlas-dist:0.1.0-cuda", envvar="ATLAS_IMAGE", show_default=False)
    ] = "",
    name: Annotated[str, typer.Option(help="Of the RayJob; left out = the run's.")] = "",
    namespace: Annotated[str, typer.Option(help="Where the administrator's part was applied.")] = "atlas-dist",
    per_pod: Annotated[int, typer.Option(help="Workers a pod; 0 = full nodes of eight GPUs, or one.", min=0)] = 0,
    memory: Annotated[int, typer.Option(help="GiB a worker; 0 = 4 on CPUs, 32 with a GPU.", min=0)] = 0,
    part: Annotated[
        list[str] | None,
        typer.Option("--with", help="A component of cluster/kuberay/components, as spot-gke or efa; repeatable."),
    ] = None,
    queue: Annotated[str, typer.Option(help="Of Kueue or Volcano.")] = "",
    pull_secret: Annotated[str, typer.Option(help="For a private registry.")] = "",
    schedule: Annotated[str, typer.Option(help="Start it again and again, as cron says it: '0 3 * * *'.")] = "",
    many: Many = False,
) -> None:
    """Write the RayJob of a run for Kubernetes: its workers, GPUs, bucket and image."""
    from atlas_dist.app.manifest import Place
    from atlas_dist.cli.manifest import print_manifest

    place = Place(
        image=image,
        namespace=namespace,
        name=name,
        per_pod=per_pod,
        memory=memory,
        parts=tuple(part or ()),
        queue=queue,
        pull_secret=pull_secret,
        schedule=schedule,
    )
    print_manifest(overrides, place, many=many)


def _request_command(name: str, about: str) -> Callable[..., None]:
    def command(
        overrides: Overrides = None,
        reason: Annotated[str, typer.Option(help="Kept in the ledger.")] = "asked for",
        many: Many = False,
    ) -> None:
        from atlas_dist.cli.run import send_request
        from atlas_dist.runs.requests import RequestKind

        send_request(overrides, RequestKind(name), reason, many=many)

    command.__doc__ = about
    return command


for _name, _about in (
    ("pause", "Ask a running run to checkpoint and stop."),
    ("resume", "Let a paused or halted run go on when it is started again."),
    ("cancel", "End a run for good; what it has learnt stays."),
):
    app.command(_name)(_request_command(_name, _about))


@app.command()
def config(
    overrides: Overrides = None,
    explain: Annotated[
        str,
        typer.Option(
            help="Say of one key what it is, its default, its valid values and its source.", autocompletion=complete_key
        ),
    ] = "",
) -> None:
    """Print the composed, validated configuration, and the groups to choose from."""
    from atlas_dist.cli.explain import show_explanation
    from atlas_dist.cli.run import show_config

    if explain:
        show_explanation(explain, overrides)
        return

    show_config(overrides)


@app.command("verify-resume")
def verify_resume(
    overrides: Overrides = None,
    kills: Annotated[int, typer.Option(help="Processes to kill.")] = 3,
    seed: Annotated[int, typer.Option(help="Of the random choices.")] = 0,
) -> None:
    """Run twice, once with kill -9 at random points, and compare every file of both banks."""
    from atlas_dist.cli.verify_resume import show_verified

    show_verified(overrides, kills=kills, seed=seed)


@app.command()
def doctor(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="URL | KEY=VALUE...",
            help="A store, a folder or s3://bucket/prefix; or the settings of a run, as in experiment=demo",
            autocompletion=complete_word,
        ),
    ],
    endpoint_url: str = "",
) -> None:
    """Check that a store keeps its promises before a run trusts it; of a run also its packed data and room on the disks."""
    from atlas_dist.cli.run import check_all, check_store
    from atlas_dist.cli.words import are_settings

    if are_settings(what):
        check_all([*what, *([f"store.endpoint_url={endpoint_url}"] if endpoint_url else [])])
    elif len(what) == 1:
        check_store(what[0], endpoint_url)
    else:
        raise ConfigError(
            f"{' '.join(what)} is neither one store nor the settings of a run.", fix="Give a URL, or key=value words only."
        )


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
