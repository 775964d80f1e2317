"""What is left of a stage."""

from __future__ import annotations

from collections import deque

import pytest

from atlas_dist.core.pace import seconds_left


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ([], None),
        ([(3.0, 7)], None),
        ([(3.0, 7), (4.0, 7)], None),
        ([(0.0, 10), (5.0, 20)], 40.0),
        ([(0.0, 10), (2.0, 12), (5.0, 20)], 40.0),
        ([(0.0, 10), (5.0, 110)], 0.0),
    ],
)
def test_the_pace_of_what_was_seen(seen: list[tuple[float, int]], expected: float | None) -> None:
    assert seconds_left(seen, total=100) == expected


def test_the_live_line_remembers_in_a_deque() -> None:
    assert seconds_left(deque([(0.0, 10), (2.0, 12), (5.0, 20)], maxlen=3), total=100) == 40.0


def test_what_came_before_a_step_back_does_not_count() -> None:
    """An attempt that went on from a checkpoint: its pace, not the time in which nothing ran."""
    assert seconds_left([(0.0, 100), (5.0, 200), (60.0, 150), (70.0, 160)], total=260) == 100.0
