"""A run's curves, told to whoever keeps them: TensorBoard's files, MLflow, W&B. Everything comes from the ledger and the curves
in the store, so it may be told again at any time, by any process, from any machine: a tracker adds what it does not have yet.

    ledger + plan + curves ──► StageRun, one a stage of a sequence ──► start_sequence, start_stage, scalars, finish_stage, …

A tracker that fails is warned about once and asked again later; a run never waits for it and never ends because of it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from atlas_dist.core.keys import digest_of, sha256_hex
from atlas_dist.core.ledger import Entry, fold
from atlas_dist.core.plan import Plan, SequenceJobs
from atlas_dist.core.records import Dispatch
from atlas_dist.core.results import TrainResult
from atlas_dist.core.state import Attempt, JobState, RunState
from atlas_dist.core.task_jobs import TaskJobs
from atlas_dist.errors import AtlasError
from atlas_dist.redact import redact
from atlas_dist.report.measures import measure_sequence
from atlas_dist.report.tensorboard import event_file, scalars, write_events
from atlas_dist.runs.stores import open_ledger
from atlas_dist.store.curves import CurveReader, Point, due_after_s
from atlas_dist.store.objects import ObjectStore

FAREWELL_S = 60.0
"""Seconds that trackers have to take in the end of a run before it is left to a later `atlas-dist track`."""


@dataclass(frozen=True)
class SequenceRun:
    """The parent: one order of tasks under one seed. `id` is this sequence's in this run of this store and no other's."""

    id: str
    run: str
    name: str
    about: Mapping[str, str]
    """Method, seed, order: what a tracker shows beside the name."""
    measures: Mapping[str, float] = field(default_factory=dict)
    """Average accuracy, forgetting …; {} until the sequence is complete."""


@dataclass(frozen=True)
class StageRun:
    """The child: one stage of one task, as its newest attempt that has told anything has it."""

    id: str
    sequence: SequenceRun
    name: str
    """`toy_kin-stage2`"""
    about: Mapping[str, str]
    attempt: int
    """From 1; 0 = adopted from another run."""
    points: Sequence[Point]
    """Its whole history, in order."""
    done: bool
    """The stage is a fact: nothing comes any more."""
    score: float | None = None


class Tracker(Protocol):
    """Whoever keeps curves. Every method may be called again with the same or more, after a restart too, and adds what is new.
    It may raise anything."""

    name: str
    single: bool
    """Only one process at a time may tell it of a run: the one whose coordinator leads."""

    def start_sequence(self, sequence: SequenceRun) -> None:
        """Make sure that the parent exists."""
        ...

    def start_stage(self, stage: StageRun) -> None:
        """Make sure that the child exists; its parent does."""
        ...

    def scalars(self, stage: StageRun) -> None:
        """Take in the points that are new."""
        ...

    def finish_stage(self, stage: StageRun) -> None:
        """The stage is a fact; its points were told."""
        ...

    def finish_sequence(self, sequence: SequenceRun) -> None:
        """Every job of the sequence is a fact."""
        ...

    def close(self) -> None:
        """Leave; what is not finished goes on another time."""
        ...


class TensorBoard:
    """Event files below `<folder>/tensorboard`, a folder a stage."""

    name = "TensorBoard"
    single = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "tensorboard"

    def scalars(self, stage: StageRun) -> None:
        """See report/tensorboard.py: one file an attempt."""
        write_events(event_file(self.folder / stage.sequence.name / stage.name, stage.attempt), scalars(stage.points))

    def start_sequence(self, sequence: SequenceRun) -> None:
        """A folder needs no announcement."""

    def start_stage(self, stage: StageRun) -> None:
        """A folder needs no announcement."""

    def finish_stage(self, stage: StageRun) -> None:
        """The report adds α."""

    def finish_sequence(self, sequence: SequenceRun) -> None:
        """The report has the measures."""

    def close(self) -> None:
        """Nothing is open."""


class TrackerSync:
    """Follows a run's ledger and its curves, and tells trackers what is new.

    Args:
        warn: hears once of each tracker that fails.
    """

    def __init__(
        self,
        plan: Plan,
        store: ObjectStore,
        run: str,
        trackers: Sequence[Tracker],
        least_s: float,
        warn: Callable[[str], None],
    ) -> None:
        self._plan, self._run, self._least_s, self._warn = plan, run, least_s, warn
        self._trackers = trackers
        self.leads = True
        self._log = open_ledger(store, run)
        self._curves = CurveReader(store)
        self._state = RunState(run=run)
        self._first = ""
        self._began: dict[str, float] = {}
        """attempt -> when it was dispatched, by the ledger"""
        self._due_at: dict[str, float] = {}
        """attempt prefix -> when its curve is worth another look"""
        self._told: dict[tuple[str, str], tuple[int, int, bool]] = {}
        """(tracker, stage or sequence) -> attempt, points and whether it was done, when last told"""
        self._warned: set[str] = set()

    @property
    def begun(self) -> bool:
        """There is such a run."""
        return bool(self._first)

    @property
    def over(self) -> bool:
        """Nothing more will come."""
        return bool(self._state.finished or self._state.cancelled)

    def update(self, *, last: bool = False) -> None:
        """Read what is new and tell it. `last`: also what is not due yet. Raises AtlasError when the ledger can't be read."""
        self._read_ledger()
        if not self.begun:
            return
        for jobs in self._plan.sequences:
            sequence = self._sequence(jobs)
            stages = list(self._stages(sequence, jobs, last=last))
            for tracker in self._trackers:
                if self.leads or not tracker.single:
                    self._guarded(tracker, partial(self._tell, tracker, stages, sequence))

    def close(self) -> None:
        """Let every tracker leave."""
        for tracker in self._trackers:
            self._guarded(tracker, tracker.close)

    def _guarded(self, tracker: Tracker, what: Callable[[], None]) -> None:
        try:
            what()
        except Exception as error:  # a tracker may be anything, and must never matter
            self._complain(tracker, error)

    def _tell(self, tracker: Tracker, stages: Sequence[StageRun], sequence: SequenceRun) -> None:
        for stage in stages:
            now = (stage.attempt, len(stage.points), stage.done)
            if self._told.get((tracker.name, stage.id)) == now:
                continue
            tracker.start_sequence(sequence)
            tracker.start_stage(stage)
            tracker.scalars(stage)
            if stage.done:
                tracker.finish_stage(stage)
            self._told[tracker.name, stage.id] = now
        ended = (0, 0, bool(sequence.measures))
        if sequence.measures and self._told.get((tracker.name, sequence.id)) != ended:
            tracker.start_sequence(sequence)
            tracker.finish_sequence(sequence)
            self._told[tracker.name, sequence.id] = ended

    def _complain(self, tracker: Tracker, error: Exception) -> None:
        if tracker.name not in self._warned:
            self._warned.add(tracker.name)
            first = str(error).strip().splitlines()[0] if str(error).strip() else ""
            self._warn(redact(f"{tracker.name} is not told everything: {type(error).__name__}: {first}"[:300]))

    def _read_ledger(self) -> None:
        entries = self._log.read_new()
        self._state = fold(self._state, entries)
        for entry in entries:
            self._note(entry)

    def _note(self, entry: Entry) -> None:
        if not entry.seq:
            self._first = sha256_hex(entry.to_bytes())
        if isinstance(entry.record, Dispatch):
            self._began[entry.record.attempt] = entry.at

    def _sequence(self, jobs: SequenceJobs) -> SequenceRun:
        found = measure_sequence(self._plan, self._state, jobs)
        return SequenceRun(
            id=digest_of([self._first, jobs.name])[:16],
            run=self._run,
            name=jobs.name,
            about={"run": self._run, "method": jobs.method, "variant": jobs.variant, "seed": str(jobs.seed)}
            | {"tasks": " ".join(task.task for task in jobs.upstream)},
            measures=found.values if found is not None else {},
        )

    def _stages(self, sequence: SequenceRun, jobs: SequenceJobs, *, last: bool) -> Iterator[StageRun]:
        for task in (*jobs.upstream, *jobs.downstream):
            for key in task.stages:
                stage = self._stage(sequence, task, key, last=last)
                if stage is not None:
                    yield stage

    def _stage(self, sequence: SequenceRun, task: TaskJobs, key: str, *, last: bool) -> StageRun | None:
        job, now = self._plan.jobs[key], self._state.job(key)
        number, points = self._newest(now, last=last)
        if not points and now.committed is None:
            return None
        name = f"{task.task}-{job.stage.stage.value}" if job.stage is not None else task.task
        return StageRun(
            id=digest_of([sequence.id, name])[:16],
            sequence=sequence,
            name=name,
            about={"task": task.task, "stage": name.rpartition("-")[2], "atlas.job": key, "atlas.run": self._run},
            attempt=number,
            points=points,
            done=now.committed is not None,
            score=TrainResult.of(now.committed).known_score if now.committed is not None else None,
        )

    def _newest(self, now: JobState, *, last: bool) -> tuple[int, Sequence[Point]]:
        """The committed attempt, else the newest that has told something: its history begins where the stage began."""
        if now.committed is not None:
            return now.number(now.committed.attempt), self._curves.points(now.committed.prefix, whole=True)
        for number, attempt in reversed(list(enumerate(now.attempts, 1))):
            points = self._points(attempt, last=last)
            if points:
                return number, points
        return 0, ()

    def _points(self, attempt: Attempt, *, last: bool) -> Sequence[Point]:
        due = self._due_at.get(attempt.prefix, 0.0)
        if time.monotonic() < due and not last:
            return self._curves.known(attempt.prefix)
        age = max(0.0, time.time() - self._began.get(attempt.id, time.time()))
        self._due_at[attempt.prefix] = time.monotonic() + due_after_s(age, self._least_s)
        return self._curves.points(attempt.prefix)


class BackgroundSync:
    """Brings trackers up to date in a thread while a run is under way: every `least_s` seconds until it is left, then once
    more."""

    def __init__(self, tracker_sync: TrackerSync, least_s: float) -> None:
        self._tracker_sync, self._least_s = tracker_sync, least_s
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, name="tracker-sync", daemon=True)

    def __enter__(self) -> BackgroundSync:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join(FAREWELL_S)

    def _work(self) -> None:
        while not self._ending.wait(self._least_s):
            self._update()
        self._update(last=True)
        self._tracker_sync.close()

    def _update(self, *, last: bool = False) -> None:
        with suppress(AtlasError):  # the store is in trouble, which the run itself tells; the next look reads the same again
            self._tracker_sync.update(last=last)
