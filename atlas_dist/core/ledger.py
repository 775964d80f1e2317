"""What happened, as records; what is so, as their fold.

A run is a list of records that is only ever appended to. `apply(state, entry)` is the whole meaning of a record: replaying a
ledger anywhere, any time gives the same state, and a record that contradicts the state (a second commit of a job, a voice from a
deposed epoch) is refused, so a broken ledger can't be mistaken for a good one.

An *entry* is a record with its envelope: place, epoch, writer, nonce, and the sha256 of the entry before it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from atlas_dist.core.attempts import CommittedRef, Failure, FailureKind
from atlas_dist.core.keys import canonical_json, check_key, check_name
from atlas_dist.core.records import (
    RECORD_TYPES,
    Abandon,
    Adopt,
    Begin,
    Cancel,
    Commit,
    Dispatch,
    Elect,
    Fail,
    Finish,
    Halt,
    Pause,
    Quarantine,
    Record,
    Resume,
    from_json,
)
from atlas_dist.core.state import Attempt, AttemptStatus, JobState, JobStatus, RunState
from atlas_dist.errors import DataError, StoreError

GENESIS = "0" * 64
"""`prev` of the first entry."""

ENTRY_LIMIT = 4 << 20
"""Largest entry in bytes; a reader refuses more."""


@dataclass(frozen=True)
class Entry:
    """A record in its place. `nonce` makes every writer's bytes unique: equal bytes at a place are one's own write."""

    seq: int
    epoch: int
    writer: str
    nonce: str
    prev: str
    at: float
    """Wall clock of the writer: for people and for back-off, never for order."""
    record: Record

    def to_bytes(self) -> bytes:
        """The bytes that are stored and whose sha256 the next entry carries."""
        envelope = {k: v for k, v in self.__dict__.items() if k != "record"}
        return canonical_json({**envelope, "type": type(self.record).__name__.lower(), "body": self.record})

    @staticmethod
    def from_bytes(data: bytes) -> Entry:
        """Parse strictly.

        Raises:
            DataError: not JSON, a missing or foreign field, a value of the wrong type, or a record type that this version
                does not know (a newer version wrote it).
        """
        try:
            raw = json.loads(data)
        except ValueError as error:
            raise DataError(f"A ledger entry is not JSON: {error}.") from error
        if not isinstance(raw, dict):
            raise DataError("A ledger entry is not a JSON object.")
        kind = RECORD_TYPES.get(str(raw.pop("type", "")))
        if kind is None:
            raise DataError(
                f"Ledger entry {raw.get('seq')} has an unknown record type.", fix="A newer atlas-dist wrote it: upgrade this one."
            )
        record = from_json(kind, raw.pop("body", None))
        envelope = from_json(_Envelope, raw)
        return Entry(**envelope.__dict__, record=record)


@dataclass(frozen=True)
class _Envelope:
    seq: int
    epoch: int
    writer: str
    nonce: str
    prev: str
    at: float


def apply(state: RunState, entry: Entry) -> RunState:
    """The state after one more entry. Raises StoreError when the entry contradicts the state."""
    return fold(state, (entry,))


def fold(state: RunState, entries: Iterable[Entry]) -> RunState:
    """The state after some more entries; what `apply` does one by one, without a copy for each.

    Raises:
        StoreError: an entry contradicts the state before it.
    """
    draft = _Draft(state)
    for entry in entries:
        draft.admit(entry)
        _MEANING[type(entry.record)](draft, entry, entry.record)
        draft.now["next_seq"] = entry.seq + 1
    return draft.frozen()


class _Draft:
    """A state in the making: containers that may change until it is frozen."""

    def __init__(self, base: RunState) -> None:
        self.now: dict[str, Any] = dict(base.__dict__)
        self.jobs: dict[str, JobState] = dict(base.jobs)
        self.attempts: dict[str, str] = dict(base.attempts)
        self.running, self.troubled, self.garbage = set(base.running), set(base.troubled), set(base.garbage)
        self.requests = set(base.requests)

    def frozen(self) -> RunState:
        self.now.update(jobs=self.jobs, attempts=self.attempts)
        for name in ("running", "troubled", "garbage", "requests"):
            self.now[name] = frozenset(getattr(self, name))
        return RunState(**self.now)

    def admit(self, entry: Entry) -> None:
        """Refuse entries that are out of place or from somebody who does not lead."""
        epoch = self.now["epoch"]
        if entry.seq != self.now["next_seq"]:
            raise _contradiction(entry, f"expected entry {self.now['next_seq']}")
        if isinstance(entry.record, Begin) != (entry.seq == 0):
            raise _contradiction(entry, "a ledger has exactly one beginning")
        if isinstance(entry.record, Elect):
            if entry.epoch != epoch + 1:
                raise _contradiction(entry, f"epoch {entry.epoch} elected after {epoch}")
        elif entry.epoch != epoch or (epoch and entry.writer != self.now["writer"]):
            raise _contradiction(entry, f"epoch {entry.epoch} of {entry.writer} speaks in epoch {epoch}")

    def job(self, key: str) -> JobState:
        return self.jobs.get(key) or JobState(check_name(key, "job key"))

    def of_attempt(self, entry: Entry, job: str, attempt: str) -> tuple[JobState, Attempt]:
        if self.attempts.get(attempt) != job:
            raise _contradiction(entry, f"attempt {attempt} of job {job} was never dispatched")
        state = self.jobs[job]
        return state, next(a for a in state.attempts if a.id == attempt)

    def sweep(self, state: JobState) -> None:
        """Mark the job's ended attempts that nothing can use: all once it is settled, else all but a few to continue from."""
        ended = [a for a in state.attempts if a.status is AttemptStatus.FAILED]
        if state.committed is None:
            furthest = max(ended, key=lambda a: a.failure.step if a.failure else 0, default=None)
            ended = [a for a in ended[:-_KEPT] if a is not furthest]
        self.garbage.update(a.id for a in ended)


