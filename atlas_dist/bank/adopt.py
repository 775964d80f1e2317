"""Taking an exported bank into a store: its facts become a run of their own, and other runs find them by their keys."""

from __future__ import annotations

import uuid
from dataclasses import replace
from pathlib import Path

from atlas_dist.bank.imported_files import original_imported
from atlas_dist.bank.package import original_files
from atlas_dist.bank.weights import BankWeights
from atlas_dist.clock import Clock, SystemClock
from atlas_dist.core.attempts import CommittedRef
from atlas_dist.core.keys import check_name, digest_of, plain
from atlas_dist.core.records import Adopt, Begin, Elect, Finish
from atlas_dist.errors import ConfigError
from atlas_dist.runs import layout
from atlas_dist.runs.results import point_to
from atlas_dist.runs.stores import open_ledger
from atlas_dist.store import artifacts
from atlas_dist.store.log import RecordLog
from atlas_dist.store.objects import ObjectStore
from atlas_dist.store.settle import DEFAULT_PATIENCE


def import_bank(store: ObjectStore, folder: Path, weights: BankWeights, run: str, clock: Clock | None = None) -> None:
    """Write the files of an exported bank into a store, byte for byte as its run committed them, and a ledger that adopts them.

    A run whose plan has one of these jobs adopts the result instead of training it again: the key says that everything it depends
    on is equal. That is a matter of trust in whoever exported the folder; what is checked is that it is whole.

    Args:
        run: name of the new run.

    Raises:
        ConfigError: there is a run of that name already, or the bank was pruned.
        DataError: the folder is damaged. StoreError: the store is in trouble; the same call again goes on.
    """
    if weights.rescored:
        raise ConfigError(
            f"{folder} is a pruned bank: it is not what its run learnt, so no run may take it for that.",
            fix="Import the whole bank that it was made from; use this one with `predict --from`.",
        )
    clock = clock or SystemClock()
    log = open_ledger(store, run, writer=f"import-{uuid.uuid4().hex}", clock=clock, new_id=lambda: uuid.uuid4().hex)
    if log.read_new():
        raise ConfigError(f"There is a run {run} in {store.url} already.", fix="Choose another name with --as NAME.")
    files = {key: original_imported(folder, one.entry) for key, one in weights.imported.items()}
    files |= {key: original_files(folder, task) for key, task in weights.tasks.items()}
    committed = {key: one.entry.ref for key, one in weights.imported.items()}
    committed |= {key: task.learnt.ref for key, task in weights.tasks.items()}
    refs = []
    for key, was in committed.items():
        attempt = check_name(f"{key}-import", "attempt")
        prefix = layout.attempt(run, attempt)
        for name, data in files[key].items():
            store.put(f"{prefix}/{check_name(name, 'file name')}", data)
        artifacts.verify(store, prefix, was.blobs)
        refs.append(replace(was, attempt=attempt, prefix=prefix))
    _record(log, run, weights, refs)
    for ref in refs:
        point_to(store, run, ref, clock, DEFAULT_PATIENCE)


def _record(log: RecordLog, run: str, weights: BankWeights, refs: list[CommittedRef]) -> None:
    """The ledger of the new run: a beginning, one adoption a task, an end."""
    base = weights.base
    spec = {
        "imported_from": weights.run,
        "backbone": base.recorded,
        "method": {"name": weights.first.method, "settings": plain(weights.first.settings)},
        "train": {"precision": weights.precision},
    }
    log.append(0, Begin(run, digest_of(spec), digest_of(sorted(ref.job for ref in refs)), spec))
    log.append(1, Elect("an exported bank is imported"))
    for ref in refs:
        log.append(1, Adopt(ref.job, ref.attempt, ref.prefix, ref.blobs, ref.metrics, weights.run))
    log.append(1, Finish("imported"))
