"""What may be compared with what: a score is a reference for another only when both learnt the same task for as long."""

from __future__ import annotations

from atlas_dist.core.types import Budget, StageJob, TaskSpec


def refusal(mine: StageJob, reference: StageJob, task: str) -> str:
    """Why the score of `task` after `mine` must not be divided by the one after `reference`; "" = it may.

    Both are the jobs that ended a task's training. Rates of learning may differ, as methods do; data, seed and length may not.
    """
    if mine.seed != reference.seed:
        return f"{task}: seeds {mine.seed} and {reference.seed} differ"
    (spec, length), (other, other_length) = (_learnt(job, task) for job in (mine, reference))
    if spec != other:
        fields = [name for name, value in vars(spec).items() if value != getattr(other, name)]
        return f"{task}: not the same task ({', '.join(fields)} differ)"
    if length != other_length:
        return f"{task}: budgets differ ({length}, its reference {other_length})"
    return ""


def _learnt(job: StageJob, task: str) -> tuple[TaskSpec, str]:
    """The task as the job learnt it, and for how long, in words."""
    known = {job.task.name: (job.task, job.budget), **{g.task.name: (g.task, g.budget) for g in job.auxiliary_tasks}}
    spec, budget = known[task]
    return spec, f"{_length(budget)} of {job.budget.global_batch} samples"


def _length(budget: Budget) -> str:
    if budget.max_steps:
        return f"{budget.max_steps} steps"
    least = f", at least {budget.min_steps} steps," if budget.min_steps else ""
    return f"{budget.epochs:g} epochs{least}"
