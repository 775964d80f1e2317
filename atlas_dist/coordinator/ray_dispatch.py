"""The only Ray orchestration: one coordinator actor, one long-lived TorchTrainer a pool, and the loop by which workers pull jobs.

The driver owns the actor and the trainers; nothing is detached, so `ray job stop` and Ctrl-C free everything. What must survive
is in the ledger. A fresh `fit()` costs 16 to 23 s, the next job of a pool a tenth of a second: pools live as long as the run.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import mkdtemp
from typing import Any

import ray
from ray.train import FailureConfig, ScalingConfig
from ray.train import RunConfig as RayRunConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.placement_group import (
    PlacementGroup,
    get_current_placement_group,
    placement_group_table,
    remove_placement_group,
)

from atlas_dist.config import ClusterConfig, Isolation, RunConfig
from atlas_dist.coordinator.dispatch import Progress
from atlas_dist.coordinator.pool import Lease, PoolDispatcher
from atlas_dist.coordinator.preflight import check_room
from atlas_dist.coordinator.ray_home import ray_home
from atlas_dist.coordinator.ray_metrics import RunMetrics
from atlas_dist.coordinator.ray_probe import draining, nodes_of, rooms
from atlas_dist.coordinator.service import RunService, Snapshot
from atlas_dist.coordinator.stop_signals import deaf_children
from atlas_dist.core.plan import Plan
from atlas_dist.core.types import Failure, Gang
from atlas_dist.errors import AtlasError, ConfigError, TrainingError
from atlas_dist.logs import set_up

log = logging.getLogger(__name__)

LEASE_WAIT_S = 2.0
DRAIN_LOOK_S = 2.0
FIT_TRIES = 5
"""Times a pool's trainer is started again after its controller died; restarts of workers alone are Ray Train's and not
counted."""

LOCAL_ADVICE = "Is this machine overloaded, or the disk of its /tmp full? RAY_TMPDIR names another short folder to Ray."

_WORKER_ENV = {
    "DS_ACCELERATOR": "cpu",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "PYTHONWARNINGS": "ignore",
}


@contextmanager
def cluster(config: ClusterConfig, gangs: Sequence[Gang]) -> Iterator[None]:
    """Join the configured Ray, or start one of our own and end it afterwards.

    Raises:
        ConfigError: the cluster cannot be reached, or can never hold the workers.
    """
    environment = _environment(config)
    workers = sum(gang.workers for gang in gangs)
    options: dict[str, Any] = {
        "runtime_env": {"env_vars": environment},
        "namespace": "atlas-dist",
        "log_to_driver": bool(os.environ.get("ATLAS_DEBUG")),
        "logging_level": "WARNING",
    }
    if config.address == "local":
        needed = max(1, round(workers * config.cpus_per_worker + 0.499))
        options |= {"address": "local", "include_dashboard": config.dashboard, "num_cpus": max(needed, os.cpu_count() or 1)}
        home = ray_home(os.environ)
        options |= {"_temp_dir": home} if home else {}
    else:
        options |= {"address": config.address}
    _connect(config, options)
    try:
        check_room(rooms(), config, gangs)
        yield
    finally:
        ray.shutdown()


def _connect(config: ClusterConfig, options: dict[str, Any]) -> None:
    """`ray.init`, twice for a Ray of our own: on a busy machine its daemons may miss Ray's fixed 30 s."""
    tries = 2 if config.address == "local" else 1
    for remaining in reversed(range(tries)):
        try:
            with deaf_children():
                ray.init(**options)
            return
        except Exception as error:  # Ray raises bare Exceptions here
            ray.shutdown()
            if not remaining:
                first = str(error).splitlines()[0] if str(error) else type(error).__name__
                advice = {"local": LOCAL_ADVICE}.get(config.address, "Is the cluster up?")
                raise ConfigError(f"cluster.address={config.address}: Ray does not start: {first}", fix=advice) from error


def _environment(config: ClusterConfig) -> dict[str, str]:
    environment = dict(_WORKER_ENV)
    if config.gpus_per_worker:
        environment["DS_ACCELERATOR"] = "cuda"
    return environment


@ray.remote(num_cpus=0, max_concurrency=32, max_restarts=0)
class CoordinatorActor:
    """The run's coordinator: a thread that decides and records, and the desk where workers ask for jobs."""

    def __init__(self, config: RunConfig, plan: Plan, spec: Mapping[str, Any]) -> None:
        set_up(config.log.format, run=config.run, process="coordinator")
        self.metrics = RunMetrics(config.run)
        self.desk = PoolDispatcher(config.gangs)
        self.seated: dict[str, tuple[str, str]] = {}
        """Pool -> the group that sits there and the placement group that it lives in."""
        self.service = RunService(config, plan, spec, self.desk)
        self.thread = threading.Thread(target=self.service.run, name="coordinator", daemon=True)
        self.thread.start()
        threading.Thread(target=self._look_out, name="look-out", daemon=True).start()

    def _look_out(self) -> None:
        """Send groups away from nodes that are about to go, so that they save a checkpoint while they can."""
        while True:
            time.sleep(DRAIN_LOOK_S)
            try:
                going = draining()
                for pool, (group, room) in list(self.seated.items()) if going else ():
                    if going & nodes_of(room):
                        self.desk.leave(pool, group, "a node of the group is being drained")
            except Exception as error:  # the cluster's head may be away for a moment; a notice missed is a node lost, no more
                log.warning("draining nodes could not be asked for: %s", error)

    def lease(self, pool: str, group: str, world: int, room: str) -> Lease:
        """A job for this group of `world` workers, which live in the placement group `room`; waits a little for one."""
        self.seated[pool] = (group, room)
        return self.desk.lease(pool, group, LEASE_WAIT_S, world=world)

    def progress(self, event: Progress) -> bool:
        """Note progress; True asks the workers to save and stop."""
        self.metrics.progress(event)
        self.service.note(event)
        return self.desk.progress(event)

    def finished(self, attempt: str) -> None:
        """An attempt's RESULT is in the store."""
        self.desk.finished(attempt)

    def failed(self, attempt: str, failure: Failure) -> None:
        """An attempt ended without a result."""
        self.metrics.failed(failure.kind.value)
        self.desk.failed(attempt, failure)

    def pool_gone(self, pool: str, reason: str) -> list[str]:
        """The pool's trainer ended. Returns the rooms of the others."""
        self.desk.gone(pool, reason)
        self.seated.pop(pool, None)
        return [room for _, room in self.seated.values()]

    def comes_back(self, pool: str) -> bool:
        """Whether the pool's group was sent away for another one to come."""
        return self.desk.comes_back(pool)

    def stop(self) -> None:
        """Checkpoint, send the workers home, stop deciding."""
        self.service.stop()

    def snapshot(self, after: int = 0) -> Snapshot:
        """What a person wants to see."""
        snapshot = self.service.snapshot(after)
        if snapshot.status is not None:
            self.metrics.status(snapshot.status)
        return snapshot


