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

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from atlas_dist.core.keys import digest_of, key_of
from atlas_dist.core.selection import Form
from atlas_dist.core.types import AuxiliaryTask, Budget, JobKind, MethodSpec, Stage, StageJob, TaskSpec, View
from atlas_dist.errors import ConfigError

UPSTREAM, EVALUATION, TRANSFER, TRANSFER_EVALUATION, REFERENCE, REFERENCE_EVALUATION = range(6)
"""Priorities: the chain is never kept waiting by what hangs off it."""


@dataclass(frozen=True)
class PlannedTask:
    """A task and how long each of its stages learns."""

    spec: TaskSpec
    budgets: Mapping[Stage, Budget]
    both: Budget | None = None
    """Of a stage two that goes on from stage one, where several forms of a task are trained; None = as any stage two."""

    def budget(self, stage: Stage) -> Budget:
        """A stage's budget; what stage one put together is distilled for as long as stage one took."""
        return self.budgets[Stage.ONE if stage is Stage.INIT else stage]


@dataclass(frozen=True)
class References:
    """Methods whose scores the measures of transfer divide by (docs/method.md, Evaluation); None = not asked for."""

    alone: MethodSpec | None = None
    """Learns each upstream task by itself from the pretrained backbone: S_FT."""
    pretrained: MethodSpec | None = None
    """Learns each downstream task from the pretrained backbone instead of from what the sequence taught: S_LS,PT."""


@dataclass(frozen=True)
class SequenceSpec:
    """One order of upstream tasks with the downstream tasks that start from its final bank, under one seed."""

    name: str
    method: MethodSpec
    seed: int
    upstream: tuple[PlannedTask, ...]
    downstream: tuple[PlannedTask, ...] = ()
    references: References = References()
    variant: str = ""
    """What a comparison calls the method with its settings; "" = the method's name."""
    evaluate_every: int = 1
    """The whole bank is scored after every so many tasks, and after the last; each task always right after it was learnt."""

    def whole_bank(self, position: int) -> bool:
        """Whether every task so far is scored again after the upstream task at `position`."""
        return (position + 1) % self.evaluate_every == 0 or position == len(self.upstream) - 1


@dataclass(frozen=True)
class Common:
    """What every job of a run depends on besides its own task."""

    backbone_digest: str
    numerics: Mapping[str, Any]
    """Version and precision of the arithmetic: what may change a result at equal settings. Never the number of workers."""


DESCRIBER = MethodSpec(name="describe", stages=())
"""What a job that describes a task's samples depends on of a method: nothing. So all methods, orders and seeds share it."""


@dataclass(frozen=True)
class TaskJobs:
    """The jobs of one task in one sequence, in order; `final` holds what the task finally is."""

    task: str
    stages: tuple[str, ...]
    bank: tuple[str, ...]
    """Adapters that the finished task may read, its own included where it may have grown one."""
    adapter: str = ""
    """The job whose result holds the task's own adapter, if it grew one; "" = it cannot have."""

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
    """(i, j) -> the job that scores task j after task i was learnt; i = position of the last upstream task, j <= i. The last row
    and the diagonal are always there, the rest as `SequenceSpec.evaluate_every` says."""
    transfers: Mapping[str, str]
    """downstream task -> the job that scores it."""
    alone: Mapping[str, str] = field(default_factory=dict)
    """upstream task -> the job that scores it learnt by itself (`References.alone`)."""
    pretrained: Mapping[str, str] = field(default_factory=dict)
    """downstream task -> the job that scores it learnt from the pretrained backbone (`References.pretrained`)."""
    reads: View = View.TASK
    """The view of an old task that counts for the method."""
    variant: str = ""


