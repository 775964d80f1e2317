"""`atlas-dist logs`: what was decided in a run and why, as its ledger has it: one line an entry, oldest first. With `--attempt`
or `--driver` what the processes themselves said, as far as the store has kept it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import typer

from atlas_dist.app.logs import read_decisions, read_kept_logs
from atlas_dist.app.show import standard_console
from atlas_dist.core.keys import plain
from atlas_dist.core.ledger import Entry
from atlas_dist.core.records import Fail
from atlas_dist.core.results import SelectResult


def show_logs(overrides: list[str] | None, *, last: int, follow: bool, as_json: bool, many: bool = False) -> None:
    """Print the newest `last` entries (0 = all), and with `follow` those that come, until the run ends or Ctrl-C."""
    for news in read_decisions(*(overrides or ()), last=last, follow=follow, many=many):
        out = standard_console()
        for entry in news.entries:
            if as_json:
                typer.echo(entry.to_bytes().decode())
            else:
                out.print(line(entry, news.labels), markup=False, soft_wrap=True)


def show_kept_logs(
    overrides: list[str] | None, *, attempt: str, driver: bool, last: int, as_json: bool, many: bool = False
) -> None:
    """Print what is kept of what processes said. Raises as `read_kept_logs`."""
    for log in read_kept_logs(*(overrides or ()), attempt=attempt, driver=driver, last=last, many=many):
        if as_json:
            about = {"attempt": log.attempt, "name": log.name, "label": log.label, "lines": log.lines}
            typer.echo(json.dumps(about, ensure_ascii=False))
            continue
        typer.echo(f"== {' '.join(part for part in (log.attempt, log.label, log.name) if part)}")
        for each in log.lines:
            typer.echo(each)


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
