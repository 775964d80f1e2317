"""How a run stands, read from its store alone: one look, as values."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from atlas_dist.app.composed import ComposedRun, Settings, compose_run
from atlas_dist.app.process import restored_process
from atlas_dist.core.ledger import Entry
from atlas_dist.core.pace import seconds_left
from atlas_dist.core.plan import Plan
from atlas_dist.core.results import TrainResult, result_of
from atlas_dist.core.schedule import Frontier
from atlas_dist.core.state import RunState
from atlas_dist.core.types import JobKind
from atlas_dist.errors import AtlasError
from atlas_dist.report.masked import masked_sentence
from atlas_dist.runs.heartbeat import Heartbeat, PoolHeartbeat, read_heartbeat
from atlas_dist.runs.status import CoordinatorRole, RunStatus, TaskLine, load_run, missing_parents, status_of, task_lines
from atlas_dist.store.curves import TRAIN, CurveReader, Point
from atlas_dist.store.objects import ObjectStore

LAST_DECISIONS = 3
NEWEST = 10
"""Points of a curve that an attempt's pace is judged by."""


@dataclass(frozen=True)
class JobStanding:
    """One job of a run."""

    key: str
    label: str
    state: str
    """`pending`, `running`, `committed`, … (core/state.py, JobStatus)."""
    attempts: int
    step: int
    """Of the attempt under way; 0 = none, or it has not told of one yet."""
    steps: int
    """How many it will do."""
    curve: Mapping[str, float]
    """The newest point of the attempt under way: step, loss, score, …; empty = none."""
    seconds_left: float | None
    """Of the attempt under way, at its own pace; None = not known."""
    score: float | None
    """In percent; None = not committed."""
    samples: tuple[int, int] | None
    """Of an evaluation that reads a fixed sample: (how many, of how many); None = it reads all, or learns."""
    adopted_from: str
    """Run whose result it is; "" = this one's."""
    waits_for: tuple[str, ...]
    """Labels of jobs."""
    masked: str
    """Which of its samples could not be used, as a sentence; "" = none."""
    failure: str
    quarantined: str


@dataclass(frozen=True)
class Standing:
    """One look at a run."""

    status: RunStatus
    tasks: tuple[TaskLine, ...]
    jobs: tuple[JobStanding, ...]
    heard_s: float | None
    """Seconds since the coordinator's last heartbeat by the two machines' clocks; None = it does not say."""
    left: bool
    """The coordinator has said good-bye."""
    pools: Mapping[str, PoolHeartbeat]
    """By name; empty when nobody leads."""
    decisions: tuple[Entry, ...]
    """The newest entries of the ledger."""
    labels: Mapping[str, str]
    """Job key -> what people call it."""
    seconds_left: float | None
    """Estimated from what finished stages took; None when nothing comparable has finished."""
    rechecked: Mapping[str, tuple[int, int]]
    """Task -> (samples that are read again after later tasks, samples of its split); whole splits are not there."""


def status(*settings: Settings, many: bool = False) -> Standing:
    """How a run stands; needs no cluster.

    Args:
        settings: as for `run`.

    Raises:
        ConfigError: there is no such run. DataError, StoreError: its shards or its ledger cannot be read.
    """
    composed_run = compose_run(*settings, many=many)
    with restored_process():
        return read_standing(composed_run)


def read_standing(composed_run: ComposedRun) -> Standing:
    """One look. Raises as `status`."""
    plan, store = composed_run.plan(), composed_run.store
    state, entries = load_run(store, composed_run.config.run)
    if not entries:
        raise composed_run.no_such_run()
    heartbeat = read_heartbeat(store, state.run, state.epoch)
    steps, points = heartbeat.running if heartbeat else {}, _points(store, state)
    heard = round(max(0.0, time.time() - heartbeat.at), 1) if heartbeat and heartbeat.at else None
    return Standing(
        status=status_of(plan, state, Frontier.of(plan, state), CoordinatorRole.FOLLOWER),
        tasks=tuple(task_lines(plan, state)),
        jobs=tuple(_job(plan, state, key, steps, points) for key in plan.jobs),
        heard_s=heard,
        left=heartbeat is not None and heard is not None and heartbeat.released,
        pools=_pools(heartbeat),
        decisions=tuple(entries[-LAST_DECISIONS:]),
        labels={key: job.label for key, job in plan.jobs.items()},
        seconds_left=_seconds_left(plan, state),
        rechecked=plan.rechecked,
    )


def _job(
    plan: Plan, state: RunState, key: str, steps: Mapping[str, tuple[int, int]], points: Mapping[str, Sequence[Point]]
) -> JobStanding:
    now, job = state.job(key), plan.jobs[key]
    step, total = steps.get(now.running.id, (0, 0)) if now.running else (0, 0)
    curve = points.get(now.running.id, ()) if now.running else ()
    return JobStanding(
        key=key,
        label=job.label,
        state=now.status.value,
        attempts=len(now.attempts),
        step=step,
        steps=total,
        curve={"step": curve[-1].step, **curve[-1].values} if curve else {},
        seconds_left=seconds_left([(point.at, point.step) for point in curve], total) if total else None,
        score=result_of(now.committed).known_score if now.committed else None,
        samples=(min(job.samples.values()), job.split_samples) if job.samples else None,
        adopted_from=now.adopted_from,
        waits_for=tuple(missing_parents(plan, state, key)),
        masked=masked_sentence(job.label, [result_of(now.committed)] if now.committed else []),
        failure=now.failure.reason if now.failure else "",
        quarantined=now.quarantined,
    )


def _pools(heartbeat: Heartbeat | None) -> Mapping[str, PoolHeartbeat]:
    """The pools; none when the heartbeat does not say, or its leader has left."""
    return {} if heartbeat is None or heartbeat.released else heartbeat.pools


def _points(store: ObjectStore, state: RunState) -> dict[str, Sequence[Point]]:
    """attempt under way -> the newest training points of its curve; nothing where it has none yet or it can't be read."""
    reader = CurveReader(store)
    found: dict[str, Sequence[Point]] = {}
    for attempt in state.running:
        with suppress(AtlasError):
            points = [p for p in reader.points(state.attempt(attempt).prefix) if p.split == TRAIN and "loss" in p.values]
            if points:
                found[attempt] = points[-NEWEST:]
    return found


def _seconds_left(plan: Plan, state: RunState) -> float | None:
    """Training steps that are left, at the pace of those that this store has seen."""
    seconds = steps = left = 0.0
    for key, job in plan.jobs.items():
        ref = state.job(key).committed
        if job.kind is not JobKind.TRAIN:
            continue
        if ref is not None:
            result = TrainResult.of(ref)
            seconds += result.seconds.training
            steps += result.steps
        elif not job.budget.max_steps:
            return None
        else:
            left += job.budget.max_steps
    return round(left * seconds / steps, 1) if steps and left else None
