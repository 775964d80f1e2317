"""Small pictures as inline SVG and coloured cells: they follow the page's colours, print well, and need nothing from outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

Point = tuple[float, float]

_W, _H, _LEFT, _TOP, _RIGHT, _BOTTOM = 360, 180, 36, 8, 8, 24


def heat_cell(value: float | None, full: float, form: str) -> str:
    """A table cell whose background deepens from 0 to `full`; the number itself is always there to read."""
    if value is None:
        return "<td>–</td>"
    share = max(0.0, min(1.0, value / full))
    return f'<td class="heat" style="--share:{share:.3f}">{value:{form}}</td>'


def line_chart(series: Mapping[str, Sequence[Point]], title: str) -> str:
    """Lines over a common x axis; y runs from 0 to 100 %. Points far apart are marked."""
    points = [p for line in series.values() for p in line]
    if not points:
        return ""
    last = max(x for x, _ in points) or 1.0
    parts = [f'<svg viewBox="0 0 {_W} {_H}" role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>']
    for y in (0, 25, 50, 75, 100):
        at = _y(y)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_W - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 4}" y="{at + 4:.1f}" text-anchor="end">{y}</text>')
    parts.append(
        f'<text x="{_LEFT}" y="{_H - 6}">0</text><text x="{_W - _RIGHT}" y="{_H - 6}" text-anchor="end">step {last:.0f}</text>'
    )
    for number, (name, line) in enumerate(series.items()):
        if not line:
            continue
        path = " ".join(f"{_x(x, last):.1f},{_y(y):.1f}" for x, y in line)
        parts.append(f'<polyline class="line{number}" points="{path}"><title>{escape(name)}</title></polyline>')
        if len(line) <= 12:
            parts.extend(f'<circle class="dot{number}" cx="{_x(x, last):.1f}" cy="{_y(y):.1f}" r="3"/>' for x, y in line)
        parts.append(
            f'<text class="name{number}" x="{_W - _RIGHT}" y="{_TOP + 110 + 14 * number}" text-anchor="end">{escape(name)}</text>'
        )
    return "".join(parts) + "</svg>"


def _x(value: float, last: float) -> float:
    return _LEFT + (_W - _LEFT - _RIGHT) * value / last


def _y(percent: float) -> float:
    return _TOP + (_H - _TOP - _BOTTOM) * (1 - percent / 100)
