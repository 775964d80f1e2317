"""What every command of the command line shares: its words, its console, its quiet."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from atlas_dist.config import RunConfig
from atlas_dist.errors import AtlasError
from atlas_dist.store import ObjectStore, StoreOptions, open_store

Overrides = Annotated[
    list[str] | None, typer.Argument(help="key=value, as in experiment=demo train.workers=4", show_default=False)
]


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
    for name in ("ray", "deepspeed", "DeepSpeed", "transformers", "botocore", "urllib3", "filelock"):
        logging.getLogger(name).setLevel(logging.ERROR)


def composed(overrides: list[str] | None) -> RunConfig:
    """The validated configuration. Raises ConfigError."""
    from atlas_dist.compose import compose_config  # Hydra takes a moment to import: `--help` does not pay for it

    return compose_config(overrides or [])


def open_run_store(config: RunConfig) -> ObjectStore:
    """The store of durable state, without importing what trains."""
    return open_store(config.store.url, options=StoreOptions(config.store.endpoint_url, config.store.region))


def report_folder(config: RunConfig) -> Path:
    """Where the report of a run goes: beside a local store, else in the working folder."""
    if config.report:
        return Path(config.report)
    url = config.store.url
    return Path(f"report-{config.run}") if "://" in url else Path(url).parent / f"report-{config.run}"


def shards_if_there(config: RunConfig) -> ObjectStore | None:
    """The packed data; None when they are out of reach, for commands that can do without."""
    try:
        return open_store(config.shards.url, options=StoreOptions(config.shards.endpoint_url, config.shards.region))
    except AtlasError:
        return None
