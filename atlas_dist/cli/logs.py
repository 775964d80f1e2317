"""`atlas-dist logs`: what was decided in a run and why, as its ledger has it: one line an entry, oldest first."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import typer

from atlas_dist.app.composed import ComposedRun, compose_run
from atlas_dist.app.show import standard_console
from atlas_dist.core.keys import plain
from atlas_dist.core.ledger import Entry
from atlas_dist.errors import AtlasError
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
    parts = [
        datetime.fromtimestamp(entry.at, UTC).strftime("%Y-%m-%d %H:%M:%S"),
        f"{entry.seq:>5} e{entry.epoch}",
        f"{type(record).__name__.lower():<10}",
        name,
        _outcome(plain(getattr(record, "metrics", {}))),
        f"kind {record.kind.value}" if hasattr(record, "kind") else "",
        f"from run {record.run}" if hasattr(record, "run") and job else "",
        str(getattr(record, "reason", "")),
    ]
    return "  ".join(part for part in parts if part)


def _outcome(metrics: Any) -> str:
    if "score" in metrics:
        return f"score {metrics['score']:.1f} %"
    return ", ".join(f"{view} view {v['score']:.1f} %" for view, v in metrics.get("views", {}).items())
