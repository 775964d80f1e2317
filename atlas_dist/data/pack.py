"""Raw data set -> WebDataset tars + manifest, in parallel, resumable, deterministic.

The converter lists every record first; the list is shuffled with a seed (shards of one class would make poor batches) and cut
into shards. Each shard is a job of its own: read, resize, write, upload, then leave a note `_pack/<recipe>/<shard>.json` beside
the split. A pack that was killed finds the notes of its own recipe and skips those shards. The manifest is written last, and only
when every shard is in place, so a split either has a true manifest or none.

A pack also remembers which pictures it saw (`_pack/pictures.json`): packing again finds out when they have changed since.

Jobs run through `map_fn`, by default a thread pool (decoding and encoding release the GIL). Anything with that signature does: a
process pool or Ray, as long as the store pickles.
"""

from __future__ import annotations

import base64
import json
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from atlas_dist.core.keys import digest_of
from atlas_dist.core.manifest import PART_BYTES, ShardInfo, ShardManifest
from atlas_dist.core.sampling import shuffled
from atlas_dist.core.types import Resample
from atlas_dist.data.decode import ConversationPrompt
from atlas_dist.data.images import stored_form
from atlas_dist.data.leftout import LeftOut, left_out_by, summary, writable
from atlas_dist.data.manifest import MANIFEST, read_manifest, split_prefix, write_manifest
from atlas_dist.data.pictures import PictureMarks, mark_of, read_marks, stamps_of, write_marks
from atlas_dist.data.sample import RawSample, dump_json
from atlas_dist.data.shardfile import PackedSample, write_shard
from atlas_dist.data.source import Source
from atlas_dist.data.split_part import SplitPart
from atlas_dist.data.tasks import converter
from atlas_dist.data.tasks.base import RawSet
from atlas_dist.data.temporary import temporary_disk
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
    resample: Resample = Resample.BICUBIC


@dataclass(frozen=True)
class ShardDone:
    """A finished shard: what the manifest says of it, the records it had to leave out, marks of the pictures it read, and
    whether an earlier pack had done it."""

    info: ShardInfo
    unreadable: tuple[LeftOut, ...]
    marks: bytes
    reused: bool


@dataclass(frozen=True)
class PackReport:
    """What a pack did: the manifest, what was left out, what is odd (a sentence each), and how many shards an earlier, killed
    pack had done."""

    manifest: ShardManifest
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]
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
    resample: Resample = Resample.BICUBIC,
    shard_samples: int = 1024,
    seed: int = 0,
    workers: int = 2,
    splits: tuple[str, ...] = (),
    part: SplitPart | None = None,
    max_bad: float = 0.01,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    map_fn: MapFn | None = None,
    long_texts: Callable[[Sequence[tuple[str, ...]]], list[int]] | None = None,
    long_answers: Callable[[Sequence[str]], list[int]] | None = None,
    asked: ConversationPrompt | None = None,
    part_bytes: int = PART_BYTES,
) -> PackReport:
    """Pack one split of a raw data set into `<dataset>/<split>/` of `store`. Packing the same again does nothing.

    Args:
        converter_name: see `data.tasks.CONVERTERS`.
        source: folder or .zip of the raw data set (None for those that bring their own).
        options: the converter's options.
        image_size: images larger than this are stored as squares of this side; 0 = stored as they are.
        resample: how they become that.
        shard_samples: samples a shard.
        seed: of the order in which samples are put into shards.
        splits: all splits of the task; see `Converter.run`.
        part: of which of the converter's splits this one is a part; None = the converter makes it.
        max_bad: share of records and files that may be unusable; beyond it nothing is published.
        overwrite: replace a split that was packed in another way or of other pictures.
        progress: called with (shards done, shards in all).
        map_fn: how jobs run in parallel; None = `workers` threads.
        long_texts: numbers of those of some texts that training would cut; None = not counted.
        long_answers: the same of answers that are written.
        asked: how training puts a question behind the turns before it; None = not looked at.

    Raises:
        ConfigError: converter, split or options do not exist.
        DataError: the raw data is missing or damaged, too many records are unusable, or the split exists with other content.
    """
    if shard_samples < 1 or workers < 1:
        raise ConfigError(f"shard_samples is {shard_samples}, workers is {workers}.", fix="Both must be at least 1.")
    raw = converter(converter_name).run(source, part.of if part else split, dict(options or {}), splits)
    raw = part.taken(raw) if part else raw
    recipe = _recipe(raw, image_size, resample, shard_samples, seed, part_bytes)
    prefix = split_prefix(dataset, split)
    by_rule = tuple(LeftOut(writable(record), reason, bad=False) for record, reason in raw.left_out)
    if not raw.samples:
        raise DataError(f"{converter_name} found no usable record for {split!r} ({len(by_rule) + len(raw.bad)} left out).")
    notes = raw.notes + (_cut(raw.samples, long_texts) if long_texts is not None else ())
    notes += _cut_answers(raw.samples, long_answers) if long_answers is not None else ()
    notes += _cut_turns(raw.samples, asked) if asked is not None else ()
    if (existing := _existing(store, dataset, split, recipe, raw, overwrite)) is not None:
        return PackReport(existing, by_rule + raw.bad, notes, len(existing.shards))
    stamps = stamps_of(raw.source, raw.samples) if raw.images else ""
    order = shuffled(len(raw.samples), seed)
    jobs = [
        ShardJob(f"{number:06d}.tar", first, tuple(raw.samples[i] for i in order[first : first + shard_samples]))
        for number, first in enumerate(range(0, len(order), shard_samples))
    ]
    target = ShardTarget(store, prefix, raw.source, recipe, image_size, part_bytes, resample)
    done: list[ShardDone] = []
    for result in (map_fn or _threads(workers))(partial(pack_shard, target), jobs):
        done.append(result)
        if progress is not None:
            progress(len(done), len(jobs))

    bad = raw.bad + tuple(record for shard in done for record in shard.unreadable)
    _refuse_too_many(bad, len(raw.samples) + len(raw.bad), max_bad)
    shards = tuple(shard.info for shard in done if shard.info.samples)
    manifest = ShardManifest(dataset, split, raw.kind, raw.images, raw.classes, shards, part_bytes, recipe)
    if raw.images:
        write_marks(store, prefix, PictureMarks(recipe, stamps, b"".join(d.marks for d in done), seed))
    write_manifest(store, manifest)
    for job in jobs:
        store.delete(_note_key(target, job))
    return PackReport(manifest, by_rule + bad, notes, sum(shard.reused for shard in done))


