"""`atlas-dist shards …`: a look at what is packed, and manifests for what others packed; packing itself is app/pack.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table

from atlas_dist.app.show import show_left_out
from atlas_dist.compose import compose_config
from atlas_dist.config import RunConfig
from atlas_dist.core.types import TaskKind
from atlas_dist.data.manifest import read_manifest
from atlas_dist.data.tasks import CONVERTERS
from atlas_dist.errors import DataError
from atlas_dist.runs.stores import open_shards


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
    """Re-read everything. Raises DataError when a split is missing or any part is damaged."""
    from atlas_dist.data.inspect import run_verify
    from atlas_dist.data.look import look_at_task

    config = compose_config(overrides)
    store = open_shards(config)
    damaged, unusable, fix = 0, 0, ""
    for task in config.tasks.values():
        for look in look_at_task(store, task.data.dataset, tuple(task.data.splits), task.kind):
            faults = run_verify(store, *look.name.split("/")) if look.manifest else ()
            damaged += len(faults)
            if faults:
                console.print(f"{look.name}: {len(faults)} damaged", markup=False)
            elif look.fault:
                unusable, fix = unusable + 1, fix or look.fix
                console.print(f"{look.name}: {look.fault}", markup=False, soft_wrap=True)
            else:
                console.print(f"{look.name}: whole ({look.about})", markup=False)
            for note in look.notes:
                console.print(f"  note: {note}", markup=False, soft_wrap=True)
            for fault in faults:
                console.print(f"  {fault.shard} {fault.where}: {fault.reason}", markup=False, soft_wrap=True)
    if damaged:
        raise DataError(
            f"{damaged} parts are damaged.", fix="Pack those splits again, or copy them again from where they are whole."
        )
    if unusable:
        raise DataError(f"{unusable} splits cannot be used.", fix=fix)


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
    show_left_out(found.left_out, found.notes, console)


def list_converters(console: Console) -> None:
    """Print every raw format with what it makes."""
    for name, converter in sorted(CONVERTERS.items()):
        console.print(f"[bold]{name}[/bold]  {converter.about}  options: {', '.join(converter.options.model_fields) or 'none'}")


def _splits(config: RunConfig) -> Iterator[tuple[str, str]]:
    for task in config.tasks.values():
        yield from ((task.data.dataset, split) for split in task.data.splits)
