"""`atlas-dist plan`: the jobs of a run as a tree, what is a fact already, and about what the rest would cost. Starts nothing."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer
from rich.text import Text
from rich.tree import Tree

from atlas_dist.app.plan import PlannedRun, plan
from atlas_dist.app.show import standard_console
from atlas_dist.core.plan import SequenceJobs
from atlas_dist.core.types import StageJob
from atlas_dist.report.outlook import JobOutlook, Outlook

if TYPE_CHECKING:
    from atlas_dist.train.step_memory import StepMemory


def show_plan(overrides: list[str] | None, *, as_json: bool, many: bool = False, memory: bool = False) -> None:
    """Print the tree and the sums. Raises ConfigError, DataError, StoreError: whatever a run would trip over."""
    planned = plan(*(overrides or ()), many=many, memory=memory)
    if as_json:
        typer.echo(json.dumps(as_document(planned)))
        return
    out = standard_console()
    for sequence in planned.plan.sequences:
        out.print(_tree(sequence, planned.outlook), soft_wrap=True)
    out.print(_sum(planned), markup=False, soft_wrap=True)
    if planned.memory:
        out.print(_memory(planned.memory[0]), markup=False, soft_wrap=True)
    if planned.advice:
        out.print(planned.advice, markup=False, soft_wrap=True)


def as_document(planned: PlannedRun) -> dict[str, Any]:
    """For programs."""
    outlook = planned.outlook
    jobs = [
        {
            "key": key,
            "label": job.job.label,
            "standing": job.standing,
            "orders": job.orders,
            "samples": job.samples,
            "bytes": job.bytes,
            "seconds": job.seconds,
        }
        for key, job in outlook.jobs.items()
    ]
    sums = {"left": len(outlook.left), "seconds": outlook.seconds, "worker_hours": outlook.worker_hours, "cost": planned.cost}
    memory = {"memory": [asdict(step) | {"total": step.total} for step in planned.memory]} if planned.memory else {}
    return {"run": planned.run, "jobs": jobs, **sums, **memory}


def _tree(sequence: SequenceJobs, outlook: Outlook) -> Tree:
    tree = Tree(Text(f"{sequence.name}: {' → '.join(t.task for t in sequence.upstream)}", style="bold"))
    for i, task in enumerate(sequence.upstream):
        node = tree.add(Text(task.task, style="bold"))
        for key in task.stages:
            node.add(_line(outlook.jobs[key]))
        scored = [outlook.jobs[sequence.evaluations[i, j]] for j in range(i + 1) if (i, j) in sequence.evaluations]
        for job in scored:
            node.add(_line(job))
    for task in sequence.downstream:
        node = tree.add(Text(f"{task.task} (transfer)", style="bold"))
        for key in (*task.stages, *([sequence.transfers[task.task]] if task.task in sequence.transfers else [])):
            node.add(_line(outlook.jobs[key]))
    references = dict.fromkeys((*sequence.alone.values(), *sequence.pretrained.values()))
    if references:
        node = tree.add(Text("references: learnt alone, or from the pretrained backbone", style="bold"))
        for key in references:
            node.add(_line(outlook.jobs[key]))
    return tree


def _name(job: StageJob) -> str:
    """What a job does, in a word or a few."""
    if job.views:
        return f"score {job.task.name} ({', '.join(view.value for view in job.views)} view)"
    return job.stage.stage.value if job.stage else job.kind.value


def _line(job: JobOutlook) -> Text:
    parts = [_name(job.job), job.standing]
    if job.to_do:
        parts += [f"{job.samples:,} samples", f"{job.bytes / 1e6:.1f} MB"]
        parts += [_span(*job.seconds)] if job.seconds else []
    if job.orders > 1:
        parts.append(f"shared by {job.orders} orders")
    parts.append(job.job.key[:8])
    return Text("  ".join(parts), style="" if job.to_do else "dim")


def _sum(planned: PlannedRun) -> str:
    plan, outlook = planned.plan, planned.outlook
    left = outlook.left
    others = sum(job.standing.startswith("fact of") for job in outlook.jobs.values())
    shared = sum(job.orders > 1 for job in outlook.jobs.values())
    facts = f"{len(plan.jobs) - len(left)} facts already" + (f" ({others} of other runs)" if others else "")
    text = f"{len(plan.jobs)} jobs, {plan.training_jobs} train: {len(left)} to do, {facts}"
    if shared:
        text += f"; {shared} shared between orders"
    if not left:
        return text + "; nothing to do"
    text += f"; {sum(job.samples for job in left):,} samples, {sum(job.bytes for job in left) / 1e6:.1f} MB to read"
    if not (pace := outlook.seconds):
        return text + "; no finished job in this store to estimate time from"
    text += f"; {_span(*pace)} at the pace of this store's finished jobs"
    if cost := planned.cost:
        text += f", {cost[0]:,.2f} to {cost[1]:,.2f} at {planned.worker_hour:g} a worker-hour"
    return text


def _memory(step: StepMemory) -> str:
    """The step that needs the most."""
    parts = {"weights": step.weights, "optimizer": step.optimizer, "activations": step.activations}
    named = ", ".join(f"{name} {_amount(size)}" for name, size in parts.items())
    return (
        f"memory of a worker: {_amount(step.total)} in {step.label} ({named}; {step.micro_batch} samples a pass,"
        f" {step.visible} adapters seen); a device needs about a fifth more"
    )


def _amount(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _span(least: float, most: float) -> str:
    unit, name = (3600, "h") if most >= 5400 else (60, "min") if most >= 90 else (1, "s")
    low, high = f"{least / unit:.1f}".removesuffix(".0"), f"{most / unit:.1f}".removesuffix(".0")
    return f"{low} {name}" if low == high else f"{low} to {high} {name}"
