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
from dataclasses import dataclass, field, replace
from functools import cached_property

from atlas_dist.core.imported import ImportedAdapter
from atlas_dist.core.keys import digest_of
from atlas_dist.core.task_jobs import Common, JobGraph, PlannedTask, Recheck, TaskJobs
from atlas_dist.core.types import AuxiliaryTask, JobKind, MethodSpec, Stage, StageJob, TaskSpec, View
from atlas_dist.errors import ConfigError

UPSTREAM, EVALUATION, TRANSFER, TRANSFER_EVALUATION, REFERENCE, REFERENCE_EVALUATION = range(6)
"""Priorities: the chain is never kept waiting by what hangs off it."""


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
    recheck: int = 0
    """Samples on which an old task is proved, and read in the latest view, after its first full pass; 0 = all."""
    latest_in_full: bool = False
    """The latest view is read on all samples whatever `recheck` says."""
    experience: tuple[ImportedAdapter, ...] = ()
    """Imported adapters that come before the first task, for methods that choose among earlier ones by signature."""

    def whole_bank(self, position: int) -> bool:
        """Whether every task so far is scored again after the upstream task at `position`."""
        return (position + 1) % self.evaluate_every == 0 or position == len(self.upstream) - 1


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
        return known | {job.task.name: job.task for job in self.jobs.values() if job.kind is not JobKind.IMPORT}

    @cached_property
    def imported(self) -> dict[str, ImportedAdapter]:
        """Every imported adapter of the plan, by name."""
        jobs = (job for job in self.jobs.values() if job.kind is JobKind.IMPORT)
        return {job.task.name: ImportedAdapter(job.task.name, job.key, job.task) for job in jobs}

    @cached_property
    def rechecked(self) -> dict[str, tuple[int, int]]:
        """Tasks that are proved again on a fixed sample: name -> (samples that are read, samples of the split)."""
        return {job.task.name: (min(job.samples.values()), job.split_samples) for job in self.jobs.values() if job.samples}

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
    graph = JobGraph(common)
    parts = tuple(_Sequences(graph).sequence(s) for s in sequences)
    if not parts:
        raise ConfigError("There is nothing to run: no sequence is configured.", fix="Set sequence.upstream to a list of tasks.")
    return Plan(jobs=graph.jobs, sequences=parts, digest=digest_of(sorted(graph.jobs)))


@dataclass
class _Chain:
    """What the upstream tasks of one sequence have come to."""

    bank: tuple[str, ...] = ()
    """Adapters that the next task may see."""
    learnt: list[TaskJobs] = field(default_factory=list)
    evaluations: dict[tuple[int, int], str] = field(default_factory=dict)


class _Sequences:
    """Lays out one sequence after the other, on one graph."""

    def __init__(self, graph: JobGraph) -> None:
        self.graph = graph

    def sequence(self, spec: SequenceSpec) -> SequenceJobs:
        _check(spec)
        chain = self._together(spec) if spec.method.joint else self._one_by_one(spec)
        transfers: dict[str, str] = {}
        downstream: list[TaskJobs] = []
        for task in spec.downstream:
            label = f"{spec.name}/transfer {task.spec.name}"
            jobs = self.graph.learn(spec.method, spec.seed, task, chain.bank, chain.learnt[-1:], label, TRANSFER)
            downstream.append(jobs)
            label = f"{spec.name}/transfer eval {task.spec.name}"
            transfers[task.spec.name] = self.graph.evaluate(
                spec.method, spec.seed, task, jobs, jobs, jobs.bank, label, TRANSFER_EVALUATION
            )
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
        if spec.method.alone is not None:
            named = {adapter: f"{spec.name}/experience {adapter.name}" for adapter in spec.experience}
            chain.bank = tuple(self.graph.imported(adapter, label, UPSTREAM) for adapter, label in named.items())
        for i, task in enumerate(spec.upstream):
            label = f"{spec.name}/{i + 1} {task.spec.name}"
            earlier = tuple(AuxiliaryTask(t.spec, t.budgets[Stage.TWO]) for t in spec.upstream[:i]) if spec.method.recalls else ()
            jobs = self.graph.learn(
                spec.method, spec.seed, task, chain.bank, chain.learnt[-1:], label, UPSTREAM, earlier, leaves=spec.method.recalls
            )
            if spec.method.grows_bank and jobs.adapter:
                chain.bank = (*chain.bank, jobs.adapter)
            chain.learnt.append(jobs)
            for j in range(i + 1) if spec.whole_bank(i) else (i,):
                old, first = chain.learnt[j], chain.evaluations.get((j, j), "")
                label = f"{spec.name}/{i + 1} eval {old.task}"
                chosen = Recheck(first, spec.recheck, spec.latest_in_full)
                chain.evaluations[i, j] = self.graph.evaluate(
                    spec.method, spec.seed, spec.upstream[j], old, jobs, chain.bank, label, EVALUATION, chosen
                )
        return chain

    def _together(self, spec: SequenceSpec) -> _Chain:
        """All tasks in one job, which is the same for every order: nothing comes before anything else."""
        own, *others = sorted(spec.upstream, key=lambda t: t.spec.name)
        auxiliary_tasks = tuple(AuxiliaryTask(t.spec, t.budgets[Stage.TWO]) for t in others)
        joint = self.graph.learn(spec.method, spec.seed, own, (), [], f"{spec.name}/all", UPSTREAM, auxiliary_tasks)
        chain = _Chain(learnt=[replace(joint, task=t.spec.name) for t in spec.upstream])
        for i, _ in enumerate(spec.upstream):
            for j in range(i + 1):
                task, jobs = spec.upstream[j], chain.learnt[j]
                label = f"{spec.name}/all eval {task.spec.name}"
                chain.evaluations[i, j] = self.graph.evaluate(spec.method, spec.seed, task, jobs, jobs, (), label, EVALUATION)
        return chain

    def _references(
        self, spec: SequenceSpec, method: MethodSpec | None, tasks: Iterable[PlannedTask], what: str
    ) -> dict[str, str]:
        """Each task learnt by itself with `method`: task -> the job that scores it."""
        scored: dict[str, str] = {}
        for task in tasks if method is not None else ():
            assert method is not None
            label = f"{spec.name}/{what} {task.spec.name}"
            jobs = self.graph.learn(method, spec.seed, task, (), [], label, REFERENCE)
            label = f"{spec.name}/{what} eval {task.spec.name}"
            scored[task.spec.name] = self.graph.evaluate(
                method, spec.seed, task, jobs, jobs, jobs.bank, label, REFERENCE_EVALUATION
            )
        return scored


def _check(spec: SequenceSpec) -> None:
    if not spec.upstream:
        raise ConfigError(f"Sequence {spec.name} has no upstream task.", fix="Set sequence.upstream to a list of tasks.")
    names = [t.spec.name for t in (*spec.upstream, *spec.downstream)]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ConfigError(f"Sequence {spec.name} names {', '.join(twice)} more than once.", fix="Give each task once a sequence.")
    imported = [adapter.name for adapter in spec.experience]
    clashing = sorted({n for n in imported if n in names or imported.count(n) > 1})
    if clashing:
        raise ConfigError(
            f"sequence.experience names {', '.join(clashing)}, which is a task of the sequence or named twice.",
            fix="Name each imported adapter once; import it again with --as NAME where a task has its name.",
        )
