"""What a run no longer needs, and what its bank could do without."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atlas_dist.app.composed import Settings, compose_run
from atlas_dist.app.process import restored_process
from atlas_dist.bank.contents import read_bank, runs_of
from atlas_dist.bank.package import export_bank, require_new
from atlas_dist.bank.prune import Allowance, Scorer, Step, as_record, prune, recorded_scores
from atlas_dist.bank.prune_page import PAGE_FILE, curve_files
from atlas_dist.bank.verify import rescoring_context
from atlas_dist.bank.weights import load_weights
from atlas_dist.clock import SystemClock
from atlas_dist.coordinator.collect import Remains, Survey, collect, survey
from atlas_dist.errors import ConfigError
from atlas_dist.runs.stores import shards_if_there


def free_run(
    *settings: Settings,
    delete: bool = False,
    older_than_s: float = 0.0,
    begin: Callable[[str], None] = lambda run: None,
    freed: Callable[[Remains], None] = lambda remains: None,
) -> Survey:
    """What attempts of a run left behind that nothing can use; deleted only where that is asked for.

    Args:
        settings: as for `run`. older_than_s: seconds since anything was recorded of an attempt.
        begin: hears the run's name before anything is deleted. freed: hears of each attempt when it is gone.

    Raises:
        ConfigError: there is no such run. FencedError: it has a coordinator at work. StoreError: the store is in trouble.
    """
    composed_run = compose_run(*settings)
    store, run, clock = composed_run.store, composed_run.config.run, SystemClock()
    if run not in (known := runs_of(store)):
        raise ConfigError(f"There is no run {run} in {store.url}.", fix=f"Set run=… to one of: {', '.join(known) or 'none'}.")
    if not delete:
        return survey(store, run, clock, older_than_s=older_than_s)
    begin(run)
    return collect(store, run, clock, lambda: uuid.uuid4().hex, older_than_s=older_than_s, tell=freed)


@dataclass(frozen=True)
class WholeBank:
    """A bank before anything is left out."""

    tasks: tuple[str, ...]
    size: int
    """Bytes of its tensors."""


@dataclass(frozen=True)
class PruneStep:
    """A bank on the way to a smaller one."""

    dropped: str
    """The task whose adapter the step left out; "" = the whole bank."""
    step: Step
    allowed: bool
    """By the budget."""


@dataclass(frozen=True)
class PruneProgress:
    """How far a round is."""

    done: int
    of: int
    evaluations: int
    """Of all rounds so far."""


@dataclass(frozen=True)
class Pruned:
    """What was left of a bank, written as an exported one."""

    record: Mapping[str, Any]
    """`prune.json`: the whole curve, by names."""
    dropped: tuple[str, ...]
    evaluated: int
    reused: int
    """Scores that the ledger had."""
    folder: Path
    page: Path


def prune_bank(
    folder: Path,
    *settings: Settings,
    budget: Allowance,
    tasks: Sequence[str] = (),
    fresh: bool = False,
    tell: Callable[[WholeBank | PruneStep | PruneProgress], None] = lambda news: None,
) -> Pruned:
    """Find adapters that a bank could do without, by leave-one-out, and write what is left. The store is not altered.

    Args:
        folder: must not exist yet. settings: as for `run`. tasks: only these and what they see; () = all.
        fresh: score everything again; take nothing from the ledger. tell: hears how it goes.

    Raises:
        ConfigError: there is no such run or task. DataError: the folder holds something, a file is damaged, or backbone or shards
            are not those that a task was learnt with.
    """
    require_new(folder)
    composed_run = compose_run(*settings)
    config, store = composed_run.config, composed_run.store
    with restored_process():
        bank = read_bank(store, config.run)
        weights = load_weights(store, bank, tasks, shards=shards_if_there(config))
        names = {key: weights.name_of(key) for key in weights.tasks}
        known = {} if fresh else recorded_scores(bank)
        scorer = Scorer(rescoring_context(config, weights, weights.first), weights, known)
        tell(WholeBank(tuple(names.values()), weights.size))
        found = prune(
            weights,
            budget,
            scorer,
            lambda step: tell(PruneStep(weights.name_of(step.dropped) if step.dropped else "", step, budget.allows(step))),
            lambda done, of: tell(PruneProgress(done, of, scorer.evaluated)),
        )
        record = as_record(found, weights, scorer)
        smaller = weights.without(found.dropped, found.steps[-1].scores)
        export_bank(store, bank, smaller, folder, record, extra=curve_files(record))
    return Pruned(record, tuple(record["dropped"]), scorer.evaluated, scorer.reused, folder, folder / PAGE_FILE)
