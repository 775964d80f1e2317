"""Results for people, on a console: the same in a shell and in a notebook."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from atlas_dist.app.report import Report
    from atlas_dist.data.pack import PackReport

_LEFT_OUT_SHOWN = 5


def standard_console() -> Console:
    """Standard output. What is piped is read by programs and by people's pagers: it is not folded at 80 columns."""
    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=160)


def show_report(report: Report, console: Console) -> None:
    """Tables, and where everything lies."""
    from atlas_dist.report.comparison import show_comparison
    from atlas_dist.report.console import show

    places = [("bank  ", report.store), ("report", str(report.page))]
    if report.table is not None:
        places.append(("table ", str(report.table)))
        show_comparison(report.rows, console, title="Rows of the sweep" if report.swept else "Methods on the same tasks")
        show(replace(report.facts, sequences=()), console, places)
        return
    show(report.facts, console, places)
    if report.notes or report.referenced:
        show_comparison(report.rows, console)
    for note in report.notes:
        console.print(note, markup=False, soft_wrap=True)


def show_packed(split: str, report: PackReport, console: Console) -> None:
    """What a split has, and what was left out of it."""
    manifest = report.manifest
    note = f", {len(report.unreadable)} left out" if report.unreadable else ""
    note += f", {report.reused_shards} shards were there" if report.reused_shards else ""
    console.print(
        f"packed {split}: {manifest.samples} samples, {len(manifest.classes)} classes, "
        f"{len(manifest.shards)} shards, {manifest.size / 1e6:.1f} MB{note}"
    )
    for record, reason in report.unreadable[:_LEFT_OUT_SHOWN]:
        console.print(f"  left out {record}: {reason}", markup=False)
