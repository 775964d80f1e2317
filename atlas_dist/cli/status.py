"""`atlas-dist status`: how a run stands, read from its store alone; once, again and again, or as JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import typer
from rich.console import Console

from atlas_dist.cli.words import compose_run, console, duration, hush, no_such_run
from atlas_dist.config import RunConfig
from atlas_dist.core.ledger import RunState
from atlas_dist.core.pace import seconds_left
from atlas_dist.core.plan import Plan
from atlas_dist.core.results import Metrics
from atlas_dist.core.schedule import Frontier
from atlas_dist.core.types import JobKind, View
from atlas_dist.errors import AtlasError
from atlas_dist.report.masked import masked_sentence
from atlas_dist.runs.heartbeat import Heartbeat, read_heartbeat
from atlas_dist.runs.status import CoordinatorRole, RunStatus, TaskLine, load_run, missing_parents, status_of, task_lines
from atlas_dist.runs.stores import open_run_store
from atlas_dist.store.curves import TRAIN, CurveReader, Point
from atlas_dist.store.objects import ObjectStore

LAST_DECISIONS = 3
NEWEST = 10
"""Points of a curve that an attempt's pace is judged by."""
SILENT_S = 60.0
"""Seconds without a heartbeat after which a coordinator is called silent; it beats every few seconds."""


@dataclass(frozen=True)
class Standing:
    """Everything that `status` shows of one look at a run."""

    status: RunStatus
    tasks: list[TaskLine]
    jobs: list[dict[str, Any]]
    leader: dict[str, Any]
    """The coordinator: `heard_s`, seconds since its last heartbeat by the two machines' clocks; `left`: it has said good-bye."""
    pools: list[dict[str, Any]]
    """Name, workers, of how many, standing; [] when nobody leads."""
    decisions: list[str]
    seconds_left: float | None
    """Estimated from what finished stages took; None when nothing comparable has finished."""


def show_status(overrides: list[str] | None, *, watch: float, as_json: bool, many: bool = False) -> None:
    """Print how a run stands; with `watch`, every so many seconds until it is over.

    Raises:
        ConfigError: there is no such run. DataError, StoreError: as `load_run`.
    """
    composed_run = compose_run(overrides, many=many)
    config = composed_run.config
    hush()
    plan, store, out = composed_run.plan(), open_run_store(config), console()
    while True:
        standing = read_standing(config, plan, store)
        if as_json:
            typer.echo(json.dumps(as_document(standing)))
        else:
            if watch and out.is_terminal:
                out.clear()
            _print(standing, out)
        if not watch or standing.status.done:
            return
        time.sleep(watch)


def read_standing(config: RunConfig, plan: Plan, store: ObjectStore) -> Standing:
    """One look. Raises as `show_status`."""
    from atlas_dist.cli.logs import line

    state, entries = load_run(store, config.run)
    if not entries:
        raise no_such_run(config)
    labels = {key: job.label for key, job in plan.jobs.items()}
    heartbeat = read_heartbeat(store, config.run, state.epoch)
    steps, told = heartbeat.running if heartbeat else {}, _told(store, state)
    return Standing(
        status=status_of(plan, state, Frontier.of(plan, state), CoordinatorRole.FOLLOWER),
        tasks=task_lines(plan, state),
        jobs=[_job(plan, state, key, steps, told) for key in plan.jobs],
        leader=_leader(heartbeat),
        pools=_pools(heartbeat),
        decisions=[line(entry, labels) for entry in entries[-LAST_DECISIONS:]],
        seconds_left=_seconds_left(plan, state),
    )


def as_document(standing: Standing) -> dict[str, Any]:
    """For programs: stable names, plain values."""
    status = standing.status
    return {
        "run": status.run,
        "phase": status.phase.value,
        "reason": status.reason,
        "epoch": status.epoch,
        "coordinator": standing.leader,
        "committed": status.committed,
        "total": status.total,
        "seconds_left": standing.seconds_left,
        "tasks": [
            {"sequence": t.sequence, "task": t.task, "state": t.state.value, "waits_for": t.waits_for} for t in standing.tasks
        ],
        "pools": standing.pools,
        "jobs": standing.jobs,
    }


