"""What every page of a report is made of: one file, no request leaves it, readable on a phone and in the dark."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

_TEMPLATES = Path(__file__).parent / "templates"
_STYLE = (_TEMPLATES / "page.css").read_text(encoding="utf-8")
_SCRIPT = (_TEMPLATES / "page.js").read_text(encoding="utf-8")


def document(title: str, lede: str, links: Mapping[str, str], body: str, answer: str = "") -> str:
    """A whole page. `lede`, `body` and `answer` (what stands before the list of parts) are HTML, `title` is text; `links`: id of
    a part -> what it is called, as text."""
    listed = "".join(f'<li><a href="#{at}">{escape(name)}</a></li>' for at, name in links.items())
    nav = f'<nav aria-label="Parts of this page"><ul>{listed}</ul></nav>' if links else ""
    script = f"<script>{_SCRIPT}</script>" if 'class="map' in body else ""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head><body>'
        f"<header><h1>{escape(title)}</h1><p class=lede>{lede}</p></header><main>{answer}{nav}{body}</main>{script}</body></html>"
    )


def table(caption: str, head: str, rows: str) -> str:
    """A table that scrolls sideways by itself on a narrow screen, by keyboard too."""
    return (
        f'<div class="block"><p class="caption">{caption}</p>'
        f"{wide(f'<table><thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table>', caption)}</div>"
    )


def wide(content: str, name: str) -> str:
    """A box that scrolls sideways by itself, by keyboard too; `name` (tags in it are left out) is what a screen reader says."""
    return f'<div class="wide" tabindex="0" role="region" aria-label="{re.sub("<[^>]*>", "", name)}">{content}</div>'


def folded(summary: str, content: str) -> str:
    """Something that opens when it is asked for. `summary` is text, `content` HTML; "" without content."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>" if content else ""


def in_columns(parts: Iterable[str]) -> str:
    """Blocks beside each other where there is room, below each other where there is not; "" without any."""
    shown = "".join(f"<div>{part}</div>" for part in parts if part)
    return f'<div class="side">{shown}</div>' if shown else ""
