"""Terminals that lack letters, or are gone: a run that has learnt everything does not fail at its last table."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from atlas_dist.app.show import output_may_be_lost
from atlas_dist.cli.terminal import spell_out
from tests.kits.bank import copied, toys
from tests.kits.shell import Command


def written(encoding: str, text: str, monkeypatch: pytest.MonkeyPatch, errors: str = "strict") -> str:
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding=encoding, errors=errors, newline="\n"))
    spell_out()
    sys.stdout.write(text)
    sys.stdout.flush()
    return raw.getvalue().decode(encoding)


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp1252", "cp437", "koi8-r"])
def test_what_an_encoding_lacks_is_spelt(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = written(encoding, "mean α of each → ≥ 0.5 … ┏━┓│ 数 Ŝ", monkeypatch)
    assert "mean a" in text or "mean α" in text
    assert "0.5" in text
    assert "\\u6570" in text
    if encoding in ("latin-1", "ascii"):
        assert text == "mean alpha of each -> >= 0.5 ... +-+| \\u6570 S"


def test_an_encoding_with_all_letters_shows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert written("utf-8", "mean α → 数", monkeypatch) == "mean α → 数"


def test_a_name_of_no_text_is_shown_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """File names are bytes; one that is no UTF-8 reaches Python with half letters in it."""
    assert "caf" in written("utf-8", os.fsdecode(b"caf\xe9.jpg"), monkeypatch)


def test_what_a_user_has_chosen_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    assert written("ascii", "α", monkeypatch, errors="replace") == "?"


def test_tables_of_rich_go_through(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="latin-1", newline="\n"))
    spell_out()
    table = Table()
    table.add_column("mean α")
    table.add_row("–")
    Console().print(table)
    sys.stdout.flush()
    assert b"mean alpha" in raw.getvalue()


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_a_report_is_shown_on_a_terminal_that_is_not_utf8(encoding: str, tmp_path: Path) -> None:
    """As a shell sees it, of a run that was really learnt."""
    words = copied(toys(), tmp_path)
    command = [sys.executable, "-m", "atlas_dist", "report", *words]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"coefficient alpha" in done.stdout


def test_output_that_nobody_takes_ends_nothing() -> None:
    """`atlas-dist run | head`, or a log on a full disk, must not cost a run."""
    script = (
        "import sys\n"
        "from atlas_dist.app.show import output_may_be_lost\n"
        "for n in range(20000):\n"
        "    with output_may_be_lost():\n"
        "        print('line', n, flush=True)\n"
        "sys.exit(0)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"line 0\n"
    process.stdout.close()
    assert process.wait(120) == 0
    with Path("/dev/full").open("w") as full:
        assert subprocess.run([sys.executable, "-c", script], stdout=full, check=False).returncode == 0


def test_other_errors_are_not_hidden() -> None:
    with pytest.raises(ValueError, match="ours"), output_may_be_lost():
        raise ValueError("ours")


def test_a_report_without_a_place_is_shown_all_the_same(atlas: Command, tmp_path: Path) -> None:
    """What was learnt is on the screen, the store is as it was, and the exit code says that a file could not be written."""
    words = copied(toys(), tmp_path)
    (tmp_path / "file").write_text("in the way")
    before = sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*") if p.is_file())
    said = atlas("run", *words, f"report={tmp_path}/file")
    assert said.code == 6
    assert "can't be written: the run goes on" in said.out
    assert "after learning" in said.out
    assert "set report to a folder that can be written" in said.err
    assert sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*") if p.is_file()) == before
