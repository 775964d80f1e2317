"""How long a stage still takes, judged from where it was when."""

from __future__ import annotations

from collections.abc import Sequence


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
    for at, step in reversed(seen[:-1]):
        if step > start:
            break
        start_at, start = at, step
    if end <= start or end_at <= start_at:
        return None
    return max(total - end, 0) * (end_at - start_at) / (end - start)
