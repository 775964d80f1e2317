"""Is it worth starting? What can be known before a worker starts is checked here and refused in a few lines, with the exit code
of its kind: settings and room 2, data 3, credentials 4, store 6.

No Ray here: the facts about a cluster's nodes come in as values (`ray_probe.py` gathers them).
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from atlas_dist.config import ClusterConfig, Precision, RunConfig
from atlas_dist.core.manifest import ShardManifest
from atlas_dist.core.plan import Plan
from atlas_dist.core.sampling import WINDOW_BYTES
from atlas_dist.core.types import Gang, Work
from atlas_dist.data.manifest import read_manifest
from atlas_dist.errors import AuthError, ConfigError, DataError, StoreError
from atlas_dist.model.flops import cpu_multiplies_bf16
from atlas_dist.store import ObjectStore
from atlas_dist.store.doctor import examine
from atlas_dist.train.context import open_run_store, open_shards

LOCAL = "local"
UNPACKED_BY_RAY = "_ray_pkg_"
"""In the name of the folder that Ray unpacks `--working-dir` into, and throws away."""
WRITERS, KEYS = 8, 8
"""The doctor's race at the door: enough to see a store without conditional creates, a second instead of ten."""
_SLACK = 1e-6


@dataclass(frozen=True)
class Room:
    """What a node offers in all, whether or not it is taken now."""

    name: str
    cpus: float
    gpus: float
    labels: Mapping[str, str] = field(default_factory=dict)

    def holds(self, config: ClusterConfig) -> int:
        """How many workers fit on it."""
        by_cpu = int((self.cpus + _SLACK) / config.cpus_per_worker)
        return min(by_cpu, int((self.gpus + _SLACK) / config.gpus_per_worker)) if config.gpus_per_worker else by_cpu


@dataclass(frozen=True)
class Look:
    """What a process on a node saw there."""

    name: str
    missing: tuple[str, ...] = ()
    versions: tuple[tuple[str, str], ...] = ()
    cpu_only: bool = False
    """Torch was built without CUDA there."""
    trouble: str = ""
    """Why it cannot reach the store; "" when it can."""
    silent: str = ""
    """Why nobody could look there; "" when somebody did."""


def check_before_cluster(config: RunConfig, plan: Plan) -> None:
    """What needs no cluster.

    Raises:
        ConfigError: the store would vanish with the job.
        DataError: a task has too little data for the workers, or too few shards.
        AuthError, StoreError: the store does not answer, or can't be trusted with a ledger.
    """
    check_place(config, Path.cwd())
    check_shards(plan, open_shards(config), max(g.workers for g in config.gangs if g.takes - {Work.EVALUATION}))
    check_store(config)


def check_place(config: RunConfig, working_folder: Path) -> None:
    """Refuse to keep what is learnt in the folder that Ray unpacked for this job."""
    url = config.store.url
    if UNPACKED_BY_RAY in str(working_folder) and "://" not in url and Path(url).is_relative_to(working_folder):
        raise ConfigError(
            f"store.url={url} lies in the folder that Ray unpacked for this job and deletes after it.",
            fix="Set store=s3 store.url=s3://bucket/prefix, or an absolute folder that every node shares.",
        )


def check_shards(plan: Plan, shards: ObjectStore, workers: int) -> None:
    """Whether every training split can keep `workers` ranks busy. Raises DataError."""
    for name, manifest in _training_splits(plan, shards):
        if manifest.samples < workers:
            raise DataError(
                f"Task {name}: {manifest.dataset}/{manifest.split} has {manifest.samples} samples for {workers} workers.",
                fix="Lower train.workers: a worker without a sample only costs.",
            )
        # Small splits are held whole by every rank; of a large one each rank should read its own part.
        if manifest.size > WINDOW_BYTES and len(manifest.shards) < workers:
            raise DataError(
                f"Task {name}: {manifest.dataset}/{manifest.split} is {manifest.size / 1e9:.1f} GB in {len(manifest.shards)} "
                f"shards; {workers} workers need at least one each, or they fetch the same bytes again and again.",
                fix="Pack it into more shards, or lower train.workers.",
            )


def check_store(config: RunConfig) -> None:
    """A short visit of the doctor. A folder of this machine that only this machine uses is believed, if it can be written.

    Raises:
        StoreError: with the report, or why nothing can be written. AuthError: the folder is somebody else's.
    """
    store = open_run_store(config)
    if config.cluster.address == LOCAL and "://" not in config.store.url:
        _write_once(store, config.store.url)
        return
    report = examine(store, new_id=_new_id, writers=WRITERS, keys=KEYS)
    if not report.fit:
        raise StoreError(
            f"{report.url} can't be trusted with a ledger:\n{report}",
            fix=report.fix or "`atlas-dist doctor URL` tries it out at length.",
        )


def _write_once(store: ObjectStore, url: str) -> None:
    key = f"doctor/{_new_id()}"
    try:
        store.create(key, b"")
        store.delete(key)
    except (StoreError, AuthError) as error:
        kind = AuthError if isinstance(error, AuthError) else StoreError
        raise kind(
            f"store.url={url} can't be written. {error.message}", fix=error.fix or "Set store.url to another folder."
        ) from error


def slow_products(config: RunConfig) -> str:
    """A sentence for those whose workers would crawl on this machine's CPUs; "" for everybody else. What the CPUs of a cluster's
    nodes can do is not known here."""
    on_cpus_here = config.cluster.address == LOCAL and not config.cluster.gpus_per_worker
    if not on_cpus_here or config.train.precision is not Precision.BF16 or cpu_multiplies_bf16() is not False:
        return ""
    return "This CPU cannot multiply in bfloat16: it takes many times as long as in float32. Set train.precision=fp32."