def pack_shard(target: ShardTarget, job: ShardJob) -> ShardDone:
    """Write one shard and its note, or find that an earlier pack of this recipe did. Safe to repeat, at any place at any time."""
    if (done := _read_note(target, job)) is not None:
        return done
    unreadable: list[LeftOut] = []
    marks: list[bytes] = []

    def readable() -> Iterator[PackedSample]:
        for offset, sample in enumerate(job.samples):
            marks.append(mark_of(b""))
            try:
                contents = [target.source.read(name) for name in sample.images]
                marks[-1] = mark_of(*contents)
                images = [stored_form(content, target.image_size, target.resample) for content in contents]
            except DataError as error:
                unreadable.append(left_out_by(sample.id, error, "+".join(sample.images)))
                continue
            numbered = len(images) > 1
            members = [(f"{i}.{ext}" if numbered else ext, content) for i, (ext, content) in enumerate(images)]
            yield PackedSample(f"{job.first + offset:09d}", (*members, ("json", dump_json(sample))), sample.index_label)

    stamps = stamps_of(target.source, job.samples)  # before they are read: a change meanwhile is seen the next time
    with ExitStack() as open_folders:
        with temporary_disk(f"{target.prefix}{job.name}"):
            folder = open_folders.enter_context(tempfile.TemporaryDirectory(prefix="atlas-pack-"))
            path = Path(folder) / job.name
            info = write_shard(path, job.name, readable(), target.part_bytes)
        target.store.put_file(target.prefix + job.name, path)
    done = ShardDone(info, tuple(unreadable), b"".join(marks), reused=False)
    target.store.put(_note_key(target, job), _dump_note(done, stamps))
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


def _recipe(raw: RawSet, image_size: int, resample: Resample, shard_samples: int, seed: int, part_bytes: int) -> str:
    """Digest of all that the shards' bytes depend on, except the pixels."""
    records = [
        (writable(s.id), s.texts, [writable(name) for name in s.images], s.label, sorted(s.targets.items()))
        + ((s.answer,) if s.answer else ())
        + ((s.earlier,) if s.earlier else ())
        for s in raw.samples
    ]
    size = image_size if resample is Resample.BICUBIC else [image_size, resample]  # what was packed before keeps its digest
    return digest_of([FORM, raw.kind, raw.images, raw.classes, size, shard_samples, seed, part_bytes, records])


def _existing(store: ObjectStore, dataset: str, split: str, recipe: str, raw: RawSet, overwrite: bool) -> ShardManifest | None:
    """The manifest when this very pack is finished; None when there is work to do. Raises DataError when another pack's is
    there, or this one's of other pictures."""
    prefix = split_prefix(dataset, split)
    try:
        store.stat(prefix + MANIFEST)
    except MissingObject:
        return None
    try:
        manifest = read_manifest(store, dataset, split)
        if manifest.recipe != recipe:
            raise DataError(
                f"{prefix}{MANIFEST} exists with other content ({manifest.samples} samples, {manifest.digest[:12]}).",
                fix=_REPLACE,
            )
        if _seen(store, prefix, recipe, raw) or not overwrite:
            return manifest
    except DataError:
        if not overwrite:
            raise
    store.delete(prefix + MANIFEST)  # first, so that no manifest ever describes shards that are being replaced
    return None


