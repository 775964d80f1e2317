"""What a leader does in one tick: decide, record, act; and believe only what was re-read."""

from __future__ import annotations

from collections.abc import Mapping

from atlas_dist.clock import Clock
from atlas_dist.coordinator.book import RunBook
from atlas_dist.coordinator.dispatch import AttemptProgress, Dispatcher, Failed, Finished, Lost
from atlas_dist.coordinator.settings import CoordinatorSettings
from atlas_dist.core.attempts import Assignment, Failure, FailureKind, StageResult
from atlas_dist.core.records import Abandon, Adopt, Cancel, Commit, Dispatch, Fail, Finish, Halt, Pause, Quarantine, Resume
from atlas_dist.core.results import SelectResult, TrainResult
from atlas_dist.core.schedule import (
    AbandonAttempt,
    Action,
    CancelAttempt,
    FinishRun,
    HaltRun,
    QuarantineJob,
    StartJob,
    latest_usable,
    next_actions,
)
from atlas_dist.core.state import Attempt, AttemptStatus, JobState
from atlas_dist.errors import DataError, FencedError, StoreError
from atlas_dist.failpoints import failpoint
from atlas_dist.redact import redact
from atlas_dist.runs import layout
from atlas_dist.runs.heartbeat import HeartbeatWriter, PoolHeartbeat
from atlas_dist.runs.requests import RequestKind, discard, read_requests
from atlas_dist.runs.results import Pointer, delete_below, point_to, verified_fact, verified_result
from atlas_dist.store.artifacts import newest_checkpoint
from atlas_dist.store.objects import ObjectStore

_REASON_LIMIT = 2000
_ANSWERS: Mapping[RequestKind, type[Pause | Resume | Cancel]] = {
    RequestKind.PAUSE: Pause,
    RequestKind.RESUME: Resume,
    RequestKind.CANCEL: Cancel,
}
_UNKNOWN_STEP = -1
"""In a Failure that is yet to be recorded: look at the checkpoints to see how far the attempt got."""


