"""Where things lie in the store.

runs/<run>/ledger/<seq>          entries (store/log.py)
runs/<run>/beat/<epoch>          heartbeat of an epoch: liveness only, never safety
runs/<run>/forecast              what was foreseen when the run began, for people (report/forecast.py)
runs/<run>/inbox/<id>            pause, resume and cancel requests
runs/<run>/attempts/<attempt>/…  what attempts write (store/artifacts.py)
results/<job key>                create-only pointer to a committed attempt: the cache across runs
"""

from __future__ import annotations

from atlas_dist.core.keys import check_name


def ledger(run: str) -> str:
    """Prefix of the run's entries."""
    return f"runs/{check_name(run, 'run name')}/ledger"


def beat(run: str, epoch: int) -> str:
    """The heartbeat of an epoch."""
    return f"runs/{check_name(run, 'run name')}/beat/{epoch}"


def forecast(run: str) -> str:
    """What was foreseen when the run began."""
    return f"runs/{check_name(run, 'run name')}/forecast"


def inbox(run: str) -> str:
    """Prefix of requests to the run's coordinator."""
    return f"runs/{check_name(run, 'run name')}/inbox"


def attempt(run: str, attempt_id: str) -> str:
    """Prefix of everything that one attempt writes."""
    return f"runs/{check_name(run, 'run name')}/attempts/{check_name(attempt_id, 'attempt')}"


def result(job: str) -> str:
    """The pointer to a committed result of a job, by whichever run."""
    return f"results/{check_name(job, 'job key')}"
