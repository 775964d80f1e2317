"""Commands run in an empty folder, with made-up credentials and without --debug from outside."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kits.shell import Command, Printed, Shell, say


@pytest.fixture
def atlas(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """`atlas("plan", "experiment=toy")` -> Said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIATESTTESTTEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-a-secret-value")
    monkeypatch.setenv("ATLAS_DEBUG", "")
    return lambda *words: say(monkeypatch, capsys, words)


@pytest.fixture
def shell(atlas: Command) -> Shell:
    """`shell("plan", "experiment=toy")` -> exit code and everything it printed."""

    def call(*words: str) -> tuple[int, str]:
        said = atlas(*words)
        return said.code, said.out + said.err

    return call


@pytest.fixture
def printed(atlas: Command) -> Printed:
    """`printed("plan", "experiment=toy")` -> what stdout gets of a command that succeeds."""

    def call(*words: str) -> str:
        said = atlas(*words)
        assert said.code == 0, said.err
        return said.out

    return call
