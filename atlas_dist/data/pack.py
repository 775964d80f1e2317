"""Raw data set -> WebDataset tars + manifest, in parallel, resumable, deterministic.

The converter lists every record first; the list is shuffled with a seed (shards of one class would make poor batches) and cut
into shards. Each shard is a job of its own: read, resize, write, upload, then leave a note `_pack/<recipe>/<shard>.json` beside
the split. A pack that was killed finds the notes of its own recipe and skips those shards. The manifest is written last, and only
when every shard is in place, so a split either has a true manifest or none.

Jobs run through `map_fn`, by default a thread pool (decoding and encoding release the GIL). Anything with that signature does: a
process pool or Ray, as long as the store pickles.
"""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from atlas_dist.core.keys import digest_of
from atlas_dist.core.manifest import PART_BYTES, ShardInfo, ShardManifest
from atlas_dist.core.sampling import shuffled
from atlas_dist.data.images import stored_form
from atlas_dist.data.manifest import MANIFEST, read_manifest, split_prefix, write_manifest
from atlas_dist.data.sample import RawSample, dump_json
from atlas_dist.data.shardfile import PackedSample, write_shard
from atlas_dist.data.source import Source
from atlas_dist.data.tasks import converter
from atlas_dist.data.tasks.base import RawSet
from atlas_dist.errors import ConfigError, DataError, MissingObject
from atlas_dist.store.objects import ObjectStore

NOTE_CAP = 16 << 20
FORM = 1
"""Raise when the bytes that a recipe gives change, so that an old pack's notes are not continued."""


@dataclass(frozen=True)
class ShardJob:
    """One shard to write: the samples `first`, `first + 1`, … of the split's packed order."""

    name: str
    first: int
    samples: tuple[RawSample, ...]


@dataclass(frozen=True)
class ShardTarget:
    """Where and how shards are written; the same for every job of a pack."""

    store: ObjectStore
    prefix: str
    source: Source
    recipe: str
    image_size: int
    part_bytes: int


@dataclass(frozen=True)
class ShardDone:
    """A finished shard: what the manifest says of it, the records it had to leave out, and whether an earlier pack had done
    it."""

    info: ShardInfo
    unreadable: tuple[tuple[str, str], ...]
    reused: bool


@dataclass(frozen=True)
class PackReport:
    """What a pack did: the manifest, the records left out as (id, reason), and how many shards an earlier, killed pack had
    done."""

    manifest: ShardManifest
    unreadable: tuple[tuple[str, str], ...]
    reused_shards: int


MapFn = Callable[[Callable[[ShardJob], ShardDone], Iterable[ShardJob]], Iterator[ShardDone]]
"""Runs a function over jobs, in parallel, and yields the results in the order of the jobs."""


def run_pack(
    converter_name: str,
    source: Path | None,
    store: ObjectStore,
    dataset: str,
    split: str,
    *,
    options: Mapping[str, Any] | None = None,
    image_size: int = 0,
    shard_samples: int = 1024,
    seed: int = 0,
    workers: int = 2,
    max_unreadable: float = 0.01,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    map_fn: MapFn | None = None,
    part_bytes: int = PART_BYTES,
) -> PackReport:
    """Pack one split of a raw data set into `<dataset>/<split>/` of `store`. Packing the same again does nothing.

    Args:
        converter_name: see `data.tasks.CONVERTERS`.
        source: folder or .zip of the raw data set (None for those that bring their own).
        options: the converter's options.
        image_size: images larger than this are stored as squares of this side; 0 = stored as they are.
        shard_samples: samples a shard.
        seed: of the order in which samples are put into shards.
        max_unreadable: share of records that may be unreadable; beyond it nothing is published.
        overwrite: replace a split that was packed in another way.
        progress: called with (shards done, shards in all).
        map_fn: how jobs run in parallel; None = `workers` threads.

    Raises:
        ConfigError: converter, split or options do not exist.
        DataError: the raw data is missing or damaged, too many records are unreadable, or the split exists with other content.
    """
    if shard_samples < 1 or workers < 1:
        raise ConfigError(f"shard_samples is {shard_samples}, workers is {workers}.", fix="Both must be at least 1.")
    raw = converter(converter_name).run(source, split, dict(options or {}))
    recipe = _recipe(raw, image_size, shard_samples, seed, part_bytes)
    prefix = split_prefix(dataset, split)
    if (existing := _existing(store, dataset, split, recipe, overwrite)) is not None:
        return PackReport(existing, raw.left_out, len(existing.shards))
    if not raw.samples:
        raise DataError(f"{converter_name} found no usable record for {split!r} ({len(raw.left_out)} left out).")

    order = shuffled(len(raw.samples), seed)
    jobs = [
        ShardJob(f"{number:06d}.tar", first, tuple(raw.samples[i] for i in order[first : first + shard_samples]))
        for number, first in enumerate(range(0, len(order), shard_samples))
    ]
    target = ShardTarget(store, prefix, raw.source, recipe, image_size, part_bytes)
    done: list[ShardDone] = []
    for result in (map_fn or _threads(workers))(partial(pack_shard, target), jobs):
        done.append(result)
        if progress is not None:
            progress(len(done), len(jobs))

    unreadable = tuple(record for shard in done for record in shard.unreadable)
    _refuse_too_many(unreadable, len(raw.samples), max_unreadable)
    shards = tuple(shard.info for shard in done if shard.info.samples)
    manifest = ShardManifest(dataset, split, raw.kind, raw.images, raw.classes, shards, part_bytes, recipe)
    write_manifest(store, manifest)
    for job in jobs:
        store.delete(_note_key(target, job))
    return PackReport(manifest, raw.left_out + unreadable, sum(shard.reused for shard in done))


