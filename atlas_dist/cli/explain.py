"""`atlas-dist config --explain KEY`."""

from __future__ import annotations

from atlas_dist.app.explain import explain
from atlas_dist.app.show import standard_console


def show_explanation(key: str, overrides: list[str] | None) -> None:
    """Print what a setting is, what it may be, what it is now and who said so. Raises ConfigError: there is no such key."""
    found, console = explain(key, *(overrides or ())), standard_console()
    lines = [("what", found.about), ("valid", found.valid), ("default", found.default), ("now", found.now)]
    lines += [("source", found.source), ("keys", ", ".join(found.keys))]
    console.print(f"[bold]{key}[/bold]")
    for name, text in lines:
        if text:
            console.print(f"  {name:<8}", end="")
            console.print(text, markup=False, soft_wrap=True)
