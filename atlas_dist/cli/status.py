"""`atlas-dist status`: how a run stands, read from its store alone; once, again and again, or as JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import typer
from rich.console import Console

from atlas_dist.app.composed import compose_run
from atlas_dist.app.show import standard_console
from atlas_dist.app.status import Standing, status
from atlas_dist.cli.logs import line
from atlas_dist.core.pace import duration
from atlas_dist.runs.heartbeat import PoolHeartbeat

SILENT_S = 60.0
"""Seconds without a heartbeat after which a coordinator is called silent; it beats every few seconds."""


def show_status(overrides: list[str] | None, *, watch: float, as_json: bool, many: bool = False) -> None:
    """Print how a run stands; with `watch`, every so many seconds until it is over.

    Raises:
        ConfigError: there is no such run. DataError, StoreError: as `load_run`.
    """
    composed_run, out = compose_run(*(overrides or ()), many=many), standard_console()
    while True:
        standing = status(composed_run)
        if as_json:
            typer.echo(json.dumps(as_document(standing)))
        else:
            if watch and out.is_terminal:
                out.clear()
            _print(standing, out)
        if not watch or standing.status.done:
            return
        time.sleep(watch)


def as_document(standing: Standing) -> dict[str, Any]:
    """For programs: stable names, plain values."""
    status = standing.status
    return {
        "run": status.run,
        "phase": status.phase.value,
        "reason": status.reason,
        "epoch": status.epoch,
        "coordinator": {} if standing.heard_s is None else {"heard_s": standing.heard_s, "left": standing.left},
        "committed": status.committed,
        "total": status.total,
        "seconds_left": standing.seconds_left,
        "rechecked": standing.rechecked,
        "tasks": [
            {
                "sequence": t.sequence,
                "task": t.task,
                "state": t.state.value,
                "waits_for": t.waits_for,
                "committed": t.committed,
            }
            for t in standing.tasks
        ],
        "pools": [{"name": name, **asdict(pool)} for name, pool in standing.pools.items()],
        "jobs": [asdict(job) for job in standing.jobs],
    }


def _print(standing: Standing, out: Console) -> None:
    status = standing.status
    left = f", about {duration(standing.seconds_left)} of training left" if standing.seconds_left else ""
    out.print(
        f"run {status.run}: {status.phase.value}, {status.committed} of {status.total} jobs committed, "
        f"coordinator epoch {status.epoch}{_health(standing)}{left}"
    )
    if status.reason:
        out.print(f"reason: {status.reason}", markup=False, soft_wrap=True)
    if (ended := status.error()) is not None:
        out.print(f"next: {ended.fix}", markup=False, soft_wrap=True)
    for task in standing.tasks:
        waits = f", waits for {task.waits_for}" if task.waits_for and not status.done else ""
        committed = f", {task.committed}" if task.committed else ""
        out.print(f"  {task.sequence}  {task.task}: {task.state.value}{waits}{committed}", markup=False, soft_wrap=True)
    if standing.rechecked:
        parts = [f"{read:,} of {of:,} ({task})" for task, (read, of) in standing.rechecked.items()]
        out.print(f"  read again after later tasks, a fixed sample: {', '.join(parts)}", markup=False, soft_wrap=True)
    for name, pool in standing.pools.items() if not status.done else ():
        out.print(f"  {pool_line(name, pool)}", markup=False)
    for job in standing.jobs:
        if job.state == "running":
            where = f"step {job.step} of {job.steps}" if job.steps else "starting"
            left = f", about {duration(job.seconds_left)} left" if job.seconds_left is not None else ""
            out.print(f"  {job.label}: attempt {job.attempts}, {where}{_curve(job.curve)}{left}", markup=False)
        elif job.failure and job.state != "committed":
            out.print(f"  {job.label}: {job.attempts} attempts, last failed: {job.failure}", markup=False)
    for job in standing.jobs:
        if job.masked:
            out.print(f"  {job.masked}", markup=False, soft_wrap=True)
    for decision in standing.decisions:
        out.print(f"  {line(decision, standing.labels)}", markup=False, soft_wrap=True)


def pool_line(name: str, pool: PoolHeartbeat) -> str:
    """A pool in words; what it does only where its leader says so."""
    return f"pool {name}: {pool.workers} of {pool.of} workers" + (f", {pool.standing}" if pool.standing else "")


def _curve(point: Mapping[str, float]) -> str:
    if not point:
        return ""
    pace = f", {point['samples_per_s']:.0f} samples/s, data wait {point['data_wait']:.0%}" if "samples_per_s" in point else ""
    return f", at step {point['step']} loss {point['loss']:.3f}, score {point['score']:.1f} %{pace}"


def _health(standing: Standing) -> str:
    if standing.left:
        return " (has left)"
    heard = standing.heard_s
    return "" if heard is None else f" (heard {duration(heard)} ago)" if heard < SILENT_S else f" (silent for {duration(heard)})"
