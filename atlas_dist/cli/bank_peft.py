"""`atlas-dist bank export --format …`: folders for PEFT."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

from atlas_dist.app.show import standard_console


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
