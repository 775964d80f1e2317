"""`atlas-dist bank export --format …`, and what `bank import`, `ls` and `show` say of adapters that PEFT made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table
from rich.text import Text

from atlas_dist.app.show import standard_console
from atlas_dist.core.keys import SHORT
from atlas_dist.errors import ConfigError

if TYPE_CHECKING:
    from atlas_dist.bank.contents import Bank, ImportedEntry


class ExportForm(StrEnum):
    """What `bank export` writes."""

    BANK = "bank"
    """The bank as one folder, for atlas-dist."""
    PEFT = "peft"
    """Each task's own LoRA adapter."""
    PEFT_TASK = "peft-task"
    """What each task makes of all adapters that it reads, as one."""


def write_peft(folder: Path, settings: Sequence[str], tasks: Sequence[str], *, whole: bool) -> None:
    """Write the folders and say how PEFT loads them. Errors as `app.bank.export_peft`."""
    from atlas_dist.app.bank import export_peft

    written, without = export_peft(folder, *settings, tasks=tasks, whole=whole)
    out = standard_console()
    for name, place in written.items():
        out.print(f"{name}: PeftModel.from_pretrained(backbone, {str(place)!r})", markup=False, soft_wrap=True)
    if without:
        out.print(
            f"without an adapter of their own: {', '.join(without)}; --format peft-task writes what they use", soft_wrap=True
        )


def import_adapter(folder: Path, settings: Sequence[str], *, task: str, name: str, by: str) -> None:
    """Import a LoRA adapter and say how a run learns from it. Errors as `app.bank.import_peft`; ConfigError: no `task`."""
    from atlas_dist.app.bank import import_peft

    if not task:
        raise ConfigError(
            f"{folder} holds a LoRA adapter of PEFT, and nothing says which samples it is for.",
            fix="Pack a few hundred samples of the kind that it was trained on, and name that task: --task TASK.",
        )
    taken, out = import_peft(folder, *settings, task=task, name=name, by=by), standard_console()
    told = taken.provenance
    there = ", which had it already" if taken.was_there else ""
    out.print(
        f"{taken.name}: LoRA at {len(told.ranks)} linear layers, described by {taken.samples} samples of {task}, licence "
        f"{printable(told.licence) or 'not named'}; now in the store{there}, key {taken.key[:SHORT]}",
        markup=False,
        soft_wrap=True,
    )
    for warning in taken.warnings:
        out.print(f"note: {printable(warning)}", markup=False, soft_wrap=True)
    out.print(f"learn from it: atlas-dist run … sequence.experience=[{taken.name}]", markup=False, soft_wrap=True)


def printable(text: str) -> str:
    """Text of somebody else without what a terminal would obey."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def imported_as_json(entry: ImportedEntry) -> dict[str, Any]:
    """An imported adapter for people and programs: where it came from, under which licence, who imported it and when."""
    told = entry.provenance
    when = datetime.fromtimestamp(told.imported_at, UTC).strftime("%Y-%m-%d %H:%M:%S")
    return {
        "imported": entry.name,
        "key": entry.key,
        "licence": told.licence or "not named in its model card",
        "licence_texts": sorted(told.licence_files),
        "from": told.source,
        "commit": told.commit,
        "base_model": {"name_or_path": told.base_model, "revision": told.revision},
        "fitted_to": {**told.backbone, "digest": told.backbone_digest},
        "sha256": dict(told.files),
        "layers": len(told.ranks),
        "ranks": sorted(set(told.ranks.values())),
        "peft_version": told.config.get("peft_version", ""),
        "signature": {"dataset": told.task.dataset, told.task.train: told.task.train_digest},
        "imported_by": told.imported_by,
        "imported_at": when,
        "adopted_from": entry.adopted_from,
        "place": entry.ref.prefix,
        "texts": dict(told.texts),
        "files": [{"name": b.name, "size": b.size, "sha256": b.sha256} for b in entry.ref.blobs],
    }


def show_imported(entry: ImportedEntry, *, as_json: bool) -> None:
    """Everything that is known of an imported adapter, its licence texts whole."""
    about = imported_as_json(entry)
    if as_json:
        typer.echo(json.dumps(about, indent=1))
        return
    out = standard_console()
    for name, value in about.items():
        if name not in ("files", "texts") and value:
            shown = ", ".join(f"{k} {v}" for k, v in value.items() if v) if isinstance(value, dict) else value
            shown = ", ".join(map(str, shown)) if isinstance(shown, list) else str(shown)
            out.print(f"{name.replace('_', ' ')}: {printable(shown)}", markup=False, soft_wrap=True)
    for name, text in about["texts"].items():
        out.print(printable(f"--- {name}\n{text.rstrip()}"), markup=False, soft_wrap=True)
    for blob in entry.ref.blobs:
        out.print(f"  {blob.sha256[:16]}  {blob.size:>9}  {blob.name}", markup=False)


def imported_table(bank: Bank) -> Table:
    """The imported adapters of a bank."""
    table = Table(title=f"Imported adapters: {len(bank.imported)}", title_justify="left")
    for column in ("adapter", "licence", "base model", "from", "layers", "MB", "imported by", "key", "run"):
        table.add_column(column)
    for e in bank.imported.values():
        told, size = e.provenance, sum(blob.size for blob in e.ref.blobs) / 1e6
        cells = (
            e.name, told.licence or "not named", told.base_model or "not named", told.source, str(len(told.ranks)),
            f"{size:.1f}", told.imported_by or "–", e.key[:SHORT], e.adopted_from or "this run",
        )  # fmt: skip
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table
