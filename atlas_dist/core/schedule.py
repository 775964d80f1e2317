"""What to do next, as a pure function: plan, state, free slots and the time in; actions with their reasons out.

    upstream chain          first, always; sequences advance in step, so that several orders and seeds share a cluster fairly
    evaluations, transfers  backfill: they take only slots that no living chain is using or waiting for
    a failed attempt        taken away: again, unless five in a row got nowhere; the store: again, later and later;
                            stood still: in new processes, three times at the same step;
                            not finite: once more from the last finite checkpoint, the same step twice halts the run;
                            out of a device's memory: at once, with half the micro batch;
                            the job itself raised: a few times; configuration, schema, credentials: the run halts

Nothing here acts. The coordinator records an action, then does it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field

from atlas_dist.core.attempts import FailureKind
from atlas_dist.core.plan import REFERENCE, TRANSFER, UPSTREAM, Plan
from atlas_dist.core.state import AttemptStatus, JobState, RunState
from atlas_dist.core.types import JobKind, StageJob, Work

_LEARNING = {UPSTREAM: Work.UPSTREAM, TRANSFER: Work.TRANSFER, REFERENCE: Work.REFERENCE}


@dataclass(frozen=True)
class Pool:
    """A group of workers that runs one job per slot, all its workers together or none.

    Example: Pool("main", free=1, total=1, ranks=2, limit=8): one job at a time on two workers; the cluster can form worker groups
    of 8.
    """

    name: str
    free: int
    total: int
    ranks: int = 1
    """Workers that one slot needs at the same time, or that sit there now: a group may come back smaller."""
    limit: int = 0
    """The largest worker group that the cluster can ever form; 0 = not known, anything may come up."""
    takes: frozenset[Work] = frozenset(Work)
    """What the pool accepts."""
    standing: str = ""
    """For people: who sits there and what they do."""


@dataclass(frozen=True)
class Capacity:
    """The pools as they are now."""

    pools: tuple[Pool, ...]


@dataclass(frozen=True)
class RetryRules:
    """How patient the run is with its jobs."""

    stuck_attempts: int = 5
    """Attempts in a row without one step of progress, none of them the job's own fault, before the job is quarantined."""
    poison_tries: int = 3
    """Attempts that the job itself ends by raising before it is quarantined."""
    stall_tries: int = 3
    """Attempts that stood still without getting further than one before them, before the job is quarantined."""
    memory_tries: int = 12
    """Attempts that ran out of a device's memory, each with half the micro batch of the one before, before it is quarantined."""
    nonfinite_tries: int = 5
    """Attempts ended by values that are not finite, each at another step, before the run halts."""
    first_wait_s: float = 2.0
    longest_wait_s: float = 300.0


DEFAULT_RULES = RetryRules()


@dataclass(frozen=True)
class StartJob:
    """Start an attempt at `job` on `pool` (or adopt its result, if another run has it)."""

    job: str
    pool: str
    reason: str


@dataclass(frozen=True)
class CancelAttempt:
    """Stop an attempt that nobody wants any more."""

    attempt: str
    reason: str


@dataclass(frozen=True)
class AbandonAttempt:
    """Delete an ended attempt's files, after saying so."""

    attempt: str
    reason: str


@dataclass(frozen=True)
class QuarantineJob:
    """Give a job up until somebody resumes the run."""

    job: str
    reason: str


@dataclass(frozen=True)
class HaltRun:
    """Stop everything: trying again can't mend this."""

    job: str
    reason: str


@dataclass(frozen=True)
class FinishRun:
    """Every job is committed."""

    reason: str


Action = StartJob | CancelAttempt | AbandonAttempt | QuarantineJob | HaltRun | FinishRun


