"""Garbage collection of a run that nobody leads: what attempts left behind and nothing can use any more.

    survey()    reads the ledger and lists the attempts' files; says of each what may go, what stays, and why. Changes nothing.
    collect()   is elected, as a coordinator is; looks again; for each attempt appends Abandon, and then deletes its prefix

A leader collects its own garbage as it goes (leader.py). This is for what crashed, paused, cancelled and finished runs still
hold. What counts as garbage is a matter of the ledger alone, so being elected is what makes it safe: whoever led before collides
on its next append, and a leader that comes after finds the Abandon records. A kill in between leaves prefixes that the ledger has
given up; the next collection deletes the rest of them. Never touched: what a commit or a pointer names, what a resumed run would
continue from, and folders that the ledger has never heard of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from atlas_dist.clock import Clock
from atlas_dist.core.attempts import FailureKind
from atlas_dist.core.ledger import Entry, fold
from atlas_dist.core.records import Abandon, Commit, Dispatch, Elect, Fail, Record, from_json
from atlas_dist.core.state import Attempt, AttemptStatus, RunState
from atlas_dist.errors import DataError, FencedError, MissingObject
from atlas_dist.failpoints import failpoint
from atlas_dist.runs import layout
from atlas_dist.runs.heartbeat import TTL_S, HeartbeatWriter, LeaderMonitor
from atlas_dist.runs.results import Pointer, delete_below
from atlas_dist.runs.stores import open_ledger
from atlas_dist.store.artifacts import RESULT, read_json, retry_damaged
from atlas_dist.store.log import Map, RecordLog, threaded
from atlas_dist.store.objects import HalfWritten, LeavesHalves, ObjectInfo, ObjectStore
from atlas_dist.store.settle import DEFAULT_PATIENCE, Patience

CHECKPOINTS = "checkpoints"
HALF_S = 3600.0
"""A file that nobody has written to for so long was left by a process that died."""


@dataclass(frozen=True)
class Remains:
    """Files of one attempt: what they are, why they may go or must stay, and how much they take."""

    attempt: str
    job: str
    """"" where no record speaks of the attempt."""
    prefix: str
    why: str
    at: float
    """Wall clock of the newest record about the attempt, seconds since 1970; 0 = there is none."""
    files: int
    size: int
    """Bytes."""
    ends: bool = False
    """It still counts as running: Fail must be recorded first."""
    gives_up: bool = False
    """Abandon must be recorded before anything is deleted."""


@dataclass(frozen=True)
class Survey:
    """What a run's attempts hold besides committed files."""

    run: str
    epoch: int
    garbage: tuple[Remains, ...]
    young: tuple[Remains, ...]
    """Garbage too, but not old enough for what was asked."""
    kept: tuple[Remains, ...]
    """A run that goes on may still use these."""
    unknown: tuple[Remains, ...]
    """Folders that no record speaks of. An intent is recorded before an attempt starts, so somebody else has put them there."""
    halves: tuple[HalfWritten, ...] = ()
    """Files that a process was writing when it died, which the store does not list as objects."""

    @property
    def size(self) -> int:
        """Bytes that a collection would free."""
        return sum(each.size for each in self.garbage) + sum(half.size for half in self.halves)


def survey(store: ObjectStore, run: str, clock: Clock, *, older_than_s: float = 0.0) -> Survey:
    """Look, and change nothing.

    Args:
        older_than_s: attempts with a record that is younger are left for another time. Patience only: what is garbage stays so.

    Raises:
        StoreError: the ledger is broken or the store in trouble. DataError: a newer version wrote the ledger.
    """
    entries = open_ledger(store, run, clock=clock).read_new()
    return _surveyed(store, fold(RunState(run=run), entries), entries, clock, older_than_s)