_KEPT = 3
"""Failed attempts of an unsettled job whose files are kept, besides the one that got furthest."""


def _contradiction(entry: Entry, why: str) -> StoreError:
    kind = type(entry.record).__name__.lower()
    return StoreError(
        f"Ledger entry {entry.seq} ({kind}) contradicts what came before: {why}.", fix="Keep the ledger as it is and report this."
    )


def _on_begin(draft: _Draft, _: Entry, record: Begin) -> None:
    draft.now.update(run=record.run, spec_digest=record.spec_digest, plan_digest=record.plan_digest, spec=record.spec)


def _on_elect(draft: _Draft, entry: Entry, _: Elect) -> None:
    draft.now.update(epoch=entry.epoch, writer=entry.writer)


def _on_dispatch(draft: _Draft, entry: Entry, record: Dispatch) -> None:
    state = draft.job(record.job)
    if state.status is not JobStatus.PENDING:
        raise _contradiction(entry, f"job {record.job} is {state.status}")
    if record.attempt in draft.attempts:
        raise _contradiction(entry, f"attempt {record.attempt} was dispatched before")
    attempt = Attempt(record.attempt, record.job, check_key(record.prefix), entry.epoch, record.pool)
    draft.jobs[record.job] = replace(state, attempts=(*state.attempts, attempt))
    draft.attempts[record.attempt] = record.job
    draft.running.add(record.attempt)


def _on_commit(draft: _Draft, entry: Entry, record: Commit) -> None:
    state, attempt = draft.of_attempt(entry, record.job, record.attempt)
    if attempt.status not in (AttemptStatus.RUNNING, AttemptStatus.FAILED):
        raise _contradiction(entry, f"attempt {attempt.id} is {attempt.status}")
    if record.prefix != attempt.prefix:
        raise _contradiction(entry, f"attempt {attempt.id} writes to {attempt.prefix}, not {record.prefix}")
    draft.running.discard(attempt.id)
    draft.garbage.discard(attempt.id)
    _settle(draft, entry, _with(state, replace(attempt, status=AttemptStatus.COMMITTED, failure=None)), record)
    draft.now["newest"] = record.job


def _on_adopt(draft: _Draft, entry: Entry, record: Adopt) -> None:
    _settle(draft, entry, replace(draft.job(record.job), adopted_from=record.run), record)


def _settle(draft: _Draft, entry: Entry, state: JobState, record: Commit | Adopt) -> None:
    if state.committed is not None:
        raise _contradiction(entry, f"job {record.job} was committed before")
    ref = CommittedRef(record.job, record.attempt, check_key(record.prefix), record.blobs, record.metrics)
    state = replace(state, committed=ref, quarantined="", store_failures=0)
    draft.jobs[record.job] = state
    draft.troubled.discard(record.job)
    draft.now["committed"] += 1
    draft.sweep(state)


