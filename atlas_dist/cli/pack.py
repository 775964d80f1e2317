"""`atlas-dist shards …`: raw data sets to shards, and a look at what is there."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.status import Status
from rich.table import Table

from atlas_dist.compose import compose_config
from atlas_dist.config import PackOn, RunConfig, TaskConfig
from atlas_dist.core.types import TaskKind
from atlas_dist.data.decode import longer_than
from atlas_dist.data.leftout import SHOWN, LeftOut, by_reason, shown
from atlas_dist.data.manifest import read_manifest
from atlas_dist.data.pack import MapFn, run_pack
from atlas_dist.data.tasks import CONVERTERS
from atlas_dist.errors import ConfigError, DataError
from atlas_dist.model.backbone import Backbone
from atlas_dist.runs.stores import open_shards
from atlas_dist.store import ObjectStore
from atlas_dist.train.context import configured_backbone


def pack_experiment(overrides: Sequence[str], console: Console) -> None:
    """Pack both splits of every task that says how; finished splits are recognised and left alone.

    Raises:
        ConfigError: no task says how to be packed. DataError: raw data are missing or too much of them is unreadable.
    """
    config = compose_config(overrides)
    tasks = {name: task for name, task in config.tasks.items() if task.raw is not None}
    if not tasks:
        raise ConfigError("No task of this configuration has a `raw` section.", fix="Add tasks.NAME.raw.converter=…")
    backbone = configured_backbone(config)
    with _mapping(config) as map_fn:
        # Workers have working folders of their own.
        config = config.at(Path.cwd()) if map_fn is not None else config
        store = open_shards(config)
        for name, task in tasks.items():
            for split in (task.data.train, task.data.val):
                _pack_split(config, name, task, split, store, backbone, map_fn, console)
            _say_unlearnt(store, task, console)
        console.print(f"Shards: {store.url}")


@contextmanager
def _mapping(config: RunConfig) -> Iterator[MapFn | None]:
    """How shards are made side by side; None = threads of this process."""
    if config.pack.on is PackOn.HERE:
        yield None
        return
    from atlas_dist.cli.words import hush
    from atlas_dist.coordinator.ray_env import before_ray

    hush()
    before_ray(config.cluster)
    from atlas_dist.coordinator.ray_pack import packers

    with packers(config) as map_fn:
        yield map_fn


def _pack_split(
    config: RunConfig,
    name: str,
    task: TaskConfig,
    split: str,
    store: ObjectStore,
    backbone: Backbone,
    map_fn: MapFn | None,
    console: Console,
) -> None:
    raw = task.raw
    assert raw is not None
    options = raw.options | (raw.train_options if split == task.data.train else raw.val_options)
    source = Path(config.raw_root).resolve() / raw.source if raw.source else None
    if source is not None and not source.exists():
        raise DataError(
            f"tasks.{name}.raw.source: there is no {source}.", fix="Set raw_root=… to the folder that holds the raw data."
        )
    with console.status(f"packing {task.data.dataset}/{split}: listing its records") as status:
        report = run_pack(
            raw.converter,
            source,
            store,
            task.data.dataset,
            split,
            options=options,
            image_size=backbone.image_size,
            workers=config.pack.threads,
            splits=(task.data.train, task.data.val),
            max_bad=config.pack.max_bad,
            overwrite=config.pack.overwrite,
            progress=_Teller(f"packing {task.data.dataset}/{split}", status, console),
            map_fn=map_fn,
            long_texts=partial(longer_than, backbone.tokenizer, task.max_text),
        )
    manifest = report.manifest
    note = f", {len(report.left_out)} left out" if report.left_out else ""
    note += f", {report.reused_shards} shards were there" if report.reused_shards else ""
    console.print(
        f"packed {task.data.dataset}/{split}: {manifest.samples} samples, {len(manifest.classes)} classes, "
        f"{len(manifest.shards)} shards, {manifest.size / 1e6:.1f} MB{note}"
    )
    _print_left_out(report.left_out, report.notes, console)


def _say_unlearnt(store: ObjectStore, task: TaskConfig, console: Console) -> None:
    """Name the classes that no training sample shows."""
    manifest = read_manifest(store, task.data.dataset, task.data.train)
    labels = manifest.labels()
    if labels is None or manifest.kind not in (TaskKind.SINGLE, TaskKind.PAIR):
        return
    missing = sorted(set(range(len(manifest.classes))) - set(labels.tolist()))
    if missing:
        names = ", ".join(shown(manifest.classes[label]) for label in missing[:10])
        console.print(
            f"  note: no training sample of {len(missing)} of {len(manifest.classes)} classes: {names}",
            markup=False,
            soft_wrap=True,
        )


class _Teller:
    """Says how far a split is: on a terminal all the time, in a log every so often."""

    EVERY_S = 10.0

    def __init__(self, what: str, status: Status, console: Console) -> None:
        self.what, self.status, self.console = what, status, console
        self.began = self.said = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        rate = done / max(1e-9, now - self.began)
        text = f"{self.what}: {done} of {total} shards, about {(total - done) / rate:.0f} s left"
        self.status.update(text)
        if not self.console.is_terminal and now - self.said >= self.EVERY_S and done < total:
            self.console.print(text)
            self.said = now


def list_shards(overrides: Sequence[str], console: Console) -> None:
    """Print the splits that an experiment needs, and which are there."""
    config = compose_config(overrides)
    store = open_shards(config)
    table = Table(title=f"Shards in {store.url}", title_justify="left")
    for column in ("split", "kind", "samples", "classes", "shards", "MB", "digest"):
        table.add_column(column)
    for dataset, split in _splits(config):
        try:
            m = read_manifest(store, dataset, split)
        except DataError:
            table.add_row(f"{dataset}/{split}", "missing")
            continue
        size, digest = f"{m.size / 1e6:.1f}", m.digest[:12]
        table.add_row(f"{dataset}/{split}", m.kind.value, str(m.samples), str(len(m.classes)), str(len(m.shards)), size, digest)
    console.print(table)


def verify_shards(overrides: Sequence[str], console: Console) -> None:
    """Re-read everything. Raises DataError when any part is damaged."""
    from atlas_dist.data.inspect import run_verify, unlabelled

    config = compose_config(overrides)
    store = open_shards(config)
    damaged = 0
    for dataset, split in _splits(config):
        faults = run_verify(store, dataset, split)
        damaged += len(faults)
        console.print(f"{dataset}/{split}: {'whole' if not faults else f'{len(faults)} damaged'}")
        without = unlabelled(read_manifest(store, dataset, split))
        if without:
            console.print(f"  note: {without} samples have no label; training masks them")
        for fault in faults:
            console.print(f"  {fault.shard} {fault.where}: {fault.reason}", markup=False)
    if damaged:
        raise DataError(
            f"{damaged} parts are damaged.", fix="Pack those splits again, or copy them again from where they are whole."
        )


def index_shards(dataset: str, split: str, kind: TaskKind, overrides: Sequence[str], console: Console) -> None:
    """Write a manifest for tars that are in place."""
    from atlas_dist.data.inspect import run_index

    config = compose_config(overrides)
    found = run_index(open_shards(config), dataset, split, kind)
    m = found.manifest
    console.print(
        f"indexed {dataset}/{split}: {m.samples} samples in {len(m.shards)} shards, {len(m.classes)} classes, "
        f"{m.images} images a sample, digest {m.digest[:12]}"
    )
    _print_left_out(found.left_out, found.notes, console)


def _print_left_out(left_out: Iterable[LeftOut], notes: Iterable[str], console: Console) -> None:
    """Each reason with its count and its first records, then what is odd."""
    for reason, entries in by_reason(left_out).items():
        console.print(f"  left out {len(entries)}: {reason}", markup=False, soft_wrap=True)
        for entry in entries[:SHOWN]:
            console.print(f"    {entry.record}{f': {entry.detail}' if entry.detail else ''}", markup=False, soft_wrap=True)
    for sentence in notes:
        console.print(f"  note: {sentence}", markup=False, soft_wrap=True)


def list_converters(console: Console) -> None:
    """Print every raw format with what it makes."""
    for name, converter in sorted(CONVERTERS.items()):
        console.print(f"[bold]{name}[/bold]  {converter.about}  options: {', '.join(converter.options.model_fields) or 'none'}")


def _splits(config: RunConfig) -> Iterator[tuple[str, str]]:
    for task in config.tasks.values():
        yield task.data.dataset, task.data.train
        yield task.data.dataset, task.data.val
