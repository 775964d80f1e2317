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

from atlas_dist.core.manifest import PART_BYTES, ShardInfo, ShardManifest
from atlas_dist.core.types import TaskKind
from atlas_dist.data import tarwalk
from atlas_dist.data.crc import crc32c
from atlas_dist.data.fetch import PartFetcher
from atlas_dist.data.images import open_rgb
from atlas_dist.data.manifest import read_manifest, split_prefix, write_manifest
from atlas_dist.data.sample import EXTENSIONS, Sample, index_label, parse_sample
from atlas_dist.errors import AtlasError, DataError, StoreError
from atlas_dist.store.objects import ObjectInfo, ObjectStore

Job = TypeVar("Job")
Result = TypeVar("Result")

Progress = Callable[[int, int], None]
"""Called with (shards done, shards in all)."""


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
) -> ShardManifest:
    """Make and publish the manifest of ordinary WebDataset tars that lie in `<dataset>/<split>/`, in the order of their names.

    Args:
        kind: what the samples are (ordinary tars do not say).
        classes: class names by label; () = the numbers 0 … the largest label found.

    Raises:
        DataError: there is no tar, one is damaged or cut, or samples differ in how many images they have.
    """
    prefix = split_prefix(dataset, split)
    found = [o for o in store.list(prefix) if o.key.endswith(".tar") and "/" not in o.key[len(prefix) :]]
    if not found:
        raise DataError(
            f"There is no .tar in {store.url}/{prefix}.", fix="Name the data set and split whose folder holds the tars."
        )
    images: set[int] = set()
    infos: list[ShardInfo] = []
    work = partial(_index_shard, store, prefix, part_bytes, tries)
    for info, counts in _parallel(work, found, workers):
        infos.append(info)
        images |= counts
        if progress is not None:
            progress(len(infos), len(found))
    if len(images) != 1:
        raise DataError(f"Samples of {prefix} have {sorted(images)} images; all must have the same number.")
    highest = max((int(info.label_array().max(initial=-1)) for info in infos), default=-1)
    names = classes or tuple(str(n) for n in range(highest + 1))
    manifest = ShardManifest(dataset, split, kind, images.pop(), names, tuple(infos), part_bytes)
    write_manifest(store, manifest)
    return manifest


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


def _index_shard(store: ObjectStore, prefix: str, part_bytes: int, tries: int, found: ObjectInfo) -> tuple[ShardInfo, set[int]]:
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
    images: set[int] = set()
    try:
        index = tarwalk.samples(data, EXTENSIONS)
        for number in range(len(index)):
            sample = _sample(data, index, number)
            labels.append(index_label(sample.label, sample.targets))
            images.add(len(sample.images))
    except DataError as error:
        raise DataError(f"{store.url}/{found.key}: {error}.", fix="Replace or remove this shard, then index again.") from error
    parts = tuple(crc32c(data[at : at + part_bytes]) for at in range(0, found.size, part_bytes))
    by_sample = np.array(labels, "<i4").tobytes()
    return ShardInfo(name, found.size, len(labels), hashlib.sha256(data).hexdigest(), parts, by_sample), images


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
                open_rgb(image)
        except DataError as error:
            damages.append(Damage(info.name, key, str(error)))
    return damages


def _sample(data: memoryview, index: tarwalk.SampleIndex, number: int) -> Sample:
    try:
        return parse_sample(index.content(number, data))
    except DataError as error:
        raise DataError(f"sample {index.keys[number]}: {error}") from error
