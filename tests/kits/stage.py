"""One rank in this process, toy data in a folder: what the stage tests stand on."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from atlas_dist import collector
from atlas_dist.compose import compose_config
from atlas_dist.config import RunConfig
from atlas_dist.coordinator.expand import expand
from atlas_dist.core.attempts import Assignment, CommittedRef
from atlas_dist.core.plan import Plan
from atlas_dist.core.types import StageJob
from atlas_dist.data.pack import run_pack
from atlas_dist.runs.stores import open_shards
from atlas_dist.store import artifacts
from atlas_dist.train import engine
from atlas_dist.train.context import RankContext
from atlas_dist.train.engine import join_alone, prepare_process
from atlas_dist.train.loop import StepProgress
from atlas_dist.train.worker import Outcome, StageWorker

_numbers = itertools.count()


RELEASED = "method=atlas_paper"
"""What tests learn with unless they name a method: the released form, whose results and job keys stay as 0.1 had them."""


def toy_words(folder: Path, *words: str) -> tuple[str, ...]:
    """The toy experiment below `folder`, for one worker and with the released form unless `words` say otherwise."""
    method = () if any(word.startswith("method=") for word in words) else (RELEASED,)
    places = (f"store.url={folder}/store", f"shards.url={folder}/shards")
    return ("experiment=toy", "train.workers=1", *method, *places, *words)


def toy_config(folder: Path, *words: str) -> RunConfig:
    """`toy_words`, composed."""
    return compose_config(list(toy_words(folder, *words)))


def pack_toys(config: RunConfig, samples: int = 96) -> None:
    """Pack every task of the configuration, small."""
    store = open_shards(config)
    for task in config.tasks.values():
        assert task.raw is not None
        for split, count in zip(task.data.splits, (samples, samples // 2, samples // 4), strict=False):
            options = {**task.raw.options, "samples": count, "side": 32}
            run_pack(task.raw.converter, None, store, task.data.dataset, split, options=options, image_size=64)


def take_all_apart() -> None:
    """Have ZeRO-3 divide parameters of every size: it leaves those of under 100,000 numbers whole, as all of tiny models are."""
    configured = engine._deepspeed_config

    def config(settings: engine.EngineSettings) -> dict[str, Any]:
        told = configured(settings)
        return told | {"zero_optimization": told["zero_optimization"] | {"stage3_param_persistence_threshold": 0}}

    engine._deepspeed_config = config


class Bench:
    """Runs jobs of a plan one after the other, as a pool of one would."""

    def __init__(self, config: RunConfig) -> None:
        prepare_process()
        join_alone()
        self.config = config
        self.plan: Plan = expand(config)
        self.context = RankContext(config, 0, 1)
        self.worker = StageWorker(self.context)
        collector.freeze()  # as a pool's worker
        self.done: dict[str, CommittedRef] = {}

    def job(self, label: str) -> StageJob:
        """The job whose label ends so."""
        return next(j for j in self.plan.jobs.values() if j.label.endswith(label))

    def assignment(self, job: StageJob, **changes: Any) -> Assignment:
        attempt = f"{job.key}-{next(_numbers)}"
        inputs = {p: self.done[p] for p in job.parents}
        return Assignment(job=job, attempt=attempt, prefix=f"runs/t/attempts/{attempt}", inputs=inputs, **changes)

    def run(self, assignment: Assignment, report: Callable[[StepProgress], bool] = lambda _: False) -> Outcome:
        return self.worker.run(assignment, report)

    def commit(self, assignment: Assignment) -> CommittedRef:
        """Take the attempt's RESULT for a fact."""
        result = artifacts.read_result(self.context.store, assignment.prefix)
        artifacts.verify(self.context.store, assignment.prefix, result.blobs)
        ref = CommittedRef(result.job, result.attempt, assignment.prefix, result.blobs, result.metrics)
        self.done[result.job] = ref
        return ref

    def learn(self, job: StageJob) -> CommittedRef:
        """Run a job to its end and commit it."""
        assignment = self.assignment(job)
        outcome = self.run(assignment)
        assert outcome.failure is None, outcome.failure
        return self.commit(assignment)

    def learn_in_two(self, job: StageJob, step: int) -> CommittedRef:
        """As `learn`, stopped from this step on, and then gone on with from the newest checkpoint."""
        stopped = self.assignment(job)
        self.run(stopped, lambda progress: progress.step >= step)
        found = artifacts.newest_checkpoint(self.context.store, [stopped.prefix])
        assert found is not None
        again = self.assignment(job, resume_from=found.prefix, resume_digest=found.digest)
        assert self.run(again).failure is None
        return self.commit(again)

    def learn_until(self, label: str) -> StageJob:
        """Run the plan's jobs in order up to, but without, the job whose label ends so; return that job."""
        for job in self.plan.jobs.values():
            if job.label.endswith(label):
                return job
            if job.key not in self.done:
                self.learn(job)
        raise AssertionError(f"no job {label}")
