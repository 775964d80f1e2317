"""Who waits for nodes is told so: how many of how many workers have room, since when, and why; soon, then ever more rarely."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
from rich.console import Console

from atlas_dist.app.events import Idle, Progress, WorkersStarting
from atlas_dist.app.observers import Lines, Records, _WaitingForRoom, waits
from atlas_dist.coordinator.pool import Waiting
from atlas_dist.coordinator.service import Snapshot
from atlas_dist.runs.status import CoordinatorRole, Phase, RunStatus
from tests.chaos.plans import small_plan

STATUS = RunStatus("r", CoordinatorRole.LEADER, Phase.RUNNING, 1, 0, 3)


def at(seconds: float, fits: int | None = 3, why: str = "") -> Snapshot:
    return Snapshot(STATUS, over=False, waiting=(Waiting("main", 8, 8, seconds, why, fits),))


@pytest.mark.parametrize(
    ("waiting", "text"),
    [
        (Waiting("main", 8, 8, 88.0, "a node was lost", 3), "waiting for room: 3 of 8 workers, since 88 s (a node was lost)"),
        (Waiting("small", 2, 1, 15.0, fits=0), "pool small waiting for room: 0 of 2 workers, since 15 s"),
        (Waiting("small", 2, 1, 15.0, fits=1), "pool small starting 2 workers, since 15 s"),
        (Waiting("main", 8, 8, 12.0, fits=8), "starting 8 workers, since 12 s"),
        (Waiting("main", 8, 8, 12.0), "starting 8 workers, since 12 s"),
        (Waiting("main", 8, 8, 7200.0, fits=0), "waiting for room: 0 of 8 workers, since 2.0 h"),
    ],
)
def test_waiting_is_told_in_one_line(waiting: Waiting, text: str) -> None:
    assert waits(waiting) == text


def test_it_is_told_soon_and_then_ever_more_rarely() -> None:
    """A day of waiting for spot nodes is some 150 lines of a log, not 17,280."""
    room = _WaitingForRoom()
    told = [second for second in range(0, 86_400, 5) if room.news(at(float(second)))]
    assert told[:4] == [10, 20, 40, 80]
    assert 100 < len(told) < 200
    room.news(Snapshot(STATUS, over=False))
    assert room.news(at(12.0)), "another time begins anew"


def test_a_log_that_people_read_has_it_with_the_plain_lines() -> None:
    out = io.StringIO()
    view, plan = Lines(Console(file=out, force_terminal=False)), small_plan(2)
    for seconds in (1.0, 9.0, 11.0, 12.0, 25.0):
        view(Progress(plan, at(seconds)))
    lines = [line.partition("] ")[2] for line in out.getvalue().splitlines()]
    assert lines == [f"waiting for room: 3 of 8 workers, since {s} s" for s in (11, 25)]


def test_a_live_line_has_it_at_once() -> None:
    out = io.StringIO()
    view = Lines(Console(file=out, force_terminal=True, width=200))
    view(WorkersStarting("r"))
    view(Progress(small_plan(2), at(2.0, why="a node of the group is being drained")))
    assert view.live is not None
    assert "waiting for room: 3 of 8 workers, since 2 s (a node of the group is being drained)" in str(view.live.status)
    view(Idle("r"))
    assert view.live is None, "the line is taken down"


@pytest.fixture
def handlers_as_before() -> Iterator[None]:
    handlers = list(logging.root.handlers)
    yield
    logging.root.handlers[:] = handlers


@pytest.mark.usefixtures("handlers_as_before")
def test_programs_get_a_record(capsys: pytest.CaptureFixture[str]) -> None:
    view, plan = Records("r"), small_plan(2)
    view(Progress(plan, at(11.0)))
    view(Progress(plan, at(12.0)))
    messages = [json.loads(line)["message"] for line in capsys.readouterr().err.splitlines()]
    assert messages == ["waiting for room: 3 of 8 workers, since 11 s"]
