"""Bring shards into memory: a ring of ranged, resumable, checksummed reads in threads, bounded by a byte budget.

`PartFetcher` reads one part of one shard and believes nothing: a body that ends early is continued at the byte where it broke, a
part that fails its CRC32C is read again, and what can't heal (no such object, no permission, content other than the manifest's)
is an error at once that names shard, range and cause. The checksum also is what notices an object that was replaced between two
reads.

`ShardPool` keeps whole shards. Its threads follow a list of the shards that will be wanted, part by part across shard borders, as
far as the budget goes. Shards stay until their room is needed, so a split that fits the budget is fetched once for all epochs,
and buffers are used again, because fresh pages from the kernel cost as much as the copy into them.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from atlas_dist.core.manifest import ShardManifest
from atlas_dist.data import tarwalk
from atlas_dist.data.cache import NodeCache
from atlas_dist.data.crc import crc32c
from atlas_dist.data.manifest import shard_key
from atlas_dist.data.sample import EXTENSIONS
from atlas_dist.errors import DataError, MissingObject, PreconditionFailed, StoreError
from atlas_dist.store.objects import ObjectStore

FIRST_WAIT, LONGEST_WAIT = 0.05, 5.0
"""Seconds between two tries of a part; doubling from the first to the longest."""

CRC_TRIES = 3
"""Reads of a part that fails its checksum before the shard is called damaged: bits flip on wires, but not three times."""


class Cancelled(Exception):
    """The stream stops: whoever waits for a shard gives up quietly."""


@dataclass
class FetchCounts:
    """What the threads of a pool did together."""

    bytes: int = 0
    retries: int = 0


class PartFetcher:
    """Reads parts of shards, with patience for what heals. Safe to use from several threads.

    Args:
        tries: attempts without any progress before giving up.
        stop: set when the stream closes; ends every wait at once.
        cache: parts on the node's disk, or None.
    """

    def __init__(
        self, store: ObjectStore, manifest: ShardManifest, tries: int, stop: threading.Event, cache: NodeCache | None = None
    ) -> None:
        self._cache = cache
        self._store = store
        self._manifest = manifest
        self._tries = tries
        self._stop = stop
        self._lock = threading.Lock()
        self.counts = FetchCounts()

    def part(self, shard: int, part: int, out: memoryview) -> None:
        """Fill `out` with part number `part` of a shard, checked.

        Raises:
            DataError: the shard is missing, replaced or damaged.
            StoreError: the store stayed away for all tries.
            AuthError: no permission.
            Cancelled: the stream closes.
        """
        info = self._manifest.shards[shard]
        start = part * self._manifest.part_bytes
        if self._cache is not None and self._cache.read(info.sha256, part, out):
            if crc32c(out) == info.crc32c[part]:
                return
            self._cache.drop(info.sha256, part)
        for _ in range(CRC_TRIES):
            self._range(shard, start, out)
            if crc32c(out) == info.crc32c[part]:
                with self._lock:
                    self.counts.bytes += len(out)
                if self._cache is not None:
                    self._cache.write(info.sha256, part, out)
                return
            self._count_retry()
        self._check_size(shard, start, len(out))
        raise DataError(
            f"{self._where(shard, start, len(out))} fails its checksum {CRC_TRIES} times: it was damaged or replaced.",
            fix="Restore the shard, or pack or index the split again.",
        )

    def _range(self, shard: int, start: int, out: memoryview) -> None:
        key = shard_key(self._manifest, self._manifest.shards[shard])
        done, failures, cause = 0, 0, ""
        while done < len(out):
            if self._stop.is_set():
                raise Cancelled
            try:
                got = self._store.read_range(key, start + done, out[done:])
                cause = "the answer ended early"
            except MissingObject as error:
                raise DataError(
                    f"{self._where(shard, start, len(out))}: there is no such object.", fix="Pack the split again, or restore it."
                ) from error
            except PreconditionFailed as error:
                raise DataError(f"{self._where(shard, start, len(out))} was replaced while it was read.") from error
            except StoreError as error:
                got, cause = 0, str(error)
            done += got
            if done == len(out):
                return
            self._count_retry()
            if got:
                failures = 0  # progress: go on from here at once
                continue
            failures += 1
            self._check_size(shard, start, len(out))
            if failures >= self._tries:
                raise StoreError(
                    f"{self._where(shard, start, len(out))} could not be read in {self._tries} tries: {cause}.",
                    fix="Check the store and the network, or raise shards.tries.",
                )
            self._stop.wait(min(LONGEST_WAIT, FIRST_WAIT * 2 ** (failures - 1)))

    def _check_size(self, shard: int, start: int, length: int) -> None:
        """Say so when the object plainly is another one than the manifest describes; a store that is away tells nothing."""
        info = self._manifest.shards[shard]
        try:
            found = self._store.stat(shard_key(self._manifest, info)).size
        except MissingObject:
            found = -1
        except StoreError:
            return
        if found != info.size:
            state = "is gone" if found < 0 else f"has {found} bytes"
            raise DataError(
                f"{self._where(shard, start, length)}: the shard {state}, its manifest says {info.size} bytes.",
                fix="It was cut, replaced or removed after packing: pack or index the split again.",
            )

    def _where(self, shard: int, start: int, length: int) -> str:
        key = shard_key(self._manifest, self._manifest.shards[shard])
        return f"{self._store.url}/{key}, bytes {start}-{start + length - 1},"

    def _count_retry(self) -> None:
        with self._lock:
            self.counts.retries += 1


@dataclass(eq=False)
class Shard:
    """A shard in memory. `data` and `samples` may be used until the pool's `advance` passes its last block."""

    number: int
    data: memoryview
    buffer: NDArray[np.uint8]
    missing: int
    """Parts that have not arrived."""
    unassigned: deque[int]
    last_block: int
    samples: tarwalk.SampleIndex = field(default_factory=tarwalk.SampleIndex)
    ready: bool = False