def pack_shard(target: ShardTarget, job: ShardJob) -> ShardDone:
    """Write one shard and its note, or find that an earlier pack of this recipe did. Safe to repeat, at any place at any time."""
    if (done := _read_note(target, job)) is not None:
        return done
    unreadable: list[tuple[str, str]] = []

    def readable() -> Iterator[PackedSample]:
        for offset, sample in enumerate(job.samples):
            try:
                images = [stored_form(target.source.read(name), target.image_size) for name in sample.images]
            except DataError as error:
                unreadable.append((sample.id, f"{'+'.join(sample.images)}: {error}"))
                continue
            numbered = len(images) > 1
            members = [(f"{i}.{ext}" if numbered else ext, content) for i, (ext, content) in enumerate(images)]
            yield PackedSample(f"{job.first + offset:09d}", (*members, ("json", dump_json(sample))), sample.index_label)

    with tempfile.TemporaryDirectory(prefix="atlas-pack-") as folder:
        path = Path(folder) / job.name
        info = write_shard(path, job.name, readable(), target.part_bytes)
        target.store.put_file(target.prefix + job.name, path)
    done = ShardDone(info, tuple(unreadable), reused=False)
    target.store.put(_note_key(target, job), _dump_note(done))
    return done


def _threads(workers: int) -> MapFn:
    def run(work: Callable[[ShardJob], ShardDone], jobs: Iterable[ShardJob]) -> Iterator[ShardDone]:
        pool = ThreadPoolExecutor(workers, thread_name_prefix="atlas-pack")
        try:
            yield from pool.map(work, jobs)
        finally:
            # After an error or Ctrl-C the shards not yet begun are dropped; a later pack continues with them.
            pool.shutdown(cancel_futures=True)

    return run


def _recipe(raw: RawSet, image_size: int, shard_samples: int, seed: int, part_bytes: int) -> str:
    """Digest of all that the shards' bytes depend on, except the pixels."""
    records = [(s.id, s.texts, s.images, s.label, sorted(s.targets.items())) for s in raw.samples]
    return digest_of([FORM, raw.kind, raw.images, raw.classes, image_size, shard_samples, seed, part_bytes, records])


def _existing(store: ObjectStore, dataset: str, split: str, recipe: str, overwrite: bool) -> ShardManifest | None:
    """The manifest when this very pack is finished; None when there is work to do. Raises DataError when another pack's is
    there."""
    key = split_prefix(dataset, split) + MANIFEST
    try:
        store.stat(key)
    except MissingObject:
        return None
    if not overwrite:
        manifest = read_manifest(store, dataset, split)
        if manifest.recipe == recipe:
            return manifest
        raise DataError(
            f"{key} exists with other content ({manifest.samples} samples, {manifest.digest[:12]}).",
            fix="Pack under another data set name, or pass overwrite to replace it.",
        )
    store.delete(key)  # first, so that no manifest ever describes shards that are being replaced
    return None


def _refuse_too_many(unreadable: tuple[tuple[str, str], ...], records: int, share: float) -> None:
    if len(unreadable) > share * records:
        shown = "; ".join(f"{name} ({reason})" for name, reason in unreadable[:5])
        raise DataError(
            f"{len(unreadable)} of {records} records cannot be read, more than {share:.1%}: {shown}.",
            fix="Complete the raw data (finished shards are kept), or raise max_unreadable. No manifest was written.",
        )


def _note_key(target: ShardTarget, job: ShardJob) -> str:
    return f"{target.prefix}_pack/{target.recipe[:32]}/{job.name}.json"


def _dump_note(done: ShardDone) -> bytes:
    info = done.info
    labels = base64.b64encode(info.labels).decode()
    body = {"info": [info.name, info.size, info.samples, info.sha256, info.crc32c, labels], "unreadable": done.unreadable}
    return json.dumps(body).encode()


def _read_note(target: ShardTarget, job: ShardJob) -> ShardDone | None:
    """What an earlier, killed pack of the same recipe left of this shard; None unless both note and shard are whole."""
    try:
        body = json.loads(target.store.get(_note_key(target, job), limit=NOTE_CAP))
        name, size, samples, sha256, crc32c, labels = body["info"]
        if target.store.stat(target.prefix + job.name).size != size or body["unreadable"]:
            return None  # an unreadable record gets another chance: the user may have completed the raw data
    except (MissingObject, ValueError, KeyError, TypeError):
        return None
    return ShardDone(ShardInfo(name, size, samples, sha256, tuple(crc32c), base64.b64decode(labels)), (), reused=True)
