"""A Ray cluster's nodes as values for `preflight_cluster.py`: their size, and what a process of ours sees on each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ray
from ray._private.state import state as cluster_state
from ray.exceptions import GetTimeoutError
from ray.util.placement_group import placement_group_table
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from atlas_dist.calibrate import Speeds, measured
from atlas_dist.config import RunConfig
from atlas_dist.coordinator.preflight_cluster import NodeReport, NodeResources, check_nodes, token
from atlas_dist.errors import AtlasError, ConfigError
from atlas_dist.packages import (
    compiler,
    cpu_only,
    cuda_of_torch,
    fault_of_device,
    missing,
    nccl_of_torch,
    nvidia_driver,
    versions,
)
from atlas_dist.runs.stores import open_run_store

GPU_S = 60.0
"""Seconds for a GPU to be free and to multiply two matrices."""
REPORT_S = 300.0
"""Seconds for a node to unpack the code, start a process and look around."""


def node_resources() -> list[NodeResources]:
    """The nodes that are up."""
    return [NodeResources(n["NodeManagerAddress"], _of(n, "CPU"), _of(n, "GPU"), dict(n.get("Labels") or {})) for n in _nodes()]


def draining() -> frozenset[str]:
    """Ids of nodes that are about to go: a spot instance that is reclaimed, a pod that was told to stop (`ray start --block`
    tells the cluster on SIGTERM), `ray drain-node`. No new worker is placed there. Ray's own libraries ask in the same way; it
    has no public name."""
    return frozenset(cluster_state.get_draining_nodes())


def nodes_of(placement_group: str) -> frozenset[str]:
    """Ids of the nodes that a placement group, by its id, has workers on; empty when it is gone."""
    group = placement_group_table().get(placement_group, {})
    return frozenset(group.get("bundles_to_node_id", {}).values())


def stands(placement_group: str) -> bool:
    """Whether a placement group, by its id, has all its places; one that lost a node is being placed again, or is removed."""
    return bool(placement_group_table().get(placement_group, {}).get("state") == "CREATED")


def check_cluster_nodes(config: RunConfig) -> None:
    """Start a process on every node that may get a worker, and refuse the cluster when one of them could not do the work.

    Raises:
        ConfigError, StoreError: see `check_nodes`.
    """
    nodes = [n for n in _nodes() if _of(n, "CPU") >= config.cluster.cpus_per_worker and _of(n, "GPU") >= config.cluster.gpus]
    place = (config.store.url, config.store.endpoint_url, config.store.region)
    with token(open_run_store(config)) as seen:
        pending = [
            (n["NodeManagerAddress"], _on(n["NodeID"], 0, _report_from).remote(n["NodeManagerAddress"], place, seen))
            for n in nodes
        ]
        if pending:
            ray.wait([reference for _, reference in pending], num_returns=len(pending), timeout=REPORT_S)
        reports = [_answer(name, reference) for name, reference in pending]
        if config.cluster.gpus:
            tried = _tried_gpus([n["NodeID"] for n in nodes])
            found = [tried.get(node["NodeID"], ("", "")) for node in nodes]
            reports = [replace(r, gpu_fault=fault, nccl=nccl) for r, (fault, nccl) in zip(reports, found, strict=True)]
    here = NodeReport("driver", versions=tuple(versions().items()))
    check_nodes(reports, here, gpus=bool(config.cluster.gpus), compiles=config.train.compile)


def speeds_of_nodes(config: RunConfig) -> list[tuple[str, Speeds]]:
    """What each node that may get a worker measures (calibrate.py). Raises ConfigError: a node does not answer."""
    nodes = [n for n in _nodes() if _of(n, "CPU") >= config.cluster.cpus_per_worker and _of(n, "GPU") >= config.cluster.gpus]
    pending = [(n["NodeManagerAddress"], _on(n["NodeID"], min(1, config.cluster.gpus), measured).remote()) for n in nodes]
    found = []
    for name, reference in pending:
        try:
            found.append((name, ray.get(reference, timeout=REPORT_S)))
        except Exception as error:  # Ray's errors have no common base worth naming
            raise ConfigError(
                f"train.precision=auto could not be measured on {name}: {type(error).__name__}.",
                fix="Set train.precision=fp32 or bf16.",
                retry=True,
            ) from error
    return found


def _on(node: str, gpus: int, todo: Callable[..., Any]) -> Any:
    """`todo` as a task that runs on that node or not at all."""
    strategy = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    return ray.remote(num_cpus=0, num_gpus=gpus, max_retries=0, scheduling_strategy=strategy)(todo)


def _tried_gpus(nodes: list[str]) -> dict[str, tuple[str, str]]:
    """Node -> (fault, NCCL) that a task with a GPU found there. A node whose GPUs are all taken at the moment is left out:
    whoever has them computes with them."""
    pending = {}
    for node in nodes:
        pending[_on(node, 1, _try_gpu).remote()] = node
    done, late = ray.wait(list(pending), num_returns=len(pending), timeout=GPU_S) if pending else ([], [])
    for reference in late:
        ray.cancel(reference, force=True)
    found = {}
    for reference in done:
        try:
            fault, nccl = ray.get(reference)
        except Exception as error:  # a driver that takes the process with it
            fault, nccl = f"the process that tried it died: {type(error).__name__}", ""
        found[pending[reference]] = (fault, nccl)
    return found


def _try_gpu() -> tuple[str, str]:
    return fault_of_device(), nccl_of_torch()


def _report_from(name: str, place: tuple[str, str, str], seen: str) -> NodeReport:
    trouble = ""
    absent = missing()
    if not absent:
        from atlas_dist.store import StoreOptions, open_store

        url, endpoint, region = place
        try:
            open_store(url, options=StoreOptions(endpoint, region)).stat(seen)
        except AtlasError as error:
            trouble = f"{type(error).__name__}: {error.message}"
    compilers = {cpp: compiler(cpp=cpp) for cpp in (False, True)}
    return NodeReport(
        name,
        tuple(absent),
        tuple(versions().items()),
        cpu_only(),
        trouble,
        driver=nvidia_driver(),
        cuda=cuda_of_torch(),
        compiles_c=bool(compilers[False]),
        compiles_cpp=bool(compilers[True]),
    )


def _answer(name: str, reference: Any) -> NodeReport:
    try:
        report: NodeReport = ray.get(reference, timeout=0)
    except GetTimeoutError:
        return NodeReport(name, silent=f"no answer within {REPORT_S:.0f} s")
    except Exception as error:  # Ray's other errors have no common base worth naming
        first = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
        return NodeReport(name, silent=first.strip()[:300])
    return report


def _nodes() -> list[dict[str, Any]]:
    return [n for n in ray.nodes() if n["Alive"]]


def _of(node: dict[str, Any], resource: str) -> float:
    return float(node["Resources"].get(resource, 0.0))
