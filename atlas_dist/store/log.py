"""The ledger of a run in a store: chained entries, one object each, created and never changed.

    <prefix>/<seq:016d>            an entry; `prev` in it is the sha256 of the entry before
    <prefix>-packs/<first:016d>    a copy of `PACK` entries in one object, so that a long ledger is replayed in seconds

Packs are a cache and never the truth: they are read only where the chain of hashes leads from them to an entry itself, and are
passed over when anything about them is wrong.

Appending is creating the object at the *replayed* tail + 1. Whoever has replayed less than there is collides, and so learns that
it does not lead any more. Nobody may look for the end of the list and append there: that would let a deposed writer speak.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from atlas_dist.clock import Clock
from atlas_dist.core.keys import sha256_hex
from atlas_dist.core.ledger import ENTRY_LIMIT, GENESIS, Entry
from atlas_dist.core.records import Record
from atlas_dist.errors import AlreadyExists, DataError, FencedError, MissingObject, StoreError
from atlas_dist.failpoints import failpoint
from atlas_dist.store.objects import ObjectStore
from atlas_dist.store.settle import DEFAULT_PATIENCE, Patience, create_settled, retry_unavailable

PACK = 500
"""Entries in a pack."""

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
        self._pack = PACK
        self._unpacked: list[bytes] = []
        """The newest replayed or appended entries, as far as they are not in a pack that was read or written here."""

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
        places = retry_unavailable(self._places, self._clock, self._patience)
        self._broken = ""
        if not places:
            return []
        if places != list(range(self._next, self._next + len(places))):
            raise StoreError(
                f"{self._prefix} has a gap near entry {self._next}: {len(places)} entries up to {places[-1]}.",
                fix="Ledger entries are never deleted; restore them.",
            )
        entries = self._read_packs(places[-1] + 1)
        rest = places[len(entries) :]
        for seq, data in zip(rest, self._read_many(self._read, map(self._key, rest)), strict=True):
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
        self._advance(data)
        self._write_packs()
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
            return retry_unavailable(lambda: self._store.get(key, limit=ENTRY_LIMIT), self._clock, self._patience)
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
        self._advance(data)
        return entry

    def _advance(self, data: bytes) -> None:
        self._unpacked.append(data)
        self._next, self._head = self._next + 1, sha256_hex(data)

    def _pack_key(self, first: int) -> str:
        return f"{self._prefix}-packs/{first:016d}"

    def _read_packs(self, end: int) -> list[Entry]:
        """Entries from whole packs, as long as they follow what was replayed and end in an entry that is really there."""
        entries: list[Entry] = []
        while self._next % self._pack == 0 and self._next + self._pack < end:
            try:
                lines = self._store.get(self._pack_key(self._next), limit=ENTRY_LIMIT * 8).split(b"\n")
                head, found = self._head, []
                for line in lines:
                    found.append(Entry.from_bytes(line))
                    if found[-1].prev != head or found[-1].seq != self._next + len(found) - 1:
                        return entries
                    head = sha256_hex(line)
                if len(lines) != self._pack or self._read(self._key(found[-1].seq)) != lines[-1]:
                    return entries
            except (DataError, StoreError):
                return entries
            self._next, self._head = self._next + self._pack, head
            self._unpacked.clear()
            entries += found
        return entries

    def _write_packs(self) -> None:
        """Copy what is complete. Whoever does it writes the same bytes; one that fails is left to the next leader."""
        first = self._next - len(self._unpacked)
        while len(self._unpacked) > self._pack and first % self._pack == 0:
            with suppress(StoreError):
                self._store.put(self._pack_key(first), b"\n".join(self._unpacked[: self._pack]))
            del self._unpacked[: self._pack]
            first += self._pack