class ShardPool:
    """Whole shards in memory, fetched ahead of use. One consumer thread, several fetch threads.

    Args:
        budget: bytes of shard buffers to hold, prefetch included. What the consumer needs right now is always fetched, even
        beyond it. threads: fetch threads; they start with the first shard.
    """

    def __init__(self, manifest: ShardManifest, fetcher: PartFetcher, *, budget: int, threads: int) -> None:
        self._manifest = manifest
        self._fetch = fetcher.part
        self._budget = budget
        parts = sum(len(s.crc32c) for s in manifest.shards)
        self._thread_count = max(1, min(threads, parts))
        self._changed = threading.Condition()
        self._shards: OrderedDict[int, Shard] = OrderedDict()  # least recently used first
        self._free: list[NDArray[np.uint8]] = []
        self._held = 0
        self._assignable: deque[Shard] = deque()
        self._wanted: Iterator[tuple[int, int]] = iter(())
        self._next: tuple[int, int] | None = None
        self._block = 0
        # Shards of a split that fits stay for the next epoch. Of one that does not, none would still be there when it comes round
        # again: those give their buffers back at once, and the same few are used over and over.
        self._keep = manifest.size <= budget
        # A split that does not fit is fetched ahead as far as the budget goes: what a block needs is always asked for before what
        # a later one needs. One that fits would be followed through all epochs at once, for nothing.
        self._lookahead = 2 if self._keep else len(manifest.shards)
        self._error: BaseException | None = None
        self._cancelled = False
        self._closed = False
        self._threads: list[threading.Thread] = []

    def follow(self, wanted: Iterator[tuple[int, int]], block: int) -> None:
        """Begin a run at `block`: prefetch what `wanted` yields, pairs (block, shard) in the order of use."""
        with self._changed:
            self._wanted, self._next, self._block = wanted, None, block
            for shard in self._shards.values():
                shard.last_block = block - 1
            self._error, self._cancelled = None, False
            if not self._threads and not self._closed:
                self._threads = [
                    threading.Thread(target=self._work, name=f"atlas-fetch-{i}", daemon=True) for i in range(self._thread_count)
                ]
                for thread in self._threads:
                    thread.start()
            self._changed.notify_all()

    def advance(self, block: int) -> None:
        """The consumer is through with all blocks before `block`: shards that only those wanted may go."""
        with self._changed:
            if block != self._block:
                self._block = block
                self._changed.notify_all()

    def get(self, number: int, block: int) -> Shard:
        """The shard, complete and checked, for use in `block`; waits for it. Raises what fetching it raised, or Cancelled."""
        with self._changed:
            shard = self._shards.get(number)
            if shard is None:
                shard = self._admit(number, block, urgent=True)
                assert shard is not None
                self._changed.notify_all()
            shard.last_block = max(shard.last_block, block)
            self._shards.move_to_end(number)
            while not shard.ready:
                if self._cancelled or self._closed:
                    raise Cancelled
                if self._error is not None:
                    raise self._error
                self._changed.wait()
            return shard

    def cancel(self) -> None:
        """Wake a consumer that waits; it raises Cancelled. `follow` starts anew."""
        with self._changed:
            self._cancelled = True
            self._wanted, self._next = iter(()), None
            self._changed.notify_all()

    def close(self) -> None:
        """End the threads (each finishes the read it is in) and let the buffers go."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout=30)
        with self._changed:
            self._shards.clear()
            self._free.clear()
            self._held = 0

    def _work(self) -> None:
        while True:
            with self._changed:
                while (job := self._next_part()) is None and not self._closed:
                    self._changed.wait()
                if self._closed or job is None:
                    return
            shard, part = job
            begin = part * self._manifest.part_bytes
            try:
                self._fetch(shard.number, part, shard.data[begin : begin + self._manifest.part_bytes])
                with self._changed:
                    shard.missing -= 1
                    complete = shard.missing == 0
                if complete:
                    shard.samples = self._index(shard)
            except BaseException as error:
                self._fail(shard, error)
                continue
            if complete:
                with self._changed:
                    shard.ready = True
                    self._changed.notify_all()

    def _index(self, shard: Shard) -> tarwalk.SampleIndex:
        info = self._manifest.shards[shard.number]
        try:
            index = tarwalk.samples(shard.data, EXTENSIONS, trusted=True)
        except DataError as error:
            raise DataError(f"{info.name}: {error}", fix="Pack or index the split again.") from error
        if len(index) != info.samples:
            raise DataError(
                f"{info.name} holds {len(index)} samples, its manifest says {info.samples}.", fix="Index the split again."
            )
        return index

    def _fail(self, shard: Shard, error: BaseException) -> None:
        with self._changed:
            # Forget the shard, so that a later run tries it again; its buffer is dropped, other threads may still write into it.
            if self._shards.get(shard.number) is shard:
                del self._shards[shard.number]
                self._held -= len(shard.buffer)
            shard.unassigned.clear()
            if self._error is None:
                self._error = error
            self._changed.notify_all()

    def _next_part(self) -> tuple[Shard, int] | None:
        if self._error is not None:
            return None  # nothing queued before it is worth a read any more
        while self._assignable:
            shard = self._assignable[0]
            if shard.unassigned:
                return shard, shard.unassigned.popleft()
            self._assignable.popleft()
        while (wanted := self._peek()) is not None:
            block, number = wanted
            if block > self._block + self._lookahead:
                return None
            if number in self._shards:
                self._shards[number].last_block = max(block, self._shards[number].last_block)
                self._next = None
                continue
            shard_or_none = self._admit(number, block, urgent=False)
            if shard_or_none is None:
                return None
            self._next = None
            return self._next_part()
        return None

    def _peek(self) -> tuple[int, int] | None:
        if self._next is None:
            self._next = next(self._wanted, None)
        return self._next

    def _admit(self, number: int, block: int, *, urgent: bool) -> Shard | None:
        """Give a shard a buffer and queue its parts; None when there is no room and no hurry."""
        info = self._manifest.shards[number]
        buffer = self._buffer(info.size, force=urgent)
        if buffer is None:
            return None
        parts = deque(range(len(info.crc32c)))
        shard = Shard(number, buffer.data[: info.size], buffer, len(parts), parts, block)
        self._shards[number] = shard
        if urgent:
            self._assignable.appendleft(shard)
        else:
            self._assignable.append(shard)
        return shard

    def _buffer(self, size: int, *, force: bool) -> NDArray[np.uint8] | None:
        part = self._manifest.part_bytes
        capacity = -(-max(size, 1) // part) * part if size > part else size
        while True:
            for i, buffer in enumerate(self._free):
                if capacity <= len(buffer) <= 2 * capacity:
                    return self._free.pop(i)
            if not self._keep and self._evict():
                continue
            if self._held + capacity <= self._budget:
                break
            if self._free:
                self._held -= len(self._free.pop(0))
            elif not self._evict():
                if force:
                    break
                return None
        self._held += capacity
        return np.empty(capacity, np.uint8)

    def _evict(self) -> bool:
        """Let the least recently used shard go that no block in sight wants."""
        for number, shard in self._shards.items():
            if shard.ready and shard.last_block < self._block:
                del self._shards[number]
                self._free.append(shard.buffer)
                return True
        return False


def wanted_shards(shards_of_block: Callable[[int], list[int]], first: int, stop: int) -> Iterator[tuple[int, int]]:
    """(block, shard) for the blocks [first, stop), in the order of use."""
    for block in range(first, stop):
        for shard in shards_of_block(block):
            yield block, shard
