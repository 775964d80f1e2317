"""The command line as a shell sees it, in this process: words in; exit code, stdout and stderr out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from atlas_dist.cli import main


@dataclass(frozen=True)
class Said:
    """What a command left behind."""

    code: int
    out: str
    err: str


Command = Callable[..., Said]
"""`atlas("plan", "experiment=toy")`"""
Shell = Callable[..., tuple[int, str]]
"""The same as (exit code, everything it printed)."""
Printed = Callable[..., str]
"""The same as what stdout gets of a command that succeeds."""


def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> Said:
    """Run `atlas-dist WORDS`."""
    monkeypatch.setattr("sys.argv", ["atlas-dist", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    return Said(int(ended.value.code or 0), printed.out, printed.err)
