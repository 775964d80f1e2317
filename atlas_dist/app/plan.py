"""Which jobs a run would do, what is a fact already, and about what the rest would cost. Starts nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from atlas_dist.app.composed import Settings, compose_run
from atlas_dist.app.process import restored_process
from atlas_dist.config import RunConfig
from atlas_dist.coordinator.preflight import slow_products
from atlas_dist.core.attempts import CommittedRef
from atlas_dist.core.plan import Plan
from atlas_dist.core.state import RunState
from atlas_dist.core.types import Work
from atlas_dist.data.manifest import read_manifest
from atlas_dist.report.outlook import Outlook, Pace, foresee, like_of
from atlas_dist.runs.results import known_results, read_pointers
from atlas_dist.runs.status import load_run
from atlas_dist.runs.stores import open_shards
from atlas_dist.store.objects import ObjectStore
from atlas_dist.train.configured import backbone_label

if TYPE_CHECKING:
    from atlas_dist.train.step_memory import StepMemory

ALIKE = 64
"""Results of other runs, at most, that time is judged by; their keys are digests, so the first ones are a fair draw."""


@dataclass(frozen=True)
class PlannedRun:
    """The jobs of a run, and what is left of them."""

    run: str
    plan: Plan
    outlook: Outlook
    """Of each job: whether it is a fact, and what it would take otherwise."""
    worker_hour: float
    """What a worker costs an hour (`cluster.worker_hour`); 0 = not said."""
    advice: str
    """A sentence for those whose workers would crawl here; "" for everybody else."""
    memory: tuple[StepMemory, ...] = ()
    """What a training step needs of a rank's memory, the most first; () = not asked for."""

    @property
    def cost(self) -> Pace | None:
        """(least, most) of what is left; None where no price is set, or no finished job tells how long it takes."""
        hours = self.outlook.worker_hours
        return (hours[0] * self.worker_hour, hours[1] * self.worker_hour) if hours and self.worker_hour else None


def plan(*settings: Settings, many: bool = False, memory: bool = False) -> PlannedRun:
    """What a run with these settings would do; nothing is started or written.

    Args:
        settings: as for `run`.
        memory: also say what a training step needs of a rank's memory: a pass of two samples for each shape of task, on the CPU.

    Raises:
        ConfigError, DataError, StoreError: whatever a run would trip over.
    """
    composed_run = compose_run(*settings, many=many)
    with restored_process():
        composed_run = composed_run.decided
        config, store = composed_run.config, composed_run.store
        jobs = composed_run.plan()
        state, _ = load_run(store, config.run)
        outlook = forecast_run(config, jobs, state, store, composed_run.backbone.tiles)
        advice = slow_products(config) if outlook.left else ""
        steps = memory_of(config, jobs) if memory else ()
        return PlannedRun(config.run, jobs, outlook, config.cluster.worker_hour, advice, steps)


def memory_of(config: RunConfig, plan: Plan) -> tuple[StepMemory, ...]:
    """What the training steps of a plan need of a rank's memory, the most first. Raises ConfigError, DataError: the backbone."""
    from atlas_dist.train.configured import configured_backbone
    from atlas_dist.train.step_memory import steps_of

    ranks = min((group.workers for group in config.worker_groups if group.takes - {Work.EVALUATION}), default=1)
    return tuple(steps_of(config, plan, configured_backbone(config), ranks))


def forecast_run(config: RunConfig, plan: Plan, state: RunState, store: ObjectStore, tiles: int = 1) -> Outlook:
    """What is left of a plan. `tiles`: of the backbone (`BackboneFacts.tiles`).

    Raises:
        DataError, StoreError: shards that are not there, a store in trouble.
    """
    shards = open_shards(config)
    splits = {(j.task.dataset, split) for j in plan.jobs.values() for split in j.splits}
    manifests = {(dataset, split): read_manifest(shards, dataset, split) for dataset, split in splits}
    own, alike = _elsewhere(store, plan, config, tiles)
    return foresee(plan, state, own, manifests, config.shards.buffer_mb << 20, config.worker_groups, alike)


def _elsewhere(
    store: ObjectStore, plan: Plan, config: RunConfig, tiles: int
) -> tuple[dict[str, tuple[str, CommittedRef]], list[CommittedRef]]:
    """By their pointers alone, facts of other runs that the plan has too (the run that adopts them verifies every byte), and some
    that it has not, to judge time by."""
    known = known_results(store)
    found = read_pointers(store, [*(key for key in plan.jobs if key in known), *sorted(known - set(plan.jobs))[:ALIKE]])
    own = {key: (p.run, p.ref) for key, p in found.items() if key in plan.jobs and p.run != config.run}
    others = (pointer.ref for key, pointer in found.items() if key not in plan.jobs)
    here = (backbone_label(config, tiles), config.train.precision.value)
    return own, [ref for ref in others if (like := like_of(ref)) and (like["trunk"], like["precision"]) == here]
