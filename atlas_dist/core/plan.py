"""From what the user wants to a graph of jobs, each named by everything it depends on.

The upstream tasks of a sequence form a chain; evaluations and downstream transfers hang off fixed states of the bank. A job's key
is the digest of its own settings and of the keys of the jobs it builds on, so equal work gets an equal key wherever it appears:
two orders with a common prefix, two runs, a run started again. Keys are *input-addressed* (they name how a result is made, not
its bytes), so that the whole graph, with its sharing, is known before anything is trained.

    cifar10.stage2 ──► trec.stage1 ──► trec.stage2 ──► …            the chain
          │                                 ├─► eval cifar10, trec      on the bank {cifar10, trec}
          └─► eval cifar10                  └─► nlvr.stage1 ─► …        a downstream transfer
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from atlas_dist.core.keys import digest_of, key_of
from atlas_dist.core.types import Budget, JobKind, MethodSpec, Stage, StageJob, TaskSpec, View
from atlas_dist.errors import ConfigError

UPSTREAM, EVALUATION, TRANSFER, TRANSFER_EVALUATION = 0, 1, 2, 3
"""Priorities: the chain is never kept waiting by what hangs off it."""


@dataclass(frozen=True)
class PlannedTask:
    """A task and how long each of its stages learns."""

    spec: TaskSpec
    budgets: Mapping[Stage, Budget]


@dataclass(frozen=True)
class SequenceSpec:
    """One order of upstream tasks with the downstream tasks that start from its final bank, under one seed."""

    name: str
    method: MethodSpec
    seed: int
    upstream: tuple[PlannedTask, ...]
    downstream: tuple[PlannedTask, ...] = ()


@dataclass(frozen=True)
class Common:
    """What every job of a run depends on besides its own task."""

    backbone_digest: str
    numerics: Mapping[str, Any]
    """Version and precision of the arithmetic: what may change a result at equal settings. Never the number of workers."""


@dataclass(frozen=True)
class TaskJobs:
    """The jobs of one task in one sequence, in order; `final` holds what the task finally is."""

    task: str
    stages: tuple[str, ...]
    bank: tuple[str, ...]
    """Adapters that existed for the task, its own included where it grew one."""

    @property
    def final(self) -> str:
        """Key of the last stage."""
        return self.stages[-1]


@dataclass(frozen=True)
class SequenceJobs:
    """Which job plays which part in one sequence: what reports and snapshots are made from."""

    name: str
    method: str
    seed: int
    upstream: tuple[TaskJobs, ...]
    downstream: tuple[TaskJobs, ...]
    evaluations: Mapping[tuple[int, int], str]
    """(i, j) -> the job that scores task j after task i was learnt; i = position of the last upstream task, j <= i."""
    transfers: Mapping[str, str]
    """downstream task -> the job that scores it."""


@dataclass(frozen=True)
class Plan:
    """The jobs of a run in topological order, and the sequences they belong to."""

    jobs: Mapping[str, StageJob]
    sequences: tuple[SequenceJobs, ...]
    digest: str

    @property
    def training_jobs(self) -> int:
        """How many jobs train; shared ones count once."""
        return sum(job.kind is JobKind.TRAIN for job in self.jobs.values())


def make_plan(sequences: Iterable[SequenceSpec], common: Common) -> Plan:
    """Expand sequences to one graph; jobs with equal keys merge.

    Raises:
        ConfigError: no sequence, an empty one, or the same task twice in a sequence.
    """
    builder = _Builder(common)
    parts = tuple(builder.sequence(s) for s in sequences)
    if not parts:
        raise ConfigError("There is nothing to run: no sequence is configured.", fix="Set sequence.upstream to a list of tasks.")
    return Plan(jobs=builder.jobs, sequences=parts, digest=digest_of(sorted(builder.jobs)))


class _Builder:
    """Collects jobs; the only state is the dictionary of what has been named so far."""

    def __init__(self, common: Common) -> None:
        self.common = common
        self.jobs: dict[str, StageJob] = {}

    def sequence(self, spec: SequenceSpec) -> SequenceJobs:
        _check(spec)
        bank: tuple[str, ...] = ()
        learnt: list[TaskJobs] = []
        evaluations: dict[tuple[int, int], str] = {}
        for i, task in enumerate(spec.upstream):
            previous = learnt[-1] if learnt else None
            label = f"{spec.name}/{i + 1} {task.spec.name}"
            jobs = self._learn(spec, task, bank, previous, label, UPSTREAM)
            bank = jobs.bank if spec.method.grows_bank else bank
            learnt.append(jobs)
            for j, old in enumerate(learnt):
                label = f"{spec.name}/{i + 1} eval {old.task}"
                evaluations[i, j] = self._evaluate(spec, spec.upstream[j].spec, old, jobs, bank, label, EVALUATION)
        transfers: dict[str, str] = {}
        downstream: list[TaskJobs] = []
        for task in spec.downstream:
            label = f"{spec.name}/transfer {task.spec.name}"
            jobs = self._learn(spec, task, bank, learnt[-1], label, TRANSFER)
            downstream.append(jobs)
            label = f"{spec.name}/transfer eval {task.spec.name}"
            transfers[task.spec.name] = self._evaluate(spec, task.spec, jobs, jobs, jobs.bank, label, TRANSFER_EVALUATION)
        return SequenceJobs(
            name=spec.name,
            method=spec.method.name,
            seed=spec.seed,
            upstream=tuple(learnt),
            downstream=tuple(downstream),
            evaluations=evaluations,
            transfers=transfers,
        )

    def _learn(
        self, spec: SequenceSpec, task: PlannedTask, bank: tuple[str, ...], previous: TaskJobs | None, label: str, priority: int
    ) -> TaskJobs:
        """Add the stages of one task; each continues the one before it."""
        done: list[str] = []
        grown = bank
        for stage in spec.method.stages:
            if stage.needs_earlier and not bank:
                continue
            visible = bank if stage.sees_earlier else ()
            # The first stage that looks back starts its queries where the previous task's ended.
            inherits = (previous.final,) if previous is not None and visible and not done else ()
            job = StageJob(
                key="",
                kind=JobKind.TRAIN,
                task=task.spec,
                method=spec.method.name,
                seed=spec.seed,
                parents=_unique((*visible, *done[-1:], *inherits)),
                bank=visible,
                model_from=done[-1] if done else "",
                queries_from=inherits[0] if inherits else "",
                stage=stage,
                budget=task.budgets[stage.stage],
                label=f"{label} {stage.stage.value}",
                priority=priority,
            )
            key = self._add(job, spec.method)
            done.append(key)
            if stage.grows:
                grown = (*visible, key)
        return TaskJobs(task=task.spec.name, stages=tuple(done), bank=grown)

    def _evaluate(
        self,
        spec: SequenceSpec,
        task: TaskSpec,
        old: TaskJobs,
        newest: TaskJobs,
        bank: tuple[str, ...],
        label: str,
        priority: int,
    ) -> str:
        """Add the job that scores `old` on the bank after `newest` was learnt.

        A method whose tasks never see each other's adapters has no later bank to read an old task from.
        """
        shares = bool(bank) and bank[: len(old.bank)] == old.bank
        seen = bank if shares else old.bank
        again = shares and newest.final != old.final
        job = StageJob(
            key="",
            kind=JobKind.EVAL,
            task=task,
            method=spec.method.name,
            seed=spec.seed,
            parents=_unique((*seen, old.final, *((newest.final,) if shares else ()))),
            bank=seen,
            model_from=old.final,
            views=(View.TASK, View.LATEST) if again else (View.TASK,),
            latest_from=newest.final if again else "",
            own_bank=len(old.bank),
            label=label,
            priority=priority,
        )
        return self._add(job, spec.method)

    def _add(self, job: StageJob, method: MethodSpec) -> str:
        """Name the job, and keep it unless an equal one is there already."""
        key = key_of(_identity(job, method, self.common))
        self.jobs.setdefault(key, replace(job, key=key))
        return key


def _identity(job: StageJob, method: MethodSpec, common: Common) -> dict[str, Any]:
    """Everything a result depends on. Labels and priorities are not in it; nor is the number of workers."""
    return {
        "kind": job.kind,
        "task": job.task,
        "method": {"name": method.name, "settings": method.settings},
        "seed": job.seed,
        "parents": job.parents,
        "bank": job.bank,
        "model_from": job.model_from,
        "queries_from": job.queries_from,
        "stage": job.stage,
        "budget": job.budget if job.kind is JobKind.TRAIN else None,
        "views": job.views,
        "latest_from": job.latest_from,
        "own_bank": job.own_bank,
        "backbone": common.backbone_digest,
        "numerics": common.numerics,
    }


def _unique(keys: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(keys))


def _check(spec: SequenceSpec) -> None:
    if not spec.upstream:
        raise ConfigError(f"Sequence {spec.name} has no upstream task.", fix="Set sequence.upstream to a list of tasks.")
    names = [t.spec.name for t in (*spec.upstream, *spec.downstream)]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ConfigError(f"Sequence {spec.name} names {', '.join(twice)} more than once.", fix="Give each task once a sequence.")
