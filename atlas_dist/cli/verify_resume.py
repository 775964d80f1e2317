"""`atlas-dist verify-resume`."""

from __future__ import annotations

from atlas_dist.app.show import standard_console
from atlas_dist.app.verify_resume import Blow, verify_resume


def show_verified(overrides: list[str] | None, *, kills: int, seed: int) -> None:
    """Kill processes of a run, and print what came of it. Raises as `verify_resume`."""
    console = standard_console()

    def tell(news: float | Blow) -> None:
        if isinstance(news, Blow):
            console.print(f"killed the {news.part.value} during {news.job}")
        else:
            console.print(f"undisturbed run: {news:.0f} s")

    blows = verify_resume(*(overrides or ()), kills=kills, seed=seed, tell=tell)
    console.print(f"{len(blows)} processes killed; every file of every job has the same hash as in the undisturbed run")
