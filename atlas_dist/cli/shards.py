"""`atlas-dist shards …`: pack data, look at what is packed, and index what others packed."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from atlas_dist.app.show import show_left_out, standard_console
from atlas_dist.cli.words import Overrides
from atlas_dist.core.types import TaskKind

shards_app = typer.Typer(help="Pack, check and list the data as WebDataset shards.", no_args_is_help=True)


@shards_app.command("pack")
def pack(overrides: Overrides = None) -> None:
    """Pack every task of an experiment that has a `raw` section; what is packed already is left alone."""
    from atlas_dist.app.pack import pack as pack_tasks

    pack_tasks(*(overrides or ()))


@shards_app.command("ls")
def ls(overrides: Overrides = None) -> None:
    """List the shard sets of an experiment."""
    from atlas_dist.app.shards import list_shards

    found = list_shards(*(overrides or ()))
    table = Table(title=f"Shards in {found.store}", title_justify="left")
    for column in ("split", "kind", "samples", "classes", "shards", "MB", "digest"):
        table.add_column(column)
    for split in found.splits:
        if (m := split.manifest) is None:
            table.add_row(split.name, "missing")
            continue
        size, digest = f"{m.size / 1e6:.1f}", m.digest[:12]
        table.add_row(split.name, m.kind.value, str(m.samples), str(len(m.classes)), str(len(m.shards)), size, digest)
    standard_console().print(table)


@shards_app.command("verify")
def verify(overrides: Overrides = None) -> None:
    """Re-read every shard of an experiment and name every damaged part."""
    from atlas_dist.app.shards import verify_shards

    console = standard_console()
    for split in verify_shards(*(overrides or ())):
        look = split.look
        said = f"{len(split.faults)} damaged" if split.faults else look.fault or f"whole ({look.about})"
        console.print(f"{look.name}: {said}", markup=False, soft_wrap=True)
        for note in look.notes:
            console.print(f"  note: {note}", markup=False, soft_wrap=True)
        for fault in split.faults:
            console.print(f"  {fault.shard} {fault.where}: {fault.reason}", markup=False, soft_wrap=True)


@shards_app.command("index")
def index(
    dataset: Annotated[str, typer.Argument(help="Folder of the data set below the shards URL")],
    split: Annotated[str, typer.Argument(help="Split whose tars are indexed")],
    kind: Annotated[TaskKind, typer.Option(help="What its samples are")] = TaskKind.SINGLE,
    overrides: Overrides = None,
) -> None:
    """Make a manifest for ordinary WebDataset tars that are already in place."""
    from atlas_dist.app.shards import index_shards

    found, console = index_shards(dataset, split, kind, *(overrides or ())), standard_console()
    m = found.manifest
    console.print(
        f"indexed {dataset}/{split}: {m.samples} samples in {len(m.shards)} shards, {len(m.classes)} classes, "
        f"{m.images} images a sample, digest {m.digest[:12]}"
    )
    show_left_out(found.left_out, found.notes, console)


@shards_app.command("converters")
def converters() -> None:
    """List the raw data set formats that can be packed."""
    from atlas_dist.data.tasks import CONVERTERS

    console = standard_console()
    for name, converter in sorted(CONVERTERS.items()):
        console.print(f"[bold]{name}[/bold]  {converter.about}  options: {', '.join(converter.options.model_fields) or 'none'}")
