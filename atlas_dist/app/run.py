"""Learn a sequence: plan it, check what can be checked, run it on Ray, report. And ask a run that is under way to stop."""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from atlas_dist.app.composed import ComposedRun, Settings, compose_run
from atlas_dist.app.events import (
    Advice,
    Idle,
    NothingToDo,
    Observer,
    Progress,
    ReportWritten,
    RunEnded,
    RunStarted,
    WorkersStarting,
)
from atlas_dist.app.observers import observer_for
from atlas_dist.app.plan import plan
from atlas_dist.app.precision import decided_by_nodes
from atlas_dist.app.process import restored_process
from atlas_dist.app.report import Report, make_tracker_sync, write_pages
from atlas_dist.clock import SystemClock
from atlas_dist.coordinator.coordinator import check_same_run, meaning
from atlas_dist.coordinator.local_gpus import found_here, placed_here
from atlas_dist.coordinator.preflight import check_before_cluster, check_place, slow_products
from atlas_dist.coordinator.ray_env import before_ray
from atlas_dist.coordinator.take_over import all_known, take_over
from atlas_dist.core.state import RunState
from atlas_dist.redact import redact_json
from atlas_dist.report.forecast import keep
from atlas_dist.report.tracking import BackgroundSync, TrackerSync
from atlas_dist.runs.requests import RequestKind, RunRequest, ask
from atlas_dist.runs.status import CoordinatorRole, load_run
from atlas_dist.store.places import can_be_written


@dataclass(frozen=True)
class RunResult:
    """How a run ended: complete; anything else is an exception."""

    run: str
    learnt: bool
    """False: all of it was complete already."""
    seconds: float
    """Wall time of this call."""
    report: Report


def run(*settings: Settings, many: bool = False, quiet: bool = False, observer: Observer | None = None) -> RunResult:
    """Learn a sequence of tasks to its end; the same settings again attach to the run, or go on where it stopped.

    Ctrl-C (KeyboardInterrupt in the main thread) saves a checkpoint and raises Paused. Ray is started and shut down here; the
    process is left as it was found. It may be called from any thread, and inside a running event loop (which then waits).

    Args:
        settings: words as on the command line (`"experiment=toy"`), mappings, or one RunConfig.
        many: several values of a key make a row each, as with `-m`.
        quiet: say only how it ended.
        observer: called with every event (`atlas_dist.app.events`), in this thread; left out = lines on standard output, or
            records where `log.format=json`.

    Raises:
        ConfigError, DataError: settings or data, before anything starts. Paused: it was asked to stop. TrainingError: a stage
            failed for good. StoreError, AuthError, FencedError: the store; StoreError also: the report can't be written.
    """
    began = time.monotonic()
    with restored_process():
        session = RunSession(compose_run(*settings, many=many), observer, quiet=quiet)
        session.check_report_folder()
        learnt = session.learn()
        return session.ended(learnt, time.monotonic() - began)


def learn(composed_run: ComposedRun, observer: Observer) -> bool:
    """Run to the end, without a report; False when there was nothing left to do. Raises as `run`."""
    return RunSession(composed_run, observer).learn()


def request(kind: RequestKind | str, *settings: Settings, reason: str = "asked for", many: bool = False) -> RunRequest:
    """Ask a run to `pause`, `resume` or `cancel`: its coordinator, present or next, finds the request in the store.

    Raises:
        ConfigError: there is no such run (a request would wait for one to come). StoreError: the store is in trouble.
    """
    composed_run = compose_run(*settings, many=many)
    store, name = composed_run.store, composed_run.config.run
    if not load_run(store, name)[0].next_seq:
        raise composed_run.no_such_run()
    return ask(store, name, RequestKind(kind), reason, clock=SystemClock(), new_id=lambda: uuid.uuid4().hex)


