"""What is packed of an experiment's data, and whether it is whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from atlas_dist.app.composed import Settings, compose_run
from atlas_dist.config import RunConfig
from atlas_dist.core.manifest import ShardManifest
from atlas_dist.core.types import TaskKind
from atlas_dist.data.inspect import Damage, Indexed, run_index, run_verify
from atlas_dist.data.look import SplitLook, look_at_task
from atlas_dist.data.manifest import read_manifest
from atlas_dist.errors import DataError
from atlas_dist.runs.stores import open_shards


@dataclass(frozen=True)
class ShardSet:
    """A split that an experiment needs."""

    name: str
    """`dataset/split`"""
    manifest: ShardManifest | None
    """None = it is not there."""


@dataclass(frozen=True)
class ShardSets:
    """Every split that an experiment needs."""

    store: str
    splits: tuple[ShardSet, ...]


def list_shards(*settings: Settings) -> ShardSets:
    """Which splits there are. Raises ConfigError, StoreError: they cannot be looked for."""
    config = compose_run(*settings).config
    store, found = open_shards(config), []
    for dataset, split in _splits(config):
        try:
            manifest = read_manifest(store, dataset, split)
        except DataError:
            manifest = None
        found.append(ShardSet(f"{dataset}/{split}", manifest))
    return ShardSets(store.url, tuple(found))


@dataclass(frozen=True)
class CheckedSplit:
    """A split, every part of which was read again."""

    look: SplitLook
    """What its manifest says."""
    faults: tuple[Damage, ...]
    """Every part that is not what the manifest says."""


def verify_shards(*settings: Settings) -> Iterator[CheckedSplit]:
    """Re-read every shard, a split at a time; at the end raises DataError where a split is missing or any part is damaged."""
    config = compose_run(*settings).config
    store, damaged, unusable = open_shards(config), 0, list[str]()
    for task in config.tasks.values():
        for look in look_at_task(store, task.data.dataset, tuple(task.data.splits), task.kind):
            faults = tuple(run_verify(store, *look.name.split("/"))) if look.manifest else ()
            damaged += len(faults)
            if look.fault and not faults:
                unusable.append(look.fix)
            yield CheckedSplit(look, faults)
    if damaged:
        raise DataError(
            f"{damaged} parts are damaged.", fix="Pack those splits again, or copy them again from where they are whole."
        )
    if unusable:
        raise DataError(f"{len(unusable)} splits cannot be used.", fix=unusable[0])


def index_shards(dataset: str, split: str, kind: TaskKind, *settings: Settings) -> Indexed:
    """Write a manifest for ordinary tars that are in place. Raises as `run_index`."""
    return run_index(open_shards(compose_run(*settings).config), dataset, split, kind)


def _splits(config: RunConfig) -> Iterator[tuple[str, str]]:
    for task in config.tasks.values():
        yield from ((task.data.dataset, split) for split in task.data.splits)
