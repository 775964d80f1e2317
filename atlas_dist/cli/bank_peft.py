"""`atlas-dist bank export --format …`: folders for PEFT."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from atlas_dist.app.show import standard_console

if TYPE_CHECKING:
    from atlas_dist.bank.weights import BankWeights


class ExportForm(StrEnum):
    """What `bank export` writes."""

    BANK = "bank"
    """The bank as one folder, for atlas-dist."""
    PEFT = "peft"
    """Each task's own LoRA adapter."""
    PEFT_TASK = "peft-task"
    """What each task makes of all adapters that it reads, as one."""


def write_peft(weights: BankWeights, folder: Path, *, whole: bool) -> None:
    """Write the folders and say how PEFT loads them. Errors as `export_peft`."""
    from atlas_dist.bank.peft_folders import PeftContent, export_peft

    written = export_peft(weights, folder, PeftContent.TASK if whole else PeftContent.ADAPTER)
    out = standard_console()
    for name, place in written.items():
        out.print(f"{name}: PeftModel.from_pretrained(backbone, {str(place)!r})", markup=False, soft_wrap=True)
    without = [task.learnt.name for task in weights.tasks.values() if task.learnt.name not in written]
    if without:
        out.print(
            f"without an adapter of their own: {', '.join(without)}; --format peft-task writes what they use", soft_wrap=True
        )
