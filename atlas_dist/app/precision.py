"""`train.precision=auto`, decided once for a run: as it was recorded, else by what the workers' machines can do.

Whoever only looks (`plan`, `status`) starts nothing: of a cluster it takes for granted that GPUs multiply in bfloat16.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from atlas_dist.app.composed import ComposedRun
from atlas_dist.calibrate import Speeds, agreed, measured_here
from atlas_dist.config import Precision, RunConfig
from atlas_dist.coordinator.local_gpus import found_here, placed_here
from atlas_dist.coordinator.preflight import LOCAL
from atlas_dist.coordinator.ray_env import before_ray
from atlas_dist.runs.status import recorded_precision


def decided(composed_run: ComposedRun) -> ComposedRun:
    """The run with its precision decided; the same object where it was. Starts nothing.

    Raises:
        ConfigError: it could not be measured. StoreError, DataError: the run's ledger cannot be read.
    """
    if not _open(composed_run):
        return composed_run
    return _with(composed_run, _recorded(composed_run) or _foreseen(composed_run.config))


def decided_by_nodes(composed_run: ComposedRun) -> tuple[ComposedRun, str]:
    """The same where the run is about to start: the nodes of a cluster are asked, unless it was recorded. Also a sentence about
    it for people; "" = nothing to say.

    Raises:
        ConfigError: the cluster cannot be reached, or its nodes do not agree; else as `decided`.
    """
    if not _open(composed_run):
        return composed_run, ""
    config, recorded = composed_run.config, _recorded(composed_run)
    if recorded:
        return _with(composed_run, recorded), f"train.precision=auto: {recorded.value}, as this run began."
    if config.cluster.address == LOCAL:
        speeds = _speeds_here(config)
        return _with(composed_run, speeds.choice), f"train.precision=auto: {speeds.choice.value} ({speeds})."
    precision = _on_cluster(config)
    return _with(composed_run, precision), f"train.precision=auto: {precision.value}, as every node of the cluster chooses."


def _open(composed_run: ComposedRun) -> bool:
    return any(config.train.precision is Precision.AUTO for config in composed_run.rows.values())


def _recorded(composed_run: ComposedRun) -> Precision | None:
    found = recorded_precision(composed_run.store, composed_run.config.run)
    return Precision(found) if found else None


def _foreseen(config: RunConfig) -> Precision:
    if config.cluster.address != LOCAL and config.cluster.gpus:
        return Precision.BF16
    return _speeds_here(config).choice


def _speeds_here(config: RunConfig) -> Speeds:
    placed, _ = placed_here(config, found_here())
    return _measured_once(on_gpu=config.cluster.address == LOCAL and bool(placed.cluster.gpus))


@cache
def _measured_once(*, on_gpu: bool) -> Speeds:
    return measured_here(on_gpu=on_gpu)


def _on_cluster(config: RunConfig) -> Precision:
    before_ray(config.cluster)
    from atlas_dist.coordinator.ray_cluster import cluster
    from atlas_dist.coordinator.ray_probe import speeds_of_nodes

    with cluster(config.cluster, config.worker_groups):
        return agreed(speeds_of_nodes(config))


def _with(composed_run: ComposedRun, precision: Precision) -> ComposedRun:
    def settled(config: RunConfig) -> RunConfig:
        if config.train.precision is not Precision.AUTO:
            return config
        return config.model_copy(update={"train": config.train.model_copy(update={"precision": precision})})

    return replace(composed_run, rows={row: settled(config) for row, config in composed_run.rows.items()})
