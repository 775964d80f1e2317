"""What a run tells Prometheus through Ray's own exporter (port 8080 of every node; `ray_` is put before each name there)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Counter, Gauge

from atlas_dist.coordinator.dispatch import AttemptProgress
from atlas_dist.runs.status import RunStatus

GAUGES: Mapping[str, str] = {
    "atlas_jobs_planned": "jobs of the plan",
    "atlas_jobs_committed": "jobs whose result is a fact",
    "atlas_jobs_running": "attempts under way",
    "atlas_jobs_quarantined": "jobs that were given up until somebody resumes the run",
    "atlas_epoch": "elections so far: it rises whenever a coordinator was replaced",
    "atlas_step": "optimizer step of the attempt under way",
    "atlas_samples_per_second": "samples trained on a second, all workers together",
    "atlas_data_wait_ratio": "share of the time that workers waited for data",
    "atlas_mfu_ratio": "model FLOPs utilisation, 0 to 1; not a number where the device's peak is unknown",
    "atlas_loss": "training loss",
}
FAILURES = "atlas_attempt_failures"
"""A counter, by kind: preempted, store, nonfinite, device, memory, poison, fatal."""


class RunMetrics:
    """The metrics of one run; only its coordinator sets them."""

    def __init__(self, run: str) -> None:
        tags = ("run",)
        self._gauges = {name: Gauge(name, description=about, tag_keys=tags) for name, about in GAUGES.items()}
        self._failures = Counter(FAILURES, description="attempts that ended without a result, by kind", tag_keys=("run", "kind"))
        self._run = {"run": run}

    def progress(self, event: AttemptProgress) -> None:
        """The newest word of an attempt."""
        self._set("atlas_step", event.step)
        metrics: Mapping[str, Any] = event.metrics
        for name, key in (
            ("atlas_samples_per_second", "samples_per_s"),
            ("atlas_data_wait_ratio", "data_wait"),
            ("atlas_loss", "loss"),
        ):
            if metrics.get(key) is not None:
                self._set(name, metrics[key])
        known = metrics.get("mfu")
        self._set("atlas_mfu_ratio", math.nan if known is None else known)

    def failed(self, kind: str) -> None:
        """One more attempt ended without a result."""
        self._failures.inc(1, tags=self._run | {"kind": kind})

    def status(self, status: RunStatus) -> None:
        """How the run stands."""
        self._set("atlas_jobs_planned", status.total)
        self._set("atlas_jobs_committed", status.committed)
        self._set("atlas_jobs_running", len(status.running))
        self._set("atlas_jobs_quarantined", len(status.quarantined))
        self._set("atlas_epoch", status.epoch)

    def _set(self, name: str, value: float) -> None:
        self._gauges[name].set(float(value), tags=self._run)