def _print(standing: Standing, out: Console) -> None:
    status = standing.status
    left = f", about {duration(standing.seconds_left)} of training left" if standing.seconds_left else ""
    out.print(
        f"run {status.run}: {status.phase.value}, {status.committed} of {status.total} jobs committed, "
        f"coordinator epoch {status.epoch}{_health(standing.leader)}{left}"
    )
    if status.reason:
        out.print(f"reason: {status.reason}", markup=False, soft_wrap=True)
    if (ended := status.error()) is not None:
        out.print(f"next: {ended.fix}", markup=False, soft_wrap=True)
    for task in standing.tasks:
        waits = f", waits for {task.waits_for}" if task.waits_for and not status.done else ""
        out.print(f"  {task.sequence}  {task.task}: {task.state.value}{waits}", markup=False)
    for pool in standing.pools if not status.done else ():
        out.print(f"  pool {pool['name']}: {pool['workers']} of {pool['of']} workers, {pool['standing']}", markup=False)
    for job in standing.jobs:
        if job["state"] == "running":
            where = f"step {job['step']} of {job['steps']}" if job["steps"] else "starting"
            left = f", about {duration(job['seconds_left'])} left" if job["seconds_left"] is not None else ""
            out.print(f"  {job['label']}: attempt {job['attempts']}, {where}{_curve(job['curve'])}{left}", markup=False)
        elif job["failure"] and job["state"] != "committed":
            out.print(f"  {job['label']}: {job['attempts']} attempts, last failed: {job['failure']}", markup=False)
    for job in standing.jobs:
        if job["masked"]:
            out.print(f"  {job['masked']}", markup=False, soft_wrap=True)
    for decision in standing.decisions:
        out.print(f"  {decision}", markup=False, soft_wrap=True)


def _curve(point: Mapping[str, float]) -> str:
    if not point:
        return ""
    pace = f", {point['samples_per_s']:.0f} samples/s, data wait {point['data_wait']:.0%}" if "samples_per_s" in point else ""
    return f", at step {point['step']} loss {point['loss']:.3f}, score {point['score']:.1f} %{pace}"


def _health(leader: Mapping[str, Any]) -> str:
    if leader.get("left"):
        return " (has left)"
    heard = leader.get("heard_s")
    return "" if heard is None else f" (heard {duration(heard)} ago)" if heard < SILENT_S else f" (silent for {duration(heard)})"


def _job(
    plan: Plan, state: RunState, key: str, steps: Mapping[str, tuple[int, int]], told: Mapping[str, Sequence[Point]]
) -> dict[str, Any]:
    now, job = state.job(key), plan.jobs[key]
    metrics = now.committed.metrics if now.committed else {}
    score = metrics.get("score", metrics.get("views", {}).get(View.TASK.value, {}).get("score"))
    step, total = steps.get(now.running.id, (0, 0)) if now.running else (0, 0)
    curve = told.get(now.running.id, ()) if now.running else ()
    return {
        "key": key,
        "label": job.label,
        "state": now.status.value,
        "attempts": len(now.attempts),
        "step": step,
        "steps": total,
        "curve": {"step": curve[-1].step, **curve[-1].values} if curve else {},
        "seconds_left": seconds_left([(point.at, point.step) for point in curve], total) if total else None,
        "score": score,
        "adopted_from": now.adopted_from,
        "waits_for": missing_parents(plan, state, key),
        "masked": masked_sentence(job.label, [Metrics.from_json(metrics)]),
        "failure": now.failure.reason if now.failure else "",
        "quarantined": now.quarantined,
    }


def _pools(heartbeat: Heartbeat | None) -> list[dict[str, Any]]:
    """The pools; [] when the heartbeat does not say, or its leader has left."""
    if heartbeat is None or heartbeat.released:
        return []
    return [{"name": name, **asdict(pool)} for name, pool in heartbeat.pools.items()]


def _leader(heartbeat: Heartbeat | None) -> dict[str, Any]:
    """How the coordinator is; {} when the heartbeat does not say."""
    if heartbeat is None or not heartbeat.at:
        return {}
    return {"heard_s": round(max(0.0, time.time() - heartbeat.at), 1), "left": heartbeat.released}


def _told(store: ObjectStore, state: RunState) -> dict[str, Sequence[Point]]:
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
            seconds += float(ref.metrics.get("seconds", {}).get("training", 0.0))
            steps += float(ref.metrics.get("steps", 0))
        elif not job.budget.max_steps:
            return None
        else:
            left += job.budget.max_steps
    return round(left * seconds / steps, 1) if steps and left else None
