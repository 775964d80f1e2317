"""A small run, really learnt, once for all tests: the four toy tasks on random weights, with the ledger a coordinator writes."""

from __future__ import annotations

import atexit
import fcntl
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from atlas_dist.bank.contents import Bank, read_bank
from atlas_dist.clock import SystemClock
from atlas_dist.config import RunConfig
from atlas_dist.coordinator.expand import specification_of_rows
from atlas_dist.core.attempts import CommittedRef
from atlas_dist.core.keys import digest_of
from atlas_dist.core.plan import Plan
from atlas_dist.core.records import Begin, Commit, Dispatch, Elect, Finish
from atlas_dist.runs import layout
from atlas_dist.runs.results import point_to, read_pointers
from atlas_dist.store.log import RecordLog
from atlas_dist.store.objects import ObjectStore
from atlas_dist.store.settle import DEFAULT_PATIENCE
from tests.kits.stage import Bench, pack_toys, toy_config, toy_words


@dataclass(frozen=True)
class Toys:
    """The learnt run: where it lies, how it was configured, what its jobs left."""

    folder: Path
    config: RunConfig
    bench: Bench
    words: tuple[str, ...]

    @property
    def store(self) -> ObjectStore:
        return self.bench.context.store

    @property
    def plan_keys(self) -> tuple[str, ...]:
        return tuple(self.bench.plan.jobs)

    @property
    def bank(self) -> Bank:
        return read_bank(self.store, self.config.run)


@cache
def toys(*words: str) -> Toys:
    """Pack, learn and record, or find what another process of these tests has learnt. Nobody may change it: copy it first
    (`copied`)."""
    folder = _shared() / f"toys-{digest_of(list(words))[:16]}"
    folder.mkdir(exist_ok=True)
    learnt = folder / "learnt"
    with _alone(folder / "lock"):
        config = toy_config(folder, *words)
        if not learnt.exists():
            pack_toys(config, samples=64)
        bench = Bench(config)
        if learnt.exists():
            known = read_pointers(bench.context.store, bench.plan.jobs)
            bench.done = {key: known[key].ref for key in bench.plan.jobs}
        else:
            for job in bench.plan.jobs.values():
                bench.learn(job)
            write_ledger(bench.context.store, config, bench.plan, bench.done)
            learnt.touch()
    return Toys(folder, config, bench, toy_words(folder, *words))


@cache
def _shared() -> Path:
    """A folder that all processes of these tests have in common (tests/conftest.py), and that goes away with them."""
    if "ATLAS_TESTS_SHARED" in os.environ:
        return Path(os.environ["ATLAS_TESTS_SHARED"])
    own = Path(tempfile.mkdtemp(prefix="atlas-toys-"))
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    return own


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One process at a time; the lock of a process that dies goes with it."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def copied(learnt: Toys, folder: Path) -> tuple[str, ...]:
    """A copy that a test may damage; its words."""
    shutil.copytree(learnt.folder, folder / "toys", ignore=shutil.ignore_patterns("lock", "learnt"))
    return tuple(word.replace(str(learnt.folder), str(folder / "toys")) for word in learnt.words)


def write_ledger(
    store: ObjectStore, config: RunConfig, plan: Plan, done: Mapping[str, CommittedRef], spec: Mapping[str, Any] | None = None
) -> None:
    """What a coordinator would have recorded."""
    ids = itertools.count()
    log = RecordLog(store, layout.ledger(config.run), writer="w", clock=SystemClock(), new_id=lambda: str(next(ids)))
    spec = spec or specification_of_rows({"": config}, plan)
    log.append(0, Begin(config.run, digest_of(spec), plan.digest, spec))
    log.append(1, Elect("first"))
    for ref in done.values():
        log.append(1, Dispatch(ref.job, ref.attempt, ref.prefix, "pool", "ready"))
        log.append(1, Commit(ref.job, ref.attempt, ref.prefix, ref.blobs, ref.metrics))
        point_to(store, config.run, ref, SystemClock(), DEFAULT_PATIENCE)
    log.append(1, Finish("every job is committed"))