_REPLACE = (
    "Add pack.overwrite=true to replace it (runs that learnt from it then find other data), or pack under another name: "
    "tasks.NAME.data.dataset=…"
)


def _seen(store: ObjectStore, prefix: str, recipe: str, raw: RawSet) -> bool:
    """Whether it is known that the pictures are what they were; not of what was packed before marks were kept.

    Raises:
        DataError: pictures hold other bytes than when they were packed.
    """
    marks = read_marks(store, prefix)
    if not raw.images or marks is None or marks.recipe != recipe:
        return not raw.images
    stamps = stamps_of(raw.source, raw.samples)
    if stamps == marks.stamps:
        return True
    changed = marks.changed(raw.source, [raw.samples[i] for i in shuffled(len(raw.samples), marks.seed)])
    if changed:
        raise DataError(
            f"{len(changed)} pictures of {prefix.rstrip('/')} have changed since it was packed: {', '.join(changed[:5])}.",
            fix=_REPLACE,
        )
    write_marks(store, prefix, PictureMarks(recipe, stamps, marks.marks, marks.seed))
    return True


def _refuse_too_many(bad: tuple[LeftOut, ...], records: int, share: float) -> None:
    if len(bad) > share * records:
        enough = math.ceil(len(bad) / records * 1000) / 1000
        raise DataError(
            f"{len(bad)} of {records} records cannot be used, more than pack.max_bad={share:g}: {summary(bad)}.",
            fix=f"Complete the data (finished shards are kept), or allow it: pack.max_bad={enough}. No manifest was written.",
        )


def _cut(samples: Sequence[RawSample], long_texts: Callable[[Sequence[tuple[str, ...]]], list[int]]) -> tuple[str, ...]:
    """A sentence about the records whose texts training would cut, if there are any."""
    texts = list({text: None for sample in samples for text in sample.texts})
    too_long = {texts[n] for at in range(0, len(texts), 10_000) for n in (at + k for k in long_texts(texts[at : at + 10_000]))}
    records = [sample.id for sample in samples if not too_long.isdisjoint(sample.texts)] if too_long else []
    if not records:
        return ()
    count = f"{len(records)} of {len(samples)} records"
    return (f"{count} have a text of more tokens than max_text: they will be cut (first: {records[0]})",)


def _cut_answers(samples: Sequence[RawSample], long_answers: Callable[[Sequence[str]], list[int]]) -> tuple[str, ...]:
    """A sentence about the records whose answers training would cut, if there are any."""
    found: list[str] = []
    for at in range(0, len(samples), 10_000):
        part = samples[at : at + 10_000]
        found += [part[number].id for number in long_answers([sample.answer for sample in part])]
    if not found:
        return ()
    count = f"{len(found)} of {len(samples)} records"
    return (f"{count} have an answer of more tokens than max_new_tokens: they will be cut (first: {found[0]})",)


def _cut_turns(samples: Sequence[RawSample], asked: ConversationPrompt) -> tuple[str, ...]:
    """A sentence about the records that training would not show all earlier turns of, if there are any."""
    found = [s.id for s in samples if len(asked.kept(s.texts[0][0], s.earlier)) < len(s.earlier)]
    if not found:
        return ()
    count = f"{len(found)} of {len(samples)} records"
    return (f"{count} have earlier turns of more tokens than max_text: the oldest will be left out (first: {found[0]})",)


def _note_key(target: ShardTarget, job: ShardJob) -> str:
    return f"{target.prefix}_pack/{target.recipe[:32]}/{job.name}.json"


def _dump_note(done: ShardDone, stamps: str) -> bytes:
    info = done.info
    labels, marks = base64.b64encode(info.labels).decode(), base64.b64encode(done.marks).decode()
    body = {
        "info": [info.name, info.size, info.samples, info.sha256, info.crc32c, labels],
        "unreadable": len(done.unreadable),
        "stamps": stamps,
        "marks": marks,
    }
    return json.dumps(body).encode()


def _read_note(target: ShardTarget, job: ShardJob) -> ShardDone | None:
    """What an earlier, killed pack of the same recipe left of this shard; None unless both note and shard are whole and its
    pictures are what they were."""
    try:
        body = json.loads(target.store.get(_note_key(target, job), limit=NOTE_CAP))
        name, size, samples, sha256, crc32c, labels = body["info"]
        if target.store.stat(target.prefix + job.name).size != size or body["unreadable"]:
            return None  # an unreadable record gets another chance: the user may have completed the raw data
        if body["stamps"] != stamps_of(target.source, job.samples):
            return None
        marks = base64.b64decode(body["marks"])
    except (MissingObject, ValueError, KeyError, TypeError):
        return None
    return ShardDone(ShardInfo(name, size, samples, sha256, tuple(crc32c), base64.b64decode(labels)), (), marks, reused=True)
