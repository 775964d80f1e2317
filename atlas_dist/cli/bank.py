"""`atlas-dist bank …`: look at what a run has learnt, check it, carry it elsewhere. Works from the store; needs no Ray."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from atlas_dist.app.process import hush
from atlas_dist.app.show import standard_console
from atlas_dist.cli.bank_tidy import gc, prune
from atlas_dist.cli.words import Overrides, composed
from atlas_dist.config import RunConfig
from atlas_dist.core.keys import SHORT
from atlas_dist.core.results import SelectResult, TrainResult
from atlas_dist.errors import ConfigError, DataError
from atlas_dist.runs.stores import open_run_store, shards_if_there
from atlas_dist.store import ObjectStore

if TYPE_CHECKING:  # what it imports takes a tenth of a second, which a shell's TAB and --help need not pay
    from atlas_dist.bank.contents import Bank, Learnt

bank_app = typer.Typer(help="What a run has learnt: list, show, check, export, import, tidy.", no_args_is_help=True)
bank_app.command("gc")(gc)
bank_app.command("prune")(prune)

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document instead of a table.")]
TaskWord = Annotated[str, typer.Argument(help="Task name, or the beginning of a key", show_default=False)]


@bank_app.command("ls")
def ls(overrides: Overrides = None, as_json: AsJson = False) -> None:
    """List the learnt tasks of a run, in the order they were committed."""
    from atlas_dist.bank.contents import runs_of

    config, store, bank = _open(overrides)
    if as_json:
        typer.echo(json.dumps([_as_json(bank, e) for e in bank.learnt.values()], indent=1))
        return
    out = standard_console()
    table = Table(title=f"Bank of run {bank.run}: {len(bank.learnt)} tasks", title_justify="left")
    for column in ("task", "kind", "score %", "evaluated %", "reads", "own adapter", "MB", "key", "from"):
        table.add_column(column)
    for e in bank.learnt.values():
        evaluation = bank.evaluation_of(e.key)
        size = sum(blob.size for blob in e.ref.blobs) / 1e6
        table.add_row(
            e.name, e.task.kind.value, f"{e.score:.1f}", f"{evaluation.score:.1f}" if evaluation else "–",
            ", ".join(_names(bank, e.sees)) or "the backbone alone", _own(e), f"{size:.1f}", e.key[:SHORT],
            e.adopted_from or "this run",
        )  # fmt: skip
    out.print(table)
    others = [run for run in runs_of(store) if run != config.run]
    if others:
        out.print(f"Other runs in {store.url}: {', '.join(others)}", markup=False, soft_wrap=True)


def _own(learnt: Learnt) -> str:
    """Whether a task has an adapter of its own, and by how much that pays."""
    if not learnt.form:
        return "yes"
    gain = SelectResult.of(learnt.ref).gain
    by = f" ({gain.mean:+.1f} points)" if gain is not None else ""
    return f"{'yes' if learnt.has_adapter else 'declined'}{by}"


@bank_app.command("show")
def show(task: TaskWord, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Everything that is known of one learnt task: what it depends on, its scores, its files."""
    _, _, bank = _open(overrides)
    e = bank.find(task)
    about = _as_json(bank, e)
    if as_json:
        typer.echo(json.dumps(about, indent=1))
        return
    out = standard_console()
    for name, value in about.items():
        if name != "files":
            out.print(f"[bold]{name.replace('_', ' ')}[/bold]: ", end="")
            out.print(_line(value), markup=False, soft_wrap=True)
    for blob in e.ref.blobs:
        out.print(f"  {blob.sha256[:16]}  {blob.size:>9}  {blob.name}", markup=False)


@bank_app.command("log")
def log(overrides: Overrides = None) -> None:
    """How the bank grew: one line a learnt task, oldest first."""
    _, _, bank = _open(overrides)
    out = standard_console()
    for e in bank.learnt.values():
        seconds = TrainResult.of(e.ref).seconds.training
        made = f"on {' + '.join(_names(bank, e.sees))}" if e.sees else "on the backbone alone"
        origin = f", taken over from run {e.adopted_from}" if e.adopted_from else ""
        out.print(
            f"{_when(e)}  {e.key[:SHORT]}  {e.name} {made}: {e.score:.1f} %, trained {seconds:.0f} s{origin}",
            markup=False, soft_wrap=True,
        )  # fmt: skip