class Leader:
    """The acting half of a coordinator; exists from its election until it stands down."""

    def __init__(
        self, book: RunBook, store: ObjectStore, dispatcher: Dispatcher, clock: Clock, settings: CoordinatorSettings
    ) -> None:
        self._book = book
        self._store = store
        self._dispatcher = dispatcher
        self._clock = clock
        self._settings = settings
        self._heartbeat = HeartbeatWriter(store, book.run, book.writer, clock, settings.ttl_s)
        self._next_inbox = float("-inf")
        self._ended: dict[str, Failure] = {}
        """Attempts that ended -> what to record when they left no RESULT."""
        self._progress: dict[str, AttemptProgress] = {}
        self._cancelled: set[str] = set()
        self._bad_facts: set[str] = set()
        self._to_delete: list[str] = []
        """Prefixes that the ledger has given up, whose objects may still be there."""

    @property
    def progress(self) -> Mapping[str, AttemptProgress]:
        """The newest word of each attempt under way."""
        return self._progress

    def take_over(self, *, resume: bool) -> None:
        """Finish what the leader before may have left half done. `resume`: a pause that was asked for earlier is over."""
        state = self._book.state
        for attempt in sorted(state.running):
            self._ended[attempt] = Failure(FailureKind.PREEMPTED, "its coordinator went away", _UNKNOWN_STEP)
        for job in state.jobs.values():
            # An earlier leader may have died between saying so and deleting; two epochs back is far enough for any that mattered.
            gone = [a for a in job.attempts if a.status is AttemptStatus.ABANDONED and a.epoch >= state.epoch - 2]
            self._to_delete += [a.prefix for a in gone]
        newest = state.job(state.newest).committed if state.newest else None
        if newest is not None:
            # Only the newest commit can lack its pointer: nothing more is recorded before that is written.
            point_to(self._store, self._book.run, newest, self._clock, self._settings.patience)
        if resume and state.paused:
            self._book.record(Resume(request="", reason="the run was started again"))
        # A request that was left while nobody led may be what lets a halted run go on.
        self._take_requests()

    def tick(self) -> None:
        """One round. Raises FencedError, StoreError."""
        self._keep_alive()
        self._take_requests()
        self._take_events()
        self._settle_ended()
        self._decide_and_act()
        self._clean()
        self._keep_alive()

    def stand_down(self, *, release: bool) -> None:
        """Stop this process's attempts; `release`: tell followers that they need not wait."""
        for attempt in sorted(self._book.state.running):
            self._dispatcher.cancel(attempt)
        if release:
            self._heartbeat.beat(self._book.state.epoch, {}, released=True)

    def _keep_alive(self) -> None:
        """Beat, and see whether somebody else leads by now: an idle zombie should not have to wait for its next append."""
        if not self._heartbeat.due():
            return
        running = {a: (self._progress[a].step, self._progress[a].total) for a in self._book.state.running if a in self._progress}
        pools = {p.name: PoolHeartbeat(p.ranks, p.limit, p.standing) for p in self._dispatcher.capacity().pools}
        self._heartbeat.beat(self._book.state.epoch, running, pools=pools)
        try:
            deposed = self._book.overtaken()
        except StoreError:
            return
        if deposed:
            raise FencedError(f"Another coordinator leads run {self._book.run}; this one (epoch {self._book.state.epoch}) stops.")

    def _take_requests(self) -> None:
        if self._clock.monotonic() < self._next_inbox:
            return
        self._next_inbox = self._clock.monotonic() + self._settings.inbox_every_s
        try:
            requests, unreadable = read_requests(self._store, self._book.run)
        except StoreError as error:
            self._book.tell("trouble", {"reason": f"the inbox can't be read: {error}"})
            return
        for name in unreadable:
            self._book.tell("ignored", {"reason": f"inbox/{name} is not a request"})
        for request in requests:
            if request.id not in self._book.state.requests:
                self._book.record(_ANSWERS[request.kind](request=request.id, reason=redact(request.reason) or "asked for"))
        for name in [*(r.id for r in requests), *unreadable]:
            try:
                discard(self._store, self._book.run, name)
            except StoreError:
                break  # it is answered; it will be removed another time

    def _take_events(self) -> None:
        for event in self._dispatcher.poll():
            if event.attempt not in self._book.state.running:
                continue
            match event:
                case AttemptProgress():
                    self._progress[event.attempt] = event
                case Finished():
                    self._ended[event.attempt] = Failure(FailureKind.POISON, "it said it had finished but left no RESULT")
                case Failed():
                    self._ended[event.attempt] = event.failure
                case Lost():
                    known = self._progress.get(event.attempt)
                    self._ended[event.attempt] = Failure(FailureKind.PREEMPTED, event.reason, known.step if known else 0)

    def _settle_ended(self) -> None:
        """Each ended attempt is committed if it left a RESULT that is right, whatever it said; else its failure is recorded."""
        for attempt_id, failure in sorted(self._ended.items()):
            attempt = self._book.state.attempt(attempt_id)
            if attempt.status is AttemptStatus.RUNNING and not self._settle(attempt, failure):
                continue
            del self._ended[attempt_id]
            self._progress.pop(attempt_id, None)

    def _settle(self, attempt: Attempt, failure: Failure) -> bool:
        """Whether the attempt is settled; False = the store is in trouble, ask again."""
        if self._book.state.job(attempt.job).committed is not None:
            self._fail(attempt, Failure(FailureKind.PREEMPTED, "the job was committed meanwhile", max(0, failure.step)))
            return True
        try:
            result = verified_result(self._store, attempt.job, attempt.id, attempt.prefix, self._keep_alive)
            if result is None and failure.step == _UNKNOWN_STEP:
                kept = newest_checkpoint(self._store, [attempt.prefix], keep_alive=self._keep_alive)
                failure = Failure(failure.kind, failure.reason, kept.step if kept else 0)
        except DataError as error:
            self._fail(attempt, Failure(FailureKind.POISON, f"its result is damaged: {error}", max(0, failure.step)))
            return True
        except StoreError as error:
            self._book.tell("trouble", {"attempt": attempt.id, "reason": f"its result can't be read yet: {error}"})
            return False
        if result is None:
            self._fail(attempt, failure)
        else:
            self._commit(attempt, result)
        return True

    def _fail(self, attempt: Attempt, failure: Failure) -> None:
        reason = redact(failure.reason)[:_REASON_LIMIT]
        self._book.record(Fail(job=attempt.job, attempt=attempt.id, kind=failure.kind, reason=reason, step=failure.step))

    def _commit(self, attempt: Attempt, result: StageResult) -> None:
        """The moment at which a trained thing becomes a fact; only for a result that was just verified."""
        failpoint("commit.before_append")
        score = TrainResult.from_json(result.metrics).known_score
        fields: dict[str, object] = {} if score is None else {"score": score}
        if "form" in result.metrics:
            fields["committed"] = SelectResult.from_json(result.metrics).in_words()
        self._book.record(Commit(attempt.job, attempt.id, attempt.prefix, result.blobs, result.metrics), **fields)
        committed = self._book.state.job(attempt.job).committed
        assert committed is not None
        point_to(self._store, self._book.run, committed, self._clock, self._settings.patience)
        self._to_delete.append(f"{attempt.prefix}/checkpoints")

    def _decide_and_act(self) -> None:
        """Act until a round brings no new fact: an adopted result may open jobs that can be adopted in turn."""
        again = True
        while again:
            before = self._book.state.committed
            capacity, now = self._dispatcher.capacity(), self._clock.wall()
            rules = self._settings.rules
            for action in next_actions(
                self._book.plan, self._book.state, capacity, now, frontier=self._book.frontier, rules=rules
            ):
                self._do(action)
            again = self._book.state.committed > before

    def _do(self, action: Action) -> None:
        match action:
            case StartJob():
                self._start(action)
            case CancelAttempt(attempt, reason):
                if attempt not in self._cancelled:
                    self._cancelled.add(attempt)
                    self._book.tell("stop", {"attempt": attempt, "reason": reason})
                    self._dispatcher.cancel(attempt)
            case AbandonAttempt(attempt, reason):
                self._abandon(self._book.state.attempt(attempt), reason)
            case QuarantineJob(job, reason):
                self._book.record(Quarantine(job=job, reason=reason))
            case HaltRun(job, reason):
                self._book.record(Halt(job=job, reason=reason))
            case FinishRun(reason):
                self._book.record(Finish(reason=reason))

    # ---------------------------------------------------------------- start

    def _start(self, action: StartJob) -> None:
        """Start an attempt, unless the result exists already."""
        job = self._book.state.job(action.job)
        try:
            late = self._late_result(job)
            fact = None if late else self._fact(job)
            resume = newest_checkpoint(self._store, latest_usable(job), before=_before(job), keep_alive=self._keep_alive)
        except StoreError as error:
            # Only looking may be put off. What is recorded below must not be: an append of unknown outcome ends this leader.
            self._book.tell("trouble", {"job": job.key, "reason": f"not started yet: {error}"})
            return
        if late is not None:
            self._commit(*late)
            return
        if fact is not None:
            ref = fact.ref
            failpoint("adopt.before_append")
            self._book.record(Adopt(job.key, ref.attempt, ref.prefix, ref.blobs, ref.metrics, run=fact.run))
            return
        attempt = f"{job.key}-e{self._book.state.epoch}-{len(job.attempts) + 1}"
        prefix = layout.attempt(self._book.run, attempt)
        record = Dispatch(
            job=job.key,
            attempt=attempt,
            prefix=prefix,
            pool=action.pool,
            reason=redact(action.reason)[:_REASON_LIMIT],
            resume_from=resume.prefix if resume else "",
            resume_digest=resume.digest if resume else "",
        )
        self._book.record(record, label=self._book.plan.jobs[job.key].label)
        failpoint("dispatch.before_start")
        self._dispatcher.start(self._assignment(record))
        failpoint("dispatch.after_start")

    def _assignment(self, record: Dispatch) -> Assignment:
        job = self._book.plan.jobs[record.job]
        inputs = {}
        for parent in job.parents:
            ref = self._book.state.job(parent).committed
            assert ref is not None, "only jobs whose parents are committed are started"
            inputs[parent] = ref
        return Assignment(
            job=job,
            attempt=record.attempt,
            prefix=record.prefix,
            inputs=inputs,
            resume_from=record.resume_from,
            resume_digest=record.resume_digest,
            pool=record.pool,
            halvings=self._book.state.job(record.job).memory_failures,
        )

    def _late_result(self, job: JobState) -> tuple[Attempt, StageResult] | None:
        """An attempt that was given up but finished all the same (its workers outlived their coordinator), verified."""
        for attempt in reversed(job.attempts):
            if attempt.status is not AttemptStatus.FAILED:
                continue
            try:
                result = verified_result(self._store, attempt.job, attempt.id, attempt.prefix, self._keep_alive)
            except DataError:
                continue
            if result is not None:
                return attempt, result
        return None

    def _fact(self, job: JobState) -> Pointer | None:
        """What another run has committed for this job, verified."""
        if job.key in self._bad_facts:
            return None
        try:
            return verified_fact(self._store, job.key, self._keep_alive)
        except DataError as error:
            self._bad_facts.add(job.key)
            self._book.tell("ignored", {"job": job.key, "reason": f"another run's result is damaged: {error}"})
            return None

    # ---------------------------------------------------------------- garbage

    def _abandon(self, attempt: Attempt, reason: str) -> None:
        self._book.record(Abandon(job=attempt.job, attempt=attempt.id, reason=reason))
        failpoint("abandon.before_delete")
        self._to_delete.append(attempt.prefix)

    def _clean(self) -> None:
        """Delete what the ledger has given up. Only ever after the record that gave it up."""
        while self._to_delete:
            try:
                delete_below(self._store, self._to_delete[-1], self._keep_alive)
            except StoreError:
                return
            failpoint("abandon.after_delete")
            self._to_delete.pop()


def _before(job: JobState) -> int | None:
    """After a step that was not finite, only states before it are worth continuing."""
    return min(job.nonfinite) if job.nonfinite else None
