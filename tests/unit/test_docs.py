"""Every `atlas-dist …` in README and docs is a command that exists, with options and settings that it takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from atlas_dist.cli.app import app
from atlas_dist.compose import compose_config, compose_rows
from atlas_dist.core.search import space_of

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
OWN = {"mine", "more"}
"""Experiments that the pages let a reader write."""


FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def commands(text: str) -> set[str]:
    """What a reader would type: from `atlas-dist` to the comment, the mark or the end."""
    lines = [line for kind, block in FENCED.findall(text) if kind != "python" for line in block.replace("\\\n", " ").splitlines()]
    typed = [found[1] for line in lines if (found := re.search(r"(?:^|\s{3,})(atlas-dist [a-z-].*)", line))]
    inline = [part.strip() for span in re.findall(r"`([^`\n]+)`", FENCED.sub("", text)) for part in span.split(";")]
    named = [part for part in inline if part.startswith("atlas-dist ")]
    return {re.split(r"\s{2,}[#✓–]|\s{3,}(?!\S+=)", line)[0].strip() for line in (*typed, *named)}


FOUND = sorted({(page.name, command) for page in PAGES for command in commands(page.read_text(encoding="utf-8"))})


def test_the_pages_have_commands() -> None:
    assert len(FOUND) > 50


@pytest.mark.parametrize(("page", "line"), FOUND)
def test_it_can_be_typed(page: str, line: str) -> None:
    group: Any = typer.main.get_command(app)
    root = group.make_context("atlas-dist", ["config"], resilient_parsing=True)
    words = [word for word in shlex.split(line)[1:] if "…" not in word]
    if words[0].startswith("--"):
        assert words[0] in {"--help", *(name for option in group.params for name in option.opts)}
        return
    while hasattr(group, "commands"):
        assert words[0] in group.commands, f"there is no command {words[0]}"
        group = group.commands[words.pop(0)]
        if not words:
            return  # named, not typed
    settings = settings_of(group.make_context(group.name, list(words), parent=root))
    chosen = {word.partition("=")[2] for word in settings if word.startswith("experiment=")}
    if not chosen or chosen & OWN:
        return
    if "-m" in words:
        compose_rows(settings)
    else:
        compose_config([word for word in settings if space_of(word) is None])


def settings_of(context: Any) -> list[str]:
    """The key=value words of a command."""
    return [word for name in ("overrides", "runs") for word in context.params.get(name) or () if "=" in word]
