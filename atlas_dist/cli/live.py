"""What is said while a run is under way, in one of two voices. For people: a live line on a terminal, plain periodic lines
elsewhere, and one line a decision. For programs (`log.format=json`): records of a log."""

from __future__ import annotations

import logging
import time
from collections import deque
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console
from rich.status import Status

from atlas_dist.cli.words import duration
from atlas_dist.coordinator.dispatch import AttemptProgress
from atlas_dist.coordinator.service import Decision, Snapshot
from atlas_dist.core.pace import seconds_left
from atlas_dist.core.plan import Plan
from atlas_dist.logs import LogFormat, log_fields

PLAIN_EVERY_S = 5.0
_REMEMBERED = 120
"""Reports of an attempt, about a minute of them, that its pace is judged by."""

_QUIET_EVENTS = frozenset({"begin", "abandon", "ignored"})

log = logging.getLogger(__name__)


def watcher(plan: Plan, console: Console, form: LogFormat, *, quiet: bool) -> ProgressDisplay:
    """The view for a form of the log."""
    return Recorder(plan, quiet=quiet) if form is LogFormat.JSON else Watcher(plan, console, quiet=quiet)


class _Paces:
    """How long each attempt still takes, at the pace since this process first heard of it."""

    def __init__(self) -> None:
        self.seen: dict[str, deque[tuple[float, int]]] = {}

    def left(self, progress: AttemptProgress) -> float | None:
        """Seconds; None = not known yet."""
        seen = self.seen.setdefault(progress.attempt, deque(maxlen=_REMEMBERED))
        if not seen or seen[-1][1] != progress.step:
            seen.append((time.monotonic(), progress.step))
        return seconds_left(seen, progress.total)


class ProgressDisplay(Protocol):
    """Call it with every snapshot. A context manager, because a live line must be taken down."""

    def __enter__(self) -> ProgressDisplay: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def __call__(self, snapshot: Snapshot) -> None: ...


class Watcher:
    """For people."""

    def __init__(self, plan: Plan, console: Console, *, quiet: bool) -> None:
        self.plan, self.console, self.quiet = plan, console, quiet
        self.began = time.monotonic()
        self.last_plain = self.began
        self.last_text = ""
        self.live: Status | None = None
        self.attempts: dict[str, str] = {}
        self.paces = _Paces()

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
        if decision.event not in _QUIET_EVENTS:
            self._print(decision.words(self.plan))

    def _progress(self, progress: AttemptProgress) -> str:
        job = self.plan.jobs.get(self.attempts.get(progress.attempt, ""))
        left = self.paces.left(progress)
        return f"{job.label if job else progress.attempt} {_pace(progress)}{'' if left is None else f' {duration(left)} left'}"

    def _print(self, text: str) -> None:
        seconds = time.monotonic() - self.began
        self.console.print(f"[{int(seconds) // 60:02d}:{int(seconds) % 60:02d}] {text}", markup=False, soft_wrap=True)


def _workers(metrics: Any) -> str:
    """An elastic pool may have fewer than it was started with."""
    return "1 worker" if metrics["workers"] == 1 else f"{metrics['workers']} workers"


class Recorder:
    """For programs: a record a decision, and every few seconds one an attempt that has moved."""

    def __init__(self, plan: Plan, *, quiet: bool, every_s: float = PLAIN_EVERY_S) -> None:
        self.plan, self.quiet, self.every_s = plan, quiet, every_s
        self.paces = _Paces()
        self.told: dict[str, tuple[float, int]] = {}
        """Attempt -> when it was told of last, and at which step it was."""

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Nothing to take down."""

    def __call__(self, snapshot: Snapshot) -> None:
        """Log what is new."""
        if self.quiet:
            return
        for decision in snapshot.decisions:
            log.log(decision.level, "%s", decision.words(self.plan), extra=log_fields(**decision.as_fields(self.plan)))
        if snapshot.status is None:
            return
        jobs = {"committed": snapshot.status.committed, "jobs": snapshot.status.total}
        now = time.monotonic()
        for attempt, progress in snapshot.progress.items():
            left = self.paces.left(progress)
            at, step = self.told.get(attempt, (float("-inf"), -1))
            if progress.step == step or now - at < self.every_s:
                continue
            self.told[attempt] = now, progress.step
            key = snapshot.status.running.get(attempt, "")
            job_fields = {"job": key, "label": self.plan.jobs[key].label} if key in self.plan.jobs else {}
            where = {"attempt": attempt, "step": progress.step, "total": progress.total, "seconds_left": left}
            fields = {**where, **progress.metrics, **jobs, **job_fields}
            log.info("%s", _pace(progress), extra=log_fields(**fields))


def _pace(progress: AttemptProgress) -> str:
    m: Any = progress.metrics
    told = f"step {progress.step}/{progress.total} loss {m['loss']:.3f} score {m['score']:.1f}%"
    if not m["samples_per_s"]:  # scoring is not timed batch by batch
        return f"{told} by {_workers(m)}"
    return f"{told} {m['samples_per_s']:.0f} samples/s by {_workers(m)} data wait {m['data_wait']:.0%}{_mfu(m.get('mfu'))}"


def _mfu(known: float | None) -> str:
    """Said where it is known: on a CPU it never is."""
    return "" if known is None else f" MFU {known:.0%}"