@dataclass(frozen=True)
class Plan:
    """The jobs of a run in topological order, and the sequences they belong to."""

    jobs: Mapping[str, StageJob]
    sequences: tuple[SequenceJobs, ...]
    digest: str

    @cached_property
    def tasks(self) -> dict[str, TaskSpec]:
        """Every task of the plan by name, also those that a job learns beside its own."""
        known = {auxiliary.task.name: auxiliary.task for job in self.jobs.values() for auxiliary in job.auxiliary_tasks}
        return known | {job.task.name: job.task for job in self.jobs.values()}

    def behind(self, sequence: SequenceJobs) -> set[str]:
        """Every job that a sequence needs: its own scores and stages, and what they build on."""
        stages = {key for task in (*sequence.upstream, *sequence.downstream) for key in task.stages}
        scores = (sequence.evaluations, sequence.transfers, sequence.alone, sequence.pretrained)
        found, open_keys = set[str](), stages | {key for part in scores for key in part.values()}
        while open_keys:
            found |= open_keys
            open_keys = {parent for key in open_keys for parent in self.jobs[key].parents} - found
        return found

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


@dataclass
class _Chain:
    """What the upstream tasks of one sequence have come to."""

    bank: tuple[str, ...] = ()
    """Adapters that the next task may see."""
    learnt: list[TaskJobs] = field(default_factory=list)
    evaluations: dict[tuple[int, int], str] = field(default_factory=dict)


