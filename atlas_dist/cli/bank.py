"""`atlas-dist bank …`: look at what a run has learnt, check it, carry it elsewhere. Works from the store; needs no Ray."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from atlas_dist.app.show import standard_console
from atlas_dist.cli.bank_hub import pull, push
from atlas_dist.cli.bank_peft import (
    ExportForm,
    import_adapter,
    imported_as_json,
    imported_table,
    printable,
    show_imported,
    write_peft,
)
from atlas_dist.cli.bank_tidy import gc, prune
from atlas_dist.cli.words import Overrides
from atlas_dist.core.keys import SHORT
from atlas_dist.core.results import SelectResult, TrainResult
from atlas_dist.errors import ConfigError

if TYPE_CHECKING:  # what it imports takes a tenth of a second, which a shell's TAB and --help need not pay
    from atlas_dist.app.verify import ScoredAgain
    from atlas_dist.bank.contents import Bank, Learnt
    from atlas_dist.bank.difference import TaskDifference

bank_app = typer.Typer(help="What a run has learnt: list, show, check, export, import, tidy.", no_args_is_help=True)
bank_app.command("gc")(gc)
bank_app.command("push")(push)
bank_app.command("pull")(pull)
bank_app.command("prune")(prune)

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document instead of a table.")]
TaskWord = Annotated[str, typer.Argument(help="Task name, or the beginning of a key", show_default=False)]


@bank_app.command("ls")
def ls(overrides: Overrides = None, as_json: AsJson = False) -> None:
    """List the learnt tasks of a run, in the order they were committed."""
    from atlas_dist.app.bank import open_bank
    from atlas_dist.app.composed import compose_run
    from atlas_dist.bank.contents import runs_of

    composed_run = compose_run(*(overrides or ()))
    bank, store = open_bank(composed_run), composed_run.store
    if as_json:
        every = [*map(imported_as_json, bank.imported.values()), *(_as_json(bank, e) for e in bank.learnt.values())]
        typer.echo(json.dumps(every, indent=1))
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
    if bank.imported:
        out.print(imported_table(bank))
    if bank.learnt or not bank.imported:
        out.print(table)
    others = [run for run in runs_of(store) if run != bank.run]
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
    """Everything that is known of one learnt task or imported adapter: what it depends on, its scores or licence, its files."""
    from atlas_dist.app.bank import open_bank

    bank = open_bank(*(overrides or ()))
    imported = bank.find_imported(task)
    if imported is not None:
        show_imported(imported, as_json=as_json)
        return
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
    from atlas_dist.app.bank import open_bank

    bank, out = open_bank(*(overrides or ())), standard_console()
    for i in bank.imported.values():
        told = i.provenance
        out.print(
            f"{datetime.fromtimestamp(i.at, UTC):%Y-%m-%d %H:%M:%S}  {i.key[:SHORT]}  {i.name} imported from "
            + printable(f"{told.source} by {told.imported_by or 'somebody'}, licence {told.licence or 'not named'}"),
            markup=False, soft_wrap=True,
        )  # fmt: skip
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
    from atlas_dist.app.bank import diff_banks

    out = standard_console()
    for each in diff_banks(before, after, *(overrides or ())):
        out.print(_difference(each), markup=False, soft_wrap=True)


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
    from atlas_dist.app.verify import require_reproduced, rescore_folder, rescore_run, verify_folder, verify_run

    words, wanted, out = overrides or [], task or [], standard_console()
    if folder:
        whole = verify_folder(folder)
        out.print(
            f"{len(whole.names)} tasks of run {whole.weights.run}, {whole.weights.size / 1e6:.1f} MB: all whole"
            + (f"; pruned of the adapters of {', '.join(whole.left_out)}" if whole.left_out else ""),
            markup=False, soft_wrap=True,
        )  # fmt: skip
        if rescore:
            require_reproduced(rescore_folder(whole, *words, tasks=wanted, tell=_tell_rescored))
        return
    verified = verify_run(*words)
    for c in verified.faults:
        out.print(f"damaged: {c.ref.job[:SHORT]}: {c.fault}", markup=False, soft_wrap=True)
    verified.require_whole()
    count, files = len(verified.results), sum(len(c.ref.blobs) for c in verified.results)
    out.print(f"{count} committed results, {files} files, {verified.size / 1e6:.1f} MB: all whole")
    if rescore:
        require_reproduced(rescore_run(*words, tasks=wanted, tell=_tell_rescored))


def _tell_rescored(again: ScoredAgain) -> None:
    bits = ", every prediction bitwise equal" if again.bitwise else ""
    verdict = "reproduced" if again.reproduced else "NOT REPRODUCED"
    text = f"{again.task}: {again.score:.4f} %, {again.source} {again.expected:.4f} %: {verdict}{bits}"
    standard_console().print(text, markup=False, soft_wrap=True)


@bank_app.command("similar")
def similar(
    task: Annotated[str, typer.Option("--task", help="A packed task of the configuration; nothing of it need be learnt.")],
    overrides: Overrides = None,
    folder: Annotated[Path | None, typer.Option("--from", help="An exported bank instead of a run.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say which adapters would help a packed data set, before anything is trained."""
    from atlas_dist.app.bank import similar_adapters

    found, run = similar_adapters(task, *(overrides or ()), folder=folder)
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=1))
        return
    table = Table(title=f"{task}, {found.samples} training samples, beside the bank of {run}", title_justify="left")
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
    form: Annotated[
        ExportForm, typer.Option("--format", help="peft: one folder an adapter, for PEFT; peft-task: one a task.")
    ] = ExportForm.BANK,
) -> None:
    """Write learnt tasks as a folder in the manner of the Hugging Face hub, with a model card."""
    from atlas_dist.app.bank import export as export_tasks

    if form is not ExportForm.BANK:
        write_peft(folder, overrides or (), task or (), whole=form is ExportForm.PEFT_TASK)
        return

    written, out = export_tasks(folder, *(overrides or ()), tasks=task or []), standard_console()
    out.print(f"{len(written.tasks)} tasks in {folder}: {', '.join(written.tasks)}", soft_wrap=True)
    if written.unnamed:
        unnamed = ", ".join(written.unnamed)
        out.print(f"without class names (their shards are not at {written.shards}): {unnamed}", soft_wrap=True)
    out.print(f"{written.size / 1e6:.1f} MB in {len(written.files)} files; the model card is README.md")


