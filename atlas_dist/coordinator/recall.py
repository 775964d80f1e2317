"""The plan of a run from its ledger alone: made again from the recorded specification, and proved by the recorded digest."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from atlas_dist.config import RunConfig, load_config
from atlas_dist.coordinator.expand import lay_out, packed_task, used_tasks
from atlas_dist.core.imported import SPECIFIED, ImportedAdapter
from atlas_dist.core.plan import Plan
from atlas_dist.core.state import RunState
from atlas_dist.core.types import TaskSpec
from atlas_dist.data.manifest import read_manifest
from atlas_dist.errors import AtlasError, ConfigError, DataError
from atlas_dist.methods import name_of_stored
from atlas_dist.store.objects import ObjectStore
from atlas_dist.train.configured import configured_facts


def recall(state: RunState, known: Mapping[str, TaskSpec], backbone_digest: str, shards: ObjectStore | None) -> Plan:
    """The plan that a run began with.

    Args:
        known: tasks that it has learnt, as its results describe them. The others are looked up in the packed data.
        backbone_digest: of the backbone, as its results say; "" = none yet, then the backbone itself is asked.
        shards: the packed data, where they can be reached.

    Raises:
        ConfigError: the run is an imported bank, which has no plan.
        DataError: a task that was not learnt yet has no data here, or this version would plan something else.
    """
    if "imported_from" in state.spec:
        what = "adapter" if SPECIFIED in state.spec else "bank"
        raise ConfigError(
            f"Run {state.run} is an imported {what}: it has results, but no plan.", fix="Name the run that learnt it."
        )
    # A sweep recorded the settings of each of its rows.
    recorded = state.spec.get("rows", {"": state.spec})
    rows = {row: _configured(spec, state.run) for row, spec in recorded.items()}
    sizes = {digest: samples for spec in recorded.values() for digest, samples in spec.get("split_samples", {}).items()}
    specs = {
        row: {name: known.get(name) or _looked_up(config, name, shards, state.run) for name in used_tasks(config)}
        for row, config in rows.items()
    }
    digest = backbone_digest or configured_facts(next(iter(rows.values()))).digest
    noted = {name: raw for spec in recorded.values() for name, raw in spec.get("experience", {}).items()}
    experience = {name: ImportedAdapter.from_specified(raw) for name, raw in noted.items()}
    plan = lay_out(rows, specs, digest, sizes, experience)
    if plan.digest != state.plan_digest:
        raise DataError(
            f"Run {state.run} cannot be laid out again: its ledger says another plan than this version makes of its settings.",
            fix="Another version of atlas-dist ran it, or its packed data have changed: use that version.",
        )
    return plan


def _configured(spec: Mapping[str, Any], run: str) -> RunConfig:
    """The recorded settings as a configuration. Places and the number of workers are not recorded and mean nothing here."""
    tree = {name: part for name, part in spec.items() if name not in ("split_samples", "experience")}
    tree |= {"run": run, "train": {**spec.get("train", {}), "workers": 1}}
    tree |= {"backbone": {"tiles": 1, **spec.get("backbone", {})}}  # named where there are any
    tree |= {"method": _named(spec["method"])} if "method" in spec else {}
    tree |= {part: {name: _named(row) for name, row in spec[part].items()} for part in ("compare", "references") if part in spec}
    try:
        return load_config(tree)
    except ConfigError as error:
        raise DataError(f"The settings that run {run} recorded are not those of this version: {error.message}") from error


def _named(row: Mapping[str, Any]) -> dict[str, Any]:
    """A method as stores name it -> as settings do."""
    return {**row, "name": name_of_stored(row["name"])}


def _looked_up(config: RunConfig, name: str, shards: ObjectStore | None, run: str) -> TaskSpec:
    where = "its packed data cannot be reached"
    if shards is not None:
        try:
            return packed_task(config, name, partial(read_manifest, shards))
        except AtlasError as error:
            where = error.message
    raise DataError(f"Run {run} has not learnt {name} yet, and {where}", fix="Set shards.url to where its data are packed.")
