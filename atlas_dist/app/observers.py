"""Who is told what happens, in one of two voices. For people, in a shell or a notebook: a live line on a terminal, plain periodic
lines elsewhere, and one line a decision. For programs (`log.format=json`): records of a log."""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import Any

from rich.console import Console
from rich.status import Status

from atlas_dist.app.events import (
    Event,
    Idle,
    Observer,
    Packing,
    Progress,
    ReportWritten,
    RunStarted,
    SplitPacked,
    WorkersStarting,
)
from atlas_dist.app.show import output_may_be_lost, show_packed, show_report, standard_console
from atlas_dist.config import RunConfig
from atlas_dist.coordinator.dispatch import AttemptProgress
from atlas_dist.coordinator.pool import Waiting
from atlas_dist.coordinator.service import Snapshot
from atlas_dist.core.pace import duration, seconds_left
from atlas_dist.logs import LogFormat, log_fields, set_up

PLAIN_EVERY_S = 5.0
PACKING_EVERY_S = 10.0
WAITING_FIRST_S, WAITING_MOST_S = 10.0, 600.0
"""When a pool's waiting is told of first, and the longest silence about it, in seconds."""
_REMEMBERED = 120
"""Reports of an attempt, about a minute of them, that its pace is judged by."""

_QUIET_EVENTS = frozenset({"begin", "abandon", "ignored"})

log = logging.getLogger(__name__)


def observer_for(config: RunConfig, *, quiet: bool = False) -> Observer:
    """The one that a run's settings ask for. `quiet`: it says only how it ended."""
    return Records(config.run, quiet=quiet) if config.log.format is LogFormat.JSON else Lines(quiet=quiet)


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


class _WaitingForRoom:
    """What is said of pools that wait for nodes: soon after it begins, then ever more rarely, at most every ten minutes."""

    def __init__(self) -> None:
        self.due: dict[str, float] = {}
        """Pool -> after how many seconds of waiting it is told again."""

    def news(self, snapshot: Snapshot) -> list[str]:
        """What is due to be told now."""
        told = []
        waiting = {each.pool: each for each in snapshot.waiting}
        self.due = {pool: due for pool, due in self.due.items() if pool in waiting}
        for pool, each in waiting.items():
            if each.since_s < self.due.setdefault(pool, WAITING_FIRST_S):
                continue
            self.due[pool] = each.since_s + min(each.since_s, WAITING_MOST_S)
            told.append(waits(each))
        return told


def waits(waiting: Waiting) -> str:
    """`waiting for room: 3 of 8 workers, since 88 s`, with the pool's name where that is not the only one's, and why."""
    pool = "" if waiting.pool == "main" else f"pool {waiting.pool} "
    short = waiting.fits is not None and waiting.fits < waiting.required_workers
    what = f"waiting for room: {waiting.fits} of {waiting.workers} workers" if short else f"starting {waiting.workers} workers"
    why = f" ({waiting.why})" if waiting.why else ""
    return f"{pool}{what}, since {duration(waiting.since_s)}{why}"


class Lines:
    """For people."""

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self.console, self.quiet = console or standard_console(), quiet
        self.began = time.monotonic()
        self.last_plain = 0.0
        self.last_text = ""
        self.live: Status | None = None
        self.attempts: dict[str, str] = {}
        self.paces = _Paces()
        self.room = _WaitingForRoom()

    def __call__(self, event: Event) -> None:
        """Print what it says."""
        match event:
            case WorkersStarting():
                self.began = self.last_plain = time.monotonic()
                self._go_live("starting workers")
            case Idle():
                self._rest()
            case Progress():
                with output_may_be_lost():
                    self._progress(event)
            case Packing():
                self._packing(event)
            case SplitPacked():
                self._rest()
                show_packed(event.split, event.report, self.console)
            case ReportWritten():
                show_report(event.report, self.console)
            case RunStarted() if self.quiet:
                pass
            case _:
                self.console.print(str(event), markup=False, soft_wrap=True)

    def _go_live(self, text: str) -> None:
        if self.live is None and self.console.is_terminal and not self.quiet:
            self.live = self.console.status(text)
            self.live.start()

    def _rest(self) -> None:
        if self.live is not None:
            self.live.stop()
        self.live = None

    def _progress(self, event: Progress) -> None:
        """New decisions; then how far everything is."""
        snapshot = event.snapshot
        if self.quiet:
            return
        for decision in snapshot.decisions:
            if decision.event not in _QUIET_EVENTS:
                self._print(decision.words(event.plan))
        if snapshot.status is None:
            return
        self.attempts |= snapshot.status.running
        told = []
        for attempt, progress in snapshot.progress.items():
            job, left = event.plan.jobs.get(self.attempts.get(attempt, "")), self.paces.left(progress)
            told.append(f"{job.label if job else attempt} {_pace(progress)}{'' if left is None else f' {duration(left)} left'}")
        text = f"{snapshot.status.committed}/{snapshot.status.total} jobs  {'; '.join(told) or 'starting'}"
        if self.live is not None:
            self.live.update("; ".join([text, *map(waits, snapshot.waiting)]))
            return
        for news in self.room.news(snapshot):
            self._print(news)
        if text != self.last_text and told and time.monotonic() - self.last_plain >= PLAIN_EVERY_S:
            self.last_plain, self.last_text = time.monotonic(), text
            self._print(text)

    def _packing(self, event: Packing) -> None:
        """On a terminal all the time, in a log every so often."""
        now = time.monotonic()
        if not event.total:
            self.began = self.last_plain = now
            self._go_live(f"packing {event.split}: listing its records")
            return
        rate = event.done / max(1e-9, now - self.began)
        left = f"about {(event.total - event.done) / rate:.0f} s left" if rate else "just begun"
        text = f"packing {event.split}: {event.done} of {event.total} shards, {left}"
        if self.live is not None:
            self.live.update(text)
        elif not self.quiet and now - self.last_plain >= PACKING_EVERY_S and event.done < event.total:
            self.last_plain = now
            self.console.print(text)

    def _print(self, text: str) -> None:
        seconds = int(time.monotonic() - self.began)
        self.console.print(f"[{seconds // 60:02d}:{seconds % 60:02d}] {text}", markup=False, soft_wrap=True)


