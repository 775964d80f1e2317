"""The curve of a pruning, size against accuracy: on a terminal, as CSV, and as one small page in the manner of the report."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from html import escape
from typing import Any

from rich.table import Table

from atlas_dist.report.html import document, table
from atlas_dist.report.svg import COLOURS, heat_cell, line_chart

PAGE_FILE, TABLE_FILE = "prune.html", "prune.csv"


def curve_table(record: Mapping[str, Any]) -> Table:
    """A row a step, for a terminal; `record` as `bank.prune.as_record` makes it."""
    tasks = list(record["keys"])
    out = Table(title="Size and accuracy (%), one adapter fewer a row", title_justify="left")
    for column in ("without", "adapters", "MB", "mean", "lost", "worst", *tasks):
        out.add_column(column, justify="left" if column == "without" else "right")
    for name, step in _named(record):
        cells = [
            str(step["adapters"]),
            f"{step['bytes'] / 1e6:.2f}",
            *(f"{step[what]:.2f}" for what in ("mean", "lost", "worst")),
        ]
        out.add_row(name, *cells, *(f"{step['scores'][task]:.2f}" for task in tasks))
    return out


def curve_files(record: Mapping[str, Any]) -> dict[str, bytes]:
    """`prune.csv` and `prune.html`."""
    return {TABLE_FILE: _csv(record).encode(), PAGE_FILE: _page(record).encode()}


def _named(record: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """What each row is called. The step that the budget refused is one, too: it says what the next adapter would have cost."""
    rows = [(f"– {step['dropped']}" if step["dropped"] else "the whole bank", step) for step in record["steps"]]
    refused = record["refused"]
    return [*rows, (f"– {refused['dropped']} (not allowed)", refused)] if refused else rows


def _csv(record: Mapping[str, Any]) -> str:
    tasks = list(record["keys"])
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(["dropped", "allowed", "adapters", "bytes", "mean", "lost", "worst", *tasks])
    for _, step in _named(record):
        allowed = step is not record["refused"]
        numbers = [f"{step[what]:.6g}" for what in ("mean", "lost", "worst")]
        scores = [f"{step['scores'][task]:.6g}" for task in tasks]
        writer.writerow([step["dropped"], allowed, step["adapters"], step["bytes"], *numbers, *scores])
    return out.getvalue()


def _page(record: Mapping[str, Any]) -> str:
    tasks = list(record["keys"])
    steps = [step for _, step in _named(record)]
    first, last = steps[0]["scores"], steps[-1]["scores"]
    drawn = sorted(tasks, key=lambda task: last[task] - first[task])[: COLOURS - 1]
    lines = {task: [(step["adapters"], step["scores"][task]) for step in reversed(steps)] for task in tasks if task in drawn}
    which = "Every task" if len(drawn) == len(tasks) else f"The {len(drawn)} tasks that lost most, and the mean of all,"
    chart = line_chart(
        {"mean": [(step["adapters"], step["mean"]) for step in reversed(steps)]} | lines,
        "Validation score in % by the number of adapters that are left",
        unit="{} adapters",
    )
    head = "".join(f'<th scope="col">{escape(h)}</th>' for h in ("adapters", "MB", "mean", "lost", "worst", *tasks))
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{step["adapters"]}</td><td>{step["bytes"] / 1e6:.2f}</td>'
        f"<td>{step['mean']:.2f}</td><td>{step['lost']:.2f}</td><td>{step['worst']:.2f}</td>"
        f"{''.join(heat_cell(step['scores'][task], 100.0, '.2f') for task in tasks)}</tr>"
        for name, step in _named(record)
    )
    budget = record["budget"]
    left = record["steps"][-1]
    lede = (
        f"{left['adapters']} of {len(tasks)} adapters are left: {escape(', '.join(left['kept']) or 'none')}. The budget was "
        f"{budget['mean']:g} points of the average and {budget['worst']:g} points of any one task."
    )
    figure = f"<figure>{chart}<figcaption>{which} with what is left of its view, on its validation split.</figcaption></figure>"
    return document(f"Pruned bank of run {record['run']}", lede, {}, figure + table("Step by step (score in %)", head, rows))