@bank_app.command("diff")
def diff(
    before: Annotated[str, typer.Argument(help="Run to compare from")],
    after: Annotated[str, typer.Argument(help="Run to compare with")],
    overrides: Overrides = None,
) -> None:
    """Compare the banks of two runs of one store, task by task: equal to the last byte, learnt otherwise, or only in one."""
    from atlas_dist.bank.contents import read_bank

    config = composed(overrides)
    store = open_run_store(config)
    left, right = read_bank(store, before), read_bank(store, after)
    out = standard_console()
    for name in dict.fromkeys(e.task.name for bank in (left, right) for e in bank.learnt.values()):
        out.print(_difference(name, _of_task(left, name), _of_task(right, name), left, right), markup=False, soft_wrap=True)


@bank_app.command("verify")
def verify(
    overrides: Overrides = None,
    rescore: Annotated[
        bool, typer.Option("--rescore", help="Load each task and score it again on its validation split.")
    ] = False,
    task: Annotated[list[str] | None, typer.Option("--task", help="Rescore this one only; may be given again.")] = None,
    folder: Annotated[Path | None, typer.Option("--from", help="Check an exported (or pruned) bank instead of a run.")] = None,
) -> None:
    """Re-read and re-hash every committed file of a run; with --rescore, reproduce its recorded validation scores."""
    from atlas_dist.bank.verify import verify_results

    if folder:
        _verify_folder(folder, overrides, rescore=rescore, wanted=task or [])
        return
    config, store, bank = _open(overrides, whole=False)
    out = standard_console()
    checked = list(verify_results(store, config.run))
    faults = [c for c in checked if c.fault]
    for c in faults:
        out.print(f"damaged: {c.ref.job[:SHORT]}: {c.fault}", markup=False, soft_wrap=True)
    if faults:
        raise DataError(
            f"{len(faults)} of {len(checked)} committed results of run {config.run} are damaged.",
            fix="Copy the files named above again from a replica; or give the run another name: it trains only what is missing.",
        )
    size = sum(c.size for c in checked) / 1e6
    out.print(f"{len(checked)} committed results, {sum(len(c.ref.blobs) for c in checked)} files, {size:.1f} MB: all whole")
    if rescore:
        assert bank is not None
        _rescore(config, bank, task or [], out)


def _verify_folder(folder: Path, overrides: list[str] | None, *, rescore: bool, wanted: Sequence[str]) -> None:
    from atlas_dist.bank.package import read_package

    weights, out = read_package(folder), standard_console()
    names = {key: task.learnt.name for key, task in weights.tasks.items()}
    left_out = ", ".join(names[key] for key in names if key in weights.dropped)
    out.print(
        f"{len(names)} tasks of run {weights.run}, {weights.size / 1e6:.1f} MB: all whole"
        + (f"; pruned of the adapters of {left_out}" if left_out else ""),
        markup=False, soft_wrap=True,
    )  # fmt: skip
    if not rescore:
        return
    from atlas_dist.bank.verify import rescoring_context, worth

    hush()
    if unknown := sorted(set(wanted) - set(names.values())):
        raise ConfigError(f"{folder} has no task {unknown[0]!r}.", fix=f"It has: {', '.join(names.values())}.")
    context, missed = rescoring_context(composed(overrides), weights, weights.first), 0
    for key in (key for key, name in names.items() if not wanted or name in wanted):
        got = worth(context, weights, key)
        missed += not got.reproduced
        verdict = "reproduced" if got.reproduced else "NOT REPRODUCED"
        out.print(f"{names[key]}: {got.score:.4f} %, {got.source} {got.expected:.4f} %: {verdict}", markup=False, soft_wrap=True)
    _require(missed, len(wanted or names))


