"""Can this cluster do the work? Its nodes' sizes, labels, packages and access to the store; exit code 2 for what does not fit,
6 for the store.

No Ray here: the facts about a cluster's nodes come in as values (`ray_probe.py` gathers them).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from atlas_dist.config import ClusterConfig
from atlas_dist.coordinator.preflight import new_probe_id, no_compiler
from atlas_dist.core.types import WorkerGroupSpec
from atlas_dist.errors import ConfigError, StoreError
from atlas_dist.packages import driver_too_old
from atlas_dist.store import ObjectStore

_SLACK = 1e-6


@dataclass(frozen=True)
class NodeResources:
    """What a node offers in all, whether or not it is taken now."""

    name: str
    cpus: float
    gpus: float
    labels: Mapping[str, str] = field(default_factory=dict)

    def holds(self, config: ClusterConfig) -> int:
        """How many workers fit on it."""
        by_cpu = int((self.cpus + _SLACK) / config.cpus_per_worker)
        return min(by_cpu, int((self.gpus + _SLACK) / config.gpus)) if config.gpus else by_cpu


@dataclass(frozen=True)
class NodeReport:
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
    driver: str = ""
    """Version of NVIDIA's driver; "" when there is none."""
    cuda: str = ""
    """The CUDA that torch was built for; "" when it was built without."""
    nccl: str = ""
    """The NCCL of torch on a GPU that was free; "" when none was, or there is none."""
    gpu_fault: str = ""
    """What went wrong when a GPU that was free there multiplied two matrices; "" = nothing, or none was free."""
    compiles_c: bool = True
    """There is a C compiler, which torch.compile needs on a GPU."""
    compiles_cpp: bool = True
    """There is a C++ compiler, which torch.compile needs on a CPU."""


def check_resources(nodes: Sequence[NodeResources], config: ClusterConfig, worker_groups: Sequence[WorkerGroupSpec]) -> None:
    """Refuse worker groups that this cluster can never hold side by side, each with its required workers, unless it can grow.

    Raises:
        ConfigError: naming what is short.
    """
    if config.grows:
        return
    workers = sum(group.required_workers for group in worker_groups)
    for name, each, have in (
        ("CPU", config.cpus_per_worker, sum(n.cpus for n in nodes)),
        ("GPU", config.gpus, sum(n.gpus for n in nodes)),
    ):
        if each * workers > have + _SLACK:
            among = f" in {len(worker_groups)} pools" if len(worker_groups) > 1 else ""
            raise ConfigError(
                f"{workers} workers{among} need {each * workers:g} {name}, the cluster has {have:g}.",
                fix=f"Lower train.workers or cluster.{name.lower()}s_per_worker, or add nodes; "
                "cluster.grows=true waits for an autoscaler.",
            )
    left = [node.holds(config) for node in nodes]
    for group in sorted(worker_groups, key=lambda g: (not g.labels, -g.required_workers)):  # who can go anywhere comes last
        _place(group, nodes, left, config)


def _place(group: WorkerGroupSpec, nodes: Sequence[NodeResources], left: list[int], config: ClusterConfig) -> None:
    """Give the worker group's workers places on the nodes, of which `left` are left. Raises ConfigError."""
    fitting = [node for node in nodes if has_labels(node.labels, group.labels)]
    missing = group.required_workers
    for number, node in enumerate(nodes):
        taken = min(missing, left[number]) if node in fitting else 0
        left[number] -= taken
        missing -= taken
    if not missing:
        return
    where = f" with the labels {_said(group.labels)}" if group.labels else ""
    sizes = ", ".join(f"{n.name} {n.cpus:g} CPU {n.gpus:g} GPU" for n in fitting[:8]) or "no node has them"
    raise ConfigError(
        f"A worker of pool {group.name} needs {config.cpus_per_worker:g} CPU and {config.gpus:g} GPU "
        f"on one node{where}; {group.required_workers - missing} of {group.required_workers} fit ({sizes}).",
        fix="Lower cluster.cpus_per_worker, use larger nodes, or label more of them (`ray start --labels`)."
        if group.labels
        else "Lower cluster.cpus_per_worker, or use larger nodes.",
    )


