"""`atlas-dist bank gc` and `bank prune`: what a run no longer needs, and what a bank could do without."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from atlas_dist.app.show import standard_console
from atlas_dist.cli.words import Overrides
from atlas_dist.core.keys import SHORT

if TYPE_CHECKING:
    from atlas_dist.app.tidy import PruneProgress, PruneStep, WholeBank
    from atlas_dist.coordinator.collect import Remains, Survey

_LISTED = 20


def gc(
    overrides: Overrides = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete it; left out = only say what would be.")] = False,
    older_than: Annotated[
        float, typer.Option("--older-than", help="Hours since anything was recorded of an attempt.", min=0.0)
    ] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document instead of a table.")] = False,
) -> None:
    """Free what attempts left behind that nothing can use: failed or superseded ones, spent checkpoints, half-written files."""
    from atlas_dist.app.tidy import free_run

    out = standard_console()
    waits = "Freeing what run {} no longer needs; if its last coordinator crashed, this waits 15 s for it."
    found = free_run(
        *(overrides or ()),
        delete=yes,
        older_than_s=older_than * 3600.0,
        begin=lambda run: None if as_json else out.print(waits.format(run)),
        freed=lambda remains: None if as_json else out.print(f"freed {_line(remains)}", markup=False, soft_wrap=True),
    )
    if as_json:
        typer.echo(json.dumps({**asdict(found), "deleted": yes, "bytes": found.size}, indent=1))
        return
    _tell(found, out, deleted=yes)


def prune(
    folder: Annotated[Path, typer.Argument(help="Folder to write the smaller bank to; must not exist yet", show_default=False)],
    overrides: Overrides = None,
    budget: Annotated[float, typer.Option(help="Points of accuracy that the average over tasks may lose.", min=0.0)] = 0.5,
    worst: Annotated[float, typer.Option(help="Points of accuracy that any one task may lose.", min=0.0)] = 2.0,
    task: Annotated[list[str] | None, typer.Option("--task", help="Only this one and what it sees; may be given again.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Score everything again; take nothing from the ledger.")] = False,
) -> None:
    """Find adapters that a bank could do without, by leave-one-out; write what is left as an exported bank. Alters nothing."""
    from atlas_dist.app.tidy import PruneStep, WholeBank, prune_bank
    from atlas_dist.bank.prune import Allowance
    from atlas_dist.bank.prune_page import curve_table

    out = standard_console()
    with out.status("scoring") as status:

        def tell(news: WholeBank | PruneStep | PruneProgress) -> None:
            if isinstance(news, WholeBank):
                count = len(news.tasks)
                out.print(f"{count} tasks, {count} adapters, {_size(news.size)}: {', '.join(news.tasks)}", markup=False)
            elif isinstance(news, PruneStep):
                out.print(_step(news), markup=False, soft_wrap=True)
            else:
                status.update(f"{news.done} of {news.of} candidates of this round; {news.evaluations} evaluations so far")

        allowed = Allowance(budget, worst)
        found = prune_bank(folder, *(overrides or ()), budget=allowed, tasks=task or [], fresh=fresh, tell=tell)
    out.print(curve_table(found.record))
    left = ", ".join(found.dropped) or "nothing"
    out.print(f"left out: {left}; {found.evaluated} evaluations, {found.reused} scores from the ledger", markup=False)
    out.print(f"bank   {folder}\ncurve  {found.page}", markup=False, soft_wrap=True)


def _step(news: PruneStep) -> str:
    step, what = news.step, f"without {news.dropped}" if news.dropped else "the whole bank"
    lost = f"lost {step.lost:+.2f}, worst task {step.worst:+.2f}"
    verdict = "" if news.allowed else ": not allowed by the budget"
    return f"{what}: {len(step.kept)} adapters, mean {step.mean:.2f} % ({lost}){verdict}"


def _tell(found: Survey, out: Console, *, deleted: bool) -> None:
    if found.garbage and not deleted:
        _show("Nothing can use these any more", found.garbage, out)
    if found.halves:
        size = sum(half.size for half in found.halves)
        out.print(f"{len(found.halves)} half-written files of processes that died, {_size(size)}", markup=False)
    for title, pile in (
        ("Garbage, but younger than --older-than", found.young),
        ("Not committed, but a run that is started again may use it", found.kept),
        ("Unknown: no record speaks of these folders; look at them and delete them yourself", found.unknown),
    ):
        if pile:
            _show(title, pile, out)
    if found.kept:
        out.print(
            "What a run may still use is freed once it is over for good: atlas-dist cancel, then run again to have it recorded.",
            soft_wrap=True,
        )
    count = len(found.garbage) + len(found.halves)
    if not count:
        out.print(f"run {found.run}: nothing to free; committed files are never touched", markup=False)
    elif deleted:
        out.print(f"run {found.run}: {_size(found.size)} freed", markup=False)
    else:
        out.print(f"run {found.run}: {_size(found.size)} would be freed. Nothing was deleted; --yes does it.", markup=False)


def _show(title: str, pile: tuple[Remains, ...], out: Console) -> None:
    """A title of its own: rich would fold it to the table's width."""
    table = Table()
    for column in ("attempt", "last record (UTC)", "why", "files", "size"):
        table.add_column(column, justify="right" if column in ("files", "size") else "left")
    for each in pile[:_LISTED]:
        table.add_row(_short(each), _when(each.at), each.why, str(each.files), _size(each.size))
    if len(pile) > _LISTED:
        more = pile[_LISTED:]
        size = sum(each.size for each in more)
        table.add_row(f"and {len(more)} more", "", "", str(sum(each.files for each in more)), _size(size))
    out.print(title, style="bold")
    out.print(table)


def _line(each: Remains) -> str:
    return f"{_short(each)}: {each.files} files, {_size(each.size)} ({each.why})"


def _short(each: Remains) -> str:
    """`1a2b3c4d…-e1-2`: which job, epoch and number; enough to tell attempts of one run apart."""
    return each.attempt.replace(each.job, each.job[:SHORT], 1) if each.job else each.attempt


def _size(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def _when(at: float) -> Any:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M") if at else "–"
