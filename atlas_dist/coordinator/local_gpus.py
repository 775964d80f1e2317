"""The GPUs of this machine, for a Ray of our own: one worker a GPU where there are any, unless the settings say otherwise.

A pure rule over what was found (`found_here`), so that it can be tested without a GPU. On a cluster that somebody else runs
nothing is guessed: there `cluster.gpus_per_worker` says it.
"""

from __future__ import annotations

from dataclasses import dataclass

from atlas_dist.config import RunConfig
from atlas_dist.coordinator.preflight import LOCAL
from atlas_dist.errors import ConfigError
from atlas_dist.packages import cuda_of_torch, driver_too_old, nvidia_driver


@dataclass(frozen=True)
class LocalGpus:
    """What this machine offers. `trouble`: why its GPUs cannot be used; "" when they can, or when there are none."""

    count: int = 0
    trouble: str = ""


def found_here() -> LocalGpus:
    """Look, without opening a device."""
    driver, cuda = nvidia_driver(), cuda_of_torch()
    if driver and not cuda:
        return LocalGpus(trouble="torch was built without CUDA")
    if least := driver_too_old(driver, cuda):
        return LocalGpus(trouble=f"NVIDIA's driver is {driver}; torch was built for CUDA {cuda}, which needs {least} or newer")
    if not cuda:
        return LocalGpus()
    from atlas_dist.device import visible_gpus

    return LocalGpus(visible_gpus())


def placed_here(config: RunConfig, here: LocalGpus) -> tuple[RunConfig, str]:
    """The run with its workers placed on this machine, and a sentence about it for people ("" = nothing to say).

    `cluster.gpus_per_worker` left out: one GPU a worker where every pool can have one. `train.workers` left out: as many workers
    as there are GPUs for them, at most one for each sample of the smallest batch.

    Raises:
        ConfigError: GPUs are asked for that cannot be used, or that are not here.
    """
    cluster = config.cluster
    if cluster.address != LOCAL:
        return config, ""
    pools = len(cluster.pools)
    if cluster.gpus_per_worker is None:
        if here.trouble:
            return _with(config, gpus=0), f"The GPUs here are not used: {here.trouble}. Workers compute on CPUs."
        if not here.count:
            return _with(config, gpus=0), ""
        if here.count < pools:
            return _with(config, gpus=0), f"{here.count} GPUs are too few for {pools} pools: workers compute on CPUs."
        placed = _with(config, gpus=1, most=here.count // pools)
        taken = sum(group.workers for group in placed.worker_groups)
        hint = f"; train.workers={here.count // pools} would use all" if taken < here.count // pools * pools else ""
        return placed, f"{taken} of {here.count} GPUs, one worker each{hint}; cluster.gpus_per_worker=0 computes on CPUs."
    if cluster.gpus and here.trouble:
        raise ConfigError(
            f"cluster.gpus_per_worker={cluster.gpus}, but {here.trouble}.",
            fix="Mend that, or set cluster.gpus_per_worker=0 to compute on CPUs.",
        )
    return config, ""


def _with(config: RunConfig, *, gpus: int, most: int = 0) -> RunConfig:
    """`gpus` a worker; with `most` > 0 that many workers a pool at most, and just so many where nobody named a number."""
    cluster = config.cluster.model_copy(update={"gpus_per_worker": float(gpus)})
    if not most:
        return config.model_copy(update={"cluster": cluster})
    batches = [b.global_batch for task in config.tasks.values() for b in task.budgets(config.train).values()]
    wanted = config.train.workers if "workers" in config.train.model_fields_set else min([most, *batches])
    workers = min(wanted, most)
    train = config.train.model_copy(update={"workers": workers, "min_workers": min(config.train.min_workers, workers)})
    fewer = {
        name: pool.model_copy(update={"workers": min(pool.workers, most), "min_workers": min(pool.min_workers, most)})
        for name, pool in cluster.pools.items()
    }
    return config.model_copy(update={"train": train, "cluster": cluster.model_copy(update={"pools": fewer})})
