"""Learn a run in this one process, without Ray: for experiments of many short stages, where most time would go into workers.

    python -m tests.bench.learn_here experiment=related_real seeds=[0] run=seed0 train.threads=1
    atlas-dist report experiment=related_real seeds=[0] run=seed0 train.threads=1

The coordinator, the ledger and what a rank does are the real ones; only the way between them is short, and there is one rank.
Several of these with different seeds and run names may share a store: at worst, what two of them need is learnt twice. Needs the
packed shards. Ctrl-C and SIGTERM stop it, and the same words go on (a stage at its newest checkpoint); after a `kill -9` they
wait for up to an hour, the lease of the one that died: use another run name, which takes over what is learnt. So does a run of
`atlas-dist run` in the same store.
"""

from __future__ import annotations

import signal
import sys
import time
import uuid
from dataclasses import dataclass, field

from atlas_dist import collector
from atlas_dist.app.composed import compose_run
from atlas_dist.app.precision import decided_by_nodes
from atlas_dist.coordinator.coordinator import Coordinator
from atlas_dist.coordinator.dispatch import Event, Failed, Finished
from atlas_dist.coordinator.settings import CoordinatorSettings
from atlas_dist.core.attempts import Assignment
from atlas_dist.core.schedule import Capacity, Pool
from atlas_dist.runs.status import CoordinatorRole
from atlas_dist.train.context import RankContext
from atlas_dist.train.engine import join_alone, prepare_process
from atlas_dist.train.worker import StageWorker


@dataclass
class Here:
    """A Dispatcher whose one pool is this process: `poll` does what `start` left."""

    worker: StageWorker
    waiting: list[Assignment] = field(default_factory=list)

    def capacity(self) -> Capacity:
        return Capacity(pools=(Pool("here", free=int(not self.waiting), total=1, ranks=1, limit=1),))

    def start(self, assignment: Assignment) -> None:
        self.waiting.append(assignment)

    def poll(self) -> list[Event]:
        if not self.waiting:
            return []
        assignment = self.waiting.pop()
        began = time.monotonic()
        outcome = self.worker.run(assignment, lambda _: False)
        print(f"{time.monotonic() - began:6.1f} s  {assignment.job.label}", flush=True)
        return [Failed(assignment.attempt, outcome.failure) if outcome.failure else Finished(assignment.attempt)]

    def cancel(self, attempt: str) -> None:
        self.waiting = [assignment for assignment in self.waiting if assignment.attempt != attempt]


def main() -> None:
    """Learn to the end."""
    composed, _ = decided_by_nodes(compose_run(*sys.argv[1:], "train.workers=1"))
    config, plan = composed.config, composed.plan()
    prepare_process()
    join_alone()
    here = Here(StageWorker(RankContext(config, 0, 1)))
    collector.freeze()
    coordinator = Coordinator(
        config.run,
        plan,
        composed.store,
        here,
        ids=lambda: uuid.uuid4().hex,
        spec=composed.specification(),
        log_sink=lambda _event, _fields: None,
        settings=CoordinatorSettings(ttl_s=3600),
    )
    print(f"{len(plan.jobs)} jobs", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # or the lease of this one would outlive it by an hour
    status = coordinator.open()
    if not status.done and status.role is CoordinatorRole.FOLLOWER:
        print("waits until another process, alive or dead, no longer leads this run", flush=True)
    try:
        while not status.done:
            status = coordinator.tick()
            if status.role is CoordinatorRole.FOLLOWER:
                time.sleep(1.0)
    finally:
        coordinator.close()
    if error := status.error():
        raise error


if __name__ == "__main__":
    main()
