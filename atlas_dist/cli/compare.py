"""`atlas-dist compare`: runs of one store or several on one page, read from their ledgers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from atlas_dist.app.process import hush
from atlas_dist.bank.contents import read_bank, runs_of
from atlas_dist.cli.words import composed
from atlas_dist.config import RunConfig
from atlas_dist.core.types import TaskSpec
from atlas_dist.errors import ConfigError
from atlas_dist.report.side_by_side import Side, brief, cautions, differences, write_side_by_side
from atlas_dist.runs.stores import open_run_store, shards_if_there
from atlas_dist.store import ObjectStore, StoreOptions, open_store


def compare_runs(words: Sequence[str], folder: Path, console: Console) -> None:
    """Gather the runs that `words` name (those without `=`; the others are settings), write the page, print a summary. Of a sweep
    each row is a side of its own.

    Raises:
        ConfigError: fewer than two sides, or a run that is not there. DataError: a run cannot be laid out again.
    """
    named = [word for word in words if "=" not in word]
    config = composed([word for word in words if "=" in word])
    hush()
    found = [(word, *_found(config, word)) for word in named]
    runs = [run for _, _, run in found]
    sides = [side for word, store, run in found for side in _sides(config, store, run, run if runs.count(run) == 1 else word)]
    if len(sides) < 2:
        raise ConfigError(
            f"compare needs two runs or more; it was given {len(sides)}.",
            fix="atlas-dist compare RUN RUN, or STORE#RUN for a run of another store (a folder or s3://…).",
        )
    page = write_side_by_side(sides, folder)
    out = Table()
    for column in ("run", "method", "average accuracy", "forgetting T_F"):
        out.add_column(column)
    for row in brief(sides):
        out.add_row(*row)
    console.print(out)
    for sentence in cautions(sides):
        console.print(sentence, markup=False, soft_wrap=True)
    console.print(f"{len(differences(sides))} settings differ\npage  {page}", markup=False, soft_wrap=True)


def _sides(config: RunConfig, store: ObjectStore, run: str, name: str) -> list[Side]:
    """The run, or each row of it where it is a sweep."""
    from atlas_dist.coordinator.recall import recall
    from atlas_dist.report.facts import gather, is_of, of_row
    from atlas_dist.report.measures import compare, measure
    from atlas_dist.runs.status import load_run

    bank = read_bank(store, run)
    state, entries = load_run(store, run)
    known: dict[str, TaskSpec] = {learnt.task.name: learnt.task for learnt in bank.learnt.values()}
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
    """`RUN` of the configured store; `STORE#RUN` of another one; `STORE#`, where it has one run only."""
    url, separate, run = word.rpartition("#")
    if not separate:
        return open_run_store(config), word
    store = open_store(url, options=StoreOptions(config.store.endpoint_url, config.store.region))
    known = runs_of(store)
    if not run and len(known) != 1:
        raise ConfigError(f"{url} has {len(known)} runs.", fix=f"Say which: {', '.join(f'{url}#{r}' for r in known) or 'none'}.")
    return store, run or known[0]
