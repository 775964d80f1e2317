"""Recorded ledgers of old runs give the same states and decisions for ever."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.chaos.golden import FOLDER, decisions, plan_of


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda p: p.stem)
def test_an_old_ledger_decides_as_it_did(path: Path) -> None:
    golden = json.loads(path.read_text())
    assert decisions(plan_of(golden["plan"]), golden["entries"]) == golden["decisions"]


def test_there_are_golden_ledgers_with_something_in_them() -> None:
    kinds = {json.loads(text)["type"] for path in FOLDER.glob("*.json") for text in json.loads(path.read_text())["entries"]}
    assert {
        "begin",
        "elect",
        "dispatch",
        "commit",
        "fail",
        "abandon",
        "adopt",
        "quarantine",
        "halt",
        "pause",
        "resume",
        "finish",
    } <= kinds
