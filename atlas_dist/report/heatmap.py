"""Matrices as heat maps: a table whose coloured cells say in words what they are, under a pointer or the keyboard's focus.

HTML and CSS, no picture: it follows the page's colours, its text wraps on a phone, and a screen reader knows rows and columns.
The few lines of templates/page.js make a map one stop of the Tab key, with arrow keys inside; without them every cell is a stop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

from atlas_dist.report.html import wide

MOST = 40
"""Rows and columns of a map: more are narrower than a finger."""
_NUMBERED = 12
"""Columns up to which the numbers stand in the cells."""
_ACROSS = 4
"""Columns up to which names are written across."""
_LONGEST = 24
"""Characters of a name; the sentence of a cell has it in full."""


class HeatCell(NamedTuple):
    """One value and the sentence that tells it. None = it is not there, and the sentence says why."""

    value: float | None
    told: str


@dataclass(frozen=True)
class HeatMap:
    """A matrix to be drawn. Where a value is negative the colours run to both sides of zero, else from zero."""

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    cells: Sequence[Sequence[HeatCell | None]]
    """Row by row; None = the matrix has no such cell (above the diagonal)."""
    form: str = ".1f"
    full: float | None = None
    """The value with the deepest colour; None = the largest there is."""
    note: str = ""
    """What there is to know beside the title; text."""


def heat_map(drawn: HeatMap) -> str:
    """The map as HTML; "" where it has no value."""
    values = [cell.value for row in drawn.cells for cell in row if cell is not None and cell.value is not None]
    if not values:
        return ""
    full = drawn.full or max(map(abs, values)) or 1.0
    left_out = max(len(drawn.rows), len(drawn.columns)) > MOST
    fewer = f"{MOST} rows and columns are drawn; the CSV files have all." if left_out else ""
    note = escape(" ".join(filter(None, (drawn.note, fewer))))
    return (
        f'<div class="block heat"><p class="caption">{escape(drawn.title)}</p>'
        f"{f'<p class=soft>{note}</p>' if note else ''}{wide(_body(drawn, full), escape(drawn.title))}"
        f"{_scale(full, drawn.form, both=min(values) < 0)}</div>"
    )


def _body(drawn: HeatMap, full: float) -> str:
    """The table: names at both edges, numbers in the cells while there is room for them."""
    columns = thinned(len(drawn.columns))
    numbered = len(columns) <= _NUMBERED
    lines = []
    for i in thinned(len(drawn.rows)):
        name, row = drawn.rows[i], drawn.cells[i]
        cells = "".join(_cell(row[j] if j < len(row) else None, full, drawn.form if numbered else "") for j in columns)
        lines.append(f'<tr><th scope="row">{_short(name)}</th>{cells}</tr>')
    head = "".join(f'<th scope="col"><span>{_short(drawn.columns[j])}</span></th>' for j in columns)
    kind = "map fine" if not numbered else "map tall" if len(columns) > _ACROSS else "map"
    return f'<table class="{kind}"><thead><tr><td></td>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'


def thinned(count: int, most: int = MOST) -> Sequence[int]:
    """Which of `count` are drawn: all, or `most` at equal distances with the first and the last."""
    if count <= most:
        return range(count)
    return [round(n * (count - 1) / (most - 1)) for n in range(most)]


def _cell(cell: HeatCell | None, full: float, form: str) -> str:
    if cell is None:
        return "<td></td>"
    told = f'tabindex="0" aria-label="{escape(cell.told)}"'
    if cell.value is None:
        return f'<td class="none" {told}>{"·" if form else ""}</td>'
    kind = "below" if cell.value < 0 else "above"
    share = min(1.0, abs(cell.value) / full)
    return f'<td class="{kind}" style="--share:{share:.2f}" {told}>{format(cell.value, form) if form else ""}</td>'


def _scale(full: float, form: str, *, both: bool) -> str:
    """Which colour is which value."""
    low, kind = (-full, "both") if both else (0.0, "up")
    return f'<p class="scale"><span>{low:{form}}</span><i class="{kind}"></i><span>{full:{form}}</span></p>'


def _short(name: str) -> str:
    return escape(name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…")