def _on_fail(draft: _Draft, entry: Entry, record: Fail) -> None:
    state, attempt = draft.of_attempt(entry, record.job, record.attempt)
    if attempt.status is not AttemptStatus.RUNNING:
        raise _contradiction(entry, f"attempt {attempt.id} is {attempt.status}")
    failure = Failure(record.kind, record.reason, record.step)
    asked_to_stop = bool(draft.now["paused"] or draft.now["cancelled"] or draft.now["halted"])
    state = _with(state, replace(attempt, status=AttemptStatus.FAILED, failure=failure))
    state = replace(_counted(state, failure, asked_to_stop), failed_at=entry.at)
    draft.jobs[record.job] = state
    draft.running.discard(attempt.id)
    if state.status is JobStatus.PENDING:
        draft.troubled.add(record.job)
    draft.sweep(state)


def _counted(state: JobState, failure: Failure, asked_to_stop: bool) -> JobState:
    """What a failure adds to the counters that the retry rules read."""
    kind = failure.kind
    state = replace(state, store_failures=state.store_failures + 1 if kind is FailureKind.STORE else 0)
    if kind is FailureKind.NONFINITE:
        return replace(state, nonfinite=(*state.nonfinite, failure.step))
    if failure.step > state.best_step:
        state = replace(state, best_step=failure.step, stuck=0, stalls=0)
    elif kind in (FailureKind.PREEMPTED, FailureKind.DEVICE) and not asked_to_stop:
        state = replace(state, stuck=state.stuck + 1)
    if kind is FailureKind.STALLED:
        return replace(state, stalls=state.stalls + 1)
    if kind is FailureKind.MEMORY:
        return replace(state, memory_failures=state.memory_failures + 1)
    return replace(state, poisons=state.poisons + 1) if kind is FailureKind.POISON else state


def _on_quarantine(draft: _Draft, entry: Entry, record: Quarantine) -> None:
    state = draft.job(record.job)
    if state.status is not JobStatus.PENDING:
        raise _contradiction(entry, f"job {record.job} is {state.status}")
    draft.jobs[record.job] = replace(state, quarantined=record.reason)
    draft.troubled.discard(record.job)


def _on_abandon(draft: _Draft, entry: Entry, record: Abandon) -> None:
    state, attempt = draft.of_attempt(entry, record.job, record.attempt)
    if attempt.status is not AttemptStatus.FAILED:
        raise _contradiction(entry, f"attempt {attempt.id} is {attempt.status}")
    draft.jobs[record.job] = _with(state, replace(attempt, status=AttemptStatus.ABANDONED))
    draft.garbage.discard(attempt.id)


def _on_halt(draft: _Draft, _: Entry, record: Halt) -> None:
    draft.now["halted"] = record.reason


def _on_pause(draft: _Draft, _: Entry, record: Pause) -> None:
    draft.now["paused"] = record.reason
    draft.requests.add(record.request)


def _on_resume(draft: _Draft, _: Entry, record: Resume) -> None:
    """Somebody looked at what stopped the run and wants it to go on: every rule starts counting afresh."""
    draft.now.update(paused="", halted="")
    draft.requests.add(record.request)
    for key, state in draft.jobs.items():
        if state.committed is None and (state.quarantined or key in draft.troubled):
            draft.jobs[key] = replace(
                state,
                quarantined="",
                stuck=0,
                stalls=0,
                poisons=0,
                memory_failures=0,
                store_failures=0,
                nonfinite=(),
                failed_at=0.0,
            )
    draft.troubled.clear()


def _on_cancel(draft: _Draft, _: Entry, record: Cancel) -> None:
    draft.now["cancelled"] = record.reason
    draft.requests.add(record.request)


def _on_finish(draft: _Draft, _: Entry, record: Finish) -> None:
    draft.now["finished"] = record.reason


def _with(state: JobState, attempt: Attempt) -> JobState:
    return replace(state, attempts=tuple(attempt if a.id == attempt.id else a for a in state.attempts))


_MEANING: Mapping[type[Record], Callable[[_Draft, Entry, Any], None]] = {
    Begin: _on_begin,
    Elect: _on_elect,
    Dispatch: _on_dispatch,
    Commit: _on_commit,
    Adopt: _on_adopt,
    Fail: _on_fail,
    Quarantine: _on_quarantine,
    Abandon: _on_abandon,
    Halt: _on_halt,
    Pause: _on_pause,
    Resume: _on_resume,
    Cancel: _on_cancel,
    Finish: _on_finish,
}
