"""The elastic order: (manifest, seed, epoch, step, rank, world) -> samples. Integers in, arrays out.

An epoch visits every selected sample once. The shards are sorted by blake2b(seed, epoch, name); the resulting run of N samples
is cut into C equal *lanes*; every step takes B / C samples from each lane, B being the global batch. Within a lane, samples are
shuffled in *blocks*, so that a reader holds a few shards a lane, not the whole epoch. Nothing here depends on the world size
except which slots of the global batch a rank takes: step s is the same global batch on 1 and on 64 ranks, and a restart at
another size continues the same sequence. Slots past the end are -1 (masked); no sample is ever repeated to fill a batch.

Shuffles sort splitmix64 hashes instead of asking a random generator: the order is arithmetic and stays the same on every version
of every library. A position in the data is (manifest digest, seed, absolute step); the epoch follows from the step.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from atlas_dist.core.manifest import ShardManifest
from atlas_dist.errors import ConfigError, DataError

Ordinals = NDArray[np.int64]
"""Sample ordinals in manifest order; -1 is a masked slot."""

WINDOW_BYTES = 256 << 20
"""A split up to this size is shuffled as a whole; a larger one in blocks of about this many bytes over all lanes."""

LANE_BYTES = 512 << 20
"""Lanes are as many as let a single rank, which reads them all, hold two shards of each in this much memory."""

MAX_LANES = 64

RECHECKED_SHARDS = 8
"""Of so many shards a fixed sample is drawn, or of as many more as it takes."""


@dataclass(frozen=True)
class Shape:
    """How an epoch is cut: `lanes` divides the global batch, a block spans `block_steps` steps of every lane."""

    lanes: int
    block_steps: int


def shape_for(*, samples: int, size: int, largest_shard: int, global_batch: int, lanes: int = 0) -> Shape:
    """Choose lanes and block length from the data and the global batch alone (never from the world size).

    Args:
        samples: samples of an epoch.
        size: bytes of the split.
        largest_shard: bytes of its largest shard.
        global_batch: B.
        lanes: 0 = choose; otherwise must divide B.

    Raises:
        ConfigError: the batch is not positive, or `lanes` does not divide it.
    """
    if global_batch < 1:
        raise ConfigError(f"The global batch is {global_batch}.", fix="Use at least 1 sample a step.")
    if lanes < 0 or (lanes and global_batch % lanes):
        divisors = [d for d in range(1, min(global_batch, MAX_LANES) + 1) if global_batch % d == 0]
        raise ConfigError(
            f"{lanes} lanes do not divide a global batch of {global_batch}.", fix=f"Use 0 (choose) or one of {divisors}."
        )
    steps = max(1, -(-samples // global_batch))
    if size <= WINDOW_BYTES:
        return Shape(lanes or 1, steps)
    if not lanes:
        most = max(1, min(MAX_LANES, LANE_BYTES // max(1, 2 * largest_shard)))
        lanes = max(d for d in range(1, min(most, global_batch) + 1) if global_batch % d == 0)
    step_bytes = max(1, size * global_batch // max(1, samples))
    return Shape(lanes, min(steps, max(1, WINDOW_BYTES // step_bytes)))


def select_shots(samples: int, labels: NDArray[np.int32] | None, shots: float, seed: int) -> Ordinals | None:
    """The low-shot subset: ascending ordinals, or None for all samples.

    `shots` 0 means all; n >= 1 means the n samples of each class with the smallest seeded hash (all of a smaller class); a share
    between 0 and 1 means that share of all samples, at least one. The choice for n is contained in the choice for n + 1.

    Raises:
        ConfigError: a negative number, or a fraction above 1.
        DataError: n a class was asked of a split without a label index.
    """
    if shots == 0:
        return None
    if shots < 0 or (shots > 1 and shots != int(shots)):
        raise ConfigError(f"shots is {shots}.", fix="Use 0 (all), a whole number of samples a class, or a share between 0 and 1.")
    keys = _hashes(_seed64("shots", seed), np.arange(samples, dtype=np.uint64))
    if shots < 1:
        return np.sort(_smallest(keys, np.arange(samples), max(1, round(shots * samples))))
    if labels is None:
        raise DataError(
            "Samples a class were asked of a split whose manifest has no labels.", fix="Use a share, or pack it with labels."
        )
    # Hashes are distinct, so "the n smallest" is one set, whatever algorithm finds it; a full sort would cost ten times as much.
    labels = np.maximum(labels, -1)
    by_class = np.argsort(labels, kind="stable")
    ends = np.cumsum(np.bincount(labels + 1))  # members of class -1, 0, 1, … end here
    chosen = [_smallest(keys, by_class[start:end], int(shots)) for start, end in itertools.pairwise(ends)]
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, np.int64)


def fixed_sample(counts: NDArray[np.int64], size: int) -> Ordinals | None:
    """The samples of a split on which what is known of it is proved again: ascending ordinals, or None for all.

    The same for ever for the same split: of a few of its shards, so that proving reads as little of a large split as it
    computes; from these at random, since a split that others packed may be sorted by class.

    Args:
        counts: samples a shard, int64 [shards].
        size: how many; 0 = all, as for a split that has no more.
    """
    if not size or counts.sum() <= size:
        return None
    first = np.r_[0, np.cumsum(counts)]
    order = np.argsort(random_keys(0, np.arange(len(counts), dtype=np.uint64)), kind="stable")
    enough = int(np.searchsorted(np.cumsum(counts[order]), size)) + 1
    shards = order[: max(RECHECKED_SHARDS, enough)]
    members = np.concatenate([np.arange(first[shard], first[shard + 1], dtype=np.int64) for shard in shards])
    chosen = _smallest(random_keys(1, members.astype(np.uint64)), np.arange(len(members)), size)
    return np.sort(members[chosen])


def _smallest(keys: NDArray[np.uint64], members: NDArray[np.intp], count: int) -> Ordinals:
    """Those of `members` with the `count` smallest keys, in no particular order."""
    if len(members) <= count:
        return members.astype(np.int64)
    return members[np.argpartition(keys[members], count - 1)[:count]].astype(np.int64)


def random_keys(seed: int, ordinals: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A number for each ordinal that depends on it and the seed alone; distinct, and as good as drawn: uint64 [n]. The samples
    with the smallest numbers are a uniform choice."""
    return _hashes(_seed64("keys", seed), ordinals)


