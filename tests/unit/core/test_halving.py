"""Successive halving: what is drawn, how long it learns, who goes on."""

from __future__ import annotations

import pytest

from atlas_dist.core.search import Rung, Space, draw, rungs, space_of, survivors
from atlas_dist.errors import ConfigError

LR = Space("a.lr", "log", 1e-4, 1e-2)


@pytest.mark.parametrize(
    ("word", "space"),
    [
        ("tasks.x.stage2.lr=log(1e-4,1e-2)", Space("tasks.x.stage2.lr", "log", 1e-4, 1e-2)),
        ("train.budget.warmup=uniform(0, 0.3)", Space("train.budget.warmup", "uniform", 0.0, 0.3)),
        ("method.settings.rank=int(8,64)", Space("method.settings.rank", "int", 8.0, 64.0)),
        ("method=choice(atlas,ewc)", Space("method", "choice", choices=("atlas", "ewc"))),
        ("train.workers=2", None),
        ("run=log", None),
    ],
)
def test_a_word_is_a_space_or_it_is_not(word: str, space: Space | None) -> None:
    assert space_of(word) == space


@pytest.mark.parametrize(
    "inside",
    ["log(0,1)", "log(2,1)", "uniform(1,1)", "int(1,2.5)", "log(a,b)", "log(1)", "choice(a,a)", "choice()", "log(1,inf)"],
)
def test_an_empty_space_is_refused(inside: str) -> None:
    with pytest.raises(ConfigError, match=r"number|Spaces"):
        space_of(f"a.b={inside}")


def test_each_part_of_each_axis_is_tried_once_and_the_seed_alone_decides() -> None:
    spaces = [LR, Space("b", "uniform", 0.0, 1.0), Space("m", "choice", choices=("x", "y", "z"))]
    drawn = draw(spaces, 9, 0)
    assert drawn == draw(spaces, 9, 0) != draw(spaces, 9, 1)
    parts = [int(float(candidate["b"]) * 9) for candidate in drawn]
    assert sorted(parts) == list(range(9))
    assert all(1e-4 <= float(candidate["a.lr"]) <= 1e-2 for candidate in drawn)
    below = sum(float(candidate["a.lr"]) < 1e-3 for candidate in drawn)
    assert below in (4, 5), "half of them in the lower decade"
    assert [[c["m"] for c in drawn].count(name) for name in "xyz"] == [3, 3, 3]


def test_whole_numbers_reach_both_ends_and_equal_candidates_are_kept_once() -> None:
    values = {candidate["n"] for candidate in draw([Space("n", "int", 1.0, 4.0)], 40, 0)}
    assert values == {"1", "2", "3", "4"}
    assert len(draw([Space("n", "int", 1.0, 4.0)], 40, 0)) == 4


@pytest.mark.parametrize(
    ("count", "factor", "expected"),
    [
        (9, 3, [Rung(9, 1 / 9), Rung(3, 1 / 3), Rung(1, 1.0)]),
        (8, 2, [Rung(8, 1 / 8), Rung(4, 1 / 4), Rung(2, 1 / 2), Rung(1, 1.0)]),
        (2, 3, [Rung(2, 1 / 3), Rung(1, 1.0)]),
    ],
)
def test_rungs_end_with_one_candidate_and_the_whole_stage(count: int, factor: int, expected: list[Rung]) -> None:
    assert rungs(count, factor) == expected


def test_one_candidate_is_no_search() -> None:
    with pytest.raises(ConfigError, match="nothing to choose"):
        rungs(1, 3)


def test_the_best_survive_and_of_equal_ones_the_first() -> None:
    assert survivors({"a": 1.0, "b": 3.0, "c": 3.0, "d": 2.0}, 3) == ["b", "c", "d"]
