"""Taking a PEFT adapter into a store as experience: an adapter that nobody here trained, as a fact of a run of its own.

    runs/<name>/ledger/…                    a beginning, the result, an end
    runs/<name>/attempts/<key>-import/…     adapter.safetensors, signature.safetensors, provenance.json
    results/<key>                           by which runs that name it in `sequence.experience` find and adopt it

Its signature is made here, from samples that the user packed; nothing is trained. The arithmetic of it is float32 always, so that
one import serves runs of every precision.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from atlas_dist.bank.peft_reading import PeftFolder, fitted, read_peft
from atlas_dist.bank.similar import describe_here
from atlas_dist.clock import Clock, SystemClock
from atlas_dist.config import Precision, RunConfig
from atlas_dist.core.attempts import Blob, CommittedRef
from atlas_dist.core.imported import CARD, SPECIFIED, Provenance
from atlas_dist.core.keys import check_name, digest_of, sha256_hex
from atlas_dist.core.ledger import fold
from atlas_dist.core.records import Adopt, Begin, Elect, Finish
from atlas_dist.core.result_files import ADAPTER_FILE, PROVENANCE_FILE, SIGNATURE_FILE
from atlas_dist.core.results import ImportResult
from atlas_dist.core.state import RunState
from atlas_dist.core.types import TaskSpec
from atlas_dist.errors import ConfigError, DataError
from atlas_dist.model.backbone import Backbone
from atlas_dist.model.backbone_refs import BACKBONES
from atlas_dist.model.lora import ranks_in
from atlas_dist.runs import layout
from atlas_dist.runs.results import Pointer, point_to, verified_fact
from atlas_dist.runs.stores import open_ledger
from atlas_dist.store import artifacts
from atlas_dist.store.objects import ObjectStore
from atlas_dist.store.settle import DEFAULT_PATIENCE
from atlas_dist.train.configured import recorded_backbone
from atlas_dist.train.context import RankContext
from atlas_dist.train.engine import join_alone
from atlas_dist.train.inputs import pack_tensors

NUMERICS: Mapping[str, Any] = {"version": 1, "precision": Precision.FP32.value}
"""Of a signature. Raised with whatever changes one at equal samples; imports of before then stay what they are."""
FEWEST = 16
"""Samples without which a signature says nothing."""


@dataclass(frozen=True)
class Origin:
    """What the user says of an import, besides the folder."""

    name: str
    """What the adapter, and the run that holds it, is called here."""
    by: str
    source: str
    commit: str = ""
    """Of the repository that the folder was pulled from."""


PULLED_FILE = "pulled.json"
"""Beside what `bank pull` wrote: `{"repo": …, "commit": …}`."""


def pulled_from(folder: Path) -> tuple[str, str] | None:
    """Repository and commit that a folder, or the one above it, was pulled from; None = it was not."""
    for place in (folder, folder.parent):
        try:
            raw = json.loads((place / PULLED_FILE).read_bytes())
            return str(raw["repo"]), str(raw["commit"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


@dataclass(frozen=True)
class AdapterImport:
    """An adapter that is in the store now."""

    name: str
    key: str
    provenance: Provenance
    samples: int
    """That its signature was made from."""
    warnings: tuple[str, ...]
    was_there: bool
    """The same adapter had been imported into this store before."""


def import_adapter(
    config: RunConfig, store: ObjectStore, folder: Path, task: TaskSpec, origin: Origin, clock: Clock | None = None
) -> AdapterImport:
    """Import a LoRA adapter. The same call again, after whatever interrupted it, goes on.

    Args:
        config: says which backbone the adapter is fitted to, and where the shards of `task` are.
        task: samples of the kind that the adapter was trained on, packed; their training split describes it.

    Raises:
        DataError: the folder is not plain LoRA, is damaged or fits another backbone; or there are too few samples.
        ConfigError: there is another run of that name. StoreError: the store is in trouble.
    """
    join_alone()
    peft = read_peft(folder)
    train = config.train.model_copy(update={"precision": Precision.FP32, "zero_stage": 0})
    context = RankContext(config.model_copy(update={"train": train}), 0, 1)
    backbone = context.backbone()
    adapter = fitted(peft, backbone.model)
    # The signature describes a kind of samples: it is made from the first of them, whatever a task would learn from.
    task = replace(task, name=check_name(origin.name, "imported adapter"), shots=0.0)
    signature, samples = describe_here(context, task)
    if samples < FEWEST:
        raise DataError(
            f"The signature would be made from {samples} samples of {task.dataset}/{task.train}; {FEWEST} are the least.",
            fix="Pack a few hundred samples of the kind that the adapter was trained on.",
        )
    provenance = Provenance(
        name=origin.name,
        source=origin.source,
        base_model=peft.base_model,
        revision=peft.revision,
        licence=peft.licence,
        files=peft.files,
        texts=peft.texts,
        config=peft.config,
        ranks=ranks_in(adapter),
        task=task,
        backbone=recorded_backbone(config, backbone),
        backbone_digest=backbone.digest,
        commit=origin.commit,
    )
    clock = clock or SystemClock()
    files = {ADAPTER_FILE: pack_tensors(adapter), SIGNATURE_FILE: pack_tensors(signature)}
    key = provenance.key(sha256_hex(files[ADAPTER_FILE]), NUMERICS)
    files[PROVENANCE_FILE] = provenance.at(origin.by, clock.wall()).to_json()
    was_there = _record(store, provenance, key, files, ImportResult(world=1, described=samples, imported=origin.name), clock)
    return AdapterImport(origin.name, key, provenance, samples, tuple(_warnings(peft, config, backbone)), was_there)


def _record(
    store: ObjectStore, provenance: Provenance, key: str, files: Mapping[str, bytes], result: ImportResult, clock: Clock
) -> bool:
    """The ledger of the import, from where an interrupted one left it; whether the adapter was there before."""
    run, attempt = provenance.name, f"{key}-import"
    log = open_ledger(store, run, writer=f"import-{uuid.uuid4().hex}", clock=clock, new_id=lambda: uuid.uuid4().hex)
    entries = log.read_new()
    spec = {
        "imported_from": provenance.source,
        SPECIFIED: provenance.as_imported(key).as_specified(),
        "backbone": dict(provenance.backbone),
        "backbone_digest": provenance.backbone_digest,
        "train": {"precision": Precision.FP32.value},
    }
    state = fold(RunState(run=run), entries)
    if entries and state.spec.get(SPECIFIED) != spec[SPECIFIED]:
        what = "the import of another adapter" if SPECIFIED in state.spec else "a run"
        raise ConfigError(f"{store.url} has {what} of the name {run} already.", fix="Choose another name with --as NAME.")
    ref, was_there = state.job(key).committed, True
    if not entries:
        log.append(0, Begin(run, digest_of(spec), digest_of([key]), spec))
    if not state.finished:
        log.append(state.epoch + 1, Elect("an adapter is imported"))
        if ref is None:
            known = _known(store, key)
            ref = known.ref if known else _written(store, layout.attempt(run, attempt), key, attempt, files, result)
            log.append(state.epoch + 1, Adopt(key, ref.attempt, ref.prefix, ref.blobs, ref.metrics, known.run if known else run))
            was_there = known is not None
        log.append(state.epoch + 1, Finish("imported"))
    assert ref is not None, "an import that is finished has its result"
    point_to(store, run, ref, clock, DEFAULT_PATIENCE)
    return was_there


def _known(store: ObjectStore, key: str) -> Pointer | None:
    """The same adapter, imported under the same name before; None = not, or it is damaged."""
    try:
        return verified_fact(store, key, lambda: None)
    except DataError:
        return None


def _written(
    store: ObjectStore, prefix: str, key: str, attempt: str, files: Mapping[str, bytes], result: ImportResult
) -> CommittedRef:
    for name, data in files.items():
        store.put(f"{prefix}/{name}", data)
    blobs = tuple(Blob(name, len(data), sha256_hex(data)) for name, data in files.items())
    artifacts.verify(store, prefix, blobs)
    return CommittedRef(key, attempt, prefix, blobs, result.to_json())


def _warnings(peft: PeftFolder, config: RunConfig, backbone: Backbone) -> list[str]:
    """What does not speak against the import, and should be looked at."""
    told = []
    ref = BACKBONES.get(backbone.name)
    here = {name for name in (backbone.name, config.backbone.source, ref.source if ref else "") if name}
    ends = {name.rstrip("/").rpartition("/")[2] for name in here}
    if not peft.base_model:
        told.append("its configuration names no base model; that it belongs to this backbone is known by its shapes alone")
    elif peft.base_model not in here and peft.base_model.rstrip("/").rpartition("/")[2] not in ends:
        told.append(
            f"its configuration names the base model {peft.base_model!r}; the backbone here is {backbone.name!r}. The shapes "
            "fit, but an adapter helps only on the weights that it was trained on: set backbone.* if this is not the one"
        )
    if not peft.licence and not any(name != CARD for name in peft.texts):
        told.append("it names no licence: ask whoever made it before you pass on what was learnt with it")
    return told
