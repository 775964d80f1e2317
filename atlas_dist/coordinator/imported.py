"""From the names in `sequence.experience` to the imported adapters that they stand for, and what refuses them.

The run that imported an adapter says what it is. A run that learns from it writes that down in its own ledger, so that its plan
can be made again without looking anywhere else.
"""

from __future__ import annotations

from collections.abc import Iterable

from atlas_dist.config import RunConfig
from atlas_dist.core.imported import SPECIFIED, ImportedAdapter
from atlas_dist.errors import ConfigError, DataError
from atlas_dist.methods import make_method
from atlas_dist.runs.status import load_run
from atlas_dist.store.objects import ObjectStore


def look_up(store: ObjectStore, names: Iterable[str], backbone_digest: str) -> dict[str, ImportedAdapter]:
    """Name -> what was imported under it.

    Raises:
        ConfigError: nothing was, or the adapter was fitted to another backbone.
        StoreError: the store is in trouble.
    """
    return {name: _look_up(store, name, backbone_digest) for name in names}


def _look_up(store: ObjectStore, name: str, backbone_digest: str) -> ImportedAdapter:
    state, _ = load_run(store, name)
    if SPECIFIED not in state.spec:
        raise ConfigError(
            f"sequence.experience names {name}, which is no imported adapter of {store.url}.",
            fix=f"Import it: atlas-dist bank import FOLDER --task SAMPLES --as {name}.",
        )
    adapter = ImportedAdapter.from_specified(state.spec[SPECIFIED])
    if state.job(adapter.key).committed is None:
        raise DataError(f"The import of {name} was interrupted.", fix="Import it again, under another name (--as NAME).")
    digest = state.spec.get("backbone_digest", "")
    if digest != backbone_digest:
        raise ConfigError(
            f"The imported adapter {name} belongs to the backbone {state.spec.get('backbone', {}).get('name', '?')} with digest "
            f"{digest[:12]}; this run's has {backbone_digest[:12]}.",
            fix="Set backbone.* as it was when the adapter was imported, or leave it out of sequence.experience.",
        )
    return adapter


def check_experience(config: RunConfig) -> None:
    """Raises ConfigError where no method of the run can read imported adapters, or one of them would misread them."""
    if not config.sequence.experience:
        return
    methods = {name: make_method(asked.name, asked.settings) for name, asked in config.variants.items()}
    readers = {name: method for name, method in methods.items() if method.selecting is not None}
    if not readers:
        raise ConfigError(
            f"sequence.experience is set, but {', '.join(methods)} would not look at imported adapters.",
            fix="Set method=atlas method.settings.adapter=lora, or leave sequence.experience out.",
        )
    for name, method in readers.items():
        if method.mixing.lora is None:
            raise ConfigError(
                f"Imported adapters are LoRA; those of {name} are bottlenecks.",
                fix="Set method.settings.adapter=lora, or leave sequence.experience out.",
            )
