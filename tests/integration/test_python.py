"""The Python API as a notebook uses it: docs/python.md runs as it stands, leaves nothing behind, and an interrupt pauses."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest

import atlas_dist as atlas
from atlas_dist.app.events import Event, Progress, ReportWritten

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


def process() -> dict[str, Any]:
    """What a call may not leave changed."""
    return {
        "environment": dict(os.environ),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "handlers": list(logging.root.handlers),
        "levels": [logging.root.level, logging.getLogger("atlas_dist").level],
        "hushed": ("ignore", None, Warning, None, 0) in warnings.filters,  # libraries add filters of their own when imported
    }


def test_the_page_runs_as_it_stands_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    example, observing = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    before = process()
    exec(example, names)  # in the main thread, as a cell is
    assert process() == before
    import ray

    assert not ray.is_initialized()
    assert [learnt.name for learnt in names["bank"].learnt.values()] == ["toy_shape", "toy_kin"]
    assert names["sequence"].changed_predictions() == []
    assert names["result"].learnt and names["result"].report.page.exists()
    assert "jobs (" in capsys.readouterr().out, "the run says how far it is"

    exec(observing, names)
    events: list[Event] = []
    again = asyncio.run(in_a_loop(names["toy"], events))  # from another thread, under a running loop: all of it is a fact
    assert not again.learnt
    assert isinstance(events[-1], ReportWritten)

    pressed: list[Event] = []

    def interrupt(event: Event) -> None:
        names["observer"](event)
        if isinstance(event, Progress) and event.snapshot.progress and not pressed:
            pressed.append(event)  # a second Ctrl-C would not wait for the checkpoint
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(atlas.Paused, match="nothing learnt is lost"):
        atlas.run(*names["toy"], {"run": "other", "seeds": [1]}, observer=interrupt)
    assert process() == before
    assert not ray.is_initialized()
    assert atlas.status(*names["toy"], {"run": "other", "seeds": [1]}).status.committed < len(names["planned"].plan.jobs)


async def in_a_loop(settings: list[Any], events: list[Event]) -> atlas.RunResult:
    """The run, in a thread beside the loop."""
    assert threading.current_thread() is threading.main_thread()
    return await asyncio.to_thread(atlas.run, *settings, observer=events.append)
