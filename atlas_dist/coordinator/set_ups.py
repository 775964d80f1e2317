"""Workers that end before they can ask for work: for how long to let Ray try again, and what to say in the end."""

from __future__ import annotations

from collections.abc import Mapping

from atlas_dist.errors import TrainingError

TRIES = 3
"""Times that a pool's workers are started before the run gives up."""


class SetUpFailures:
    """Counts the failures of each pool since it last asked for work.

    Args:
        workers: pool -> how many of its workers may fail at once.
    """

    def __init__(self, workers: Mapping[str, int]) -> None:
        self._workers = dict(workers)
        self._reasons: dict[str, list[str]] = {}

    def succeeded(self, pool: str) -> None:
        """The pool asks for work: what went wrong before is over."""
        self._reasons.pop(pool, None)

    def failed(self, pool: str, reason: str, *, final: bool) -> TrainingError | None:
        """A worker of the pool ended. The error to give up with, or None: Ray may try again.

        Args:
            reason: host, kind of error, message.
            final: another try would end the same way (a setting, data, credentials).
        """
        reasons = self._reasons.setdefault(pool, [])
        reasons.append(reason)
        # All of a group may fail alike, and each of them says so.
        if not final and len(reasons) <= (TRIES - 1) * self._workers[pool]:
            return None
        different = list(dict.fromkeys(reasons))
        return TrainingError(
            f"Workers of pool {pool} could not be set up: {'; '.join(different[:4])[:2000]}",
            fix="Mend that; the same command goes on from there.",
            retry=not final,
        )