class Records:
    """For programs: a record a decision, and every few seconds one an attempt that has moved; what is said in words is one too.
    From its making on, everything that this process logs is a line of JSON."""

    def __init__(self, run: str, *, quiet: bool = False, every_s: float = PLAIN_EVERY_S) -> None:
        self.quiet, self.every_s = quiet, every_s
        self.paces = _Paces()
        self.told: dict[str, tuple[float, int]] = {}
        """Attempt -> when it was told of last, and at which step it was."""
        self.room = _WaitingForRoom()
        self._speak_of(run)

    @staticmethod
    def _speak_of(run: str) -> None:
        set_up(LogFormat.JSON, run=run, process="driver")

    def __call__(self, event: Event) -> None:
        """Log what is new."""
        match event:
            case WorkersStarting():
                self._speak_of(event.run)  # again: Ray has brought a handler of its own
            case Progress() if not self.quiet:
                self._progress(event)
            case ReportWritten(report) if report.fault:
                pass  # the error that follows says it
            case ReportWritten(report):  # a log of records has no place for tables
                log.info("the report is written", extra=log_fields(report=str(report.folder), bank=report.store))
            case RunStarted() if self.quiet:
                pass
            case SplitPacked(split, report):
                log.info("packed %s", split, extra=log_fields(samples=report.manifest.samples))
            case _:
                for line in filter(None, str(event).splitlines()):
                    log.info("%s", line)

    def _progress(self, event: Progress) -> None:
        snapshot, jobs = event.snapshot, event.plan.jobs
        for decision in snapshot.decisions:
            log.log(decision.level, "%s", decision.words(event.plan), extra=log_fields(**decision.as_fields(event.plan)))
        if snapshot.status is None:
            return
        for news in self.room.news(snapshot):
            log.info("%s", news)
        counts = {"committed": snapshot.status.committed, "jobs": snapshot.status.total}
        now = time.monotonic()
        for attempt, progress in snapshot.progress.items():
            left = self.paces.left(progress)
            at, step = self.told.get(attempt, (float("-inf"), -1))
            if progress.step == step or now - at < self.every_s:
                continue
            self.told[attempt] = now, progress.step
            key = snapshot.status.running.get(attempt, "")
            job_fields = {"job": key, "label": jobs[key].label} if key in jobs else {}
            where = {"attempt": attempt, "step": progress.step, "total": progress.total, "seconds_left": left}
            log.info("%s", _pace(progress), extra=log_fields(**{**where, **progress.metrics, **counts, **job_fields}))


def _pace(progress: AttemptProgress) -> str:
    m: Any = progress.metrics
    workers = "1 worker" if m["workers"] == 1 else f"{m['workers']} workers"  # an elastic pool may have fewer than at its start
    told = f"step {progress.step}/{progress.total} loss {m['loss']:.3f} score {m['score']:.1f}%"
    if not m["samples_per_s"]:  # scoring is not timed batch by batch
        return f"{told} by {workers}"
    mfu = "" if m.get("mfu") is None else f" MFU {m['mfu']:.0%}"  # on a CPU it is never known
    return f"{told} {m['samples_per_s']:.0f} samples/s by {workers} data wait {m['data_wait']:.0%}{mfu}"