class Frontier:
    """The open jobs of a plan (parents committed, not committed itself) in the order in which they deserve a slot.

    An index that the coordinator keeps and moves on with `settle`, so that a decision costs the open jobs it looks at and not the
    whole plan. `Frontier.of(plan, state)` builds the same thing from nothing.
    """

    def __init__(self, plan: Plan) -> None:
        order = sorted(range(len(plan.jobs)), key=_deserts(plan).__getitem__)
        keys = list(plan.jobs)
        self._by_rank = [keys[i] for i in order]
        self._rank = {key: rank for rank, key in enumerate(self._by_rank)}
        self._missing = {key: len(job.parents) for key, job in plan.jobs.items()}
        self._children: dict[str, list[str]] = {key: [] for key in plan.jobs}
        for key, job in plan.jobs.items():
            for parent in job.parents:
                self._children[parent].append(key)
        self._settled: set[str] = set()
        self._open = sorted(self._rank[key] for key, missing in self._missing.items() if not missing)

    @classmethod
    def of(cls, plan: Plan, state: RunState) -> Frontier:
        """The frontier that `state` stands at."""
        frontier = cls(plan)
        for key, job in state.jobs.items():
            if job.committed is not None:
                frontier.settle(key)
        return frontier

    def settle(self, key: str) -> None:
        """The job is committed: it leaves, and children whose last missing parent it was enter. Twice is as good as once."""
        if key in self._settled or key not in self._rank:
            return
        self._settled.add(key)
        if not self._missing[key]:
            del self._open[bisect_left(self._open, self._rank[key])]
        for child in self._children[key]:
            self._missing[child] -= 1
            if not self._missing[child] and child not in self._settled:
                insort(self._open, self._rank[child])

    def __iter__(self) -> Iterator[str]:
        return (self._by_rank[rank] for rank in self._open)

    def __len__(self) -> int:
        return len(self._open)


def _deserts(plan: Plan) -> list[tuple[int, int, int]]:
    """For each job in plan order: (priority, how far along its sequence it is, place in the plan).

    The sequence that has got least far comes first: that keeps several sequences in step, whatever their jobs cost.
    """
    position: dict[str, int] = {}
    for sequence in plan.sequences:
        for i, task in enumerate(sequence.upstream):
            for stage in task.stages:
                position[stage] = min(i, position.get(stage, i))
    for key, job in plan.jobs.items():
        if key not in position:
            position[key] = max((position[p] + 1 for p in job.parents), default=0)
    return [(job.priority, position[key], place) for place, (key, job) in enumerate(plan.jobs.items())]


def infeasible(plan: Plan, capacity: Capacity) -> list[str]:
    """Why some job could never run, one line a reason; empty when all could. Asked once, before anything is recorded."""
    fitting = [p for p in capacity.pools if not p.limit or p.ranks <= p.limit]
    too_big = [
        f"pool {p.name} needs {p.ranks} workers at once; the cluster can never give more than {p.limit}"
        for p in capacity.pools
        if p not in fitting
    ]
    homeless = [
        f"no feasible pool takes {work.value} jobs"
        for work in sorted({work_of(job) for job in plan.jobs.values()})
        if not any(work in pool.takes for pool in fitting)
    ]
    return too_big + homeless


def next_actions(
    plan: Plan,
    state: RunState,
    capacity: Capacity,
    now: float,
    *,
    frontier: Frontier | None = None,
    rules: RetryRules = DEFAULT_RULES,
) -> list[Action]:
    """Everything that should happen now, in the order in which it should be recorded and done.

    Args:
        now: wall clock, compared with the times of failures for back-off only.
        frontier: `Frontier.of(plan, state)`, when the caller keeps one.
    """
    actions: list[Action] = []
    if state.finished or state.cancelled or state.paused or state.halted:
        stop = state.finished or state.cancelled or state.paused or state.halted
        return [*_cancel(state, f"the run stops: {stop}", only_settled=False), *_collect(state)]
    verdicts = [v for key in sorted(state.troubled) if (v := _verdict(state.job(key), rules)) is not None]
    halts = [v for v in verdicts if isinstance(v, HaltRun)]
    if halts:
        return [halts[0]]
    actions += verdicts
    actions += _cancel(state, "the job is committed already", only_settled=True)
    actions += _collect(state)
    if state.committed == len(plan.jobs):
        return [*actions, FinishRun(f"all {state.committed} jobs are committed")]
    given_up = {v.job for v in verdicts if isinstance(v, QuarantineJob)}
    actions += _Starts(plan, state, capacity, now, rules, given_up).choose(frontier or Frontier.of(plan, state))
    return actions


def _cancel(state: RunState, reason: str, *, only_settled: bool) -> list[Action]:
    return [
        CancelAttempt(attempt, reason)
        for attempt in sorted(state.running)
        if not only_settled or state.job(state.attempts[attempt]).committed is not None
    ]


def _collect(state: RunState) -> list[Action]:
    return [AbandonAttempt(attempt, "nothing can use it any more") for attempt in sorted(state.garbage)]