def workers_that_fit(nodes: Sequence[NodeResources], config: ClusterConfig, group: WorkerGroupSpec, taken: int = 0) -> int:
    """For how many of the worker group's workers the nodes have room, beside `taken` workers of other worker groups; at most for
    all of them. What other programs of the cluster use is not known here."""
    held = sum(node.holds(config) for node in nodes if has_labels(node.labels, group.labels))
    return max(0, min(group.workers, held - taken))


def has_labels(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Whether a node satisfies a selector (`PoolConfig.labels`); a label that a node lacks is not any value."""
    return all(_one_of(labels.get(key), value) for key, value in wanted.items())


def _one_of(have: str | None, wanted: str) -> bool:
    plain = wanted.removeprefix("!")
    inside = re.fullmatch(r"in\((.*)\)", plain)
    return (have in (inside[1].split(",") if inside else [plain])) != wanted.startswith("!")


def _said(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in labels.items())


def check_nodes(reports: Iterable[NodeReport], here: NodeReport, *, gpus: bool = False, compiles: bool = False) -> None:
    """Refuse nodes that could not do the work. All of them are named at once, so that one submission finds every fault.

    Args:
        here: the driver's own view, which the others must match.
        gpus: workers are to compute on GPUs.
        compiles: they are to use torch.compile.

    Raises:
        ConfigError: no process of ours comes up there; a package is missing, has another version than here, or was built without
            CUDA where that is needed.
        StoreError: a node does not see the store.
    """
    reports = list(reports)
    silent = [f"{report.name}: {report.silent}" for report in reports if report.silent]
    if silent:
        raise ConfigError(
            f"No process of ours comes up on every node. {'; '.join(silent)}",
            fix="Look at Ray's logs there: the network between the nodes, room for the working folder, the image.",
            retry=True,  # a node that was slow or away; on another set of nodes the same command may pass
        )
    lacking = [f"{report.name} lacks {', '.join(report.missing)}" for report in reports if report.missing]
    if lacking:
        raise ConfigError(f"{'; '.join(lacking)}.", fix="Use the same image, with every dependency, on all nodes.")
    blind = [report.name for report in reports if gpus and report.cpu_only]
    if blind:
        raise ConfigError(
            f"cluster.gpus_per_worker is set, but torch was built without CUDA on {', '.join(blind)}.",
            fix="Use the CUDA image (Dockerfile, target cuda) there.",
        )
    old = [(report, least) for report in reports if gpus and (least := driver_too_old(report.driver, report.cuda))]
    if old:
        named = ", ".join(f"{report.name} has {report.driver}" for report, _ in old)
        raise ConfigError(
            f"torch was built for CUDA {old[0][0].cuda}, which needs NVIDIA's driver {old[0][1]} or newer; {named}.",
            fix="Update the driver on those nodes (GPU operator: driver.version), or build the image with an older torch.",
        )
    faulty = [
        f"{report.name} (driver {report.driver or 'unknown'}, CUDA {report.cuda or 'none'}, NCCL {report.nccl or 'unknown'}): "
        f"{report.gpu_fault}"
        for report in reports
        if gpus and report.gpu_fault
    ]
    if faulty:
        raise ConfigError(
            f"A GPU does not compute. {'; '.join(faulty)}",
            fix="Look at nvidia-smi there; driver, CUDA and GPU may not fit each other. Another node may do.",
            retry=True,
        )
    lacking = [report.name for report in reports if compiles and not (report.compiles_c if gpus else report.compiles_cpp)]
    if lacking:
        raise no_compiler(lacking, on_gpu=gpus)
    mine = dict(here.versions)
    other = [
        f"{report.name} has {name} {have or 'not at all'}, the driver {mine[name]}"
        for report in reports
        for name, have in report.versions
        if have != mine[name]
    ]
    if other:
        raise ConfigError(f"{'; '.join(other)}.", fix="Use the same image on all nodes.")
    troubled = [f"{report.name}: {report.trouble}" for report in reports if report.trouble]
    if troubled:
        raise StoreError(
            f"Not every node can use the store. {'; '.join(troubled)}",
            fix="Use s3:// or a folder that all nodes share, and give the workers' role access (cluster/iam).",
        )


@contextmanager
def token(store: ObjectStore) -> Iterator[str]:
    """The key of an object that whoever uses the same store can see."""
    key = f"doctor/{new_probe_id()}/seen"
    store.create(key, b"seen")
    try:
        yield key
    finally:
        with suppress(StoreError):
            store.delete(key)
