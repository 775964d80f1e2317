"""What every command of the command line shares: its words, and how it is composed."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from atlas_dist.app.composed import ComposedRun, compose_run
from atlas_dist.choices import groups
from atlas_dist.cli.complete import complete_word
from atlas_dist.config import RunConfig
from atlas_dist.logs import LogFormat, set_up

Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="key=value, as in experiment=demo train.workers=4", show_default=False, autocompletion=complete_word),
]


Many = Annotated[
    bool, typer.Option("--multirun", "-m", help="key=a,b gives several values: a row for each combination, in one run.")
]


def composed(overrides: list[str] | None) -> RunConfig:
    """The validated configuration. Raises ConfigError."""
    return compose_run(*(overrides or ())).config


def spoken(overrides: list[str] | None, *, many: bool = False) -> ComposedRun:
    """What a run's driver is told; with `log.format=json` this process speaks JSON from here on, also of what goes wrong."""
    composed_run = compose_run(*(overrides or ()), many=many)
    if composed_run.config.log.format is LogFormat.JSON:
        set_up(LogFormat.JSON, run=composed_run.config.run, process="driver")
    return composed_run


def are_settings(words: list[str]) -> bool:
    """Whether every word is `key=value` with a key that a run has: a folder's name may hold '=' too."""
    keys = {*RunConfig.model_fields, *groups()}
    return all("=" in word and re.split(r"[.@=]", word.lstrip("+~"), maxsplit=1)[0] in keys for word in words)