def _verdict(job: JobState, rules: RetryRules) -> QuarantineJob | HaltRun | None:
    """Whether the job has used up its tries."""
    failure = job.failure
    if failure is None:
        return None
    if failure.kind is FailureKind.FATAL:
        return HaltRun(job.key, f"trying again can't mend this: {failure.reason}")
    if failure.kind is FailureKind.NONFINITE:
        if job.nonfinite.count(failure.step) > 1:
            return HaltRun(job.key, f"step {failure.step} was not finite again after a replay: {failure.reason}")
        if len(job.nonfinite) >= rules.nonfinite_tries:
            return HaltRun(job.key, f"values were not finite {len(job.nonfinite)} times: {failure.reason}")
    if job.memory_failures >= rules.memory_tries:
        return QuarantineJob(job.key, f"it ran out of memory {job.memory_failures} times: {failure.reason}")
    if job.stalls >= rules.stall_tries:
        return QuarantineJob(job.key, f"it stood still {job.stalls} times without getting further: {failure.reason}")
    if job.poisons >= rules.poison_tries:
        return QuarantineJob(job.key, f"it raised {job.poisons} times: {failure.reason}")
    if job.stuck >= rules.stuck_attempts:
        return QuarantineJob(job.key, f"{job.stuck} attempts in a row made no step of progress: {failure.reason}")
    return None


def _wait_s(job: JobState, rules: RetryRules) -> float:
    """How long to leave a job alone after its newest failure."""
    failure = job.failure
    if failure is None or failure.kind in (FailureKind.NONFINITE, FailureKind.MEMORY):
        return 0.0
    counts = {FailureKind.STORE: job.store_failures, FailureKind.POISON: job.poisons, FailureKind.STALLED: job.stalls}
    repeats = counts.get(failure.kind, job.stuck)
    return min(rules.longest_wait_s, rules.first_wait_s * 2.0 ** (repeats - 1)) if repeats else 0.0


def _why(job: JobState) -> str:
    failure = job.failure
    if failure is None:
        return "its parents are committed"
    smaller = f" with {halved(job.memory_failures)} of the micro batch" if job.memory_failures else ""
    return f"attempt {len(job.attempts) + 1}{smaller}, after {failure.kind} at step {failure.step}: {failure.reason}"


def halved(times: int) -> str:
    """For people: what halving so often leaves.

    >>> halved(1), halved(3)
    ('1/2', '1/8')
    """
    return f"1/{2**times}"


@dataclass
class _Starts:
    """One round of giving free slots to open jobs."""

    plan: Plan
    state: RunState
    capacity: Capacity
    now: float
    rules: RetryRules
    given_up: set[str]
    free: dict[str, int] = field(default_factory=dict)

    def choose(self, frontier: Frontier) -> list[Action]:
        """Chain jobs take what they need; what else is open may take slots that no living chain is waiting for."""
        self.free = {pool.name: max(0, pool.free) for pool in self.capacity.pools}
        chosen: list[Action] = []
        waiting = 0
        for key in frontier:
            if not any(self.free.values()):
                break
            job, known = self.plan.jobs[key], self.state.job(key)
            if key in self.given_up or known.quarantined or known.running is not None:
                continue
            chain = _is_chain(job)
            if self._must_wait(known):
                waiting += chain
                continue
            pool = self._slot(job, kept=0 if chain else waiting)
            if pool:
                self.free[pool] -= 1
                chosen.append(StartJob(key, pool, _why(known)))
            else:
                waiting += chain
        return chosen

    def _must_wait(self, job: JobState) -> bool:
        # A clock that went backwards makes a retry early, never late.
        return 0.0 <= self.now - job.failed_at < _wait_s(job, self.rules)

    def _slot(self, job: StageJob, kept: int) -> str:
        """A free slot for the job: first where no chain could run anyway; `kept` slots of the others stay free."""
        fitting = [p for p in self.capacity.pools if work_of(job) in p.takes and (not p.limit or p.ranks <= p.limit)]
        if not _is_chain(job):
            for pool in fitting:
                if Work.UPSTREAM not in pool.takes and self.free[pool.name]:
                    return pool.name
            open_to_chains = sum(self.free[p.name] for p in self.capacity.pools if Work.UPSTREAM in p.takes)
            if open_to_chains <= kept:
                return ""
        return next((p.name for p in fitting if self.free[p.name]), "")


def work_of(job: StageJob) -> Work:
    """Which part of a run a job is. A job that several parts share is what it was first planned as, at every start of the run."""
    return Work.EVALUATION if job.kind is JobKind.EVAL else _LEARNING[job.priority]


def _is_chain(job: StageJob) -> bool:
    return work_of(job) is Work.UPSTREAM


def latest_usable(job: JobState) -> list[str]:
    """Prefixes of ended attempts whose checkpoints may be continued, newest first."""
    return [a.prefix for a in reversed(job.attempts) if a.status is AttemptStatus.FAILED]
