"""What every worker of a pool runs: the loop by which it pulls jobs."""

from __future__ import annotations

import logging
import socket
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ray
from ray.util.placement_group import (
    get_current_placement_group,
)

from atlas_dist import collector, device
from atlas_dist.config import Isolation
from atlas_dist.coordinator.dispatch import AttemptProgress
from atlas_dist.coordinator.ray_pulse import PulseSender
from atlas_dist.errors import AtlasError
from atlas_dist.logs import set_up

if TYPE_CHECKING:
    from atlas_dist.train.worker import StageWorker

log = logging.getLogger(__name__)


def pool_main(options: dict[str, Any]) -> None:
    """What every worker of a pool runs: set itself up, ask for a job, do it together, tell how it went; until sent home.

    What goes wrong before the first job is told to the coordinator: Ray starts workers again without a word about why they died.
    """
    try:
        worker = _set_up(options)
    except Exception as error:
        reason = f"{socket.gethostname()}: {type(error).__name__}: {error}"
        ray.get(options["actor"].set_up_failed.remote(options["pool"], reason, isinstance(error, AtlasError) and not error.retry))
        raise
    _work(worker, options)


def _set_up(options: dict[str, Any]) -> StageWorker:
    with collector.paused():
        import torch
        import torch.distributed as dist
        from ray.train.torch import get_device

        from atlas_dist.train.context import RankContext
        from atlas_dist.train.engine import prepare_process
        from atlas_dist.train.worker import StageWorker

    config, pool = options["config"], options["pool"]
    device.take(get_device() if config.cluster.gpus else torch.device("cpu"))
    device.set_arithmetic(tf32=config.train.tf32, deterministic=config.train.deterministic)
    with collector.paused():
        prepare_process()
    rank, world = dist.get_rank(), dist.get_world_size()
    set_up(config.log.format, run=config.run, process="worker", pool=pool, rank=rank)
    log.info("rank %d of %d of pool %s is here", rank, world, pool)
    context = RankContext(config, rank, world, control=dist.new_group(backend="gloo"))
    context.backbone()
    context.barrier()  # nobody asks for work before everybody is able to do it
    collector.freeze()
    return StageWorker(context)


def _work(worker: StageWorker, options: dict[str, Any]) -> None:
    from atlas_dist.train.worker import GroupBroken

    config, actor, pool, context = options["config"], options["actor"], options["pool"], worker.context
    rank, world = context.rank, context.world
    placement_group = get_current_placement_group()
    group = uuid.uuid4().hex
    if config.cluster.stall_s:
        PulseSender(actor, rank, world).start()
    while True:
        lease = _together(
            lambda: ray.get(actor.lease.remote(pool, group, world, placement_group.id.hex() if placement_group else "")), context
        )
        if lease.go_home:
            return
        if lease.assignment is None:
            continue
        attempt = lease.assignment.attempt
        try:
            outcome = worker.run(lease.assignment, _Reporter(actor, attempt, world))
        except GroupBroken as error:
            # This rank is lost to its group: say why before Ray starts the workers again.
            ray.get(actor.failed.remote(attempt, error.failure))
            raise
        if outcome.failure is not None:
            ray.get(actor.failed.remote(attempt, outcome.failure))
        elif rank == 0:
            ray.get(actor.finished.remote(attempt))
        if config.train.isolation is Isolation.PER_JOB:
            return


def _together(ask: Callable[[], Any], context: Any) -> Any:
    """Rank 0 asks; everyone gets the answer."""
    import torch.distributed as dist

    answer = [ask() if context.is_rank_zero else None]
    dist.broadcast_object_list(answer, src=0, group=context.control)
    return answer[0]


class _Reporter:
    """Rank 0's line to the coordinator: sends without waiting, and reads the answer to the report before."""

    MIN_INTERVAL_S = 0.5

    def __init__(self, actor: Any, attempt: str, world: int) -> None:
        self.actor, self.attempt, self.world = actor, attempt, world
        self.pending: Any = None
        self.sent = 0.0
        self.stop = False

    def __call__(self, progress: Any) -> bool:
        if self.pending is not None and ray.wait([self.pending], timeout=0)[0]:
            self.stop = self.stop or ray.get(self.pending)
            self.pending = None
        now = time.monotonic()
        if self.pending is None and (now - self.sent >= self.MIN_INTERVAL_S or progress.step == progress.total):
            metrics = {
                "loss": progress.loss,
                "score": progress.score,
                "samples_per_s": progress.samples_per_s,
                "data_wait": progress.data_wait,
                "mfu": progress.mfu,
                "workers": self.world,
            }
            self.pending = self.actor.progress.remote(AttemptProgress(self.attempt, progress.step, progress.total, metrics))
            self.sent = now
        return self.stop
