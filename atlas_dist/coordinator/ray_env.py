"""What Ray reads from the environment when it is imported; so this is called first, and this file does not import Ray."""

from __future__ import annotations

import os
import secrets

from atlas_dist.config import ClusterConfig

_TOKEN = secrets.token_hex(32)
"""One for the whole life of this process: Ray reads it once, and a search starts a Ray a rung."""


def before_ray(cluster: ClusterConfig) -> None:
    """Prepare this process's environment for importing Ray.

    A Ray of our own asks for a token that only this process and its children know: nobody else on this host may submit work to
    it, and nothing is written to the home folder. A cluster that somebody else runs has its own rules, which are left alone.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    # An elastic worker group that has just lost a node first tries its old size: for so long, before it starts smaller.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "30")
    if cluster.address == "local":
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = _TOKEN
