"""Runs of one store or several on one page, read from their ledgers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from atlas_dist.app.composed import compose_run
from atlas_dist.app.process import restored_process
from atlas_dist.bank.contents import read_bank, runs_of
from atlas_dist.config import RunConfig
from atlas_dist.coordinator.recall import recall
from atlas_dist.errors import ConfigError
from atlas_dist.report.facts import gather, is_of, of_row
from atlas_dist.report.measures import compare, measure
from atlas_dist.report.side_by_side import Side, brief, cautions, differences, write_side_by_side
from atlas_dist.runs.status import load_run
from atlas_dist.runs.stores import open_run_store, shards_if_there
from atlas_dist.store import ObjectStore, StoreOptions, open_store


@dataclass(frozen=True)
class SideBySide:
    """Runs beside one another, written."""

    page: Path
    brief: tuple[tuple[str, str, str, str], ...]
    """Of each method of each run: run, method, average accuracy, forgetting."""
    cautions: tuple[str, ...]
    """Why some of it may not be comparable, as sentences."""
    differing: int
    """Settings and data sets that differ."""


def compare_runs(*words: str, folder: Path) -> SideBySide:
    """Gather the runs that `words` name (those without `=`; the others are settings) and write the page. Of a sweep each row is a
    side of its own.

    Args:
        words: `RUN` of the configured store; `STORE#RUN` of another one; `STORE#`, where it has one run only; `key=value`.

    Raises:
        ConfigError: fewer than two sides, or a run that is not there. DataError: a run cannot be laid out again.
    """
    config = compose_run(*(word for word in words if "=" in word)).config
    with restored_process():
        found = [(word, *_found(config, word)) for word in words if "=" not in word]
        runs = [run for _, _, run in found]
        sides = [side for word, store, run in found for side in _sides(config, store, run, run if runs.count(run) == 1 else word)]
        if len(sides) < 2:
            raise ConfigError(
                f"compare needs two runs or more; it was given {len(sides)}.",
                fix="atlas-dist compare RUN RUN, or STORE#RUN for a run of another store (a folder or s3://…).",
            )
        page = write_side_by_side(sides, folder)
        return SideBySide(page, tuple(brief(sides)), tuple(cautions(sides)), len(differences(sides)))


def _sides(config: RunConfig, store: ObjectStore, run: str, name: str) -> list[Side]:
    """The run, or each row of it where it is a sweep."""
    bank = read_bank(store, run)
    state, entries = load_run(store, run)
    known = {learnt.task.name: learnt.task for learnt in bank.learnt.values()}
    backbone = next((learnt.base.digest for learnt in bank.learnt.values()), "")
    plan = recall(state, known, backbone, shards_if_there(config))
    facts, measures = gather(plan, state, store, entries), measure(plan, state)
    if "rows" not in state.spec:
        return [Side(name, facts, compare(measures))]
    return [
        Side(f"{name} {row}", of_row(facts, plan, row), compare(m for m in measures if is_of(m.variant, row)))
        for row in state.spec["rows"]
    ]


def _found(config: RunConfig, word: str) -> tuple[ObjectStore, str]:
    """The store and the run that a word names."""
    url, separate, run = word.rpartition("#")
    if not separate:
        return open_run_store(config), word
    store = open_store(url, options=StoreOptions(config.store.endpoint_url, config.store.region))
    known = runs_of(store)
    if not run and len(known) != 1:
        raise ConfigError(f"{url} has {len(known)} runs.", fix=f"Say which: {', '.join(f'{url}#{r}' for r in known) or 'none'}.")
    return store, run or known[0]
