"""`atlas-dist compare`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from atlas_dist.app.compare import compare_runs
from atlas_dist.app.show import standard_console


def show_compared(words: Sequence[str], folder: Path) -> None:
    """Write the page of several runs and print a summary. Raises as `compare_runs`."""
    found, console = compare_runs(*words, folder=folder), standard_console()
    out = Table()
    for column in ("run", "method", "average accuracy", "forgetting T_F"):
        out.add_column(column)
    for row in found.brief:
        out.add_row(*row)
    console.print(out)
    for sentence in found.cautions:
        console.print(sentence, markup=False, soft_wrap=True)
    console.print(f"{found.differing} settings differ\npage  {found.page}", markup=False, soft_wrap=True)
