"""What a run has learnt, opened from its settings: its bank, and a model that answers from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from atlas_dist.app.composed import Settings, compose_run
from atlas_dist.app.process import restored_process
from atlas_dist.bank.contents import Bank, read_bank
from atlas_dist.runs.stores import shards_if_there

if TYPE_CHECKING:
    from atlas_dist.serve import AtlasModel


def open_bank(*settings: Settings) -> Bank:
    """Everything that a run has learnt, in the order of its commits, as its ledger tells it.

    Args:
        settings: as for `run`; `store.url=…` and `run=…` are enough.

    Raises:
        ConfigError: there is no such run. DataError: a description is damaged. StoreError: the store is in trouble.
    """
    composed_run = compose_run(*settings)
    return read_bank(composed_run.store, composed_run.config.run)


def load_model(*settings: Settings, tasks: Sequence[str] = ()) -> AtlasModel:
    """A model that answers straight from a run's store, without exporting its bank first.

    Args:
        settings: as for `open_bank`. tasks: only these, with what they see; () = all.

    Raises:
        As `open_bank`; ConfigError: the run has not learnt such a task. DataError: a file is damaged.
    """
    composed_run = compose_run(*settings)
    store, config = composed_run.store, composed_run.config
    with restored_process():  # torch sets variables of the environment when it is imported
        from atlas_dist.bank.weights import load_weights
        from atlas_dist.serve import AtlasModel

        weights = load_weights(store, read_bank(store, config.run), tasks, shards=shards_if_there(config))
        return AtlasModel.from_weights(weights)
