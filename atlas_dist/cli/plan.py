"""`atlas-dist plan`: the jobs of a run as a tree, what is a fact already, and about what the rest would cost. Starts nothing."""

from __future__ import annotations

import json
from typing import Any

import typer
from rich.text import Text
from rich.tree import Tree

from atlas_dist.cli.words import asked, console, hush, open_run_store
from atlas_dist.config import RunConfig
from atlas_dist.core.plan import Plan, SequenceJobs
from atlas_dist.core.types import CommittedRef
from atlas_dist.errors import AtlasError
from atlas_dist.report.outlook import JobOutlook, Outlook, foresee
from atlas_dist.store.objects import ObjectStore


def show_plan(overrides: list[str] | None, *, as_json: bool, many: bool = False) -> None:
    """Print the tree and the sums. Raises ConfigError, DataError, StoreError: whatever a run would trip over."""
    from atlas_dist.coordinator.preflight import slow_products
    from atlas_dist.coordinator.status import load_run
    from atlas_dist.data.manifest import read_manifest
    from atlas_dist.train.context import open_shards

    asked_for = asked(overrides, many=many)
    config = asked_for.config
    hush()
    plan, store, shards = asked_for.plan(), open_run_store(config), open_shards(config)
    state, _ = load_run(store, config.run)
    splits = {(j.task.dataset, split) for j in plan.jobs.values() for split in (j.task.train, j.task.val)}
    manifests = {(dataset, split): read_manifest(shards, dataset, split) for dataset, split in splits}
    outlook = foresee(plan, state, _elsewhere(store, plan, config), manifests, config.shards.buffer_mb << 20)
    if as_json:
        typer.echo(json.dumps(as_document(config, outlook)))
        return
    out = console()
    for sequence in plan.sequences:
        out.print(_tree(sequence, outlook), soft_wrap=True)
    out.print(_sum(plan, outlook), markup=False, soft_wrap=True)
    if outlook.left and (hint := slow_products(config)):
        out.print(hint, markup=False, soft_wrap=True)


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
    return {"run": config.run, "jobs": jobs, "left": len(outlook.left), "seconds": outlook.seconds}


def _elsewhere(store: ObjectStore, plan: Plan, config: RunConfig) -> dict[str, tuple[str, CommittedRef]]:
    """Facts of other runs, by their pointers alone: the run that adopts them verifies every byte."""
    from atlas_dist.coordinator import paths
    from atlas_dist.coordinator.facts import Pointer
    from atlas_dist.core.records import from_json
    from atlas_dist.store.artifacts import read_json

    found = {}
    known = {info.key.rpartition("/")[2] for info in store.list("results/")}
    for key in plan.jobs:
        if key in known:
            try:
                pointer = from_json(Pointer, read_json(store, paths.result(key)))
            except AtlasError:
                continue  # a damaged pointer is no fact: the job would be trained
            if pointer.run != config.run:
                found[key] = (pointer.run, pointer.ref)
    return found


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
        node = tree.add(Text("references: learnt alone, or from the pretrained trunk", style="bold"))
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


def _sum(plan: Plan, outlook: Outlook) -> str:
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
    pace = outlook.seconds
    return text + (
        f"; {_span(*pace)} at the pace of this store's finished jobs"
        if pace
        else "; no finished job in this store to estimate time from"
    )


def _span(least: float, most: float) -> str:
    unit, name = (3600, "h") if most >= 5400 else (60, "min") if most >= 90 else (1, "s")
    low, high = f"{least / unit:.1f}".removesuffix(".0"), f"{most / unit:.1f}".removesuffix(".0")
    return f"{low} {name}" if low == high else f"{low} to {high} {name}"
