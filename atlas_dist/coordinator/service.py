"""A coordinator in a thread of its own: it ticks until the run needs nothing more, and can be asked how things stand at any
time."""

from __future__ import annotations

import logging
import threading
import time
import traceback
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from atlas_dist.config import RunConfig
from atlas_dist.coordinator.coordinator import Coordinator
from atlas_dist.coordinator.dispatch import AttemptProgress
from atlas_dist.coordinator.pool import PoolDispatcher, Waiting
from atlas_dist.coordinator.settings import CoordinatorSettings
from atlas_dist.core.plan import Plan
from atlas_dist.errors import AtlasError
from atlas_dist.logs import log_fields
from atlas_dist.runs.status import RunStatus
from atlas_dist.runs.stores import open_run_store
from atlas_dist.store.log import threaded

log = logging.getLogger(__name__)

TICK_S = 0.1
FAREWELL_S = 60.0
"""Seconds that attempts have to save a checkpoint after somebody asked the run to stop."""


_LOUD = frozenset({"fail", "quarantine", "halt", "trouble"})


@dataclass(frozen=True)
class Decision:
    """One line of the run's story: what was decided about which job or attempt, and why."""

    number: int
    at: float
    event: str
    fields: Mapping[str, Any]

    @property
    def level(self) -> int:
        """How loud a log says it."""
        return logging.WARNING if self.event in _LOUD else logging.INFO

    def words(self, plan: Plan) -> str:
        """For people: what happened to which job, how well, and why where it is not the ordinary way."""
        fields = self.fields
        job = plan.jobs.get(str(fields.get("job", "")))
        name = job.label if job else str(fields.get("attempt", ""))
        ordinary = self.event == "dispatch" and "attempt" not in str(fields.get("reason"))
        reason = "" if ordinary else fields.get("reason", "")
        score = f"score {fields['score']:.1f}%" if "score" in fields else ""
        committed = str(fields.get("committed", ""))
        return " ".join(part for part in (self.event, name, score, committed, f"({reason})" if reason else "") if part)

    def as_fields(self, plan: Plan) -> dict[str, Any]:
        """For programs: the same as fields of a log's record."""
        job = plan.jobs.get(str(self.fields.get("job", "")))
        return {"event": self.event, **({"label": job.label} if job else {}), **self.fields}


@dataclass(frozen=True)
class Snapshot:
    """What the driver sees of the coordinator."""

    status: RunStatus | None
    over: bool
    """The coordinator has ended; `error` says why when it was not a success."""
    error: AtlasError | None = None
    progress: Mapping[str, AttemptProgress] = field(default_factory=dict)
    """attempt -> its newest report"""
    decisions: tuple[Decision, ...] = ()
    """Those after the number that was asked for."""
    waiting: tuple[Waiting, ...] = ()
    """Pools that have no workers now."""


class RunService:
    """See the module's docstring. `run` is the thread's body; every other method may be called from anywhere."""

    def __init__(self, config: RunConfig, plan: Plan, spec: Mapping[str, Any], dispatcher: PoolDispatcher) -> None:
        self._dispatcher = dispatcher
        self._plan = plan
        self._coordinator = Coordinator(
            config.run,
            plan,
            open_run_store(config),
            dispatcher,
            ids=lambda: uuid.uuid4().hex,
            spec=spec,
            log_sink=self._note,
            settings=CoordinatorSettings(ttl_s=config.cluster.heartbeat_ttl_s),
            read_many=threaded,
        )
        self._lock = threading.Lock()
        self._decisions: list[Decision] = []
        self._status: RunStatus | None = None
        self._progress: dict[str, AttemptProgress] = {}
        self._error: AtlasError | None = None
        self._over = False
        self._stopping = threading.Event()

    def run(self) -> None:
        """Lead (or follow) the run to its end."""
        try:
            self._lead()
        except AtlasError as error:
            log.error("%s", error)
            self._error = error
        except Exception as error:
            log.exception("the coordinator failed")
            self._error = AtlasError(
                f"The coordinator failed: {error}\n{traceback.format_exc()}", fix="Report this; the run can be resumed."
            )
        finally:
            self._dispatcher.close()
            self._over = True

    def _lead(self) -> None:
        status = self._coordinator.open()
        self._see(status)
        while not status.done and not self._stopping.is_set():
            status = self._coordinator.tick()
            self._see(status)
            self._stopping.wait(TICK_S)
        if self._stopping.is_set():
            self._part()
        self._coordinator.close()
        self._error = self._error or (status.error() if status.done else None)

    def _part(self) -> None:
        """Let the workers save a checkpoint and record that they stopped; start nothing new."""
        self._dispatcher.close()
        until = time.monotonic() + FAREWELL_S
        status = self._coordinator.tick()
        while status.running and time.monotonic() < until:
            time.sleep(TICK_S)
            status = self._coordinator.tick()
        self._see(status)

    def stop(self) -> None:
        """Ask for an orderly end; the run stays resumable."""
        self._stopping.set()

    def give_up(self, error: AtlasError) -> None:
        """End, because workers cannot be had: `error` is what the driver raises. The run stays resumable."""
        self._error = self._error or error
        self._stopping.set()

    def note(self, progress: AttemptProgress) -> None:
        """Keep an attempt's newest report for whoever looks."""
        with self._lock:
            self._progress[progress.attempt] = progress

    def snapshot(self, after: int = 0) -> Snapshot:
        """How things stand, with the decisions after number `after`."""
        with self._lock:
            status = self._status
            running = status.running if status else {}
            return Snapshot(
                status=status,
                over=self._over,
                error=self._error,
                progress={a: p for a, p in self._progress.items() if a in running},
                decisions=tuple(self._decisions[after:]),
                waiting=() if self._over else self._dispatcher.waiting(),
            )

    def _note(self, event: str, fields: Mapping[str, Any]) -> None:
        with self._lock:
            decision = Decision(len(self._decisions) + 1, time.time(), event, dict(fields))
            self._decisions.append(decision)
        log.log(decision.level, "%s", decision.words(self._plan), extra=log_fields(**decision.as_fields(self._plan)))

    def _see(self, status: RunStatus) -> None:
        with self._lock:
            self._status = status
