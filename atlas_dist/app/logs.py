"""What was decided in a run, and what its processes said, as far as the store has kept it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from atlas_dist.app.composed import ComposedRun, Settings, compose_run
from atlas_dist.core.ledger import Entry
from atlas_dist.core.records import Cancel, Finish
from atlas_dist.errors import AtlasError, ConfigError
from atlas_dist.runs.status import load_run
from atlas_dist.runs.stores import open_ledger
from atlas_dist.store.attempt_logs import DRIVER, names, read_tails

POLL_S = 2.0


@dataclass(frozen=True)
class Decisions:
    """Entries of a run's ledger, oldest first."""

    entries: tuple[Entry, ...]
    labels: Mapping[str, str]
    """Job key -> what people call it; {} where the shards are out of reach."""


def read_decisions(*settings: Settings, last: int = 0, follow: bool = False, many: bool = False) -> Iterator[Decisions]:
    """The newest `last` entries of the ledger (0 = all), and with `follow` those that come, until the run ends.

    Raises:
        ConfigError: there is no such run. DataError, StoreError: its ledger cannot be read.
    """
    composed_run = compose_run(*settings, many=many)
    log = open_ledger(composed_run.store, composed_run.config.run)
    entries = log.read_new()
    if not entries:
        raise composed_run.no_such_run()
    labels = _labels(composed_run)
    yield Decisions(tuple(entries[-last:]), labels)  # [-0:] is all
    while follow and not isinstance(entries[-1].record, Finish | Cancel):
        time.sleep(POLL_S)
        more = log.read_new()
        yield Decisions(tuple(more), labels)
        entries = more or entries


@dataclass(frozen=True)
class KeptLog:
    """The newest lines of one process of a run."""

    attempt: str
    """Or `driver`."""
    name: str
    label: str
    """Of the attempt's job; "" = a driver's, or not known."""
    lines: tuple[str, ...]


def read_kept_logs(
    *settings: Settings, attempt: str = "", driver: bool = False, last: int = 0, many: bool = False
) -> Iterator[KeptLog]:
    """What is kept of the attempts whose id begins with `attempt`, or whose job's label has it in it; or of the drivers.

    Args:
        last: the newest so many lines of each process; 0 = all that was kept.

    Raises:
        ConfigError: nothing is kept of such an attempt; it says of which ones there is.
    """
    composed_run = compose_run(*settings, many=many)
    config, store = composed_run.config, composed_run.store
    kept = names(store, config.run)
    labels = {} if driver else _labels(composed_run)
    state, _ = load_run(store, config.run)
    called = {owner: labels.get(state.attempts.get(owner, ""), "") for owner, _ in kept if owner != DRIVER}
    if driver:
        wanted = [(owner, name) for owner, name in kept if owner == DRIVER]
    else:
        wanted = [(o, name) for o, name in kept if o in called and (o.startswith(attempt) or attempt in called[o].split())]
    if not wanted:
        raise _nothing_kept(config.run, config.store.url, DRIVER if driver else attempt, called)
    for tail in read_tails(store, config.run, wanted):
        yield KeptLog(tail.owner, tail.name, called.get(tail.owner, ""), tuple(tail.text.splitlines()[-last:]))


def _labels(composed_run: ComposedRun) -> Mapping[str, str]:
    """Job keys as people call them; {} where the shards are out of reach: keys do as well."""
    try:
        return {key: job.label for key, job in composed_run.plan().jobs.items()}
    except AtlasError:
        return {}


def _nothing_kept(run: str, url: str, what: str, called: Mapping[str, str]) -> ConfigError:
    some = [f"{owner} ({label})" if label else owner for owner, label in list(called.items())[-5:]]
    there = f"The newest that it has: {', '.join(some)}." if some else "It has none of this run."
    return ConfigError(
        f"{url} has no log of {what} of run {run}. {there}", fix="`atlas-dist logs` names the attempts that failed."
    )
