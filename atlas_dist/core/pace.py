"""How long a stage still takes, judged from where it was when; and which finished jobs tell how long another one takes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

from atlas_dist.core.types import StageJob


def likeness(job: StageJob, backbone: str, precision: str) -> dict[str, Any]:
    """What the time of a sample depends on most, with the samples of a step: a result keeps it, for the plans of other runs."""
    stage = job.stage.stage.value if job.stage else ""
    about = {"trunk": backbone, "precision": precision, "kind": job.kind.value, "stage": stage, "task": job.task.name}
    return about | {"batch": job.budget.global_batch}


def seconds_left(seen: Sequence[tuple[float, int]], total: int) -> float | None:
    """Seconds until step `total` at the pace of what was seen.

    Args:
        seen: (seconds on any one clock, step), oldest first. Where an attempt went on from a checkpoint, steps fall: only what
            came after that counts.

    Returns:
        None while no two different steps have been seen.
    """
    if not seen:
        return None
    end_at, end = last = seen[-1]
    start_at, start = last
    for at, step in islice(reversed(seen), 1, None):  # a deque cannot be sliced
        if step > start:
            break
        start_at, start = at, step
    if end <= start or end_at <= start_at:
        return None
    return max(total - end, 0) * (end_at - start_at) / (end - start)


def duration(seconds: float) -> str:
    """For people: `40 s`, `12 min`, `3.5 h`."""
    minutes = seconds / 60
    return f"{minutes / 60:.1f} h" if minutes >= 90 else f"{minutes:.0f} min" if minutes >= 2 else f"{seconds:.0f} s"
