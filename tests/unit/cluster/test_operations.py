"""docs/operations.md names only files, commands and settings that exist, and marks every command as tried or not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from atlas_dist.compose import compose_config
from tests.unit.cluster.rules import RULES

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs/operations.md").read_text()
BLOCKS = [block for kind, block in re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL) if not kind]
COMMANDS = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def test_every_file_that_is_named_exists() -> None:
    named = set(re.findall(r"\b((?:cluster|docs|tests|configs|atlas_dist)/[\w./-]+\w)", TEXT))
    assert named
    assert not {path for path in named if not (ROOT / path).exists()}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_marked(command: str) -> None:
    assert re.search(r"(✓|–)(\s+\([^)]*\))?$", command.rstrip()), "tried (✓) or not tried here (–)?"


@pytest.mark.parametrize("command", [c for c in COMMANDS if "experiment=" in c and "…" not in c])
def test_every_setting_is_valid(command: str) -> None:
    words = [w for w in command.split() if re.match(r"^[a-z_.]+=\S+$", w)]
    compose_config(words)


def test_the_number_of_rules_is_right() -> None:
    assert f"({len(RULES)} rules" in " ".join(TEXT.split())
