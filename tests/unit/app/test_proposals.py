"""What Optuna is told and what it answers."""

from __future__ import annotations

import math

import pytest

from atlas_dist.app.proposals import propose
from atlas_dist.core.search import Space, Trial, draw, ranked

SPACES = [Space("a.lr", "log", 1e-4, 1e-2), Space("b", "int", 1.0, 8.0), Space("m", "choice", choices=("x", "y"))]


def told(count: int) -> list[Trial]:
    """Good is a rate near 1e-3 with `x`; the better half learnt all of the stage."""
    found = []
    for number, candidate in enumerate(draw(SPACES, count, 0)):
        score = 80.0 - 20.0 * abs(math.log10(float(candidate["a.lr"])) + 3.0) - 10.0 * (candidate["m"] == "y")
        found.append(Trial(candidate, {0.5: score / 2} if number % 2 else {0.5: score / 2, 1.0: score}))
    return found


def test_proposals_are_new_valid_and_the_same_when_told_the_same() -> None:
    trials = told(12)
    first = propose(SPACES, trials, 6, seed=1)
    assert first == propose(SPACES, trials, 6, seed=1)
    assert len({tuple(c.items()) for c in first} - {tuple(t.candidate.items()) for t in trials}) == 6
    for candidate in first:
        assert list(candidate) == ["a.lr", "b", "m"]
        assert 1e-4 <= float(candidate["a.lr"]) <= 1e-2
        assert 1 <= int(candidate["b"]) <= 8
        assert candidate["m"] in ("x", "y")


def test_what_went_further_ranks_first_whatever_it_scored() -> None:
    short, whole, better = Trial({"k": "1"}, {0.5: 99.0}), Trial({"k": "2"}, {0.5: 1.0, 1.0: 2.0}), Trial({"k": "3"}, {1.0: 3.0})
    assert ranked([short, whole, better]) == [better, whole, short]


@pytest.mark.parametrize(
    ("space", "value"), [(Space("a", "uniform", 0.123446, 1.0), 0.123446), (Space("a", "log", 1.23446e-4, 1.0), 1.23446e-4)]
)
def test_four_digits_just_beyond_an_end_are_read_as_the_end(space: Space, value: float) -> None:
    written = space.written(value)
    assert float(written) < space.low
    assert space.read(written) == space.low
