"""`atlas-dist plan`: the jobs of a run as a tree, what is a fact already, and about what the rest would cost. Starts nothing."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import typer
from rich.text import Text
from rich.tree import Tree

from atlas_dist.cli.words import compose_run, console, hush
from atlas_dist.config import RunConfig
from atlas_dist.core.ledger import RunState
from atlas_dist.core.plan import Plan, SequenceJobs
from atlas_dist.core.types import CommittedRef
from atlas_dist.errors import AtlasError
from atlas_dist.report.outlook import JobOutlook, Outlook, foresee, like_of
from atlas_dist.runs.stores import open_run_store
from atlas_dist.store.objects import ObjectStore

ALIKE = 64
"""Results of other runs, at most, that time is judged by; their keys are digests, so the first ones are a fair draw."""


def show_plan(overrides: list[str] | None, *, as_json: bool, many: bool = False) -> None:
    """Print the tree and the sums. Raises ConfigError, DataError, StoreError: whatever a run would trip over."""
    from atlas_dist.coordinator.preflight import slow_products
    from atlas_dist.runs.status import load_run

    composed_run = compose_run(overrides, many=many)
    config = composed_run.config
    hush()
    plan, store = composed_run.plan(), open_run_store(config)
    state, _ = load_run(store, config.run)
    outlook = forecast_run(config, plan, state, store)
    if as_json:
        typer.echo(json.dumps(as_document(config, outlook)))
        return
    out = console()
    for sequence in plan.sequences:
        out.print(_tree(sequence, outlook), soft_wrap=True)
    out.print(_sum(plan, outlook, config.cluster.worker_hour), markup=False, soft_wrap=True)
    if outlook.left and (hint := slow_products(config)):
        out.print(hint, markup=False, soft_wrap=True)


def forecast_run(config: RunConfig, plan: Plan, state: RunState, store: ObjectStore) -> Outlook:
    """What is left of a plan. Raises DataError, StoreError: shards that are not there, a store in trouble."""
    from atlas_dist.data.manifest import read_manifest
    from atlas_dist.runs.stores import open_shards

    shards = open_shards(config)
    splits = {(j.task.dataset, split) for j in plan.jobs.values() for split in (j.task.train, j.task.val)}
    manifests = {(dataset, split): read_manifest(shards, dataset, split) for dataset, split in splits}
    own, alike = _elsewhere(store, plan, config)
    return foresee(plan, state, own, manifests, config.shards.buffer_mb << 20, config.worker_groups, alike)


def as_document(config: RunConfig, outlook: Outlook) -> dict[str, Any]:
    """For programs."""
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
    hours, price = outlook.worker_hours, config.cluster.worker_hour
    sums = {"left": len(outlook.left), "seconds": outlook.seconds, "worker_hours": hours}
    return {"run": config.run, "jobs": jobs, **sums, "cost": [h * price for h in hours] if hours and price else None}


def _elsewhere(
    store: ObjectStore, plan: Plan, config: RunConfig
) -> tuple[dict[str, tuple[str, CommittedRef]], list[CommittedRef]]:
    """By their pointers alone, facts of other runs that the plan has too (the run that adopts them verifies every byte), and some
    that it has not, to judge time by."""
    known = {info.key.rpartition("/")[2] for info in store.list("results/")}
    wanted = [*(key for key in plan.jobs if key in known), *sorted(known - set(plan.jobs))[:ALIKE]]
    with ThreadPoolExecutor(16) as pool:  # one after the other, thousands of them would take minutes from S3
        read = zip(wanted, pool.map(partial(_pointer, store), wanted), strict=True)
        found = {key: pointer for key, pointer in read if pointer is not None}
    own = {key: pointer for key, pointer in found.items() if key in plan.jobs and pointer[0] != config.run}
    others = (ref for key, (_, ref) in found.items() if key not in plan.jobs)
    here = (config.backbone.name, config.train.precision.value)
    return own, [ref for ref in others if (like := like_of(ref)) and (like["trunk"], like["precision"]) == here]


def _pointer(store: ObjectStore, key: str) -> tuple[str, CommittedRef] | None:
    """(run, result); None when it is damaged: then it is no fact, and the job would be trained."""
    from atlas_dist.core.records import from_json
    from atlas_dist.runs import layout
    from atlas_dist.runs.results import Pointer
    from atlas_dist.store.artifacts import read_json

    try:
        pointer = from_json(Pointer, read_json(store, layout.result(key)))
    except AtlasError:
        return None
    return pointer.run, pointer.ref


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


def _line(job: JobOutlook) -> Text:
    stage = job.job.stage
    name = stage.stage.value if stage else f"score {job.job.task.name} ({', '.join(view.value for view in job.job.views)} view)"
    parts = [name, job.standing]
    if job.to_do:
        parts += [f"{job.samples:,} samples", f"{job.bytes / 1e6:.1f} MB"]
        parts += [_span(*job.seconds)] if job.seconds else []
    if job.orders > 1:
        parts.append(f"shared by {job.orders} orders")
    parts.append(job.job.key[:8])
    return Text("  ".join(parts), style="" if job.to_do else "dim")


def _sum(plan: Plan, outlook: Outlook, worker_hour: float) -> str:
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
    pace, hours = outlook.seconds, outlook.worker_hours
    if not pace or not hours:
        return text + "; no finished job in this store to estimate time from"
    text += f"; {_span(*pace)} at the pace of this store's finished jobs"
    if worker_hour:
        text += f", {hours[0] * worker_hour:,.2f} to {hours[1] * worker_hour:,.2f} at {worker_hour:g} a worker-hour"
    return text


def _span(least: float, most: float) -> str:
    unit, name = (3600, "h") if most >= 5400 else (60, "min") if most >= 90 else (1, "s")
    low, high = f"{least / unit:.1f}".removesuffix(".0"), f"{most / unit:.1f}".removesuffix(".0")
    return f"{low} {name}" if low == high else f"{low} to {high} {name}"
