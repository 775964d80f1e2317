"""Is everything fit for a run? The store's promises, the packed data of its tasks, and room on the disks."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from atlas_dist.config import RunConfig
from atlas_dist.data.look import look_at_task
from atlas_dist.errors import AtlasError, DataError, StoreError
from atlas_dist.runs.stores import open_run_store, open_shards
from atlas_dist.store import ObjectStore
from atlas_dist.store.doctor import Finding, examine
from atlas_dist.store.places import Folder, parse_url

LEAST_FREE = 256 << 20
"""Bytes below which a folder has no room for a run's checkpoints."""


def examine_store(store: ObjectStore) -> list[Finding]:
    """The store's promises, tried out at length, and room where it lies. Raises AuthError."""
    return [*examine(store, new_id=lambda: uuid.uuid4().hex).findings, *room_for("the store", store.url)]


def examine_run(config: RunConfig) -> Iterator[Finding]:
    """What a run of this configuration needs, a finding after another: its store as `examine_store`, its tasks' shards (which are
    not read: `shards verify` does that), and room.

    Raises:
        AuthError, ConfigError: a store cannot be opened.
    """
    yield from examine_store(open_run_store(config))
    shards = open_shards(config)
    tasks = [name for name in config.tasks if name in _used(config)]
    for name in tasks:
        data = config.tasks[name].data
        try:
            for look in look_at_task(shards, data.dataset, tuple(data.splits), config.tasks[name].kind):
                yield Finding(f"task {name}: {look.name}", not look.fault, look.fault or look.about, look.fix)
                yield from (Finding(f"note: {look.name}", True, note) for note in look.notes)
        except StoreError as error:
            yield Finding(f"task {name}: {data.dataset}", False, error.message, error.fix)
    yield from room_for("the shards", shards.url)
    if config.shards.cache_dir:
        yield from room_for("shards.cache_dir", config.shards.cache_dir, config.shards.cache_mb << 20)


def failure(findings: list[Finding]) -> AtlasError | None:
    """What to end with; None where all is well. Trouble with the data is one of data, any other of the store."""
    failed = [finding for finding in findings if not finding.kept]
    if not failed:
        return None
    fix = next((finding.fix for finding in failed if finding.fix), "")
    kind = DataError if all(finding.promise.startswith("task ") for finding in failed) else StoreError
    return kind(f"{len(failed)} of {len(findings)} checks failed, the first: {failed[0].promise}: {failed[0].detail}.", fix=fix)


def _used(config: RunConfig) -> set[str]:
    named = {task for order in config.sequence.all_orders for task in order} | set(config.sequence.downstream)
    return named or set(config.tasks)


def room_for(what: str, url: str, wanted: int = 0) -> list[Finding]:
    """Free bytes of the disk below a folder, `wanted` of which it may come to need; nothing of a bucket."""
    try:
        place = parse_url(url)
        if not isinstance(place, Folder):
            return []
        folder = place.path.absolute()
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        free = shutil.disk_usage(folder).free
    except (OSError, AtlasError):
        return []
    said = f"{free / 1e9:.1f} GB are free below {Path(folder)}"
    if free < LEAST_FREE:
        return [Finding(f"room for {what}", False, said, "Free some space there, or name a folder on another disk.")]
    if free < wanted:
        said += f"; it may take {wanted / 1e9:.1f} GB and stays smaller (shards.cache_mb)"
    return [Finding(f"room for {what}", True, said)]