class _Builder:
    """Collects jobs; the only state is the dictionary of what has been named so far."""

    def __init__(self, common: Common) -> None:
        self.common = common
        self.jobs: dict[str, StageJob] = {}

    def sequence(self, spec: SequenceSpec) -> SequenceJobs:
        _check(spec)
        chain = self._together(spec) if spec.method.joint else self._one_by_one(spec)
        transfers: dict[str, str] = {}
        downstream: list[TaskJobs] = []
        for task in spec.downstream:
            label = f"{spec.name}/transfer {task.spec.name}"
            jobs = self._learn(spec.method, spec.seed, task, chain.bank, chain.learnt[-1:], label, TRANSFER)
            downstream.append(jobs)
            label = f"{spec.name}/transfer eval {task.spec.name}"
            transfers[task.spec.name] = self._evaluate(spec, task.spec, jobs, jobs, jobs.bank, label, TRANSFER_EVALUATION)
        return SequenceJobs(
            name=spec.name,
            method=spec.method.name,
            seed=spec.seed,
            upstream=tuple(chain.learnt),
            downstream=tuple(downstream),
            evaluations=chain.evaluations,
            transfers=transfers,
            alone=self._references(spec, spec.references.alone, spec.upstream, "alone"),
            pretrained=self._references(spec, spec.references.pretrained, spec.downstream, "pretrained"),
            reads=spec.method.reads,
            variant=spec.variant or spec.method.name,
        )

    def _one_by_one(self, spec: SequenceSpec) -> _Chain:
        """Each task after the one before it; it is scored at once, and from time to time with every task so far."""
        chain = _Chain()
        for i, task in enumerate(spec.upstream):
            label = f"{spec.name}/{i + 1} {task.spec.name}"
            earlier = tuple(AuxiliaryTask(t.spec, t.budgets[Stage.TWO]) for t in spec.upstream[:i]) if spec.method.recalls else ()
            jobs = self._learn(
                spec.method, spec.seed, task, chain.bank, chain.learnt[-1:], label, UPSTREAM, earlier, leaves=spec.method.recalls
            )
            if spec.method.grows_bank and jobs.adapter:
                chain.bank = (*chain.bank, jobs.adapter)
            chain.learnt.append(jobs)
            for j in range(i + 1) if spec.whole_bank(i) else (i,):
                old = chain.learnt[j]
                label = f"{spec.name}/{i + 1} eval {old.task}"
                chain.evaluations[i, j] = self._evaluate(spec, spec.upstream[j].spec, old, jobs, chain.bank, label, EVALUATION)
        return chain

    def _together(self, spec: SequenceSpec) -> _Chain:
        """All tasks in one job, which is the same for every order: nothing comes before anything else."""
        own, *others = sorted(spec.upstream, key=lambda t: t.spec.name)
        auxiliary_tasks = tuple(AuxiliaryTask(t.spec, t.budgets[Stage.TWO]) for t in others)
        joint = self._learn(spec.method, spec.seed, own, (), [], f"{spec.name}/all", UPSTREAM, auxiliary_tasks)
        chain = _Chain(learnt=[replace(joint, task=t.spec.name) for t in spec.upstream])
        for i, _ in enumerate(spec.upstream):
            for j in range(i + 1):
                task, jobs = spec.upstream[j].spec, chain.learnt[j]
                label = f"{spec.name}/all eval {task.name}"
                chain.evaluations[i, j] = self._evaluate(spec, task, jobs, jobs, (), label, EVALUATION)
        return chain

    def _references(
        self, spec: SequenceSpec, method: MethodSpec | None, tasks: Iterable[PlannedTask], what: str
    ) -> dict[str, str]:
        """Each task learnt by itself with `method`: task -> the job that scores it."""
        scored: dict[str, str] = {}
        for task in tasks if method is not None else ():
            assert method is not None
            label = f"{spec.name}/{what} {task.spec.name}"
            jobs = self._learn(method, spec.seed, task, (), [], label, REFERENCE)
            lone = replace(spec, method=method)
            label = f"{spec.name}/{what} eval {task.spec.name}"
            scored[task.spec.name] = self._evaluate(lone, task.spec, jobs, jobs, jobs.bank, label, REFERENCE_EVALUATION)
        return scored

    def _learn(
        self,
        method: MethodSpec,
        seed: int,
        task: PlannedTask,
        bank: tuple[str, ...],
        before: Sequence[TaskJobs],
        label: str,
        priority: int,
        auxiliary_tasks: tuple[AuxiliaryTask, ...] = (),
        *,
        leaves: bool = False,
    ) -> TaskJobs:
        """Add the stages of one task; each continues the one before it. `before`: the task learnt last, if any."""
        if method.alone is not None:
            return self._learn_candidates(method, method.alone, seed, task, bank, before, label, priority)
        done: list[str] = []
        grown = read = bank
        adapter = ""
        backbone_from = before[-1].final if before and method.shares_backbone else ""
        for stage in method.first if method.first and not bank else method.stages:
            if stage.needs_earlier and not bank:
                continue
            visible = grown if stage.sees_earlier else ()
            # The first stage that looks back starts its queries where the previous task's ended.
            inherits = (before[-1].final,) if before and visible and not done else ()
            job = StageJob(
                key="",
                kind=JobKind.TRAIN,
                task=task.spec,
                method=method.stored,
                seed=seed,
                parents=_unique((*visible, *done[-1:], *inherits, *((backbone_from,) if backbone_from else ()))),
                bank=visible,
                model_from=done[-1] if done else "",
                queries_from=inherits[0] if inherits else "",
                stage=stage,
                budget=task.budget(stage.stage),
                settings=method.settings,
                backbone_from=backbone_from,
                auxiliary_tasks=auxiliary_tasks,
                leaves=leaves,
                label=f"{label} {stage.stage.value}",
                priority=priority,
            )
            key = self._add(job, method)
            done.append(key)
            read = visible
            if stage.grows:
                adapter = key
                grown, read = (*bank, key), (*visible, key)
        return TaskJobs(task=task.spec.name, stages=tuple(done), bank=read, adapter=adapter)

    def _learn_candidates(
        self,
        method: MethodSpec,
        alone: MethodSpec,
        seed: int,
        task: PlannedTask,
        bank: tuple[str, ...],
        before: Sequence[TaskJobs],
        label: str,
        priority: int,
    ) -> TaskJobs:
        """Every form of one task, and the job that commits the best of them.

        The own adapter depends on no bank: those of all tasks can be trained side by side, and every order shares them.
        """
        blank = StageJob(
            key="",
            kind=JobKind.TRAIN,
            task=task.spec,
            method=method.stored,
            seed=seed,
            parents=(),
            bank=bank,
            bank_from=before[-1].final if before else "",
            settings=method.settings,
            priority=priority,
        )
        describe = self._add(_describing(blank, f"{label} describe"), DESCRIBER)
        blank = replace(blank, signature_from=describe)
        own = self._learn(alone, seed, task, (), (), f"{label} own", priority).final
        stages, candidates = [own], {Form.OWN.value: own}
        for stage, form in zip(method.stages, (Form.EXPERIENCE, Form.BOTH), strict=True) if bank else ():
            continued = stages[1:]
            job = replace(
                blank,
                parents=_unique((*bank, blank.bank_from, describe, *continued)),
                model_from=continued[-1] if continued else "",
                stage=stage,
                budget=(task.both or task.budget(stage.stage)) if stage.grows else task.budget(stage.stage),
                label=f"{label} {stage.stage.value}",
            )
            stages.append(self._add(job, method))
            candidates[form.value] = stages[-1]
        select = replace(
            blank,
            kind=JobKind.SELECT,
            parents=_unique(filter(None, (*candidates.values(), blank.bank_from, describe))),
            candidates=candidates,
            label=f"{label} select",
        )
        final = self._add(select, method)
        return TaskJobs(task=task.spec.name, stages=(*stages, final), bank=(*bank, final), adapter=final)

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
        """Add the job that scores `old` on the bank, or with the backbone, after `newest` was learnt.

        A method whose tasks share neither has nothing newer to read an old task from.
        """
        banked = bool(bank) and spec.method.stages[-1].sees_earlier and bank[: len(old.bank)] == old.bank
        shares = banked or spec.method.shares_backbone
        seen = bank if banked else old.bank
        again = shares and newest.final != old.final
        job = StageJob(
            key="",
            kind=JobKind.EVAL,
            task=task,
            method=spec.method.stored,
            seed=spec.seed,
            parents=_unique((*seen, old.final, *((newest.final,) if shares else ()))),
            bank=seen,
            model_from=old.final,
            views=(View.TASK, View.LATEST) if again else (View.TASK,),
            latest_from=newest.final if again else "",
            own_bank=len(old.bank),
            settings=spec.method.settings,
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
    """Everything a result depends on. Labels and priorities are not in it; nor is the number of workers.

    What came to jobs later than the first results is named only where it is used, so that older results keep their names.
    """
    auxiliary_tasks = [_named(auxiliary) for auxiliary in job.auxiliary_tasks]
    later: dict[str, Any] = {"trunk_from": job.backbone_from, "guests": auxiliary_tasks, "leaves": job.leaves}
    later |= {"candidates": job.candidates, "signature_from": job.signature_from, "bank_from": job.bank_from}
    # The low-shot choice once depended on the stage as well; results of that time must not be taken for today's.
    later["low_shot"] = 2 if any(task.shots for task in (job.task, *(auxiliary.task for auxiliary in job.auxiliary_tasks))) else 0
    return {
        **{name: value for name, value in later.items() if value},
        "kind": job.kind,
        "task": _named(job.task),
        "method": {"name": method.stored, "settings": method.settings},
        "seed": job.seed,
        "parents": job.parents,
        "bank": job.bank,
        "model_from": job.model_from,
        "queries_from": job.queries_from,
        "stage": job.stage,
        "budget": job.budget.as_stored() if job.kind is JobKind.TRAIN else None,
        "views": job.views,
        "latest_from": job.latest_from,
        "own_bank": job.own_bank,
        "backbone": common.backbone_digest,
        "numerics": common.numerics,
    }


def _named(value: TaskSpec | AuxiliaryTask) -> dict[str, Any]:
    """A task as keys name it: a test split only where it has one, since it came later."""
    if isinstance(value, AuxiliaryTask):
        return {"task": _named(value.task), "budget": value.budget.as_stored()}
    return value.as_stored()


def _describing(blank: StageJob, label: str) -> StageJob:
    """The job that describes a task's samples: of the seed it needs only which samples a low-shot task may learn from."""
    seed = blank.seed if blank.task.shots else 0
    job = replace(blank, kind=JobKind.DESCRIBE, method=DESCRIBER.name, seed=seed, bank=(), bank_from="", settings={})
    return replace(job, label=label)


def _unique(keys: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(keys))


def _check(spec: SequenceSpec) -> None:
    if not spec.upstream:
        raise ConfigError(f"Sequence {spec.name} has no upstream task.", fix="Set sequence.upstream to a list of tasks.")
    names = [t.spec.name for t in (*spec.upstream, *spec.downstream)]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ConfigError(f"Sequence {spec.name} names {', '.join(twice)} more than once.", fix="Give each task once a sequence.")
