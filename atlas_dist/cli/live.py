"""What a person sees while a run is under way: a live line on a terminal, plain periodic lines elsewhere; one line a decision."""

from __future__ import annotations

import time
from collections import deque
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.status import Status

from atlas_dist.cli.words import duration
from atlas_dist.coordinator.dispatch import Progress
from atlas_dist.coordinator.service import Decision, Snapshot
from atlas_dist.core.pace import seconds_left
from atlas_dist.core.plan import Plan

PLAIN_EVERY_S = 5.0
_REMEMBERED = 120
"""Reports of an attempt, about a minute of them, that its pace is judged by."""

_QUIET_EVENTS = frozenset({"begin", "abandon", "ignored"})


class Watcher:
    """Call it with every snapshot. A context manager, because a live line must be taken down."""

    def __init__(self, plan: Plan, console: Console, *, quiet: bool) -> None:
        self.plan, self.console, self.quiet = plan, console, quiet
        self.began = time.monotonic()
        self.last_plain = self.began
        self.last_text = ""
        self.live: Status | None = None
        self.attempts: dict[str, str] = {}
        self.seen: dict[str, deque[tuple[float, int]]] = {}

    def __enter__(self) -> Watcher:
        if self.console.is_terminal and not self.quiet:
            self.live = self.console.status("starting workers")
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.live is not None:
            self.live.stop()

    def __call__(self, snapshot: Snapshot) -> None:
        """Print the new decisions, and where the running attempts are."""
        if self.quiet:
            return
        for decision in snapshot.decisions:
            self._decision(decision)
        if snapshot.status is None:
            return
        self.attempts |= snapshot.status.running
        lines = [self._progress(p) for p in snapshot.progress.values()]
        head = f"{snapshot.status.committed}/{snapshot.status.total} jobs"
        text = f"{head}  " + ("; ".join(lines) if lines else "starting")
        if self.live is not None:
            self.live.update(text)
        elif text != self.last_text and lines and time.monotonic() - self.last_plain >= PLAIN_EVERY_S:
            self.last_plain, self.last_text = time.monotonic(), text
            self._print(text)

    def _decision(self, decision: Decision) -> None:
        fields = decision.fields
        if decision.event in _QUIET_EVENTS:
            return
        job = self.plan.jobs.get(str(fields.get("job", "")))
        name = job.label if job else str(fields.get("attempt", ""))
        reason = "" if decision.event == "dispatch" and "attempt" not in str(fields.get("reason")) else fields.get("reason", "")
        score = f"score {fields['score']:.1f}%" if "score" in fields else ""
        self._print(" ".join(part for part in (decision.event, name, score, f"({reason})" if reason else "") if part))

    def _progress(self, progress: Progress) -> str:
        job = self.plan.jobs.get(self.attempts.get(progress.attempt, ""))
        m: Any = progress.metrics
        return (
            f"{job.label if job else progress.attempt} step {progress.step}/{progress.total} loss {m['loss']:.3f} "
            f"score {m['score']:.1f}% {m['samples_per_s']:.0f} samples/s by {_workers(m)} "
            f"data wait {m['data_wait']:.0%}{_mfu(m.get('mfu'))}{self._left(progress)}"
        )

    def _left(self, progress: Progress) -> str:
        """At the pace since this process first heard of the attempt."""
        seen = self.seen.setdefault(progress.attempt, deque(maxlen=_REMEMBERED))
        if not seen or seen[-1][1] != progress.step:
            seen.append((time.monotonic(), progress.step))
        left = seconds_left(seen, progress.total)
        return "" if left is None else f" {duration(left)} left"

    def _print(self, text: str) -> None:
        seconds = time.monotonic() - self.began
        self.console.print(f"[{int(seconds) // 60:02d}:{int(seconds) % 60:02d}] {text}", markup=False, soft_wrap=True)


def _workers(metrics: Any) -> str:
    """An elastic pool may have fewer than it was started with."""
    return "1 worker" if metrics["workers"] == 1 else f"{metrics['workers']} workers"


def _mfu(known: float | None) -> str:
    """Said where it is known: on a CPU it never is."""
    return "" if known is None else f" MFU {known:.0%}"
