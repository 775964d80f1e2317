"""What every command of the command line shares: its words, its console, its quiet."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from atlas_dist.cli.complete import complete_word
from atlas_dist.config import RunConfig
from atlas_dist.errors import ConfigError
from atlas_dist.logs import LineLog, LogFormat, set_up

if TYPE_CHECKING:
    from atlas_dist.core.plan import Plan

Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="key=value, as in experiment=demo train.workers=4", show_default=False, autocompletion=complete_word),
]


Many = Annotated[
    bool, typer.Option("--multirun", "-m", help="key=a,b gives several values: a row for each combination, in one run.")
]


@dataclass(frozen=True)
class ComposedRun:
    """What the words of a command mean: one configuration, or with -m the rows of a sweep, which share all that a run has
    once."""

    rows: Mapping[str, RunConfig]
    """Name of the row ("" for the only one) -> its configuration."""

    @property
    def config(self) -> RunConfig:
        """Where the run lies, what it is called and how it computes: the same for every row."""
        return next(iter(self.rows.values()))

    @property
    def swept(self) -> bool:
        """Several rows."""
        return list(self.rows) != [""]

    def plan(self) -> Plan:
        """All jobs. Raises ConfigError, DataError."""
        from atlas_dist.coordinator.expand import expand_rows

        return expand_rows(self.rows)

    def specification(self) -> dict[str, Any]:
        """For the ledger's first entry."""
        from atlas_dist.coordinator.expand import specification_of_rows

        return specification_of_rows(self.rows)


def compose_run(overrides: Sequence[str] | None, *, many: bool) -> ComposedRun:
    """Compose what was asked for; `many`: with Hydra's sweeps. Raises ConfigError."""
    from atlas_dist.compose import compose_config, compose_rows

    words = list(overrides or [])
    return ComposedRun(compose_rows(words) if many else {"": compose_config(words)})


def console() -> Console:
    """Standard output. What is piped is read by programs and by people's pagers: it is not folded at 80 columns."""
    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=160)


def hush() -> None:
    """Keep the libraries' own chatter out of the way, unless --debug asks for it."""
    if os.environ.get("ATLAS_DEBUG"):
        logging.basicConfig(level=logging.INFO)
        return
    warnings.filterwarnings("ignore")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("ray", "deepspeed", "DeepSpeed", "transformers", "huggingface_hub", "botocore", "urllib3", "filelock"):
        logging.getLogger(name).setLevel(logging.ERROR)


def spoken(config: RunConfig, console: Console) -> Console:
    """What a run's driver says its lines to: with `log.format=json` each becomes a record of the log, on standard error."""
    if config.log.format is LogFormat.TEXT:
        return console
    set_up(config.log.format, run=config.run, process="driver")
    return Console(file=LineLog(logging.getLogger("atlas_dist.cli.run")), color_system=None, force_terminal=False, width=10_000)


def composed(overrides: list[str] | None) -> RunConfig:
    """The validated configuration. Raises ConfigError."""
    from atlas_dist.compose import compose_config  # Hydra takes a moment to import: `--help` does not pay for it

    return compose_config(overrides or [])


def no_such_run(config: RunConfig) -> ConfigError:
    """For commands that look at a run."""
    return ConfigError(f"There is no run {config.run} in {config.store.url}.", fix="Start it with `atlas-dist run`.")


def report_folder(config: RunConfig) -> Path:
    """Where the report of a run goes: beside a local store, else in the working folder."""
    if config.report:
        return Path(config.report)
    url = config.store.url
    return Path(f"report-{config.run}") if "://" in url else Path(url).parent / f"report-{config.run}"


def duration(seconds: float) -> str:
    """For people: `40 s`, `12 min`, `3.5 h`."""
    minutes = seconds / 60
    return f"{minutes / 60:.1f} h" if minutes >= 90 else f"{minutes:.0f} min" if minutes >= 2 else f"{seconds:.0f} s"
