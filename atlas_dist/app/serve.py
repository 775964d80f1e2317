"""Serving an exported bank over HTTP until somebody stops it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atlas_dist.app.process import restored_process
from atlas_dist.bank.package import read_package
from atlas_dist.config import ClusterConfig
from atlas_dist.coordinator.ray_env import before_ray
from atlas_dist.coordinator.stop_signals import StopSignals
from atlas_dist.device import visible_gpus
from atlas_dist.errors import ConfigError
from atlas_dist.packages import need_modules
from atlas_dist.serve.guard import check_exposed, is_loopback, token_digest
from atlas_dist.serve.settings import ServeSettings, read_settings

LOOK_EVERY_S = 2.0
_NEEDED = ("fastapi", "uvicorn", "python_multipart", "grpc_reflection", "watchfiles", "mmh3")
_LOCAL = "local"


@dataclass(frozen=True)
class Listening:
    """A service that answers."""

    url: str
    """Without a path."""
    metrics_url: str
    """For Prometheus; "" on a cluster, whose nodes export theirs."""
    tasks: tuple[str, ...]
    with_token: bool


def serve_bank(
    folder: Path,
    given: Mapping[str, Any] | None = None,
    *,
    on_ready: Callable[[Listening], None],
    host: str = "127.0.0.1",
    port: int = 8000,
    metrics_port: int = 0,
    address: str = _LOCAL,
) -> None:
    """Serve until Ctrl-C or SIGTERM; nothing is left running then.

    Args:
        given: fields of `ServeSettings`. on_ready: called once, when it answers.
        port, metrics_port: 0 = one that is free.
        address: as `cluster.address`. On a cluster that is there Serve keeps the host and port that it already has.

    Raises:
        ConfigError: a setting is wrong, a package is missing, a port is taken, or others could ask without a token.
        DataError: the bank is damaged. AtlasError: the replicas do not come up, or the service ends by itself.
    """
    need_modules(_NEEDED, "serve", "atlas-dist serve")
    folder = folder.absolute()
    digest = token_digest(os.environ)
    check_exposed(host, digest)
    cluster = ClusterConfig(address=address, gpus_per_worker=0)
    settings = read_settings({**(given or {}), "bank": str(folder), "open": not digest})
    if settings.gpus_per_replica:
        cluster = cluster.model_copy(update={"gpus_per_worker": 1})
    if address != _LOCAL and not digest:
        raise ConfigError(
            "On a cluster others reach the service, whatever its host.", fix="Set ATLAS_SERVE_TOKEN to a secret of your own."
        )
    if address == _LOCAL:
        _check_room(settings)
        port, metrics_port = _free(host, port, "--port"), _free(host, metrics_port, "--metrics-port")
    with StopSignals() as signals, restored_process():
        try:
            names = tuple(task.learnt.name for task in read_package(folder).tasks.values())
            before_ray(cluster)
            # Ray's workers yield to every other process of the machine (nice 15) unless told otherwise: fine for training.
            os.environ.setdefault("RAY_worker_niceness", "0")
            from atlas_dist.serve.app import check, serving

            with serving(settings, digest, cluster, host=host, port=port, metrics_port=metrics_port):
                signals.hear()  # again: Ray has set its own
                where = f"[{host}]" if ":" in host else host
                metrics = f"http://{'127.0.0.1' if is_loopback(host) else where}:{metrics_port}/metrics"
                on_ready(Listening(f"http://{where}:{port}", metrics if address == _LOCAL else "", names, bool(digest)))
                while True:
                    time.sleep(LOOK_EVERY_S)
                    check()
        except KeyboardInterrupt:
            if signals.hurried:
                raise


def _check_room(settings: ServeSettings) -> None:
    """Raises ConfigError: the replicas would wait for cores or GPUs for ever."""
    for name, each, have in (
        ("cpus", settings.cpus_per_replica, os.cpu_count() or 1),
        ("gpus", settings.gpus_per_replica, visible_gpus() if settings.gpus_per_replica else 0),
    ):
        if each * settings.replicas > have:
            raise ConfigError(
                f"{settings.replicas} replicas need {each * settings.replicas:g} {name}; this machine has {have}.",
                fix=f"Lower --replicas or --{name}.",
            )


def _free(host: str, port: int, option: str) -> int:
    """The port, or one that is free. Raises ConfigError: somebody listens there, or the host is not this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"Cannot listen on {host}:{port}: {error.strerror or error}.", fix=f"Name another one with {option} or --host."
            ) from error
        found: int = tried.getsockname()[1]
        return found
