"""One value a row on a common axis, with what it is compared with: bars, deviations, intervals and marks.

HTML and CSS like the heat maps: the numbers stand beside their bars as text, and a phone shows them as large as a desk does. (A
chart library was weighed: matplotlib's SVG is 20 kB and more a picture, has fixed colours and text as outlines; Plotly, Bokeh and
Vega-Lite inline 1 to 4 MB of script. The whole page is to stay under 300 kB.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

MARKS = {"chance": "chance", "reference": "learnt alone", "later": "latest view: read with the newest queries and every adapter"}
"""Kinds of marks and what the legend calls them."""


@dataclass(frozen=True)
class PlotRow:
    """One row: a bar from `begin` to `value`, a line from `low` to `high` (None = none) and marks by kind (MARKS)."""

    name: str
    value: float | None
    text: str
    """The value as it is to be read."""
    low: float | None = None
    high: float | None = None
    marks: Mapping[str, float] = field(default_factory=dict)
    more: str = ""
    """What else there is to say, small."""
    hollow: bool = False
    """Drawn as an outline: a task that stays out of the bank."""


def plot(
    title: str,
    rows: Sequence[PlotRow],
    low: float,
    high: float,
    note: str = "",
    unit: str = " %",
    spread: str = "± standard deviation",
) -> str:
    """Rows on an axis from `low` to `high`; bars begin at 0. "" without a row. `note`: text below it; `spread`: what the lines
    from `PlotRow.low` to `high` are."""
    if not rows:
        return ""
    span = (high - low) or 1.0

    def at(value: float) -> float:
        return 100 * max(0.0, min(1.0, (value - low) / span))

    lines = []
    for row in rows:
        drawn = "" if row.value is None else _bar(at(min(0.0, row.value)), at(max(0.0, row.value)), hollow=row.hollow)
        if row.low is not None and row.high is not None:
            drawn += f'<i class="reach" style="left:{at(row.low):.1f}%;width:{at(row.high) - at(row.low):.1f}%"></i>'
        drawn += "".join(f'<i class="mark {kind}" style="left:{at(value):.1f}%"></i>' for kind, value in row.marks.items())
        if low < 0:
            drawn += f'<i class="zero" style="left:{at(0):.1f}%"></i>'
        more = f"<small>{escape(row.more)}</small>" if row.more else ""
        lines.append(
            f'<tr><th scope="row">{escape(row.name)}</th><td class="track" aria-hidden="true"><div>{drawn}</div></td>'
            f'<td class="text">{escape(row.text)}{more}</td></tr>'
        )
    used = [kind for kind in MARKS if any(kind in row.marks for row in rows)]
    legend = "".join(f'<li><i class="mark {kind}"></i>{escape(MARKS[kind])}</li>' for kind in used)
    legend += f"<li><i class=reach></i>{escape(spread)}</li>" if any(row.low is not None for row in rows) else ""
    axis = f"<span>{low:g}{unit}</span><span>{high:g}{unit}</span>"
    return (
        f'<div class="block plotted"><p class="caption">{escape(title)}</p><table class="plot"><tbody>{"".join(lines)}'
        f'<tr class="axis" aria-hidden="true"><td></td><td><div>{axis}</div></td><td></td></tr></tbody></table>'
        f"{f'<ul class=legend>{legend}</ul>' if legend else ''}{f'<p class=soft>{escape(note)}</p>' if note else ''}</div>"
    )


def _bar(begin: float, end: float, *, hollow: bool) -> str:
    return f'<i class="bar{" hollow" if hollow else ""}" style="left:{begin:.1f}%;width:{end - begin:.1f}%"></i>'