def check_room(nodes: Sequence[Room], config: ClusterConfig, gangs: Sequence[Gang]) -> None:
    """Refuse gangs that this cluster can never hold side by side, each with its fewest workers, unless it can grow.

    Raises:
        ConfigError: naming what is short.
    """
    if config.grows:
        return
    workers = sum(gang.fewest for gang in gangs)
    for name, each, have in (
        ("CPU", config.cpus_per_worker, sum(n.cpus for n in nodes)),
        ("GPU", config.gpus_per_worker, sum(n.gpus for n in nodes)),
    ):
        if each * workers > have + _SLACK:
            among = f" in {len(gangs)} pools" if len(gangs) > 1 else ""
            raise ConfigError(
                f"{workers} workers{among} need {each * workers:g} {name}, the cluster has {have:g}.",
                fix=f"Lower train.workers or cluster.{name.lower()}s_per_worker, or add nodes; "
                "cluster.grows=true waits for an autoscaler.",
            )
    left = [node.holds(config) for node in nodes]
    for gang in sorted(gangs, key=lambda g: (not g.labels, -g.fewest)):  # who can go anywhere comes last
        _seat(gang, nodes, left, config)


def _seat(gang: Gang, nodes: Sequence[Room], left: list[int], config: ClusterConfig) -> None:
    """Give the gang's workers places on the nodes, of which `left` are left. Raises ConfigError."""
    fitting = [node for node in nodes if has_labels(node.labels, gang.labels)]
    missing = gang.fewest
    for number, node in enumerate(nodes):
        taken = min(missing, left[number]) if node in fitting else 0
        left[number] -= taken
        missing -= taken
    if not missing:
        return
    where = f" with the labels {_said(gang.labels)}" if gang.labels else ""
    sizes = ", ".join(f"{n.name} {n.cpus:g} CPU {n.gpus:g} GPU" for n in fitting[:8]) or "no node has them"
    raise ConfigError(
        f"A worker of pool {gang.name} needs {config.cpus_per_worker:g} CPU and {config.gpus_per_worker:g} GPU "
        f"on one node{where}; {gang.fewest - missing} of {gang.fewest} fit ({sizes}).",
        fix="Lower cluster.cpus_per_worker, use larger nodes, or label more of them (`ray start --labels`)."
        if gang.labels
        else "Lower cluster.cpus_per_worker, or use larger nodes.",
    )


def has_labels(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Whether a node satisfies a selector (`PoolConfig.labels`); a label that a node lacks is not any value."""
    return all(_one_of(labels.get(key), value) for key, value in wanted.items())


def _one_of(have: str | None, wanted: str) -> bool:
    plain = wanted.removeprefix("!")
    inside = re.fullmatch(r"in\((.*)\)", plain)
    return (have in (inside[1].split(",") if inside else [plain])) != wanted.startswith("!")


def _said(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in labels.items())


def check_nodes(looks: Iterable[Look], here: Look, *, gpus: bool = False) -> None:
    """Refuse nodes that could not do the work. All of them are named at once, so that one submission finds every fault.

    Args:
        here: the driver's own view, which the others must match.
        gpus: workers are to compute on GPUs.

    Raises:
        ConfigError: no process of ours comes up there; a package is missing, has another version than here, or was built without
            CUDA where that is needed.
        StoreError: a node does not see the store.
    """
    looks = list(looks)
    silent = [f"{look.name}: {look.silent}" for look in looks if look.silent]
    if silent:
        raise ConfigError(
            f"No process of ours comes up on every node. {'; '.join(silent)}",
            fix="Look at Ray's logs there: the network between the nodes, room for the working folder, the image.",
        )
    lacking = [f"{look.name} lacks {', '.join(look.missing)}" for look in looks if look.missing]
    if lacking:
        raise ConfigError(f"{'; '.join(lacking)}.", fix="Use the same image, with every dependency, on all nodes.")
    blind = [look.name for look in looks if gpus and look.cpu_only]
    if blind:
        raise ConfigError(
            f"cluster.gpus_per_worker is set, but torch was built without CUDA on {', '.join(blind)}.",
            fix="Use the CUDA image (Dockerfile, target cuda) there.",
        )
    mine = dict(here.versions)
    other = [
        f"{look.name} has {name} {have or 'not at all'}, the driver {mine[name]}"
        for look in looks
        for name, have in look.versions
        if have != mine[name]
    ]
    if other:
        raise ConfigError(f"{'; '.join(other)}.", fix="Use the same image on all nodes.")
    troubled = [f"{look.name}: {look.trouble}" for look in looks if look.trouble]
    if troubled:
        raise StoreError(
            f"Not every node can use the store. {'; '.join(troubled)}",
            fix="Use s3:// or a folder that all nodes share, and give the workers' role access (cluster/iam).",
        )


@contextmanager
def token(store: ObjectStore) -> Iterator[str]:
    """The key of an object that whoever uses the same store can see."""
    key = f"doctor/{_new_id()}/seen"
    store.create(key, b"seen")
    try:
        yield key
    finally:
        with suppress(StoreError):
            store.delete(key)


def _training_splits(plan: Plan, shards: ObjectStore) -> Iterator[tuple[str, ShardManifest]]:
    seen = set()
    for job in plan.jobs.values():
        task = job.task
        if task.name not in seen:
            seen.add(task.name)
            yield task.name, read_manifest(shards, task.dataset, task.train)


def _new_id() -> str:
    return f"{os.getpid()}-{uuid.uuid4().hex}"
