"""Where a run lies and on what it runs: store and shards, packing, workers, curves and logs; one class a group of settings. None
of them changes what is learnt. What one group says of another is checked in `run.py`."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from atlas_dist.core.types import Work
from atlas_dist.logs import LogFormat
from atlas_dist.validation import Name, Section


class PackOn(StrEnum):
    """`here`: threads of this process. `ray`: every core of the Ray that `cluster` names."""

    HERE = "here"
    RAY = "ray"


class PackConfig(Section):
    """How `atlas-dist shards pack` works; the shards are the same however it does."""

    on: PackOn = PackOn.HERE
    """`here`: threads of this process. `ray`: every core of the Ray that `cluster` names; every node must see source and
    shards."""
    threads: int = Field(default=2, ge=1)
    """Shards that are made at a time, with `here`."""
    max_bad: float = Field(default=0.01, ge=0, le=1)
    """Share of the records and class-folder files that may be unusable; beyond it no manifest is written."""
    overwrite: bool = False
    """Replace splits that were packed in another way, or whose pictures have changed since; runs that learnt from them then find
    other data."""

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, values: object) -> object:
        if isinstance(values, Mapping) and "max_unreadable" in values:
            return {"max_bad" if key == "max_unreadable" else str(key): value for key, value in values.items()}
        return values


class PlaceConfig(Section):
    """A local folder or a bucket."""

    url: str
    """A local folder, `file:///…` or `s3://bucket/prefix`."""
    endpoint_url: str = ""
    """Address of an S3-compatible server; "" = AWS."""
    region: str = ""
    """AWS region; "" = the SDK's own default chain."""


class StoreConfig(PlaceConfig):
    """Where durable state lies."""

    url: str = "demo-run/store"
    """A local folder, `file:///…` or `s3://bucket/prefix`."""


class ShardsConfig(PlaceConfig):
    """Where the packed data lie: `<url>/<dataset>/<split>/manifest.json` and its tars."""

    url: str = "demo-run/shards"
    """A local folder, `file:///…` or `s3://bucket/prefix`."""
    buffer_mb: int = Field(default=256, ge=1)
    """Megabytes of shards one worker may hold in memory."""
    max_bad_samples: int = Field(default=16, ge=0)
    """Unreadable samples a worker masks and reports before it gives up."""
    fetch_threads: int = Field(default=8, ge=1, le=256)
    """Ranged reads that one worker has under way; a distant or slow bucket wants more (16 to 32)."""
    decode_threads: int = Field(default=0, ge=0, le=256)
    """Threads that decode a worker's pictures; 0 = as many as `cluster.cpus_per_worker`."""
    tries: int = Field(default=8, ge=1)
    """Attempts a part of a shard without progress before the stage fails; the waits between them double from 0.05 s to 5 s."""
    cache_dir: str = ""
    """Folder on the node's own disk that keeps fetched parts for its ranks and for the next epoch; "" = none."""
    cache_mb: int = Field(default=20_480, ge=1)
    """Most megabytes of `cache_dir`; what was used longest ago goes first."""


class PoolConfig(Section):
    """A group of workers of one run; its workers do one job at a time, together."""

    workers: int = Field(default=0, ge=0)
    """Ranks: one process each; 0 = `train.workers`."""
    min_workers: int = Field(default=0, ge=0)
    """Ranks that it goes on with when nodes are lost; 0 = `train.min_workers` where `workers` is left out, else all of them."""
    takes: list[Work] = Field(default_factory=lambda: list(Work), min_length=1)
    """What it does: `upstream` (the tasks of the sequence), `evaluation`, `transfer` (downstream tasks), `reference`."""
    labels: dict[str, Annotated[str, Field(pattern=r"^(!?[\w.-]+|!?in\([\w.,-]+\))$")]] = Field(default_factory=dict)
    """Ray node labels that its nodes must have: key -> `value`, `!value`, `in(a,b)` or `!in(a,b)`."""


class ClusterConfig(Section):
    """Where workers run."""

    address: str = "local"
    """`local` starts a Ray of its own; `auto` joins the cluster this process runs on; or `ray://host:port`."""
    cpus_per_worker: float = Field(default=1.0, gt=0)
    """CPU cores that Ray sets aside for a worker."""
    gpus_per_worker: float | None = Field(default=None, ge=0)
    """GPUs that Ray sets aside for a worker, a whole number; 0 = it computes on CPUs. Left out: with `address=local` one
    where this machine has them, on other clusters 0."""
    pools: dict[Name, PoolConfig] = Field(default_factory=lambda: _equal_pools(1), min_length=1)
    """Groups of workers by name, or how many equal ones. Jobs that do not wait for each other (other orders and seeds,
    evaluations, transfers) run in as many of them at the same time."""
    dashboard: bool = False
    """Start Ray's dashboard with a local Ray."""
    grows: bool = False
    """An autoscaler adds nodes: wait for room that is not there yet instead of refusing."""
    worker_hour: float = Field(default=0.0, ge=0)
    """What a worker costs an hour, in whatever currency: `plan` and the report multiply by it. 0 = not said."""
    grow_every_s: float = Field(default=60.0, gt=0)
    """Seconds between two looks whether an elastic pool has room for more workers; growing costs it the steps since the last
    checkpoint."""
    stall_s: float = Field(default=60.0, ge=0)
    """Seconds without a step on any rank after which a group counts as standing still, or ten of its median steps where that is
    longer: its stacks are kept beside the attempt's logs, its processes replaced. 0 = wait for ever."""
    heartbeat_ttl_s: float = Field(default=15.0, gt=0)
    """Seconds without a heartbeat after which another coordinator may take over."""

    @property
    def gpus(self) -> int:
        """GPUs of a worker."""
        return int(self.gpus_per_worker or 0)

    @field_validator("gpus_per_worker")
    @classmethod
    def _whole(cls, gpus: float | None) -> float | None:
        if gpus is not None and gpus != int(gpus):
            raise ValueError(f"a worker has whole GPUs, not {gpus:g}: NCCL refuses two ranks on one GPU; set 1 or 0")
        return gpus

    @field_validator("pools", mode="before")
    @classmethod
    def _counted(cls, pools: object) -> object:
        if isinstance(pools, Mapping):
            return pools
        if not isinstance(pools, int) or isinstance(pools, bool) or pools < 1:
            raise ValueError("give a number of equal pools, at least 1, or pools by name")
        return _equal_pools(pools)


def _equal_pools(count: int) -> dict[str, Any]:
    """The first has had its name in every ledger so far."""
    return {name: PoolConfig() for name in ("main", *(f"pool-{number}" for number in range(2, count + 1)))}


class TrackConfig(Section):
    """Where curves go while a run learns. The store and TensorBoard's files beside the report always have them."""

    every_s: float = Field(default=5.0, gt=0)
    """Seconds between two writings of a stage's curve to the store, at least; a tenth of the stage's age where that is more, two
    minutes at most."""
    mlflow: str = ""
    """Address of an MLflow server (`https://…`) or a folder (`file:///…`); "" = not to MLflow. Needs `atlas-dist[mlflow]`."""
    mlflow_experiment: str = "atlas-dist"
    """Name of the experiment in MLflow."""
    wandb: str = ""
    """Project in Weights & Biases, as `project` or `entity/project`; "" = not to W&B. Needs `atlas-dist[wandb]`."""


class LogConfig(Section):
    """What driver, coordinator and workers write to their standard error."""

    format: LogFormat = LogFormat.TEXT
    """`text`: for people. `json`: one object a line with time, level, message, run, job, attempt, rank, pool and host; the driver
    then says everything so, and leaves its tables to `atlas-dist report`."""
