"""The coordinator: one process's part in a run.

    open()   replay; attach to a leader that lives, or be elected
    tick()   as leader: requests -> events -> verify and commit -> decide -> record -> act -> heartbeat; as follower: watch
    close()  stop what runs, and say that nobody leads

Every change of the run is an entry of the ledger *before* it happens. A coordinator may therefore die anywhere: the next one
replays the ledger and goes on, and this one, should it only have slept, collides on its next append and stops (FencedError). It
is single-threaded and waits for nothing but the store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from atlas_dist.clock import Clock, SystemClock
from atlas_dist.coordinator.book import LogSink, RunBook, log_line
from atlas_dist.coordinator.dispatch import AttemptProgress, Dispatcher
from atlas_dist.coordinator.leader import Leader
from atlas_dist.coordinator.settings import CoordinatorSettings
from atlas_dist.core.keys import digest_of, flattened, plain
from atlas_dist.core.plan import Plan
from atlas_dist.core.records import Begin, Elect
from atlas_dist.core.schedule import infeasible
from atlas_dist.core.state import RunState
from atlas_dist.errors import ConfigError, FencedError, StoreError
from atlas_dist.failpoints import failpoint
from atlas_dist.redact import redact_json
from atlas_dist.runs.heartbeat import LeaderMonitor
from atlas_dist.runs.status import CoordinatorRole, Phase, RunStatus, status_of
from atlas_dist.store.log import Map
from atlas_dist.store.objects import ObjectStore

_STOPPED = (Phase.PAUSED, Phase.HALTED, Phase.FAILED)


class Coordinator:
    """Leads a run, or follows the process that does.

    Args:
        run: the run's name.
        plan: its jobs.
        dispatcher: where attempts run.
        ids: makes unique names (also safe path segments), e.g. `lambda: uuid.uuid4().hex`.
        spec: the resolved configuration as JSON. The same run name means the same spec, for ever.
        log_sink: hears of every decision with its reason.
        read_many: how a ledger is read; `store.log.threaded` for S3.
    """

    def __init__(
        self,
        run: str,
        plan: Plan,
        store: ObjectStore,
        dispatcher: Dispatcher,
        *,
        ids: Callable[[], str],
        clock: Clock | None = None,
        spec: Mapping[str, Any] | None = None,
        log_sink: LogSink = log_line,
        settings: CoordinatorSettings | None = None,
        read_many: Map = map,
    ) -> None:
        self._store = store
        self._dispatcher = dispatcher
        self._clock = clock or SystemClock()
        self._settings = settings or CoordinatorSettings()
        self._spec_digest = meaning(plan, spec or {})
        self._spec = redact_json(plain(spec or {}))
        self._book = RunBook(
            run,
            plan,
            store,
            clock=self._clock,
            ids=ids,
            patience=self._settings.patience,
            log_sink=log_sink,
            read_many=read_many,
        )
        self._monitor = LeaderMonitor(store, run, self._clock, self._settings.ttl_s)
        self._leader: Leader | None = None
        self._opened_at = 0
        self._next_check = float("-inf")

    @property
    def state(self) -> RunState:
        """The fold of everything replayed or appended so far."""
        return self._book.state

    @property
    def status(self) -> RunStatus:
        """How the run stands, as this process knows it."""
        role = CoordinatorRole.LEADER if self._leader else CoordinatorRole.FOLLOWER
        status = status_of(self._book.plan, self._book.state, self._book.frontier, role)
        if role is CoordinatorRole.FOLLOWER and status.phase in _STOPPED and not self._has_news():
            # Whoever attaches wants the run to go on: wait until it may lead, whether the leader is leaving or dead.
            return replace(status, phase=Phase.WAITING)
        return status

    @property
    def progress(self) -> Mapping[str, AttemptProgress]:
        """The newest word of each attempt under way (leader only)."""
        return self._leader.progress if self._leader else {}

    def open(self) -> RunStatus:
        """Replay the run, or begin it; lead it if nobody does, else attach and follow.

        Raises:
            ConfigError: the run exists with another specification, or a job can never fit on the cluster.
            StoreError, DataError: the ledger is broken, newer than this version, or the store in trouble.
        """
        reasons = infeasible(self._book.plan, self._dispatcher.capacity())
        if reasons:
            raise ConfigError(
                f"This run can never finish here: {'; '.join(reasons)}.", fix="Ask for less, or for a larger cluster."
            )
        self._book.replay()
        if not self._book.state.next_seq:
            self._begin()
        check_same_run(self._book.state, self._spec_digest, self._spec)
        self._opened_at = self._book.state.next_seq
        if not self._settled():
            self._elect_if_vacant()
        return self.status

    def tick(self) -> RunStatus:
        """Do what there is to do, without waiting for training. Call it a few times a second until `status.done`.

        Raises:
            FencedError: another coordinator leads; this process must end (exit 7).
            StoreError: the store stayed in trouble for longer than `settings.patience`; start again later, nothing is lost.
        """
        if self._leader is None:
            self._follow()
            return self.status
        try:
            self._leader.tick()
        except FencedError:
            self._leader.stand_down(release=False)
            self._leader = None
            raise
        return self.status

    def close(self) -> None:
        """Stop this process's attempts and, as leader, let another lead at once instead of after `ttl_s`. Safe to call twice."""
        if self._leader is not None:
            self._leader.stand_down(release=True)
            self._leader = None

    def _begin(self) -> None:
        book = self._book
        begin = Begin(run=book.run, spec_digest=self._spec_digest, plan_digest=book.plan.digest, spec=self._spec)
        try:
            book.record(begin)
        except FencedError:
            book.replay()  # somebody began it in the same moment; whether it is the same run is checked next

    def _has_news(self) -> bool:
        """Whether the run has moved since this process attached."""
        return self._book.state.next_seq > self._opened_at

    def _settled(self) -> bool:
        return self.status.phase in (Phase.COMPLETE, Phase.CANCELLED)

    def _follow(self) -> None:
        now = self._clock.monotonic()
        if now < self._next_check:
            return
        self._next_check = now + self._settings.follow_every_s
        try:
            # One small question each time; the whole ledger is listed only when the answer is yes.
            news = self._book.overtaken()
        except StoreError:
            news = False
        if news and self._book.replay():
            self._monitor.restart()
        if not self._settled():
            self._elect_if_vacant()

    def _elect_if_vacant(self) -> None:
        """Try to lead where nobody does. Losing the race is no error: then somebody leads, and this process follows."""
        epoch = self._book.state.epoch
        reason = self._monitor.silent(epoch) if epoch else "the run begins"
        if not reason:
            return
        # Whoever starts a paused run wants it to run; a follower finds a pause that it saw coming as it was asked for.
        resume = not self._has_news()
        try:
            self._book.record(Elect(reason=reason))
        except FencedError:
            self._book.replay()
            self._monitor.restart()
            return
        failpoint("election.after")
        self._leader = Leader(self._book, self._store, self._dispatcher, self._clock, self._settings)
        self._leader.take_over(resume=resume)


def meaning(plan: Plan, spec: Mapping[str, Any]) -> str:
    """The digest of what a run of this plan with these settings means: it has its name for itself. Of what was meant, not of what
    may be written down: secrets differ between machines."""
    return digest_of({"spec": spec, "plan": plan.digest})


def check_same_run(state: RunState, digest: str, spec: Mapping[str, Any]) -> None:
    """Whether the run that exists means `digest`; `spec` may be shown. Raises ConfigError naming what differs."""
    if state.spec_digest != digest:
        raise ConfigError(
            f"Run {state.run} exists and means something else: {_differences(state.spec, spec)}.",
            fix="Choose another run name (finished stages are reused), or the configuration it was started with.",
        )


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The first few settings that differ, as `name: old -> new`."""
    was, now = ({name: value for name, value in flattened(spec) if value != {}} for spec in (old, new))
    lines = [f"{k}: {was.get(k, '-')} -> {now.get(k, '-')}" for k in sorted(was.keys() | now.keys()) if was.get(k) != now.get(k)]
    more = f" and {len(lines) - 8} more" if len(lines) > 8 else ""
    return "; ".join(lines[:8]) + more if lines else "its jobs differ (data, backbone or version)"
