"""Small real plans (from the real `make_plan`) for tests of the protocol."""

from __future__ import annotations

from dataclasses import replace

from atlas_dist.core.plan import Plan, SequenceSpec, make_plan
from atlas_dist.core.task_jobs import Common, PlannedTask
from atlas_dist.core.types import Budget, MethodSpec, Role, Stage, StagePlan, TaskKind, TaskSpec

METHOD = MethodSpec(
    name="atlas",
    stages=(
        StagePlan(Stage.ONE, sees_earlier=True, grows=False, trains=(Role.QUERIES, Role.HEAD), needs_earlier=True),
        StagePlan(Stage.TWO, sees_earlier=True, grows=True, trains=(Role.ADAPTER, Role.HEAD)),
    ),
)


FORMS = replace(
    METHOD,
    alone=MethodSpec(
        name="individual_adapters",
        stages=(StagePlan(Stage.TWO, sees_earlier=False, grows=True, trains=(Role.ADAPTER, Role.HEAD)),),
    ),
)
"""Describes a task, trains it in each form and commits the best, as `method=atlas` does."""


def task(name: str, split: int = 0) -> PlannedTask:
    """A task that needs no data; `split`: samples of the split that scores."""
    spec = TaskSpec(name, TaskKind.SINGLE, 10, 8, name, "train", "val", train_digest=name, val_digest=name)
    return PlannedTask(spec, {Stage.ONE: Budget(max_steps=4), Stage.TWO: Budget(max_steps=4)}, scored_samples=split)


def small_plan(
    tasks: int = 2,
    downstream: int = 0,
    sequences: int = 1,
    seed: int = 0,
    evaluate_every: int = 1,
    method: MethodSpec = METHOD,
    split: int = 0,
    recheck: int = 0,
) -> Plan:
    """`sequences` orders (rotations) of the same tasks, each with some transfers."""
    names = [f"task{i}" for i in range(tasks)]
    specs = []
    for s in range(sequences):
        order = names[s % tasks :] + names[: s % tasks]
        transfers = tuple(task(f"down{i}") for i in range(downstream))
        upstream = tuple(task(name, split) for name in order)
        spec = SequenceSpec(f"seq{s}", method, seed + s // tasks, upstream, transfers, evaluate_every=evaluate_every)
        specs.append(replace(spec, recheck=recheck))
    return make_plan(specs, Common(backbone_digest="b" * 64, numerics={"version": 1}))
