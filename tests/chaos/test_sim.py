"""The protocol under simulated faults: every invariant, 2,000 seeds; and proof that a wrong protocol would be noticed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from atlas_dist.errors import AtlasError
from tests.chaos.checker import Violation
from tests.chaos.mutants import MUTANTS, Mutant
from tests.chaos.sim import simulate

SEEDS, CHUNK = 2000, 200


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_no_seed_breaks_an_invariant(first: int) -> None:
    """All invariants of tests/chaos/checker.py. Replay a failure with `python -m tests.chaos.sim --seed N`."""
    for seed in range(first, first + CHUNK):
        try:
            simulate(seed)
        except (Violation, AtlasError) as error:
            pytest.fail(f"seed {seed}: {error}")


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.__name__)
def test_a_wrong_protocol_is_caught(mutant: Mutant) -> None:
    """A simulation that no mistake fails proves nothing."""
    for seed in range(1500):
        try:
            with mutant() as prepare:
                simulate(seed, prepare)
        except (Violation, AtlasError):
            return
    pytest.fail(f"{mutant.__name__} survived 1500 seeds")


def test_a_seed_replays_exactly() -> None:
    """The same seed is the same story, in any process: hash randomisation must not matter."""
    script = "from tests.chaos.sim import simulate; print([sorted(simulate(s).items()) for s in (3, 11, 42)])"
    stories = set()
    for hash_seed in ("0", "1"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, cwd=Path.cwd(), capture_output=True, text=True, check=True
        )
        stories.add(done.stdout)
    assert len(stories) == 1
