"""Join a Ray cluster, or start one of our own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray

from atlas_dist.config import ClusterConfig
from atlas_dist.coordinator.preflight_cluster import check_resources
from atlas_dist.coordinator.ray_home import ray_home
from atlas_dist.coordinator.ray_job import job_environment
from atlas_dist.coordinator.ray_probe import node_resources
from atlas_dist.coordinator.stop_signals import deaf_children
from atlas_dist.core.types import WorkerGroupSpec
from atlas_dist.device import HIDDEN
from atlas_dist.errors import ConfigError

LOCAL_ADVICE = "Is this machine overloaded, or the disk of its /tmp full? RAY_TMPDIR names another short folder to Ray."

_WORKER_ENV = {
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "PYTHONWARNINGS": "ignore",
}


@contextmanager
def cluster(config: ClusterConfig, worker_groups: Sequence[WorkerGroupSpec], *, metrics_port: int = 0) -> Iterator[None]:
    """Join the configured Ray, or start one of our own and end it afterwards.

    Args:
        metrics_port: of the Prometheus exporter of a Ray of our own; 0 = Ray chooses one.

    Raises:
        ConfigError: this process has a Ray already; the cluster cannot be reached, or can never hold the workers.
    """
    if ray.is_initialized():  # in a notebook, say: it has other settings, and is not ours to end
        raise ConfigError(
            "This process is connected to a Ray already.",
            fix="Call ray.shutdown() first; a cluster of your own is named by cluster.address.",
        )
    environment = _environment(config)
    workers = sum(group.workers for group in worker_groups)
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
        options |= {"_metrics_export_port": metrics_port} if metrics_port else {}
        if not config.gpus:
            options["num_gpus"] = 0
        _read_token_again()
    else:
        options |= {"address": config.address}
    _connect(config, options)
    try:
        check_resources(node_resources(), config, worker_groups)
        yield
    finally:
        ray.shutdown()


def _read_token_again() -> None:
    """Ray reads its token and whether to ask for one when it is imported. Where somebody imported it before this run chose
    (ray_env.py), as in a notebook, it has to look again; Ray has no public call for that."""
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


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
            if "Job's runtime env" in str(error):  # Ray's own words show every value, credentials too
                ours = sorted(options["runtime_env"]["env_vars"])
                raise ConfigError(
                    "Ray refuses this run because its job sets a part of the runtime environment that the run sets as well.",
                    fix=f"Take these out of --runtime-env-json, or set RAY_OVERRIDE_JOB_RUNTIME_ENV=1 there: {', '.join(ours)}.",
                ) from None
            if not remaining:
                first = str(error).splitlines()[0] if str(error) else type(error).__name__
                advice = {"local": LOCAL_ADVICE}.get(config.address, "Is the cluster up?")
                message = f"cluster.address={config.address}: Ray does not start: {first}"
                raise ConfigError(message, fix=advice, retry=True) from error


def _environment(config: ClusterConfig) -> dict[str, str]:
    # Ray no longer hides the GPUs of a node from workers that asked for none.
    environment = _WORKER_ENV | ({"DS_ACCELERATOR": "cuda"} if config.gpus else HIDDEN)
    # Ray refuses a driver that sets a variable which its job has set already; the job's word counts.
    theirs = job_environment(os.environ)
    return {name: value for name, value in environment.items() if name not in theirs}
