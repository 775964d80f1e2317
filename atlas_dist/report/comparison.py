"""Methods side by side: one table on a terminal, the same numbers as CSV."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from atlas_dist.core.metrics import Spread
from atlas_dist.report.measures import (
    AVERAGE,
    FORGETTING,
    FORWARD,
    LOW_SHOT,
    MEASURES,
    PARAMETERS,
    SECONDS,
    STEPS,
    UPSTREAM,
    Row,
)

_HEADINGS = {
    AVERAGE: "average accuracy",
    FORGETTING: "forgetting T_F",
    FORWARD: "forward",
    UPSTREAM: "T_UK",
    LOW_SHOT: "T_LS",
    PARAMETERS: "trained parameters",
    STEPS: "steps",
    SECONDS: "seconds",
}
_COUNTS = (PARAMETERS, STEPS, SECONDS)


def show_comparison(rows: Sequence[Row], console: Console, *, title: str = "Methods on the same tasks") -> None:
    """Print the table. Accuracy in percent; forgetting and transfer in percent of what is above chance; parameters a job."""
    known = [name for name in _HEADINGS if any(name in row.measures for row in rows)]
    table = Table()
    table.add_column("method")
    for name in known:
        table.add_column(_HEADINGS[name], justify="right")
    sensitive = any(row.order_sensitivity is not None for row in rows)
    if sensitive:
        table.add_column("by order", justify="right")
    for row in rows:
        cells = [_cell(name, row.measures.get(name)) for name in known]
        cells += [f"{row.order_sensitivity or 0.0:.1f}"] if sensitive else []
        table.add_row(row.variant, *cells)
    console.print(f"[bold]{title}[/bold]")
    console.print(table)
    for row in rows:
        for reason in row.refused:
            console.print(f"{row.variant}: not compared with its reference: {reason}", markup=False)


def write_comparison(rows: Sequence[Row], folder: Path) -> Path:
    """Write `comparison.csv`: method, measure, mean, deviation, count."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "comparison.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "measure", "mean", "deviation", "count"])
        for row in rows:
            for name in MEASURES:
                if (found := row.measures.get(name)) is not None:
                    writer.writerow([row.variant, name, f"{found.mean:.6g}", f"{found.deviation:.6g}", found.count])
            if row.order_sensitivity is not None:
                writer.writerow([row.variant, "order sensitivity", f"{row.order_sensitivity:.6g}", "", ""])
    return path


def _cell(name: str, value: Spread | None) -> str:
    if value is None:
        return "–"
    return f"{value.mean:,.0f}" if name in _COUNTS else str(value)