@bank_app.command("import")
def import_(
    folder: Annotated[Path, typer.Argument(help="Folder that `bank export` wrote, or that PEFT saved a LoRA adapter in")],
    overrides: Overrides = None,
    name: Annotated[
        str, typer.Option("--as", help='Name of the run, and of an adapter; "" = import-<a digest>, or the folder\'s name.')
    ] = "",
    task: Annotated[
        str, typer.Option("--task", help="Of a PEFT adapter: a packed task with samples of the kind it was trained on.")
    ] = "",
    by: Annotated[str, typer.Option("--by", help='Of a PEFT adapter: who imports it; "" = the user of this shell.')] = "",
) -> None:
    """Take an exported bank, or a LoRA adapter of PEFT, into the store as a run of its own, for other runs to draw on."""
    from atlas_dist.app.bank import import_folder
    from atlas_dist.bank.peft_reading import is_peft

    if is_peft(folder):
        import_adapter(folder, overrides or (), task=task, name=name, by=by)
        return
    if task or by:
        raise ConfigError(f"--task and --by are for adapters of PEFT; {folder} is none.", fix="Leave them out.")
    taken = import_folder(folder, *(overrides or ()), name=name)
    standard_console().print(f"{taken.tasks} tasks are now run {taken.run} of {taken.store}", soft_wrap=True)


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
        "base_model": {**e.base.recorded, "digest": e.base.digest},
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


def _difference(task: TaskDifference) -> str:
    if task.only_in:
        return f"{task.task}: only in {task.only_in}"
    if task.same_job:
        bytes_ = "every byte equal" if task.same_bytes else "OTHER BYTES: this must not happen on one kind of machine"
        return f"{task.task}: the same job, {bytes_}"
    scores = " -> ".join("/".join(f"{score:.1f}" for score in side) for side in task.scores)
    return f"{task.task}: learnt otherwise ({', '.join(task.why) or 'budget, seed or numerics'}), {scores} %"


def _names(bank: Bank, keys: Iterable[str]) -> list[str]:
    return [bank.name_of(key) for key in keys]


def _when(e: Learnt) -> str:
    return datetime.fromtimestamp(e.at, UTC).strftime("%Y-%m-%d %H:%M:%S")
