"""The jobs of one task: the stages that learn it, the forms that it may take, and the evaluations that score it; each with the
key that names it by everything its result depends on. `core/plan.py` puts tasks into sequences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from atlas_dist.core.imported import ImportedAdapter
from atlas_dist.core.keys import key_of
from atlas_dist.core.selection import Form
from atlas_dist.core.types import AuxiliaryTask, Budget, JobKind, MethodSpec, Stage, StageJob, TaskSpec, View


@dataclass(frozen=True)
class PlannedTask:
    """A task and how long each of its stages learns."""

    spec: TaskSpec
    budgets: Mapping[Stage, Budget]
    both: Budget | None = None
    """Of a stage two that goes on from stage one, where several forms of a task are trained; None = as any stage two."""
    scored_samples: int = 0
    """Samples of the split that scores; 0 = not known, then it is always read whole."""

    def budget(self, stage: Stage) -> Budget:
        """A stage's budget; what stage one put together is distilled for as long as stage one took."""
        return self.budgets[Stage.ONE if stage is Stage.INIT else stage]


@dataclass(frozen=True)
class Recheck:
    """How much of a split an evaluation reads that is not its task's first."""

    first: str = ""
    """The evaluation right after the task was learnt, which is proved ("" = there is none yet)."""
    size: int = 0
    """Samples, a fixed choice; 0 = all."""
    latest_in_full: bool = False
    """The latest view is read on all samples whatever `size` is."""

    def samples(self, split: int) -> dict[View, int]:
        """View -> how many of the `split` samples it is read on; {} = all of them in every view."""
        if not self.first or not 0 < self.size < split:
            return {}
        return dict.fromkeys((View.TASK,) if self.latest_in_full else (View.TASK, View.LATEST), self.size)


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


class JobGraph:
    """Jobs by their keys, in topological order; equal ones merge."""

    def __init__(self, common: Common) -> None:
        self.common = common
        self.jobs: dict[str, StageJob] = {}

    def learn(
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
        own = self.learn(alone, seed, task, (), (), f"{label} own", priority).final
        stages, candidates = [own], {Form.OWN.value: own}
        for stage, form in zip(method.stages, (Form.EXPERIENCE, Form.BOTH), strict=True) if bank else ():
            continued = stages[1:]
            apart = own if stage.grows and method.goes_on_from_alone else ""
            job = replace(
                blank,
                parents=_unique(filter(None, (*bank, blank.bank_from, describe, *continued, apart))),
                model_from=continued[-1] if continued else "",
                adapter_from=apart,
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

    def imported(self, adapter: ImportedAdapter, label: str, priority: int) -> str:
        """Add an adapter that was imported: its key says what it is, and its result is in the store already."""
        job = StageJob(adapter.key, JobKind.IMPORT, adapter.task, "import", 0, (), label=label, priority=priority)
        self.jobs.setdefault(adapter.key, job)
        return adapter.key

    def evaluate(
        self,
        method: MethodSpec,
        seed: int,
        task: PlannedTask,
        old: TaskJobs,
        newest: TaskJobs,
        bank: tuple[str, ...],
        label: str,
        priority: int,
        recheck: Recheck = Recheck(),
    ) -> str:
        """Add the job that scores `old` on the bank, or with the backbone, after `newest` was learnt.

        A method whose tasks share neither has nothing newer to read an old task from.
        """
        banked = bool(bank) and method.stages[-1].sees_earlier and bank[: len(old.bank)] == old.bank
        shares = banked or method.shares_backbone
        seen = bank if banked else old.bank
        again = shares and newest.final != old.final
        samples = recheck.samples(task.scored_samples) if again else {}
        first = recheck.first if samples else ""
        job = StageJob(
            key="",
            kind=JobKind.EVAL,
            task=task.spec,
            method=method.stored,
            seed=seed,
            parents=_unique((*seen, old.final, *((newest.final,) if shares else ()), *((first,) if first else ()))),
            bank=seen,
            model_from=old.final,
            views=(View.TASK, View.LATEST) if again else (View.TASK,),
            latest_from=newest.final if again else "",
            own_bank=len(old.bank),
            samples=samples,
            split_samples=task.scored_samples if samples else 0,
            first_from=first,
            settings=method.settings,
            label=label,
            priority=priority,
        )
        return self._add(job, method)

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
    later |= {"adapter_from": job.adapter_from}
    later |= {"samples": {view.value: count for view, count in job.samples.items()}, "first_from": job.first_from}
    # By which rule a form is chosen (core/selection.py); the first one let the loss decide alone.
    later["rule"] = 2 if job.kind is JobKind.SELECT else 0
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
