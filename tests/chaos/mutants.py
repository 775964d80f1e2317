"""Wrong versions of the protocol, each a plausible mistake. The simulation must catch every one, or it proves nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any
from unittest import mock

from atlas_dist.coordinator import book, leader
from atlas_dist.core.attempts import Blob, CommittedRef
from atlas_dist.core.ledger import Entry
from atlas_dist.core.records import Begin, Elect, Record
from atlas_dist.core.state import Attempt
from atlas_dist.errors import FencedError, UnknownOutcome
from atlas_dist.runs import results, status
from atlas_dist.runs.status import load_run
from atlas_dist.runs.stores import open_ledger
from atlas_dist.store import artifacts, log
from tests.chaos import sim
from tests.chaos.world import World

Prepare = Callable[[World], None]
Mutant = Callable[[], contextlib.AbstractContextManager[Prepare]]


def _nothing(_: World) -> None:
    pass


@contextlib.contextmanager
def _patched(*patches: Any) -> Iterator[Prepare]:
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        yield _nothing


def records_deleted() -> contextlib.AbstractContextManager[Prepare]:
    """Old entries are tidied away."""
    append = log.RecordLog.append

    def tidy(self: log.RecordLog, epoch: int, record: Record) -> Entry:
        entry = append(self, epoch, record)
        if entry.seq >= 8:
            self._store.delete(self._key(entry.seq - 8))
        return entry

    return _patched(mock.patch.object(log.RecordLog, "append", tidy))


def outcome_guessed_as_success() -> contextlib.AbstractContextManager[Prepare]:
    """No answer is taken for a yes."""

    def hopeful(store: Any, key: str, data: bytes, *_: object) -> None:
        with contextlib.suppress(UnknownOutcome):
            store.create(key, data)

    return _patched(mock.patch.object(log, "create_settled", hopeful))


def append_at_a_relisted_tail() -> contextlib.AbstractContextManager[Prepare]:
    """A collision is answered by looking for the end of the list and writing there."""
    append = log.RecordLog.append

    def stubborn(self: log.RecordLog, epoch: int, record: Record) -> Entry:
        while True:
            try:
                return append(self, epoch, record)
            except FencedError:
                if isinstance(record, Begin | Elect):
                    raise
                self.read_new()

    return _patched(mock.patch.object(log.RecordLog, "append", stubborn))


def no_blob_check() -> contextlib.AbstractContextManager[Prepare]:
    """RESULT is believed."""
    return _patched(mock.patch.object(results, "verify", lambda *_, **__: None))


def no_election() -> contextlib.AbstractContextManager[Prepare]:
    """A follower simply goes on where the silent leader stopped, in its epoch and under its name."""
    record = book.RunBook.record

    def silent_coup(self: book.RunBook, what: Record, **details: Any) -> None:
        if isinstance(what, Elect) and self.state.epoch:
            self._log._writer = self.writer = self.state.writer
            return
        record(self, what, **details)

    return _patched(mock.patch.object(book.RunBook, "record", silent_coup))


def shared_hash_pool() -> contextlib.AbstractContextManager[Prepare]:
    """Files are stored once by their hash, shared by all attempts; garbage collection deletes an attempt's files."""
    upload, find = artifacts._upload, artifacts._find

    def pooled(store: Any, prefix: str, name: str, source: Any, clock: Any, patience: Any) -> Blob:
        if "/checkpoints/" in prefix:
            return upload(store, prefix, name, source, clock, patience)
        shared = artifacts.sha256_hex(source)[:16]
        blob = upload(store, "runs/pool/attempts", shared, source, clock, patience)
        return Blob(f"{shared}.{name}", blob.size, blob.sha256)

    def found(store: Any, prefix: str, blob: Blob) -> Any:
        if "/checkpoints/" in prefix:
            return find(store, prefix, blob)
        return find(store, "runs/pool/attempts", Blob(blob.name.partition(".")[0], blob.size, blob.sha256))

    below = leader.delete_below

    def collect(store: Any, prefix: str, keep_alive: Any) -> None:
        try:
            names = [b.name.partition(".")[0] for b in artifacts.read_result(store, prefix).blobs]
        except Exception:
            names = []
        below(store, prefix, keep_alive)
        for name in names:
            store.delete(f"runs/pool/attempts/{name}")

    def prepare(world: World) -> None:
        # The judge has to look where this mutant keeps its files.
        judged = world.checker._committed

        def elsewhere(run: str, view: Any, body: dict[str, Any], objects: Any) -> None:
            blobs = [{**b, "name": b["name"].partition(".")[0]} for b in body["blobs"]]
            judged(run, view, {**body, "prefix": "runs/pool/attempts", "blobs": blobs}, objects)

        world.checker._committed = elsewhere  # type: ignore[method-assign]
        world.checker._pointed = lambda *_: None  # type: ignore[method-assign]

    @contextlib.contextmanager
    def patched() -> Iterator[Prepare]:
        with (
            mock.patch.object(artifacts, "_upload", pooled),
            mock.patch.object(artifacts, "_find", found),
            mock.patch.object(leader, "delete_below", collect),
        ):
            yield prepare

    return patched()


