"""README and docs: every `atlas-dist …` is a command that can be typed; every reference to a page, from text or code, leads to a
heading of this repository; lines are short. (`make lint` builds the site with --strict besides.)"""

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
OWN = {"mine", "more", "borrow"}
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


# ------------------------------------------------------------------------------------------------------- references and links

TEXTS = [*ROOT.glob("*.md"), *PAGES[1:], *sorted((ROOT / "cluster").rglob("*.md")), *sorted((ROOT / "atlas_dist").rglob("*.md"))]
FOLDERS, ENDINGS = (
    ("atlas_dist", "cluster", "configs", "docs", "scripts", "tests"),
    {".py", ".md", ".yaml", ".yml", ".toml", ".sbatch"},
)
SOURCES = [
    *(p for p in sorted(ROOT.iterdir()) if p.suffix in ENDINGS or p.name in {"Makefile", "Dockerfile"}),
    *(p for folder in FOLDERS for p in sorted((ROOT / folder).rglob("*")) if p.suffix in ENDINGS),
]
HEADING = re.compile(r"^#+ (.+?)\s*$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def headings(page: Path) -> list[str]:
    """Without their marks, the longest first; a `#` in a block of code is none."""
    found = HEADING.findall(FENCED.sub("", page.read_text(encoding="utf-8")))
    return sorted((heading.replace("`", "") for heading in found), key=len, reverse=True)


def anchor(heading: str) -> str:
    """As GitHub and mkdocs make it."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip())


def in_one_line(text: str) -> str:
    """A comment or docstring that goes on in the next line, together."""
    return re.sub(r"\s*\n\s*(?:# |\* )?\s*", " ", text)


def lost_references(text: str, at: Path) -> list[str]:
    """Names of documents in a file's text that are not in the repository, and sections that no heading of their page begins.

    A document is named as `docs/method.md`, from the page's own folder (`method.md`) or by what is at the top (`README.md`); a
    section as `docs/method.md, One site`.
    """
    text, lost = in_one_line(text), []
    for found in re.finditer(r"(?<![\w./:-])[\w./-]*[\w-]\.md\b", text):
        name, rest = found[0], text[found.end() :]
        places = (ROOT / name, at.parent / name, ROOT / "docs" / name)
        page = next((p.resolve() for p in places if p.is_file() and p.resolve().is_relative_to(ROOT)), None)
        if page is None:
            lost.append(f"{name}: there is no such document in the repository")
        elif (
            name.startswith("docs/") and re.match(r", [A-Z](?!\S*\.\w)", rest) and not rest[2:].startswith(tuple(headings(page)))
        ):
            lost.append(f"{name}{rest[:40]}…: the page has no such heading")
    return lost


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_references_lead_to_a_section_of_this_repository(path: Path) -> None:
    """A stranger who has this repository alone can look up whatever its code and docs refer to."""
    assert not lost_references(path.read_text(encoding="utf-8"), path)


def test_the_code_refers_to_the_docs() -> None:
    """So that the test above has something to look at: sections of both pages, from many files."""
    texts = [in_one_line(p.read_text(encoding="utf-8")) for p in SOURCES if p.suffix == ".py"]
    assert sum("docs/method.md, " in text for text in texts) > 20
    assert any("docs/reliability.md, Retries" in text for text in texts)


@pytest.mark.parametrize(
    "text",
    [
        "see METHOD" + ".md",
        "(DESIGN" + ".md, Durable state)",
        "../shared/RAY" + ".md",
        "docs/methodology" + ".md",
        "docs/method" + ".md, One place",
    ],
)
def test_a_lost_reference_is_found(text: str) -> None:
    assert lost_references(text, ROOT / "atlas_dist/errors.py")


@pytest.mark.parametrize(
    "text",
    ["docs/method" + ".md, One\n    # site: y", "docs/method.md and method.md", "README.md, AGENTS.md", "docs/method.md, which"],
)
def test_a_reference_that_leads_somewhere_is_not(text: str) -> None:
    assert not lost_references(text, ROOT / "atlas_dist/errors.py")


@pytest.mark.parametrize("page", TEXTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Files of the repository and their headings; other sites are not asked."""
    for target in LINK.findall(FENCED.sub("", page.read_text(encoding="utf-8"))):
        name, _, mark = target.partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        there = (page.parent / name).resolve() if name else page
        assert there.exists(), f"{target}: no such file"
        assert there.is_relative_to(ROOT), f"{target}: outside the repository"
        assert not mark or mark in map(anchor, headings(there)), f"{target}: {there.name} has no such heading"


CODE_FILE = re.compile(r"[\w./]*\w\.py(?=$|:)")


@pytest.mark.parametrize("page", TEXTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_named_code_exists(page: Path) -> None:
    """A file of code in backquotes: from the top of the repository, from the package, or (`pool.py`) by its name alone."""
    spans = re.findall(r"`([^`\n]+)`", FENCED.sub("", page.read_text(encoding="utf-8")))
    named = {found[0] for span in spans if (found := CODE_FILE.match(span))}
    names = {p.name for p in SOURCES}
    lost = [
        n for n in named if not ((ROOT / n).is_file() or (ROOT / "atlas_dist" / n).is_file() or ("/" not in n and n in names))
    ]
    assert not lost


# ------------------------------------------------------------------------------------------------------------------- the form

LONGEST_LINE, LONGEST_README = 120, 150


def long_lines(page: Path) -> list[str]:
    lines = enumerate(page.read_text(encoding="utf-8").splitlines(), 1)
    return [f"line {number} has {len(line)} characters" for number, line in lines if len(line) > LONGEST_LINE]


@pytest.mark.parametrize("page", TEXTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_lines_are_short(page: Path) -> None:
    """Readable in a terminal and in a diff, code and tables as well."""
    assert not long_lines(page)


def test_the_readme_takes_ten_minutes() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST_README
