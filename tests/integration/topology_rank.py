"""One rank of `test_topology`: learn three stages at each ZeRO stage, and print rank 0's losses as one line of JSON."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch.distributed as dist

from atlas_dist.coordinator.expand import expand
from atlas_dist.core.attempts import Assignment, CommittedRef
from atlas_dist.store import artifacts
from atlas_dist.train.context import RankContext
from atlas_dist.train.engine import prepare_process
from atlas_dist.train.worker import StageWorker
from tests.kits.stage import toy_config


def main() -> None:
    folder, stages, words = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3:]
    prepare_process()
    dist.init_process_group("gloo")
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    control = dist.new_group(backend="gloo")
    losses = {}
    for stage in stages:
        config = toy_config(folder, *words, f"train.workers={world}", f"train.zero_stage={stage}")
        context = RankContext(config, rank, world, control)
        worker = StageWorker(context)
        done: dict[str, CommittedRef] = {}
        lines = []
        jobs = [job for job in expand(config).jobs.values() if job.stage][:3]
        for job in jobs:
            attempt = f"{job.key}-w{world}z{stage}"
            assignment = Assignment(job, attempt, f"runs/t/attempts/{attempt}", {p: done[p] for p in job.parents})
            outcome = worker.run(assignment, lambda _: False)
            assert outcome.failure is None, outcome.failure
            result = artifacts.read_result(context.store, assignment.prefix)
            done[job.key] = CommittedRef(job.key, attempt, assignment.prefix, result.blobs, result.metrics)
            curve = json.loads(artifacts.load(context.store, done[job.key], "details.json"))["curve"]
            lines.append([point["loss"] for point in curve])
        losses[stage] = lines
    if rank == 0:
        print(json.dumps(losses))


if __name__ == "__main__":
    main()
