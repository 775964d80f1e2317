"""One rank of `test_topology`: learn three stages of each run, and print rank 0's losses, and what was validated, as one line of
JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from atlas_dist import collector
from atlas_dist.coordinator.expand import expand
from atlas_dist.core.attempts import Assignment, CommittedRef
from atlas_dist.core.plan import Plan
from atlas_dist.core.types import StageJob
from atlas_dist.model.atlas import AdaptedModel
from atlas_dist.model.backbones import GoesOn, Written, rows_go_on
from atlas_dist.store import artifacts
from atlas_dist.train.context import RankContext
from atlas_dist.train.engine import prepare_process
from atlas_dist.train.worker import StageWorker
from tests.kits.stage import take_all_apart, toy_config


def end_apart(rank: int) -> list[int]:
    """Have written answers end after another number of tokens on each rank, as those of models that have learnt something do.
    Returns where the number of passes through the language model is put down, of each time that something is written."""
    write, passes = AdaptedModel.write, []

    def written(self: AdaptedModel, batch: Mapping[str, Tensor], most: int, goes_on: GoesOn = rows_go_on) -> Written:
        backbone: Any = self.backbone
        backbone.chat_end = -1
        free = write(self, batch, most)
        backbone.chat_end = int(free.tokens[0, 1 + 2 * rank])
        asked: list[bool] = []

        def counted(going: Tensor) -> bool:
            asked.append(bool(going.any()))
            return goes_on(going)

        answers = write(self, batch, most, counted)
        passes.append(sum(asked))
        return answers

    AdaptedModel.write = written  # type: ignore[method-assign]
    return passes


def with_parents(plan: Plan, jobs: Sequence[StageJob]) -> list[StageJob]:
    """`jobs` and all that they depend on, in the plan's order."""
    wanted = {job.key for job in jobs}
    for key, job in reversed(plan.jobs.items()):
        wanted |= set(job.parents) if key in wanted else set()
    return [job for key, job in plan.jobs.items() if key in wanted]


def learn(
    rank: int, world: int, control: dist.ProcessGroup, name: str, words: Sequence[str], told: Sequence[str]
) -> list[list[float]]:
    """The first three training jobs of a run: the losses of each, and what was `told` of its validations."""
    folder, *settings = words
    config = toy_config(Path(folder), *settings)
    context = RankContext(config, rank, world, control)
    worker = StageWorker(context)
    collector.freeze()
    done: dict[str, CommittedRef] = {}
    lines = []
    plan = expand(config)
    stages_of_plan = [job for job in plan.jobs.values() if job.stage][:3]
    for job in with_parents(plan, stages_of_plan):
        attempt = f"{job.key}-w{world}-{name.replace(' ', '')}"
        assignment = Assignment(job, attempt, f"runs/t/attempts/{attempt}", {p: done[p] for p in job.parents})
        outcome = worker.run(assignment, lambda _: False)
        assert outcome.failure is None, outcome.failure
        result = artifacts.read_result(context.store, assignment.prefix)
        done[job.key] = CommittedRef(job.key, attempt, assignment.prefix, result.blobs, result.metrics)
        if job in stages_of_plan:
            details = json.loads(artifacts.load(context.store, done[job.key], "details.json"))
            lines.append([point["loss"] for point in details["curve"]])
            lines[-1] += [point[what] for point in details["validation"] for what in told]
    return lines


def main() -> None:
    apart, runs = json.loads(sys.argv[1]), json.loads(sys.argv[2])
    prepare_process()
    if apart:
        take_all_apart()
    dist.init_process_group("gloo")
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    passes = end_apart(rank)
    control = dist.new_group(backend="gloo")
    losses = {}
    for name, words in runs.items():
        losses[name] = learn(rank, world, control, name, words, ("loss", "score") if apart else ("loss",))
        everywhere: list[list[int]] = [[]] * world
        dist.all_gather_object(everywhere, passes)
        assert world == 1 or not passes or len({tuple(each) for each in everywhere}) > 1, "answers end at one length"
    if rank == 0:
        print(json.dumps(losses))


if __name__ == "__main__":
    main()