def collect(
    store: ObjectStore,
    run: str,
    clock: Clock,
    new_id: Callable[[], str],
    *,
    older_than_s: float = 0.0,
    tell: Callable[[Remains], None] = lambda _: None,
    patience: Patience = DEFAULT_PATIENCE,
    ttl_s: float = TTL_S,
    read_many: Map = threaded,
) -> Survey:
    """Free what is garbage; returns what was freed and what was not. `tell` hears of each attempt when it is gone.

    Raises:
        FencedError: a coordinator leads the run, or took it over meanwhile. What was deleted by then was garbage.
        StoreError: the store is in trouble; the same call again goes on.
    """
    writer = f"gc-{new_id()}"
    log = open_ledger(store, run, writer=writer, clock=clock, new_id=new_id, patience=patience, read_many=read_many)
    entries = log.read_new()
    state = fold(RunState(run=run), entries)
    found = _surveyed(store, state, entries, clock, older_than_s)
    if not found.garbage and not found.halves:
        return found
    vacancy = _vacancy(store, run, state.epoch, clock, ttl_s)
    if not vacancy:
        raise FencedError(
            f"Run {run} has a coordinator at work (epoch {state.epoch}), which collects its garbage itself.",
            fix="Wait until it is done, or `atlas-dist pause` it first.",
        )
    collector = _Collector(store, log, state, HeartbeatWriter(store, run, writer, clock, ttl_s))
    collector.record(Elect(reason=f"garbage is collected; {vacancy}"))
    try:
        collector.keep_alive()
        for remains in found.garbage:
            collector.free(remains)
            tell(remains)
        if isinstance(store, LeavesHalves):
            for half in found.halves:
                store.drop_half(half)
    finally:
        collector.heartbeat.beat(collector.state.epoch, {}, released=True)
    return found


@dataclass
class _Collector:
    """The collector as leader: every change is recorded before it happens, and it shows that it is alive."""

    store: ObjectStore
    log: RecordLog
    state: RunState
    heartbeat: HeartbeatWriter

    def record(self, record: Record) -> None:
        epoch = self.state.epoch + isinstance(record, Elect)
        self.state = fold(self.state, [self.log.append(epoch, record)])

    def keep_alive(self) -> None:
        if self.heartbeat.due():
            self.heartbeat.beat(self.state.epoch, {})

    def free(self, remains: Remains) -> None:
        if remains.ends:
            self.record(Fail(remains.job, remains.attempt, FailureKind.PREEMPTED, "its coordinator went away", 0))
        if remains.gives_up:
            self.record(Abandon(job=remains.job, attempt=remains.attempt, reason=remains.why))
            failpoint("abandon.before_delete")
        delete_below(self.store, remains.prefix, self.keep_alive)
        failpoint("abandon.after_delete")


def _vacancy(store: ObjectStore, run: str, epoch: int, clock: Clock, ttl_s: float) -> str:
    """Why nobody leads; "" when somebody does. Watches for up to `ttl_s` where the last leader did not say that it left."""
    if not epoch:
        return "nobody has led it yet"
    monitor = LeaderMonitor(store, run, clock, ttl_s)
    reason = monitor.silent(epoch)
    first = monitor.seen
    while not reason:
        clock.sleep(ttl_s / 15)
        reason = monitor.silent(epoch)
        if monitor.seen != first:
            return ""
    return reason


# ------------------------------------------------------------------------------------------------------------- what is what


def _surveyed(store: ObjectStore, state: RunState, entries: Iterable[Entry], clock: Clock, older_than_s: float) -> Survey:
    when = {e.record.attempt: e.at for e in entries if isinstance(e.record, Dispatch | Commit | Fail | Abandon)}
    held = _held(store, state.run)
    committed = {job.committed.prefix for job in state.jobs.values() if job.committed is not None}
    piles: dict[str, list[Remains]] = {"garbage": [], "young": [], "kept": [], "unknown": []}
    for name, objects in held.items():
        prefix = f"{_attempts(state.run)}{name}"
        if name in state.attempts:
            pile, remains = _judged(store, state, state.attempt(name), objects)
        elif prefix in committed:
            continue  # an imported bank: adopted without ever having been dispatched
        else:
            pile, remains = "unknown", _remains(name, "", prefix, "no record speaks of it", objects)
        if remains is None:
            continue
        remains = replace(remains, at=when.get(name, 0.0))
        if pile == "garbage" and clock.wall() - remains.at < older_than_s:
            pile = "young"
        piles[pile].append(remains)
    return Survey(
        state.run,
        state.epoch,
        **{pile: tuple(found) for pile, found in piles.items()},
        halves=_halves(store, state.run, clock, older_than_s),
    )


