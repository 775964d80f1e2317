"""What can be done with shards besides streaming: index ordinary tars, verify packed ones, list what there is.

All of it reads shards into memory, one a thread; nothing is unpacked to disk.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from atlas_dist.core.manifest import PART_BYTES, ShardInfo, ShardManifest
from atlas_dist.core.types import TaskKind
from atlas_dist.data import tarwalk
from atlas_dist.data.crc import crc32c
from atlas_dist.data.fetch import PartFetcher
from atlas_dist.data.images import decode_picture
from atlas_dist.data.leftout import LeftOut, shown, summary
from atlas_dist.data.manifest import read_manifest, split_prefix, write_manifest
from atlas_dist.data.sample import EXTENSIONS, PACKED_EXTENSIONS, Sample, index_label, parse_sample
from atlas_dist.data.shardlist import shards_in
from atlas_dist.data.source import is_quiet
from atlas_dist.errors import AtlasError, DataError, StoreError
from atlas_dist.store.objects import ObjectInfo, ObjectStore

Job = TypeVar("Job")
Result = TypeVar("Result")

_PACKED = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zXZ", "xz"),
    (b"BZh", "bzip2"),
    (b"PK\3\4", "zip"),
    (b"\x04\x22\x4d\x18", "lz4"),
)

Progress = Callable[[int, int], None]
"""Called with (shards done, shards in all)."""


@dataclass(frozen=True)
class Indexed:
    """What indexing found: the manifest, what was left out (members that are no part of a sample, files that are no tars), and
    what is odd, a sentence each."""

    manifest: ShardManifest
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _ShardFound:
    info: ShardInfo
    images: dict[int, str]
    """How many images a sample has -> the first that has so many."""
    texts: dict[int, str]
    """The same of texts."""
    unlabelled: tuple[str, ...]
    left_out: tuple[LeftOut, ...]
    repeated: tuple[str, ...]
    """Keys that stand more than once."""
    twins: tuple[str, ...]
    """Keys with several pictures that have no number."""
    hashes: NDArray[np.int64]
    """Of its keys, to find those that other tars have too."""


@dataclass(frozen=True)
class Damage:
    """One thing that is wrong with a shard: `where` is "part 3 (bytes 12582912-16777215)", a sample key, or "shard"."""

    shard: str
    where: str
    reason: str


def run_index(
    store: ObjectStore,
    dataset: str,
    split: str,
    kind: TaskKind,
    classes: tuple[str, ...] = (),
    *,
    workers: int = 2,
    tries: int = 8,
    part_bytes: int = PART_BYTES,
    progress: Progress | None = None,
) -> Indexed:
    """Make and publish the manifest of ordinary WebDataset tars that lie in `<dataset>/<split>/`, in the order of their names.

    Args:
        kind: what the samples are (ordinary tars do not say).
        classes: class names by label; () = the numbers 0 … the largest label found.

    Raises:
        DataError: there is no tar, one is damaged, cut, compressed or unsorted, no sample is found, or samples differ in how many
            images they have.
    """
    prefix = split_prefix(dataset, split)
    found, beside = shards_in(store, prefix)
    shards: list[_ShardFound] = []
    for shard in _parallel(partial(_index_shard, store, prefix, part_bytes, tries), found, workers):
        shards.append(shard)
        if progress is not None:
            progress(len(shards), len(found))
    left_out = (*beside, *(entry for shard in shards for entry in shard.left_out))
    infos = tuple(shard.info for shard in shards)
    images = {count: first for shard in reversed(shards) for count, first in shard.images.items()}
    if not images:
        raise DataError(
            f"{store.url}/{prefix} holds no sample{f': {summary(left_out)}' if left_out else ': its tars are empty'}.",
            fix="A member is KEY.jpg, KEY.txt, KEY.cls or KEY.json, with no other dot in the file name.",
        )
    if len(images) != 1:
        has = "; ".join(f"{first} has {count}" for count, first in sorted(images.items()))
        raise DataError(
            f"Samples of {prefix} have {sorted(images)} images; all must have the same number ({has}).",
            fix="Complete those samples or take them out of the tars, then index again.",
        )
    _refuse_another_kind(kind, next(iter(images)), {n: first for shard in reversed(shards) for n, first in shard.texts.items()})
    highest = max((int(info.label_array().max(initial=-1)) for info in infos), default=-1)
    names = classes or tuple(str(n) for n in range(highest + 1))
    manifest = ShardManifest(dataset, split, kind, next(iter(images)), names, infos, part_bytes)
    write_manifest(store, manifest)
    return Indexed(manifest, left_out, _notes(manifest, shards))


def _refuse_another_kind(kind: TaskKind, images: int, texts: dict[int, str]) -> None:
    """Raises DataError: the samples cannot be of this kind."""
    if kind is TaskKind.PAIR and images != 2:
        raise DataError(
            f"The samples have {images} images; those of --kind pair have two.",
            fix="Name the members KEY.0.jpg and KEY.1.jpg, or give the --kind that the samples are of.",
        )
    if kind is TaskKind.CHOICE and (len(texts) > 1 or min(texts) < 2):
        has = "; ".join(f"{first} has {count}" for count, first in sorted(texts.items()))
        raise DataError(
            f"Samples of --kind choice have a text for each choice, all the same number ({has}).",
            fix='Write them into KEY.json: {"texts": [["question", "choice"], …], "label": 0}.',
        )


def unlabelled(manifest: ShardManifest) -> int:
    """Samples without the label that the manifest's kind needs: training masks them. 0 where none is needed."""
    labels = manifest.labels()
    return int((labels < 0).sum()) if manifest.kind.labelled and labels is not None else 0


