"""`atlas-dist init`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from atlas_dist.app.init import init
from atlas_dist.app.show import standard_console


def write_experiment(experiment: str, folders: Sequence[Path], held_out: float) -> None:
    """Write the configuration of an experiment on the user's own data, and say what comes next. Raises as `init`."""
    written, console = init(experiment, folders, held_out), standard_console()
    for task in written.tasks:
        if task.note:
            console.print(task.note, markup=False)
    for file in written.files:
        console.print(f"wrote {file}")
    console.print("Next, from this folder:")
    for command in ("shards pack", "plan", "run"):
        console.print(f"  atlas-dist {command} experiment={experiment}")
