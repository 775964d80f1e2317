"""One rank of `test_elastic`: carries out the orders on its standard input, one line of JSON each, and answers each with the
samples of every step that it really trained on.

An order names a job by the end of its label and the attempt to make; `resume` continues another attempt's newest checkpoint,
`stop_at` asks for a pause after that step, `from` names the attempts that made the job's parents, `zero` the ZeRO stage.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist

from atlas_dist import collector
from atlas_dist.coordinator.expand import expand
from atlas_dist.core.attempts import Assignment, CommittedRef
from atlas_dist.store import artifacts
from atlas_dist.train import loop
from atlas_dist.train.context import RankContext
from atlas_dist.train.engine import prepare_process
from atlas_dist.train.worker import StageWorker
from tests.kits.stage import take_all_apart, toy_config


def prefix_of(attempt: str) -> str:
    return f"runs/t/attempts/{attempt}"


def carry_out(worker: StageWorker, plan: Any, order: dict[str, Any]) -> dict[str, Any]:
    """Do one order; where the attempt stopped (0 = it has its result), and the steps with the ordinals of this rank's slots."""
    store = worker.context.store
    job = next(j for j in plan.jobs.values() if j.label.endswith(order["job"]))
    made = {ref.job: ref for ref in (committed(store, attempt) for attempt in order.get("from", []))}
    resume = artifacts.newest_checkpoint(store, [prefix_of(order["resume"])]) if order.get("resume") else None
    assignment = Assignment(
        job,
        order["attempt"],
        prefix_of(order["attempt"]),
        {parent: made[parent] for parent in job.parents},
        resume_from=resume.prefix if resume else "",
        resume_digest=resume.digest if resume else "",
    )
    seen: list[Any] = []
    step = loop.train_step

    def noted(engine: Any, auxiliary: int, batch: Any, *rest: Any) -> Any:
        seen.append([batch.step, batch.epoch, [i for i in batch.index.tolist() if i >= 0]])
        return step(engine, auxiliary, batch, *rest)

    loop.train_step = noted
    try:
        outcome = worker.run(assignment, lambda progress: progress.step >= order.get("stop_at", 10**9))
    finally:
        loop.train_step = step
    return {
        "attempt": order["attempt"],
        "world": worker.context.world,
        "resumed": resume.step if resume else 0,
        "kind": outcome.failure.kind.value if outcome.failure else "",
        "stopped": outcome.failure.step if outcome.failure else 0,
        "seen": seen,
    }


def committed(store: Any, attempt: str) -> CommittedRef:
    result = artifacts.read_result(store, prefix_of(attempt))
    return CommittedRef(result.job, attempt, prefix_of(attempt), result.blobs, result.metrics)


def main() -> None:
    folder, words = Path(sys.argv[1]), sys.argv[2:]
    prepare_process()
    dist.init_process_group("gloo")
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    take_all_apart()
    control = dist.new_group(backend="gloo")
    collector.freeze()
    for line in sys.stdin:
        order = json.loads(line)
        config = toy_config(folder, *words, f"train.workers={world}", f"train.zero_stage={order.get('zero', 0)}")
        worker = StageWorker(RankContext(config, rank, world, control))
        print("answer", json.dumps(carry_out(worker, expand(config), order)), flush=True)


if __name__ == "__main__":
    main()
