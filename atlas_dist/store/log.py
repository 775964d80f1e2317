"""The ledger of a run in a store: chained entries, one object each, created and never changed.

    <prefix>/<seq:016d>     an entry; `prev` in it is the sha256 of the entry before

Appending is creating the object at the *replayed* tail + 1. Whoever has replayed less than there is collides, and so learns that
it does not lead any more. Nobody may look for the end of the list and append there: that would let a deposed writer speak.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from atlas_dist.clock import Clock
from atlas_dist.core.keys import sha256_hex
from atlas_dist.core.ledger import ENTRY_LIMIT, GENESIS, Entry
from atlas_dist.core.records import Record
from atlas_dist.errors import AlreadyExists, FencedError, MissingObject, StoreError
from atlas_dist.failpoints import failpoint
from atlas_dist.store.objects import ObjectStore
from atlas_dist.store.settle import DEFAULT_PATIENCE, Patience, create_settled, patiently

Map = Callable[[Callable[[str], bytes], Iterable[str]], Iterable[bytes]]
"""How many objects are read: one after the other, or `threaded`."""


def threaded(read: Callable[[str], bytes], keys: Iterable[str]) -> Iterable[bytes]:
    """Read with 16 threads, in order: a ledger of thousands of entries takes seconds instead of minutes from S3."""
    with ThreadPoolExecutor(16) as pool:
        yield from pool.map(read, keys)


class RecordLog:
    """The chained log of one run, as this process has replayed it.

    Args:
        prefix: where the entries lie, e.g. `runs/demo/ledger`.
        writer: who this is; in every entry it appends.
        new_id: makes nonces.
    """

    def __init__(
        self,
        store: ObjectStore,
        prefix: str,
        *,
        writer: str,
        clock: Clock,
        new_id: Callable[[], str],
        patience: Patience = DEFAULT_PATIENCE,
        read_many: Map = map,
    ) -> None:
        self._store = store
        self._prefix = prefix
        self._writer = writer
        self._clock = clock
        self._new_id = new_id
        self._patience = patience
        self._read_many = read_many
        self._next = 0
        self._head = GENESIS
        self._broken = ""

    @property
    def next_seq(self) -> int:
        """The place that the next entry takes: the replayed tail + 1."""
        return self._next

    @property
    def head(self) -> str:
        """sha256 of the newest replayed entry."""
        return self._head

    def read_new(self) -> list[Entry]:
        """Entries behind what was replayed so far, verified: gapless, chained, parsed strictly.

        Raises:
            StoreError: a gap, a broken chain, or the store is in trouble.
            DataError: an entry can't be read by this version.
        """
        places = patiently(self._places, self._clock, self._patience)
        self._broken = ""
        if not places:
            return []
        if places != list(range(self._next, self._next + len(places))):
            raise StoreError(
                f"{self._prefix} has a gap near entry {self._next}: {len(places)} entries up to {places[-1]}.",
                fix="Ledger entries are never deleted; restore them.",
            )
        entries = []
        for seq, data in zip(places, self._read_many(self._read, map(self._key, places)), strict=True):
            entries.append(self._chained(seq, data))
        return entries

    def peek(self) -> bool:
        """Whether somebody has written behind what was replayed here. Raises StoreError."""
        try:
            self._store.stat(self._key(self._next))
        except MissingObject:
            return False
        return True

    def append(self, epoch: int, record: Record) -> Entry:
        """Write `record` behind what was replayed; returning means that it is there, for ever.

        Raises:
            FencedError: somebody else has written there first.
            StoreError: it is not known whether the entry was written. This log appends no more; replay to find out.
        """
        if self._broken:
            raise StoreError(f"{self._prefix}: {self._broken}")
        entry = Entry(
            seq=self._next,
            epoch=epoch,
            writer=self._writer,
            nonce=self._new_id(),
            prev=self._head,
            at=round(self._clock.wall(), 3),
            record=record,
        )
        data = entry.to_bytes()
        failpoint("log.append.before")
        try:
            create_settled(self._store, self._key(entry.seq), data, self._clock, self._patience)
        except AlreadyExists as error:
            self._broken = "somebody else has written here; replay first."
            raise FencedError(
                f"{self._prefix}: entry {entry.seq} was written by somebody else; another coordinator leads this run."
            ) from error
        except StoreError:
            self._broken = "the last append has an unknown outcome; replay first."
            raise
        failpoint("log.append.after")
        self._next, self._head = entry.seq + 1, sha256_hex(data)
        return entry

    def _key(self, seq: int) -> str:
        return f"{self._prefix}/{seq:016d}"

    def _places(self) -> list[int]:
        names = (info.key.rpartition("/")[2] for info in self._store.list(f"{self._prefix}/"))
        try:
            places = [int(name) for name in names]
        except ValueError as error:
            raise StoreError(f"{self._prefix} holds something that is not an entry: {error}.", fix="Move it away.") from error
        return [seq for seq in places if seq >= self._next]

    def _read(self, key: str) -> bytes:
        try:
            return patiently(lambda: self._store.get(key, limit=ENTRY_LIMIT), self._clock, self._patience)
        except MissingObject as error:
            raise StoreError(
                f"{key} was listed but can't be read.", fix="Is this store strongly consistent? Ask `doctor`."
            ) from error

    def _chained(self, seq: int, data: bytes) -> Entry:
        entry = Entry.from_bytes(data)
        if entry.seq != seq or entry.prev != self._head:
            raise StoreError(
                f"{self._key(seq)} does not follow the entry before it: the chain is broken.",
                fix="Somebody has changed the ledger; restore it.",
            )
        self._next, self._head = seq + 1, sha256_hex(data)
        return entry
