"""Is it worth starting? What can be known before there is a cluster is checked here and refused in a few lines, with the exit
code of its kind: settings 2, data 3, credentials 4, store 6. What needs a cluster: preflight_cluster.py."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from atlas_dist.config import Precision, RunConfig
from atlas_dist.core.manifest import ShardManifest
from atlas_dist.core.plan import Plan
from atlas_dist.core.sampling import WINDOW_BYTES
from atlas_dist.core.types import Work
from atlas_dist.data.manifest import read_manifest
from atlas_dist.device import cpu_multiplies_bf16
from atlas_dist.errors import AuthError, ConfigError, DataError, StoreError
from atlas_dist.packages import compiler
from atlas_dist.runs.stores import open_run_store, open_shards
from atlas_dist.store import ObjectStore
from atlas_dist.store.doctor import examine

LOCAL = "local"
UNPACKED_BY_RAY = "_ray_pkg_"
"""In the name of the folder that Ray unpacks `--working-dir` into, and throws away."""
WRITERS, KEYS = 8, 8
"""The doctor's race at the door: enough to see a store without conditional creates, a second instead of ten."""


def check_before_cluster(config: RunConfig, plan: Plan) -> None:
    """What needs no cluster.

    Raises:
        ConfigError: the store would vanish with the job.
        DataError: a task has too little data for the workers, or too few shards.
        AuthError, StoreError: the store does not answer, or can't be trusted with a ledger.
    """
    check_place(config, Path.cwd())
    check_compiler_here(config)
    check_shards(plan, open_shards(config), max(g.workers for g in config.worker_groups if g.takes - {Work.EVALUATION}))
    check_store(config)


def check_place(config: RunConfig, working_folder: Path) -> None:
    """Refuse to keep what is learnt, or to look for data, in the folder that Ray unpacked for this job. Raises ConfigError."""
    if UNPACKED_BY_RAY not in str(working_folder):
        return
    for name, url, why in (
        ("store", config.store.url, "and deletes after it"),
        ("shards", config.shards.url, "where no shards are; it is deleted after the job"),
    ):
        if "://" not in url and (working_folder / url).is_relative_to(working_folder):
            raise ConfigError(
                f"{name}.url={url} lies in the folder that Ray unpacked for this job, {why}.",
                fix=f"Set {name}=s3 {name}.url=s3://bucket/prefix, or an absolute folder that every node shares.",
            )


def check_compiler_here(config: RunConfig) -> None:
    """`train.compile` on this machine needs a compiler. What a cluster's nodes have is looked at there. Raises ConfigError."""
    on_gpu = bool(config.cluster.gpus)
    if config.train.compile and config.cluster.address == LOCAL and not compiler(cpp=not on_gpu):
        raise no_compiler(["this machine"], on_gpu=on_gpu)


def no_compiler(where: Sequence[str], *, on_gpu: bool) -> ConfigError:
    """What to say where `train.compile` finds no compiler."""
    kind, package = ("C", "gcc") if on_gpu else ("C++", "g++")
    return ConfigError(
        f"train.compile=true needs a {kind} compiler, and there is none on {', '.join(where)}.",
        fix=f"Install {package} there (the cuda image has gcc, the cpu image no compiler), or set train.compile=false.",
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
    report = examine(store, new_id=new_probe_id, writers=WRITERS, keys=KEYS)
    if not report.fit:
        raise StoreError(
            f"{report.url} can't be trusted with a ledger:\n{report}",
            fix=report.fix or "`atlas-dist doctor URL` tries it out at length.",
        )


def _write_once(store: ObjectStore, url: str) -> None:
    key = f"doctor/{new_probe_id()}"
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
    on_cpus_here = config.cluster.address == LOCAL and not config.cluster.gpus
    if not on_cpus_here or config.train.precision is not Precision.BF16 or cpu_multiplies_bf16() is not False:
        return ""
    return "This CPU cannot multiply in bfloat16: it takes many times as long as in float32. Set train.precision=fp32."


def _training_splits(plan: Plan, shards: ObjectStore) -> Iterator[tuple[str, ShardManifest]]:
    seen = set()
    for job in plan.jobs.values():
        task = job.task
        if job.splits and task.name not in seen:
            seen.add(task.name)
            yield task.name, read_manifest(shards, task.dataset, task.train)


def new_probe_id() -> str:
    """Part of the key of an object that is written only to be read: no other process makes the same."""
    return f"{os.getpid()}-{uuid.uuid4().hex}"
