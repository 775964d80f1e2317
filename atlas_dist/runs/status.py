"""How a run stands, for people and for exit codes; derived from the ledger's fold and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from atlas_dist.core.ledger import Entry, fold
from atlas_dist.core.plan import Plan
from atlas_dist.core.records import Begin
from atlas_dist.core.results import SelectResult
from atlas_dist.core.schedule import Frontier
from atlas_dist.core.state import JobStatus, RunState
from atlas_dist.core.task_jobs import TaskJobs
from atlas_dist.core.types import Stage
from atlas_dist.errors import AtlasError, MissingObject, Paused, TrainingError
from atlas_dist.runs import layout
from atlas_dist.runs.stores import open_ledger
from atlas_dist.store.objects import ObjectStore


class Phase(StrEnum):
    """Where a run stands."""

    RUNNING = "running"
    STOPPING = "stopping"
    """Paused, cancelled or halted, with attempts still to end."""
    WAITING = "waiting"
    """It had stopped before this process attached, and its coordinator has not left yet."""
    PAUSED = "paused"
    CANCELLED = "cancelled"
    HALTED = "halted"
    FAILED = "failed"
    """What is left depends on quarantined jobs."""
    COMPLETE = "complete"


class CoordinatorRole(StrEnum):
    """What a coordinator process is for the run."""

    LEADER = "leader"
    FOLLOWER = "follower"
    """Attached: another process leads; this one watches, and takes over when the leader falls silent."""


@dataclass(frozen=True)
class RunStatus:
    """One line about a run."""

    run: str
    role: CoordinatorRole
    phase: Phase
    epoch: int
    committed: int
    total: int
    running: Mapping[str, str] = field(default_factory=dict)
    """attempt -> job"""
    quarantined: Mapping[str, str] = field(default_factory=dict)
    """job -> why"""
    reason: str = ""

    @property
    def done(self) -> bool:
        """Nothing more will happen without somebody asking for it."""
        return self.phase not in (Phase.RUNNING, Phase.STOPPING, Phase.WAITING)

    def error(self) -> AtlasError | None:
        """What a command should end with; None while running and when complete. Each of these waits for a person: a machine that
        starts the run again would undo a pause, or meet the same halt."""
        again = (
            "`atlas-dist logs` has why, `atlas-dist logs --attempt ID` what the workers said. When it is mended: "
            "`atlas-dist resume`, then the run again, each with the run's settings."
        )
        if self.phase is Phase.PAUSED:
            return Paused(f"Run {self.run} is paused: {self.reason}.", fix="The same command resumes it.", retry=False)
        if self.phase is Phase.CANCELLED:
            advice = "Start it under another name; results are reused."
            return Paused(f"Run {self.run} was cancelled: {self.reason}.", fix=advice, retry=False)
        if self.phase is Phase.HALTED:
            return TrainingError(f"Run {self.run} halted: {self.reason}.", fix=again, retry=False)
        if self.phase is Phase.FAILED:
            named = "; ".join(f"{job}: {why}" for job, why in list(self.quarantined.items())[:3])
            message = f"Run {self.run} can't go on without its quarantined jobs ({named})."
            return TrainingError(message, fix=again, retry=False)
        return None


def status_of(plan: Plan, state: RunState, frontier: Frontier, role: CoordinatorRole) -> RunStatus:
    """The status that a state means."""
    phase, reason = _phase(state, frontier)
    return RunStatus(
        run=state.run,
        role=role,
        phase=phase,
        epoch=state.epoch,
        committed=state.committed,
        total=len(plan.jobs),
        running={attempt: state.attempts[attempt] for attempt in sorted(state.running)},
        quarantined={key: why for key in frontier if (why := state.job(key).quarantined)},
        reason=reason,
    )


def _phase(state: RunState, frontier: Frontier) -> tuple[Phase, str]:
    if state.finished:
        return Phase.COMPLETE, state.finished
    for phase, reason in ((Phase.CANCELLED, state.cancelled), (Phase.HALTED, state.halted), (Phase.PAUSED, state.paused)):
        if reason:
            return (Phase.STOPPING if state.running else phase), reason
    if not state.running and len(frontier) and all(state.job(key).quarantined for key in frontier):
        return Phase.FAILED, "what is left depends on quarantined jobs"
    return Phase.RUNNING, ""


class TaskState(StrEnum):
    """How far a task of a sequence is: a view of its jobs."""

    PENDING = "pending"
    STAGE1 = "stage1"
    STAGE1_DONE = "stage1_done"
    STAGE2 = "stage2"
    COMMITTED = "committed"
    EVALUATED = "evaluated"
    PAUSED = "paused"
    CANCELLED = "cancelled"
    QUARANTINED = "quarantined"


@dataclass(frozen=True)
class TaskLine:
    """One task of one sequence and how far it is."""

    sequence: str
    task: str
    state: TaskState
    waits_for: str = ""
    """What its next job waits for: the labels of jobs, or workers."""
    committed: str = ""
    """Of a method that trains several forms of a task: which one it committed, on what evidence; "" = not yet, or no choice."""


def task_lines(plan: Plan, state: RunState) -> list[TaskLine]:
    """Every task of every sequence, in order."""
    lines = []
    for sequence in plan.sequences:
        for i, task in enumerate((*sequence.upstream, *sequence.downstream)):
            upstream = i < len(sequence.upstream)
            scores = [sequence.evaluations[i, i]] if upstream else [sequence.transfers[task.task]]
            lines.append(
                TaskLine(
                    sequence.name,
                    task.task,
                    _task_state(plan, state, task, scores),
                    _waits_for(plan, state, task),
                    _committed(state, task),
                )
            )
    return lines


def _committed(state: RunState, task: TaskJobs) -> str:
    ref = state.job(task.final).committed
    return SelectResult.of(ref).in_words() if ref is not None and "form" in ref.metrics else ""


def _waits_for(plan: Plan, state: RunState, task: TaskJobs) -> str:
    jobs = [key for key in task.stages if state.job(key).committed is None]
    if not jobs or state.job(jobs[0]).running is not None:
        return ""
    return " and ".join(missing_parents(plan, state, jobs[0])) or "workers"


def missing_parents(plan: Plan, state: RunState, job: str) -> list[str]:
    """Labels of the jobs that `job` builds on and that are not committed yet."""
    return [plan.jobs[p].label for p in plan.jobs[job].parents if p in plan.jobs and state.job(p).committed is None]


def _task_state(plan: Plan, state: RunState, task: TaskJobs, scores: list[str]) -> TaskState:
    jobs = [state.job(key) for key in task.stages]
    if jobs[-1].committed is not None:
        scored = all(state.job(key).committed is not None for key in scores)
        return TaskState.EVALUATED if scored else TaskState.COMMITTED
    if any(job.status is JobStatus.QUARANTINED for job in jobs):
        return TaskState.QUARANTINED
    if state.cancelled:
        return TaskState.CANCELLED
    done = sum(job.committed is not None for job in jobs)
    started = any(job.attempts for job in jobs)
    if state.paused and started:
        return TaskState.PAUSED
    running = next((key for key, job in zip(task.stages, jobs, strict=True) if job.running is not None), "")
    if running:
        stage = plan.jobs[running].stage
        return TaskState.STAGE1 if stage is not None and stage.stage is Stage.ONE else TaskState.STAGE2
    return TaskState.STAGE1_DONE if done else TaskState.PENDING


def recorded_precision(store: ObjectStore, run: str) -> str:
    """What the run computes in, as its first entry says; "" = it has not begun, or does not say. Raises StoreError, DataError."""
    try:
        entry = Entry.from_bytes(store.get(f"{layout.ledger(run)}/{0:016d}"))
    except MissingObject:
        return ""
    spec = entry.record.spec if isinstance(entry.record, Begin) else {}
    return str(spec.get("train", {}).get("precision", ""))


def load_run(store: ObjectStore, run: str) -> tuple[RunState, list[Entry]]:
    """Read a run's ledger without taking part in it: its state and its entries ([] when there is no such run).

    Raises:
        StoreError: the ledger is broken or the store in trouble.
        DataError: a newer version wrote it.
    """
    entries = open_ledger(store, run).read_new()
    return fold(RunState(run=run), entries), entries
