"""Small pictures as inline SVG and coloured cells: they follow the page's colours, print well, and need nothing from outside.

Written by hand because the well-kept libraries do not inline as small: one chart is 2 to 5 kB here, 20 kB and more as
matplotlib's SVG (with fixed colours, and text as outlines that no screen reader reads), and a share of 1 to 4 MB of script with
Plotly, Bokeh or Vega-Lite, where the whole page is to stay under 300 kB.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

Point = tuple[float, float]

COLOURS = 6
"""Lines of one chart that can be told apart."""

_W, _H, _LEFT, _TOP, _RIGHT, _BOTTOM, _LINE = 360, 180, 36, 8, 8, 24, 15


def heat_cell(value: float | None, full: float, form: str, least: float = 0.0) -> str:
    """A table cell whose background deepens from `least` to `full`, below zero in another colour; the number is always
    there to read."""
    if value is None:
        return "<td>–</td>"
    if value < 0 and least == 0:
        return f'<td class="heat minus" style="--share:{min(1.0, -value / full) if full > 0 else 1.0:.3f}">{value:{form}}</td>'
    share = max(0.0, min(1.0, (value - least) / (full - least))) if full > least else 0.5
    return f'<td class="heat" style="--share:{share:.3f}">{value:{form}}</td>'


def line_chart(series: Mapping[str, Sequence[Point]], title: str, top: float = 100.0, unit: str = "step {}") -> str:
    """Lines over a common x axis; y runs from 0 to `top` (percent, or a loss). Points far apart are marked.

    `unit`: how the end of the x axis is called, with {} for its number.
    """
    points = [p for line in series.values() for p in line]
    if not points:
        return ""
    last = max(x for x, _ in points) or 1.0
    rows = (len(series) + 1) // 2
    parts = [
        f'<svg viewBox="0 0 {_W} {_H + _LINE * rows}" role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>'
    ]
    for quarter in range(5):
        at = _y(25.0 * quarter)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_W - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 4}" y="{at + 4:.1f}" text-anchor="end">{top * quarter / 4:.3g}</text>')
    end = escape(unit.format(f"{last:.0f}"))
    parts.append(f'<text x="{_LEFT}" y="{_H - 6}">0</text><text x="{_W - _RIGHT}" y="{_H - 6}" text-anchor="end">{end}</text>')
    for number, (name, line) in enumerate(series.items()):
        scaled = [(x, min(100.0, 100.0 * y / top)) for x, y in line]
        path = " ".join(f"{_x(x, last):.1f},{_y(y):.1f}" for x, y in scaled)
        parts.append(f'<polyline class="line{number}" points="{path}"><title>{escape(name)}</title></polyline>' if path else "")
        if len(line) <= 12:
            parts.extend(f'<circle class="dot{number}" cx="{_x(x, last):.1f}" cy="{_y(y):.1f}" r="3"/>' for x, y in scaled)
        parts.append(_legend(number, name if line else f"{name} (nothing)"))
    return "".join(parts) + "</svg>"


def round_top(value: float) -> float:
    """The least of 1, 2, 4, 8 times a power of ten that is not below: quarters of it are short numbers."""
    power = 1.0
    while power > value > 0:
        power /= 10
    while power * 10 < value:
        power *= 10
    return next(power * digit for digit in (1, 2, 4, 8, 10) if power * digit >= value)


def _legend(number: int, name: str) -> str:
    """Below the plot, two a row: a piece of the line and its name. Inside the plot it would lie on the lines."""
    x, y = _LEFT + (_W - _LEFT) // 2 * (number % 2), _H + 4 + _LINE * (number // 2)
    return (
        f'<line class="line{number}" x1="{x}" x2="{x + 20}" y1="{y}" y2="{y}"/>'
        f'<text x="{x + 25}" y="{y + 4}">{escape(name if len(name) <= 26 else name[:25] + "…")}</text>'
    )


def _x(value: float, last: float) -> float:
    return _LEFT + (_W - _LEFT - _RIGHT) * value / last


def _y(percent: float) -> float:
    return _TOP + (_H - _TOP - _BOTTOM) * (1 - percent / 100)


_NODE, _STEP, _ARC = 14, 130, 44


def lineage(nodes: Sequence[str], edges: Mapping[tuple[int, int], float], beside: frozenset[int], title: str) -> str:
    """Tasks on a line in the order of learning, an arc from each adapter to every task that reads it.

    Args:
        edges: (adapter, task) -> mean α: an arc's width. beside: nodes that stay out of the bank (drawn hollow).
    """
    span = max((b - a for a, b in edges), default=1)
    width, base = _STEP * len(nodes), 20 + _ARC * span
    low, high = min(edges.values(), default=0.0), max(edges.values(), default=1.0)
    parts = [
        f'<svg viewBox="0 0 {width} {base + 46}" style="min-width:{min(width, 640)}px;max-width:{width}px" role="img" '
        f'aria-label="{escape(title)}"><title>{escape(title)}</title>'
    ]
    for (a, b), alpha in edges.items():
        x0, x1, up = _STEP * (a + 0.5), _STEP * (b + 0.5), base - _ARC * (b - a) * 1.3
        weight = 1.5 + 4.5 * ((alpha - low) / (high - low) if high > low else 0.5)
        told = f"{nodes[b]} reads the adapter of {nodes[a]}: mean α {alpha:.3f}"
        parts.append(
            f'<path class="arc" d="M{x0:.0f} {base - _NODE} Q{(x0 + x1) / 2:.0f} {up - 12:.0f} {x1:.0f} {base - _NODE}" '
            f'stroke-width="{weight:.1f}"><title>{escape(told)}</title></path>'
        )
    for number, name in enumerate(nodes):
        x = _STEP * (number + 0.5)
        kind = "node beside" if number in beside else "node"
        parts.append(f'<circle class="{kind}" cx="{x:.0f}" cy="{base}" r="{_NODE - 4}"/>')
        parts.append(f'<text x="{x:.0f}" y="{base + 30}" text-anchor="middle">{escape(name[:20])}</text>')
    return "".join(parts) + "</svg>"


Bar = tuple[str, float, float, str, str]
"""(row's name, begin, end, class, what a pointer reads)"""


def bars(rows: Sequence[Bar], seconds: float, title: str) -> str:
    """Spans of time from 0 to `seconds`, one below the other; those of one name share a row."""
    left, right, line = 230, 770, 18
    places = {name: number for number, name in enumerate(dict.fromkeys(row[0] for row in rows))}
    height = line * len(places) + 26
    scale = (right - left) / (seconds or 1.0)
    parts = [
        f'<svg viewBox="0 0 {right + 20} {height}" style="min-width:640px" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>"
    ]
    for name, number in places.items():
        shown = escape(name if len(name) <= 36 else "…" + name[-35:])
        parts.append(f'<text x="{left - 6}" y="{line * number + 13}" text-anchor="end">{shown}</text>')
    for name, begin, end, kind, told in rows:
        y = line * places[name]
        x, width = left + begin * scale, max(1.5, (end - begin) * scale)
        place = f'x="{x:.1f}" y="{y + 3}" width="{width:.1f}" height="{line - 6}"'
        parts.append(f'<rect class="{kind}" {place}><title>{escape(told)}</title></rect>')
    at = height - 8
    parts.append(f'<text x="{left}" y="{at}">0</text><text x="{right}" y="{at}" text-anchor="end">{seconds:.0f} s</text>')
    return "".join(parts) + "</svg>"