def _attempts(run: str) -> str:
    return layout.attempt(run, "any").removesuffix("any")


def _held(store: ObjectStore, run: str) -> Mapping[str, list[ObjectInfo]]:
    """attempt folder -> its objects, from one listing."""
    top = _attempts(run)
    found: dict[str, list[ObjectInfo]] = {}
    for info in store.list(top):
        name, slash, _ = info.key[len(top) :].partition("/")
        if slash:
            found.setdefault(name, []).append(info)
    return found


def _halves(store: ObjectStore, run: str, clock: Clock, older_than_s: float) -> tuple[HalfWritten, ...]:
    """Half-written files of the run that nobody can be writing any more."""
    if not isinstance(store, LeavesHalves):
        return ()
    patience = max(older_than_s, HALF_S)
    return tuple(half for half in store.halves(f"runs/{run}/") if clock.wall() - half.at >= patience)


def _remains(attempt: str, job: str, prefix: str, why: str, objects: list[ObjectInfo]) -> Remains:
    return Remains(attempt, job, prefix, why, 0.0, len(objects), sum(info.size for info in objects))


def _judged(store: ObjectStore, state: RunState, attempt: Attempt, objects: list[ObjectInfo]) -> tuple[str, Remains | None]:
    """The pile that an attempt's files belong to; None = there is nothing to say, they are its committed files."""
    place = layout.attempt(state.run, attempt.id)
    if attempt.prefix != place:
        return "kept", _remains(attempt.id, attempt.job, place, f"the ledger says that it lies in {attempt.prefix}", objects)
    if attempt.status is AttemptStatus.COMMITTED:
        spent = [info for info in objects if info.key.startswith(f"{place}/{CHECKPOINTS}/")]
        why = "checkpoints of an attempt that is committed"
        return "garbage", _remains(attempt.id, attempt.job, f"{place}/{CHECKPOINTS}", why, spent) if spent else None
    pile, why = _fate(state, attempt, finished={info.key for info in objects} >= {f"{place}/{RESULT}"})
    if pile == "garbage" and (named := _named_by_a_pointer(store, attempt)):
        pile, why = "kept", named
    remains = _remains(attempt.id, attempt.job, place, why, objects)
    running = attempt.status is AttemptStatus.RUNNING
    given_up = attempt.status is AttemptStatus.ABANDONED
    return pile, replace(remains, ends=running, gives_up=not given_up)


def _fate(state: RunState, attempt: Attempt, *, finished: bool) -> tuple[str, str]:
    """Garbage or kept, and why. `finished`: the attempt left a RESULT."""
    if attempt.status is AttemptStatus.ABANDONED:
        return "garbage", "it was given up, but not all of it was deleted"
    how = "it never ended" if attempt.failure is None else f"it failed ({attempt.failure.kind.value})"
    if state.job(attempt.job).committed is not None:
        return "garbage", f"{how}, and the job has another result"
    if attempt.id in state.garbage:
        return "garbage", f"{how}, and later attempts got as far"
    if state.cancelled and not (attempt.status is AttemptStatus.RUNNING and finished):
        return "garbage", f"{how}, and the run was cancelled"
    if finished:
        return "kept", "it left a result, which the run will commit when it is started again"
    return "kept", f"{how}; the run may go on from its checkpoints"


def _named_by_a_pointer(store: ObjectStore, attempt: Attempt) -> str:
    """Why the attempt must stay although its own ledger does not want it; "" = no pointer names it.

    A pointer of a job can name attempts at that very job only, so one read answers for all runs. By the protocol it cannot happen
    (only commits are pointed to); what other runs rely on is not deleted on the strength of an argument.
    """
    try:
        pointer = retry_damaged(lambda: from_json(Pointer, read_json(store, layout.result(attempt.job))))
    except MissingObject:
        return ""
    except DataError as error:
        return f"results/{attempt.job} cannot be read, so it is not known whom it names: {error.message}"
    return f"results/{attempt.job} names it: other runs may use it" if pointer.ref.prefix == attempt.prefix else ""