def shuffled(samples: int, seed: int) -> list[int]:
    """A seeded permutation of 0 … samples - 1, the same on every machine and version."""
    return [int(i) for i in np.argsort(_hashes(_seed64("pack", seed), np.arange(samples, dtype=np.uint64)), kind="stable")]


class Sampler:
    """The order of one split for one (seed, global batch). Cheap to make, microseconds a step; holds a few blocks, not the
    epochs.

    Args:
        names: shard names, in manifest order.
        counts: samples per shard, int64 [shards].
        seed: of the shuffle.
        global_batch: B, samples a step over all ranks.
        shape: lanes and block length (see `shape_for`).
        shuffle: False = manifest order every epoch.
        selected: ascending ordinals to visit (see `select_shots`); None = all.

    Raises:
        DataError: there is no sample to visit.
    """

    def __init__(
        self,
        names: Sequence[str],
        counts: NDArray[np.int64],
        *,
        seed: int,
        global_batch: int,
        shape: Shape,
        shuffle: bool = True,
        selected: Ordinals | None = None,
    ) -> None:
        self._names = [name.encode() for name in names]
        self.seed = seed
        self._shape = shape
        self._shuffle = shuffle
        self.global_batch = global_batch
        self._first = np.r_[0, np.cumsum(counts)].astype(np.int64)
        self._selected = selected
        total = int(self._first[-1])
        # Where each shard's run of selected samples begins in `selected`; without a selection the runs are the shards themselves.
        self._runs = self._first if selected is None else np.searchsorted(selected, self._first).astype(np.int64)
        self.samples = total if selected is None else len(selected)
        if self.samples == 0:
            raise DataError("The split has no sample to visit.", fix="Pack it again, or select more shots.")
        self.steps_per_epoch = -(-self.samples // global_batch)
        self.blocks_per_epoch = -(-self.steps_per_epoch // shape.block_steps)
        self._epoch: tuple[int, Ordinals, Ordinals] | None = None
        self._block: tuple[int, Ordinals] | None = None

    @property
    def ordinals(self) -> Ordinals:
        """The samples that an epoch visits, ascending."""
        return np.arange(self.samples, dtype=np.int64) if self._selected is None else self._selected

    def visited(self, places: Ordinals) -> Ordinals:
        """Places in the ascending run of the samples that an epoch visits -> their ordinals (-1 stays -1)."""
        return places if self._selected is None else np.where(places < 0, -1, self._selected[places])

    def epoch_of(self, step: int) -> int:
        """Epoch of an absolute step."""
        return step // self.steps_per_epoch

    def valid_at(self, step: int) -> int:
        """Unmasked slots of a step's global batch: B, except in the last step of an epoch."""
        return min(self.global_batch, self.samples - (step % self.steps_per_epoch) * self.global_batch)

    def block_of(self, step: int) -> int:
        """Number of the block, counted through all epochs, in which an absolute step lies."""
        epoch, inner = divmod(step, self.steps_per_epoch)
        return epoch * self.blocks_per_epoch + inner // self._shape.block_steps

    def steps_of(self, block: int) -> range:
        """Absolute steps of a block."""
        epoch, inner = divmod(block, self.blocks_per_epoch)
        start = inner * self._shape.block_steps
        stop = min(self.steps_per_epoch, start + self._shape.block_steps)
        return range(epoch * self.steps_per_epoch + start, epoch * self.steps_per_epoch + stop)

    def global_at(self, step: int) -> Ordinals:
        """The global batch of an absolute step: int64 [B], masked slots -1. The same at every world size."""
        block = self.block_of(step)
        if self._block is None or self._block[0] != block:
            self._block = (block, self._make_block(block))
        inner = (step % self.steps_per_epoch) % self._shape.block_steps
        width = self.global_batch // self._shape.lanes
        return self._block[1][:, inner * width : (inner + 1) * width].reshape(-1)

    def rank_at(self, step: int, rank: int, world: int) -> Ordinals:
        """A rank's slice of the global batch: int64 [b], b = `slots(B, world)`."""
        return rank_slice(self.global_at(step), rank, world)

    def shards_of(self, ordinals: Ordinals) -> Ordinals:
        """Shard number of each (unmasked) ordinal."""
        return np.searchsorted(self._first, ordinals, side="right").astype(np.int64) - 1

    def rank_shards(self, block: int, rank: int, world: int, from_step: int = 0) -> list[int]:
        """Shards that a rank needs for the rest of a block (from `from_step` on), in the order of their first use."""
        steps = [s for s in self.steps_of(block) if s >= from_step]
        if not steps:
            return []
        ordinals = np.concatenate([self.rank_at(s, rank, world) for s in steps])
        shards, first_use = np.unique(self.shards_of(ordinals[ordinals >= 0]), return_index=True)
        return [int(s) for s in shards[np.argsort(first_use, kind="stable")]]

    def _epoch_order(self, epoch: int) -> tuple[Ordinals, Ordinals]:
        """(shards in this epoch's order, position at which each of them begins + the end)."""
        if self._epoch is None or self._epoch[0] != epoch:
            lengths = np.diff(self._runs)
            if self._shuffle:
                keys = [_shard_key(self.seed, epoch, name) for name in self._names]
                order = np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)
            else:
                order = np.arange(len(lengths), dtype=np.int64)
            self._epoch = (epoch, order, np.r_[0, np.cumsum(lengths[order])].astype(np.int64))
        return self._epoch[1], self._epoch[2]

    def _make_block(self, block: int) -> Ordinals:
        """Ordinals of one block, int64 [lanes, steps of the block x B / lanes], masked slots -1."""
        epoch, inner = divmod(block, self.blocks_per_epoch)
        lanes, width = self._shape.lanes, self.global_batch // self._shape.lanes
        start = inner * self._shape.block_steps * width
        length = len(self.steps_of(block)) * width
        if not self._shuffle:
            # Manifest order: the lanes are the columns of one long run.
            flat = inner * self._shape.block_steps * self.global_batch + np.arange(lanes * length, dtype=np.int64)
            flat = self._ordinals(epoch, np.where(flat < self.samples, flat, -1))
            return flat.reshape(-1, lanes, width).transpose(1, 0, 2).reshape(lanes, length)
        lane = np.arange(lanes + 1, dtype=np.int64)
        begins = lane * self.samples // lanes
        positions = begins[:-1, None] + start + np.arange(length, dtype=np.int64)[None, :]
        inside = positions < begins[1:, None]
        keys = _hashes(_seed64("block", self.seed, epoch, inner), positions.astype(np.uint64))
        keys[~inside] = np.uint64(2**64 - 1)  # slots past a lane's end stay at its end: the tail is masked, not scattered
        positions[~inside] = -1
        shuffled = np.take_along_axis(positions, np.argsort(keys, axis=1, kind="stable"), axis=1)
        return self._ordinals(epoch, shuffled)

    def _ordinals(self, epoch: int, positions: Ordinals) -> Ordinals:
        """Positions in the epoch's run of shards -> ordinals in the manifest (-1 stays -1)."""
        order, begins = self._epoch_order(epoch)
        at = np.clip(np.searchsorted(begins, positions, side="right") - 1, 0, len(order) - 1)
        run = self._runs[order[at]] + (positions - begins[at])
        run = np.where(positions < 0, 0, run)
        found = run if self._selected is None else self._selected[run]
        return np.where(positions < 0, -1, found)


def sampler_for(
    manifest: ShardManifest,
    *,
    seed: int,
    global_batch: int,
    shuffle: bool = True,
    only: Sequence[int] | Ordinals | None = None,
    lanes: int = 0,
) -> Sampler:
    """The sampler of a packed split: selection, shape and order from the manifest. Raises ConfigError, DataError.

    `only`: ordinals to visit, such as `select_shots` gives; None = all.
    """
    selected: Ordinals | None = None
    if only is not None:
        selected = np.unique(np.array(only, dtype=np.int64))
        if len(selected) and not 0 <= selected[0] <= selected[-1] < manifest.samples:
            raise DataError(f"Samples up to {selected[-1]} were asked of a split that has {manifest.samples}.")
    samples = manifest.samples if selected is None else len(selected)
    largest = max((s.size for s in manifest.shards), default=0)
    shape = shape_for(samples=samples, size=manifest.size, largest_shard=largest, global_batch=global_batch, lanes=lanes)
    if not shuffle:
        # In manifest order a block is about a shard: the reader lets go of it as soon as it is read.
        shape = Shape(1, max(1, samples // (global_batch * max(1, len(manifest.shards)))))
    names = [s.name for s in manifest.shards]
    return Sampler(names, manifest.counts, seed=seed, global_batch=global_batch, shape=shape, shuffle=shuffle, selected=selected)


def slots(global_batch: int, world: int) -> int:
    """b: slots of a rank's slice, the same on every rank."""
    return -(-global_batch // world)


def rank_slice(batch: Ordinals, rank: int, world: int) -> Ordinals:
    """Rank `rank`'s fixed slice of a global batch, padded with masked slots to `slots(...)`."""
    share = slots(len(batch), world)
    own = batch[rank * share : (rank + 1) * share]
    padded = np.full(share, -1, np.int64)
    padded[: len(own)] = own
    return padded


def validation_steps(samples: int, global_batch: int, world: int) -> int:
    """Batches of a validation, the same number on every rank."""
    share = -(-samples // world)
    return -(-share // slots(global_batch, world))


def validation_at(samples: int, global_batch: int, step: int, rank: int, world: int) -> Ordinals:
    """A rank's validation batch: int64 [b], b = `slots(...)`, masked slots -1.

    Each rank reads one contiguous run: the ranks' runs in a row are manifest order, and each rank fetches its own part only.
    """
    share, width = -(-samples // world), slots(global_batch, world)
    at = step * width + np.arange(width, dtype=np.int64)
    ordinals = rank * share + at
    return np.where((at < share) & (ordinals < samples), ordinals, -1)


def validation_valid(samples: int, global_batch: int, step: int, world: int) -> int:
    """Unmasked slots of a validation step over all ranks."""
    share, width = -(-samples // world), slots(global_batch, world)
    held = np.clip(samples - np.arange(world, dtype=np.int64) * share, 0, share)  # samples of each rank's run
    return int(np.clip(held - step * width, 0, width).sum())


def _shard_key(seed: int, epoch: int, name: bytes) -> bytes:
    # The name breaks ties of equal digests, which makes the order total.
    return blake2b(b"%d\0%d\0%b" % (seed, epoch, name), digest_size=16).digest() + name


def _seed64(*parts: object) -> int:
    text = "\0".join(str(p) for p in parts).encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little")


def _hashes(seed: int, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64 of each value under a seed: a bijection of uint64, so keys of one block never collide."""
    with np.errstate(over="ignore"):
        x = (values + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