def _notes(manifest: ShardManifest, shards: list[_ShardFound]) -> tuple[str, ...]:
    notes = []
    without = [key for shard in shards for key in shard.unlabelled]
    if without and manifest.kind.labelled:
        notes.append(
            f"{len(without)} of {manifest.samples} samples have no label (first: {shown(without[0])}); training masks them"
        )
    empty = [shard.info.name for shard in shards if not shard.info.samples]
    if empty:
        notes.append(f"{len(empty)} tars hold no sample: {', '.join(map(shown, empty[:3]))}")
    twice = [key for shard in shards for key in shard.repeated]
    if twice:
        notes.append(f"{len(twice)} keys stand more than once (first: {shown(twice[0])}); each is a sample")
    if among := _shared(shards):
        count, name = among
        notes.append(f"{count} keys stand in more than one tar (again in {shown(name)}); each is a sample")
    firsts = {shard.info.sha256: shard.info.name for shard in reversed(shards) if shard.info.samples}
    copies = [shard.info for shard in shards if firsts.get(shard.info.sha256, shard.info.name) != shard.info.name]
    notes += [f"{shown(i.name)} holds the same bytes as {shown(firsts[i.sha256])}: its samples count twice" for i in copies]
    twins = [key for shard in shards for key in shard.twins]
    if twins:
        notes.append(
            f"{len(twins)} samples have several pictures without a number (first: {shown(twins[0])}), all of which are read: "
            "take out what is none of the sample's own (a mask); those of a pair are KEY.0.jpg and KEY.1.jpg"
        )
    return tuple(notes)


def _shared(shards: list[_ShardFound]) -> tuple[int, str] | None:
    """How many keys more than one tar has, and the first tar that repeats one."""
    every = np.concatenate([shard.hashes for shard in shards])
    _, first = np.unique(every, return_index=True)
    ends = np.cumsum([len(shard.hashes) for shard in shards])
    repeats = np.setdiff1d(np.arange(ends[-1]), first, assume_unique=True)
    if not len(repeats):
        return None
    again = int(np.searchsorted(ends, repeats[0], side="right"))
    return len(np.unique(every[repeats])), shards[again].info.name


def run_verify(
    store: ObjectStore,
    dataset: str,
    split: str,
    *,
    workers: int = 2,
    tries: int = 4,
    decode: bool = True,
    progress: Progress | None = None,
) -> tuple[Damage, ...]:
    """Read a packed split again and name everything that is wrong with it; () when all is well.

    Args:
        decode: also decode every image.

    Raises:
        DataError: there is no readable manifest.
    """
    manifest = read_manifest(store, dataset, split)
    stop = threading.Event()
    fetcher = PartFetcher(store, manifest, tries, stop)
    damages: list[Damage] = []
    done = 0
    try:
        for found in _parallel(partial(_verify_shard, manifest, fetcher, decode), list(range(len(manifest.shards))), workers):
            damages += found
            done += 1
            if progress is not None:
                progress(done, len(manifest.shards))
    finally:
        stop.set()
    return tuple(damages)


def _parallel(work: Callable[[Job], Result], jobs: list[Job], workers: int) -> Iterator[Result]:
    pool = ThreadPoolExecutor(workers, thread_name_prefix="atlas-shards")
    try:
        yield from pool.map(work, jobs)
    finally:
        pool.shutdown(cancel_futures=True)


