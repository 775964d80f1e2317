"""Results for people, on a console: the same in a shell and in a notebook."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.console import Console

from atlas_dist.coordinator.stop_signals import to_nowhere
from atlas_dist.data.leftout import SHOWN, LeftOut, by_reason

if TYPE_CHECKING:
    from atlas_dist.app.report import Report
    from atlas_dist.data.pack import PackReport


def standard_console() -> Console:
    """Standard output. What is piped is read by programs and by people's pagers: it is not folded at 80 columns."""
    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=160)


@contextmanager
def output_may_be_lost() -> Iterator[None]:
    """Around what only prints: a closed terminal, a pipe that nobody reads or a full disk end the showing, not the run."""
    try:
        yield
    except OSError:
        for descriptor in (1, 2):
            to_nowhere(descriptor)


def show_report(report: Report, console: Console) -> None:
    """Tables, and where everything lies."""
    from atlas_dist.report.comparison import show_comparison
    from atlas_dist.report.console import show

    places = [("bank  ", report.store)]
    if not report.fault:
        places.append(("report", str(report.page)))
    if report.compared:
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
    note = f", {len(report.left_out)} left out" if report.left_out else ""
    note += f", {report.reused_shards} shards were there" if report.reused_shards else ""
    console.print(
        f"packed {split}: {manifest.samples} samples, {len(manifest.classes)} classes, "
        f"{len(manifest.shards)} shards, {manifest.size / 1e6:.1f} MB{note}"
    )
    show_left_out(report.left_out, report.notes, console)


def show_left_out(left_out: Iterable[LeftOut], notes: Iterable[str], console: Console) -> None:
    """Each reason with its count and its first records, then what is odd."""
    for reason, entries in by_reason(left_out).items():
        console.print(f"  left out {len(entries)}: {reason}", markup=False, soft_wrap=True)
        for entry in entries[:SHOWN]:
            console.print(f"    {entry.record}{f': {entry.detail}' if entry.detail else ''}", markup=False, soft_wrap=True)
    for sentence in notes:
        console.print(f"  note: {sentence}", markup=False, soft_wrap=True)