def _require(missed: int, of: int) -> None:
    if missed:
        raise DataError(
            f"{missed} of {of} tasks do not reproduce their recorded score.",
            fix="Compare library versions and train.eval_batch with those of the run.",
        )


def _rescore(config: RunConfig, bank: Bank, wanted: Sequence[str], out: Console) -> None:
    from atlas_dist.bank.verify import rescore, rescoring_context

    hush()
    chosen = [bank.find(name) for name in wanted] or list(bank.learnt.values())
    context, missed = None, 0
    for learnt in chosen:
        context = context or rescoring_context(config, bank, learnt)
        got = rescore(config, bank, learnt, context)
        missed += not got.reproduced
        against = "its recorded evaluation" if got.evaluation else "what training measured (not evaluated yet)"
        bits = ", every prediction bitwise equal" if got.bitwise else ""
        verdict = "reproduced" if got.reproduced else "NOT REPRODUCED"
        out.print(
            f"{learnt.name}: {got.score:.4f} %, {against} {got.expected:.4f} %: {verdict}{bits}", markup=False, soft_wrap=True
        )
    _require(missed, len(chosen))


@bank_app.command("similar")
def similar(
    task: Annotated[str, typer.Option("--task", help="A packed task of the configuration; nothing of it need be learnt.")],
    overrides: Overrides = None,
    folder: Annotated[Path | None, typer.Option("--from", help="An exported bank instead of a run.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say which adapters would help a packed data set, before anything is trained."""
    from atlas_dist.bank.package import read_package
    from atlas_dist.bank.similar import similar as compare
    from atlas_dist.bank.weights import load_weights
    from atlas_dist.coordinator.expand import packed_task
    from atlas_dist.data.manifest import read_manifest
    from atlas_dist.runs.stores import open_shards

    hush()
    config = composed(overrides)
    if task not in config.tasks:
        raise ConfigError(f"This configuration has no task {task!r}.", fix=f"It has: {', '.join(config.tasks)}.")
    spec = packed_task(config, task, partial(read_manifest, open_shards(config)))
    if folder:
        weights = read_package(folder)
    else:
        _, store, bank = _open(overrides)
        weights = load_weights(store, bank)
    found = compare(config, spec, weights)
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=1))
        return
    table = Table(title=f"{task}, {found.samples} training samples, beside the bank of {weights.run}", title_justify="left")
    for column in ("adapter", "similarity", "at its sites", f"retrieve={found.retrieve or 'all'}", "key"):
        table.add_column(column)
    for a in found.adapters:
        looked_at = "looked at" if a.retrieved else "–"
        table.add_row(a.task, f"{a.similarity:.3g}", f"{a.site_similarity:.3g}", looked_at, a.key[:SHORT])
    standard_console().print(table)
    if found.without_adapter:
        standard_console().print(f"Learnt without an adapter of their own: {', '.join(found.without_adapter)}", soft_wrap=True)


@bank_app.command("export")
def export(
    folder: Annotated[Path, typer.Argument(help="Folder to write; must not exist yet")],
    overrides: Overrides = None,
    task: Annotated[list[str] | None, typer.Option("--task", help="Only this one and what it sees; may be given again.")] = None,
) -> None:
    """Write learnt tasks as a folder in the manner of the Hugging Face hub, with a model card."""
    from atlas_dist.bank.package import export_bank
    from atlas_dist.bank.weights import load_weights

    config, store, bank = _open(overrides)
    weights = load_weights(store, bank, task or [], shards=shards_if_there(config))
    files = export_bank(store, bank, weights, folder)
    out = standard_console()
    out.print(
        f"{len(weights.tasks)} tasks in {folder}: {', '.join(t.learnt.name for t in weights.tasks.values())}", soft_wrap=True
    )
    unnamed = [t.learnt.name for t in weights.tasks.values() if not t.labels and t.learnt.task.kind.value != "choice"]
    if unnamed:
        out.print(f"without class names (their shards are not at {config.shards.url}): {', '.join(unnamed)}", soft_wrap=True)
    out.print(f"{sum(f.stat().st_size for f in files) / 1e6:.1f} MB in {len(files)} files; the model card is README.md")


@bank_app.command("import")
def import_(
    folder: Annotated[Path, typer.Argument(help="Folder that `bank export` wrote")],
    overrides: Overrides = None,
    name: Annotated[str, typer.Option("--as", help='Name of the run it becomes; "" = import-<a digest>.')] = "",
) -> None:
    """Take an exported bank into the store as a run of its own; runs that plan the same jobs then adopt its results."""
    from atlas_dist.bank.adopt import import_bank
    from atlas_dist.bank.package import read_package
    from atlas_dist.core.keys import digest_of

    config = composed(overrides)
    store = open_run_store(config)
    weights = read_package(folder)
    run = name or f"import-{digest_of(sorted(weights.tasks))[:SHORT]}"
    import_bank(store, folder, weights, run)
    standard_console().print(f"{len(weights.tasks)} tasks are now run {run} of {store.url}", soft_wrap=True)


def _open(overrides: list[str] | None, *, whole: bool = True) -> tuple[RunConfig, ObjectStore, Any]:
    """Configuration, store and bank; with `whole` off, a bank that cannot be read is None (its files are about to be judged)."""
    from atlas_dist.bank.contents import read_bank

    config = composed(overrides)
    store = open_run_store(config)
    try:
        return config, store, read_bank(store, config.run)
    except DataError:
        if whole:
            raise
        return config, store, None


def _as_json(bank: Bank, e: Learnt) -> dict[str, Any]:
    evaluation = bank.evaluation_of(e.key)
    return {
        "task": e.name,
        "key": e.key,
        "kind": e.task.kind.value,
        "classes": e.task.classes,
        "score": e.score,
        "evaluated": evaluation.score if evaluation else None,
        "predictions_sha256": evaluation.predictions_sha256 if evaluation else None,
        "by_chance": e.task.random_score,
        "draws_on": _names(bank, e.sees),
        "own_adapter": _own(e),
        "method": e.method,
        "settings": dict(e.settings),
        "precision": bank.precision,
        "base_model": {**e.base.address, "digest": e.base.digest},
        "data": {"dataset": e.task.dataset, **e.task.splits},
        "committed": _when(e),
        "adopted_from": e.adopted_from,
        "place": e.ref.prefix,
        "files": [{"name": b.name, "size": b.size, "sha256": b.sha256} for b in e.ref.blobs],
    }


def _line(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _difference(name: str, a: list[Learnt], b: list[Learnt], left: Bank, right: Bank) -> str:
    if not a or not b:
        return f"{name}: only in {(left if a else right).run}"
    if {e.key for e in a} == {e.key for e in b}:
        same = {_bytes(e) for e in a} == {_bytes(e) for e in b}
        return (
            f"{name}: the same job, {'every byte equal' if same else 'OTHER BYTES: this must not happen on one kind of machine'}"
        )
    scores = " -> ".join("/".join(f"{e.score:.1f}" for e in side) for side in (a, b))
    why = [
        word
        for word, differs in (
            ("data", a[0].task != b[0].task),
            ("method or settings", (a[0].method, a[0].settings) != (b[0].method, b[0].settings)),
            ("backbone", a[0].base.digest != b[0].base.digest),
            ("precision", left.precision != right.precision),
            ("earlier adapters", a[0].sees != b[0].sees),
        )
        if differs
    ]
    return f"{name}: learnt otherwise ({', '.join(why) or 'budget, seed or numerics'}), {scores} %"


def _bytes(e: Learnt) -> tuple[tuple[str, str], ...]:
    return (e.key, ""), *((b.name, b.sha256) for b in e.ref.blobs)


def _of_task(bank: Bank, name: str) -> list[Learnt]:
    return [e for e in bank.learnt.values() if e.task.name == name]


def _names(bank: Bank, keys: Iterable[str]) -> list[str]:
    return [bank.learnt[key].name if key in bank.learnt else key[:SHORT] for key in keys]


def _when(e: Learnt) -> str:
    return datetime.fromtimestamp(e.at, UTC).strftime("%Y-%m-%d %H:%M:%S")