def _index_shard(store: ObjectStore, prefix: str, part_bytes: int, tries: int, found: ObjectInfo) -> _ShardFound:
    name = found.key[len(prefix) :]
    data = memoryview(bytearray(found.size))
    done, failures = 0, 0
    while done < found.size:
        got = store.read_range(found.key, done, data[done : done + part_bytes], if_match=found.etag)
        done += got
        failures = 0 if got else failures + 1
        if failures == tries:
            raise StoreError(f"{store.url}/{found.key} ends at byte {done} of {found.size} again and again.")
    labels: list[int] = []
    images: dict[int, str] = {}
    texts: dict[int, str] = {}
    passed_over: list[tuple[str, str]] = []
    others: list[tuple[str, str]] = []
    try:
        _refuse_compressed(data)
        index = tarwalk.group(tarwalk.members(data, others=others), EXTENSIONS, passed_over)
        repeated, twins = _repeated(index), _twins(index)
        for number, key in enumerate(index.keys):
            sample = _sample(data, index, number)
            labels.append(index_label(sample.label, sample.targets))
            images.setdefault(len(sample.images), f"{shown(key)} of {shown(name)}")
            texts.setdefault(len(sample.texts), f"{shown(key)} of {shown(name)}")
    except DataError as error:
        beside = "".join(f"; {shown(member)} is {what}" for member, what in others[:1])
        raise DataError(
            f"{store.url}/{found.key}: {error}{beside}.", fix="Replace or remove this shard, then index again."
        ) from error
    parts = tuple(crc32c(data[at : at + part_bytes]) for at in range(0, found.size, part_bytes))
    by_sample = np.array(labels, "<i4").tobytes()
    info = ShardInfo(name, found.size, len(labels), hashlib.sha256(data).hexdigest(), parts, by_sample)
    hashes = np.unique(np.fromiter(map(hash, index.keys), np.int64, len(index.keys)))
    without = tuple(key for key, label in zip(index.keys, labels, strict=True) if label < 0)
    left_out = [LeftOut(f"{shown(name)}: {shown(member)}", what) for member, what in others]
    left_out += [
        LeftOut(f"{shown(name)}: {shown(member)}", _why_passed_over(ext)) for member, ext in passed_over if not is_quiet(member)
    ]
    return _ShardFound(info, images, texts, without, tuple(left_out), repeated, twins, hashes)


def _why_passed_over(ext: str) -> str:
    known = next((end for end in EXTENSIONS if ext.lower().endswith(f".{end}")), "")
    if known:
        return f"members whose names have a dot before .{known} (an extension begins at the first dot)"
    return f"members ending in .{shown(ext)[:40]}" if ext else "members without an extension"


def _refuse_compressed(data: memoryview) -> None:
    begin = bytes(data[:6])
    found = next((what for mark, what in _PACKED if begin.startswith(mark)), None)
    if found:
        raise DataError(f"it is compressed with {found}, in spite of its name: decompress it")
    if bytes(data[:23]) == b"version https://git-lfs":
        raise DataError("it is a pointer of Git LFS, not the tar: run `git lfs pull`")
    if not data or bytes(data[:1]) == b"<":
        raise DataError("it is empty: download it again" if not data else "it is a web page, not a tar: download it again")


def _repeated(index: tarwalk.SampleIndex) -> tuple[str, ...]:
    """Keys that stand more than once, each time a whole sample. Raises DataError: their members complete each other, so the
    tar is not sorted."""
    seen: dict[str, set[str]] = {}
    repeated = []
    for number, key in enumerate(index.keys):
        own = set(index.extensions[index.first[number] : index.first[number + 1]])
        if key not in seen:
            seen[key] = own
        elif seen[key].isdisjoint(own):
            raise DataError(
                f"the tar is not sorted: the members of sample {shown(key)} do not follow each other (sort it: tar --sort=name)"
            )
        else:
            repeated.append(key)
    return tuple(repeated)


def _twins(index: tarwalk.SampleIndex) -> tuple[str, ...]:
    """Keys of samples such as KEY.jpg and KEY.png: perhaps a picture and its mask."""
    spans = zip(index.keys, index.first[:-1], index.first[1:], strict=True)
    return tuple(key for key, begin, end in spans if sum(ext in PACKED_EXTENSIONS for ext in index.extensions[begin:end]) > 1)


def _verify_shard(manifest: ShardManifest, fetcher: PartFetcher, decode: bool, number: int) -> list[Damage]:
    info = manifest.shards[number]
    data = memoryview(bytearray(info.size))
    damages: list[Damage] = []
    for part in range(len(info.crc32c)):
        begin = part * manifest.part_bytes
        out = data[begin : begin + manifest.part_bytes]
        try:
            fetcher.part(number, part, out)
        except AtlasError as error:
            damages.append(Damage(info.name, f"part {part} (bytes {begin}-{begin + len(out) - 1})", str(error)))
    if damages:
        return damages
    if hashlib.sha256(data).hexdigest() != info.sha256:
        return [Damage(info.name, "shard", "its parts match, its SHA-256 does not: the manifest is wrong")]
    try:
        index = tarwalk.samples(data, EXTENSIONS)
    except DataError as error:
        return [Damage(info.name, "shard", str(error))]
    if len(index) != info.samples:
        damages.append(Damage(info.name, "shard", f"it holds {len(index)} samples, its manifest says {info.samples}"))
    for number, key in enumerate(index.keys):
        try:
            sample = _sample(data, index, number)
            for image in sample.images if decode else ():
                decode_picture(image)
        except DataError as error:
            damages.append(Damage(info.name, key, str(error)))
    return damages


def _sample(data: memoryview, index: tarwalk.SampleIndex, number: int) -> Sample:
    try:
        return parse_sample(index.content(number, data))
    except DataError as error:
        raise DataError(f"sample {index.keys[number]}: {error}") from error
