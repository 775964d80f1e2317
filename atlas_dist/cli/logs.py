"""`atlas-dist logs`: what was decided in a run and why, as its ledger has it: one line an entry, oldest first. With `--attempt`
or `--driver` what the processes themselves said, as far as the store has kept it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import typer

from atlas_dist.app.composed import ComposedRun, compose_run
from atlas_dist.app.show import standard_console
from atlas_dist.core.keys import plain
from atlas_dist.core.ledger import Entry
from atlas_dist.core.records import Fail
from atlas_dist.core.results import SelectResult
from atlas_dist.errors import AtlasError, ConfigError
from atlas_dist.runs.stores import open_ledger

POLL_S = 2.0


def show_logs(overrides: list[str] | None, *, last: int, follow: bool, as_json: bool, many: bool = False) -> None:
    """Print the newest `last` entries (0 = all), and with `follow` those that come, until the run ends or Ctrl-C."""
    composed_run = compose_run(*(overrides or ()), many=many)
    log = open_ledger(composed_run.store, composed_run.config.run)
    entries = log.read_new()
    if not entries:
        raise composed_run.no_such_run()
    labels = _labels(composed_run)
    _print(entries[-last:] if last else entries, labels, as_json)
    while follow and type(entries[-1].record).__name__ not in ("Finish", "Cancel"):
        time.sleep(POLL_S)
        more = log.read_new()
        _print(more, labels, as_json)
        entries = more or entries


def _labels(composed_run: ComposedRun) -> Mapping[str, str]:
    """Job keys as people call them; {} where the shards are out of reach: keys do as well."""
    try:
        return {key: job.label for key, job in composed_run.plan().jobs.items()}
    except AtlasError:
        return {}


def _print(entries: Iterable[Entry], labels: Mapping[str, str], as_json: bool) -> None:
    out = standard_console()
    for entry in entries:
        if as_json:
            typer.echo(entry.to_bytes().decode())
        else:
            out.print(line(entry, labels), markup=False, soft_wrap=True)


def line(entry: Entry, labels: Mapping[str, str]) -> str:
    """One ledger entry in one line; `labels` say what job keys are called."""
    record = entry.record
    job = str(getattr(record, "job", ""))
    name = labels.get(job) or job[:12]
    attempt = f"attempt {record.attempt}" if isinstance(record, Fail) else ""
    parts = [
        datetime.fromtimestamp(entry.at, UTC).strftime("%Y-%m-%d %H:%M:%S"),
        f"{entry.seq:>5} e{entry.epoch}",
        f"{type(record).__name__.lower():<10}",
        name,
        _outcome(plain(getattr(record, "metrics", {}))),
        f"kind {record.kind.value}" if hasattr(record, "kind") else "",
        attempt,
        f"from run {record.run}" if hasattr(record, "run") and job else "",
        str(getattr(record, "reason", "")),
    ]
    return "  ".join(part for part in parts if part)


def _outcome(metrics: Any) -> str:
    if "form" in metrics:
        return f"score {metrics['score']:.1f} %, {SelectResult.from_json(metrics).in_words()}"
    if "score" in metrics:
        return f"score {metrics['score']:.1f} %"
    return ", ".join(f"{view} view {v['score']:.1f} %" for view, v in metrics.get("views", {}).items())


def show_tails(overrides: list[str] | None, *, attempt: str, driver: bool, last: int, as_json: bool, many: bool = False) -> None:
    """Print what is kept of the attempts whose id begins with `attempt`, or whose job's label has it in it; or of the drivers.

    Args:
        last: the newest so many lines of each process; 0 = all that was kept.

    Raises:
        ConfigError: nothing is kept of such an attempt; it says of which ones there is.
    """
    from atlas_dist.runs.status import load_run
    from atlas_dist.store.attempt_logs import DRIVER, names, read_tails

    composed_run = compose_run(*(overrides or ()), many=many)
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
        lines = tail.text.splitlines()
        lines = lines[-last:] if last else lines
        if as_json:
            about = {"attempt": tail.owner, "name": tail.name, "label": called.get(tail.owner, ""), "lines": lines}
            typer.echo(json.dumps(about, ensure_ascii=False))
            continue
        typer.echo(f"== {' '.join(part for part in (tail.owner, called.get(tail.owner, ''), tail.name) if part)}")
        for each in lines:
            typer.echo(each)


def _nothing_kept(run: str, url: str, what: str, called: Mapping[str, str]) -> ConfigError:
    some = [f"{owner} ({label})" if label else owner for owner, label in list(called.items())[-5:]]
    there = f"The newest that it has: {', '.join(some)}." if some else "It has none of this run."
    return ConfigError(
        f"{url} has no log of {what} of run {run}. {there}", fix="`atlas-dist logs` names the attempts that failed."
    )