def garbage_without_abandon() -> contextlib.AbstractContextManager[Prepare]:
    """A failed attempt's files are deleted at once, without a word in the ledger."""
    fail = leader.Leader._fail

    def fail_and_delete(self: leader.Leader, attempt: Attempt, failure: Any) -> None:
        fail(self, attempt, failure)
        self._to_delete.append(attempt.prefix)

    return _patched(mock.patch.object(leader.Leader, "_fail", fail_and_delete))


def non_atomic_store() -> contextlib.AbstractContextManager[Prepare]:
    """The store looks whether the key exists, then writes."""

    def prepare(world: World) -> None:
        world.non_atomic = True

    return contextlib.nullcontext(prepare)


def commit_of_what_was_not_reread() -> contextlib.AbstractContextManager[Prepare]:
    """Sizes are compared, hashes are not: a flipped bit becomes a fact."""

    def sizes_only(store: Any, prefix: str, blobs: Iterable[Blob], **_: object) -> None:
        for blob in blobs:
            artifacts._find(store, prefix, blob)

    return _patched(mock.patch.object(results, "verify", sizes_only))


def pointer_before_commit() -> contextlib.AbstractContextManager[Prepare]:
    """Other runs are told of a result before the ledger has it: its attempt may yet be abandoned under them."""
    commit = leader.Leader._commit

    def eager(self: leader.Leader, attempt: Attempt, result: Any) -> None:
        ref = CommittedRef(attempt.job, attempt.id, attempt.prefix, result.blobs, result.metrics)
        leader.point_to(self._store, self._book.run, ref, self._clock, self._settings.patience)
        commit(self, attempt, result)

    return _patched(mock.patch.object(leader.Leader, "_commit", eager))


def same_bytes_for_everybody() -> contextlib.AbstractContextManager[Prepare]:
    """Entries without writer, nonce or time: two coordinators write the same bytes, and both believe that they won."""
    to_bytes = Entry.to_bytes

    def anonymous(self: Entry) -> bytes:
        return to_bytes(Entry(self.seq, self.epoch, "me", "", self.prev, 0.0, self.record))

    original = book.RunBook.__init__

    def init(self: book.RunBook, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.writer = self._log._writer = "me"

    return _patched(mock.patch.object(Entry, "to_bytes", anonymous), mock.patch.object(book.RunBook, "__init__", init))


def collector_that_does_not_lead() -> contextlib.AbstractContextManager[Prepare]:
    """Every folder without a commit in the ledger that was just read is garbage, whoever leads and whatever is under way."""

    def reckless(store: Any, run: str, clock: Any, *_: Any, tell: Any, **__: Any) -> None:
        state, _entries = load_run(store, run)
        kept = {job.committed.prefix for job in state.jobs.values() if job.committed is not None}
        for info in store.list(f"runs/{run}/attempts/"):
            if info.key.rpartition("/")[0] not in kept:
                store.delete(info.key)
                tell(info)

    return _patched(
        mock.patch.object(sim, "collect", reckless), mock.patch.object(status, "open_ledger", partial(open_ledger, read_many=map))
    )


MUTANTS: tuple[Mutant, ...] = (
    records_deleted,
    outcome_guessed_as_success,
    append_at_a_relisted_tail,
    no_blob_check,
    commit_of_what_was_not_reread,
    no_election,
    shared_hash_pool,
    garbage_without_abandon,
    non_atomic_store,
    pointer_before_commit,
    same_bytes_for_everybody,
    collector_that_does_not_lead,
)
