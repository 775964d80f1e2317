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
        return f"{task}: budgets differ ({_said(length)}, its reference {_said(other_length)})"
    return ""


def _learnt(job: StageJob, task: str) -> tuple[TaskSpec, tuple[int, int, float]]:
    """The task as the job learnt it, and for how long: samples a step, steps, epochs (0 where steps decide)."""
    known = {job.task.name: (job.task, job.budget), **{g.task.name: (g.task, g.budget) for g in job.auxiliary_tasks}}
    spec, budget = known[task]
    return spec, _length(budget, job.budget.global_batch)


def _length(budget: Budget, batch: int) -> tuple[int, int, float]:
    return batch, budget.max_steps, 0.0 if budget.max_steps else budget.epochs


def _said(length: tuple[int, int, float]) -> str:
    batch, steps, epochs = length
    return f"{f'{steps} steps' if steps else f'{epochs:g} epochs'} of {batch} samples"
