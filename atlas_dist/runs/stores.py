"""The stores that a configuration names, and the ledger of a run in one of them."""

from __future__ import annotations

from collections.abc import Callable

from atlas_dist.clock import Clock, SystemClock
from atlas_dist.config import RunConfig
from atlas_dist.errors import AtlasError
from atlas_dist.runs import layout
from atlas_dist.store import ObjectStore, StoreOptions, open_store
from atlas_dist.store.log import Map, RecordLog, threaded
from atlas_dist.store.settle import DEFAULT_PATIENCE, Patience


def open_run_store(config: RunConfig) -> ObjectStore:
    """The store of durable state. Raises ConfigError, AuthError, StoreError: it can't be opened."""
    return open_store(config.store.url, options=StoreOptions(config.store.endpoint_url, config.store.region))


def open_shards(config: RunConfig) -> ObjectStore:
    """The store of packed data. Raises as `open_run_store`."""
    return open_store(config.shards.url, options=StoreOptions(config.shards.endpoint_url, config.shards.region))


def shards_if_there(config: RunConfig) -> ObjectStore | None:
    """The packed data; None when they are out of reach, for commands that can do without."""
    try:
        return open_shards(config)
    except AtlasError:
        return None


def open_ledger(
    store: ObjectStore,
    run: str,
    *,
    writer: str = "reader",
    clock: Clock | None = None,
    new_id: Callable[[], str] = str,
    patience: Patience = DEFAULT_PATIENCE,
    read_many: Map = threaded,
) -> RecordLog:
    """The ledger of a run. Whoever only reads needs no more than its name.

    Args:
        writer: who appends, in every entry.
        new_id: makes the nonces of entries.
        read_many: how entries are read.
    """
    return RecordLog(
        store,
        layout.ledger(run),
        writer=writer,
        clock=clock or SystemClock(),
        new_id=new_id,
        patience=patience,
        read_many=read_many,
    )