class RunSession:
    """One start of a run: what was composed, and who hears of it."""

    def __init__(self, composed_run: ComposedRun, observer: Observer | None, *, quiet: bool = False) -> None:
        self.observer = observer or observer_for(composed_run.config, quiet=quiet)
        check_place(composed_run.config, Path.cwd())  # before the shards are looked for: in a folder of Ray's own there are none
        composed_run, self.precision = decided_by_nodes(composed_run)
        self.composed_run, self.config, self.store = composed_run, composed_run.config, composed_run.store
        self.plan = composed_run.plan()
        self.known: frozenset[str] = frozenset()  # jobs that were done before this start

    def check_report_folder(self) -> None:
        """Say before hours of learning that its report will have no place."""
        folder = self.composed_run.folder
        if not can_be_written(folder):
            advice = "the run goes on, and `atlas-dist report` can write to another folder later."
            self.observer(Advice(f"report={folder} can't be written: {advice}"))

    def learn(self) -> bool:
        """See the function."""
        state, _ = load_run(self.store, self.config.run)
        if self._finished(state):
            self.observer(NothingToDo(self.config.run))
            return False
        self.known = frozenset(key for key in self.plan.jobs if state.job(key).committed is not None)
        self.config, placed = placed_here(self.config, found_here())
        tracker_sync = make_tracker_sync(self.composed_run, lambda text: self.observer(Advice(text)))
        check_before_cluster(self.config, self.plan)
        self._announce(placed)
        if not state.next_seq:  # where a run begins, what is foreseen is kept, for its report
            keep(self.store, self.config.run, plan(self.composed_run).outlook)
        if not (all_known(self.plan, state, self.store) and self._take_over(tracker_sync)):
            self._drive(tracker_sync)
        return True

    def ended(self, learnt: bool, seconds: float) -> RunResult:
        """The report, and where the time went."""
        report = write_pages(self.composed_run)
        self.observer(ReportWritten(report))
        report.check_written()
        if learnt:
            self.observer(_where_time_went(report, seconds, self.known))
        return RunResult(report.facts.run, learnt, seconds, report)

    def _finished(self, state: RunState) -> bool:
        """Whether the ledger says that exactly this run is complete: then no cluster needs to be started. Nor for one that would
        be refused: raises ConfigError where the name is another run's."""
        spec = self.composed_run.specification()
        if state.finished and state.spec == spec:
            return True
        if state.next_seq:
            check_same_run(state, meaning(self.plan, spec), redact_json(spec))
        return False

    def _announce(self, placed: str) -> None:
        """What is about to run, and what is worth knowing of it. `placed`: where its workers compute, in words; may be empty."""
        config, plan = self.config, self.plan
        self.observer(
            RunStarted(
                run=config.run,
                rows=len(self.composed_run.rows) if self.composed_run.swept else 0,
                jobs=len(plan.jobs),
                training_jobs=plan.training_jobs,
                workers=tuple(group.workers for group in config.worker_groups),
                store=config.store.url,
                tensorboard=self.composed_run.folder / "tensorboard",
            )
        )
        for hint in filter(None, (placed, self.precision, slow_products(config))):
            self.observer(Advice(hint))

    def _take_over(self, tracker_sync: TrackerSync) -> bool:
        """Without a cluster, what other runs know; False = workers are needed after all."""
        snapshot = take_over(self.config, self.plan, self.composed_run.specification(), self.store)
        if snapshot is None:
            return False
        with BackgroundSync(tracker_sync, self.config.track.every_s):
            pass  # once, at its end: there was nothing to follow
        self.observer(Progress(self.plan, snapshot))
        if snapshot.error is not None:
            raise snapshot.error
        return True

    def _drive(self, tracker_sync: TrackerSync) -> None:
        before_ray(self.config.cluster)
        from atlas_dist.coordinator.drive import drive
        from atlas_dist.coordinator.service import Snapshot

        def see(snapshot: Snapshot) -> None:
            self.observer(Progress(self.plan, snapshot))
            tracker_sync.leads = snapshot.status is not None and snapshot.status.role is CoordinatorRole.LEADER

        self.observer(WorkersStarting(self.config.run))
        try:
            with BackgroundSync(tracker_sync, self.config.track.every_s):
                drive(self.config, self.plan, self.composed_run.specification(), see)
        finally:
            self.observer(Idle(self.config.run))


def _where_time_went(report: Report, wall: float, known: Collection[str]) -> RunEnded:
    """Of what this start has trained: not what was `known` before, nor what another run had learnt."""
    stages = [s for q in report.facts.sequences for t in (*q.upstream, *q.downstream) for s in t.stages]
    spent = [s.result.seconds for s in {s.key: s for s in stages}.values() if s.key not in known and s.attempt]
    later = sorted(took.setup for took in spent)[:-1]
    return RunEnded(
        run=report.facts.run,
        seconds=wall,
        stepping=sum(took.stepping for took in spent),
        waiting=sum(took.waiting for took in spent),
        setup=later[len(later) // 2] if later else None,
    )