@dataclass
class PoolRunner:
    """Keeps a pool of workers alive until the coordinator sends it home; runs in a thread of the driver."""

    config: RunConfig
    actor: Any
    gang: Gang
    error: BaseException | None = None

    def run(self) -> None:
        """Start trainers until the run is over."""
        try:
            for attempt in range(FIT_TRIES):
                if self._serve(attempt):
                    return
                if ray.get(self.actor.snapshot.remote()).over:
                    return
            raise TrainingError(
                f"The workers' controller died {FIT_TRIES} times.", fix="See the logs of Ray; `status` shows the run."
            )
        except BaseException as error:  # handed to the main thread, which raises it
            self.error = error

    def _serve(self, attempt: int) -> bool:
        """One trainer after the other: a group is sent away from a node that is about to go, and with isolation per_job after
        each job. False when a controller died."""
        try:
            while True:
                self._trainer(attempt).fit()
                again = self.config.train.isolation is Isolation.PER_JOB or ray.get(self.actor.comes_back.remote(self.gang.name))
                if not again or ray.get(self.actor.snapshot.remote()).over:
                    return True
        except AtlasError:
            raise
        except Exception as error:  # Ray's own errors have no common base worth naming
            taken = ray.get(self.actor.pool_gone.remote(self.gang.name, f"the trainer ended: {type(error).__name__}"))
            if os.environ.get("ATLAS_DEBUG"):
                print(error, file=sys.stderr)
            _give_back_rooms(taken)
            return False

    def _trainer(self, attempt: int) -> TorchTrainer:
        config, cluster_config, gang = self.config, self.config.cluster, self.gang
        resources = {"CPU": cluster_config.cpus_per_worker}
        gpus = cluster_config.gpus_per_worker
        if gpus:
            resources["GPU"] = gpus
        return TorchTrainer(
            pool_main,
            train_loop_config={"config": config, "actor": self.actor, "pool": gang.name},
            scaling_config=ScalingConfig(
                num_workers=(gang.least, gang.workers) if 0 < gang.least < gang.workers else gang.workers,
                use_gpu=bool(gpus),
                resources_per_worker=resources,
                label_selector=dict(gang.labels) or None,
                elastic_resize_monitor_interval_s=cluster_config.grow_every_s,
            ),
            torch_config=TorchConfig(backend="nccl" if gpus else "gloo", timeout_s=1800),
            run_config=RayRunConfig(
                name=f"{config.run}-{gang.name}-{attempt}-{uuid.uuid4().hex[:8]}",
                storage_path=mkdtemp(prefix="atlas-ray-"),
                failure_config=FailureConfig(max_failures=-1),
            ),
        )


def _give_back_rooms(taken: Collection[str]) -> None:
    """Remove the placement groups of this driver's job that no other pool lives in.

    A trainer's controller that is killed leaves its gang's room taken, and nobody could ever start again. Ray Train has an actor
    that should see to it, but that one can't tell which cluster it is in where a host runs several. The last four bytes of a
    group's id are its job's.
    """
    job = ray.get_runtime_context().get_job_id()
    for key, group in placement_group_table().items():
        if key.endswith(job) and key not in taken and group["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(key)))


def pool_main(options: dict[str, Any]) -> None:
    """What every worker of a pool runs: ask for a job, do it together, tell how it went; until sent home."""
    import torch.distributed as dist

    from atlas_dist.train.context import RankContext
    from atlas_dist.train.engine import prepare_process
    from atlas_dist.train.worker import GroupBroken, StageWorker

    config, actor, pool = options["config"], options["actor"], options["pool"]
    prepare_process()
    room = get_current_placement_group()
    rank, world = dist.get_rank(), dist.get_world_size()
    set_up(config.log.format, run=config.run, process="worker", pool=pool, rank=rank)
    log.info("rank %d of %d of pool %s is here", rank, world, pool)
    context = RankContext(config, rank, world, control=dist.new_group(backend="gloo"))
    context.trunk()
    worker = StageWorker(context)
    group = uuid.uuid4().hex
    while True:
        lease = _together(lambda: ray.get(actor.lease.remote(pool, group, world, room.id.hex() if room else "")), context)
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

    answer = [ask() if context.leader else None]
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
            self.pending = self.actor.progress.remote(Progress(self.attempt, progress.step, progress.total, metrics))
            self.sent = now
        return self.stop
