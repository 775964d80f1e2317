"""A disk that is really full (a small tmpfs): what was committed stays, the cause is named; with room again the run completes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from atlas_dist.errors import StoreError
from atlas_dist.store import open_store
from tests.chaos.fire import acknowledged, start
from tests.chaos.judge import judge, ledger_of, objects_of
from tests.chaos.plans import small_plan


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 28 pages."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=112k", "tmpfs", str(tmp_path)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"may not mount a tmpfs here: {mounted.stderr.strip()}")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_full_disk_ends_the_run_and_costs_nothing_that_was_learnt(small_disk: Path) -> None:
    """Invariants: acknowledged commits survive, the ledger is unchanged and chained, the run completes once faults stop."""
    store = open_store(str(small_disk))
    process = start(str(small_disk), "run", "--tasks", "2")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == StoreError.exit_code, output
    assert "the disk is full" in output
    before = ledger_of(objects_of(store), "run")
    assert before
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    process = start(str(small_disk), "run", "--tasks", "2")
    more, _ = process.communicate(timeout=120)
    assert process.returncode == 0, more
    after = ledger_of(objects_of(store), "run")
    assert {key: after[key] for key in before} == before
    judge(store, {"run": len(small_plan(2).jobs)}, acknowledged(output + more, "run"))
