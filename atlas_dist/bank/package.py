"""A bank as a folder that travels, in the manner of the Hugging Face hub:

    adapter_config.json          base model and its revision, method, every task; size and sha256 of every other file
    adapter_model.safetensors    all tensors: `<task>/{adapter,key,queries}/<site>…` and `<task>/head/…`
    facts/<task>.json            what its run recorded of a task: key, files with their hashes, scores; its curves and α
    imported/<name>/             an adapter that nobody here trained: its weights, signature and provenance, as they were imported
    README.md                    the model card
    prune.json                   of a pruned bank: what was left out, what that cost, step by step

Nothing in it is ever executed or unpickled. A reader checks sizes and hashes, the layout of the safetensors file, that values are
finite, and that the names are exactly those that the configuration implies.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import load as parse_tensors
from torch import Tensor

from atlas_dist.bank.card import model_card
from atlas_dist.bank.contents import Bank, Base, Learnt
from atlas_dist.bank.imported_files import IMPORTED_FILES, imported_files, read_imported
from atlas_dist.bank.imported_files import within as _within
from atlas_dist.bank.weights import BankWeights, LearntWeights
from atlas_dist.core.attempts import CommittedRef
from atlas_dist.core.keys import canonical_json, check_name, plain, sha256_hex
from atlas_dist.core.records import from_json
from atlas_dist.core.result_files import (
    ADAPTER_FILE,
    CONFIG_FILE,
    DETAILS_FILE,
    SAMPLES_FILE,
    SIGNATURE_FILE,
    SIGNATURES_FILE,
    TASK_FILE,
    VALIDATION_FILE,
    AdapterConfig,
)
from atlas_dist.core.results import without_hosts
from atlas_dist.errors import DataError, StoreError
from atlas_dist.model.backbone_refs import BACKBONES
from atlas_dist.store import artifacts
from atlas_dist.store.objects import ObjectStore
from atlas_dist.store.safetensors_check import check_safetensors
from atlas_dist.train.inputs import pack_tensors
from atlas_dist.validation import faults

WEIGHTS_FILE = "adapter_model.safetensors"
CARD_FILE = "README.md"
PRUNE_FILE = "prune.json"
_JSON_LIMIT = 16 << 20
_WEIGHTS_LIMIT = 16 << 30

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Safe = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._=-]{0,199}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _File(_Strict):
    size: Annotated[int, Field(ge=0)]
    sha256: Sha256


class _Named(_Strict):
    name: Safe
    key: Safe


class _Task(_Named):
    sees: tuple[Safe, ...]
    """Names of the adapters it draws on besides its own, in order."""
    kind: str
    classes: int
    labels: tuple[str, ...]
    score: float


class _Pruned(_Strict):
    dropped: tuple[Safe, ...]
    """Names of the tasks whose adapters were left out. Their heads are here, and read what is left."""
    scores: dict[Safe, float]
    """Every task's validation score with what is left."""


class _Package(_Strict):
    format: Literal["atlas-dist bank 1"] = "atlas-dist bank 1"
    library_name: Literal["atlas-dist"] = "atlas-dist"
    base_model_name_or_path: str
    revision: str
    base_model: dict[str, str]
    tiles: Annotated[int, Field(ge=2)] | None = None
    """Of the base model (`Base.tiles`); None = its pictures are not cut."""
    base_model_digest: Sha256
    method: str
    settings: dict[str, Any]
    precision: Literal["fp32", "bf16"]
    run: Safe
    tasks: tuple[_Task, ...]
    files: dict[str, _File]
    pruned: _Pruned | None = None
    imported: tuple[_Named, ...] | None = None
    """Adapters that nobody here trained. Files of one are in `imported/<name>/`, unless it was pruned."""


def export_bank(
    store: ObjectStore,
    bank: Bank,
    weights: BankWeights,
    folder: Path,
    record: Mapping[str, Any] | None = None,
    extra: Mapping[str, bytes] | None = None,
) -> list[Path]:
    """Write the folder and return its files.

    Args:
        record: of a pruned bank: how it came about, for `prune.json`.
        extra: further files for people, that nothing reads.

    Raises:
        DataError: `folder` holds something already, or a file of the store is damaged. StoreError: it cannot be written.
    """
    require_new(folder)
    files: dict[str, bytes] = {WEIGHTS_FILE: pack_tensors(_named(weights))}
    for task in weights.tasks.values():
        files[f"facts/{check_name(task.learnt.name, 'task')}.json"] = _fact(store, task.learnt)
        files |= {_beside(task.learnt.name, name): data for name, data in _further(store, task.learnt).items()}
    for key, one in weights.imported.items():
        if key not in weights.dropped:
            files |= imported_files(store, one.entry)
    if record is not None:
        files[PRUNE_FILE] = json.dumps(record, indent=1).encode()
    package = _describe(weights, files)
    files[CONFIG_FILE] = json.dumps(package.model_dump(mode="json", exclude_none=True), indent=1).encode()
    files[CARD_FILE] = model_card(bank, weights, package.base_model_name_or_path).encode()
    try:
        for name, data in {**files, **(extra or {})}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
    except OSError as error:
        raise StoreError(f"Cannot write {folder}: {error}.", fix="Is the disk full, or the folder not yours?") from error
    return [folder / name for name in sorted(files)]


def require_new(folder: Path) -> None:
    """Raises DataError unless `folder` is empty or does not exist."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} is not an empty folder.", fix="Name one that does not exist yet.")


def read_package(folder: Path) -> BankWeights:
    """Read an exported bank, believing nothing that was not checked.

    Raises:
        DataError: a file is missing, too large, damaged, or not what the configuration says.
    """
    if folder.is_file():
        raise DataError(f"{folder} is a file, and no exported bank.", fix="Name a folder that `atlas-dist bank export` wrote.")
    package = _read_config(folder)
    data = {name: _read_file(folder, name, about) for name, about in package.files.items()}
    check_safetensors(data[WEIGHTS_FILE], WEIGHTS_FILE)
    tensors: dict[str, Tensor] = parse_tensors(data[WEIGHTS_FILE])
    every: tuple[_Named, ...] = (*package.tasks, *(package.imported or ()))
    keys = {each.name: each.key for each in every}
    base = Base(digest=package.base_model_digest, **package.base_model, tiles=package.tiles or 1)
    dropped = frozenset(keys[name] for name in package.pruned.dropped) if package.pruned else frozenset()
    tasks: dict[str, LearntWeights] = {}
    for task in package.tasks:
        fact = _parse_fact(data[f"facts/{task.name}.json"], task.name)
        description = AdapterConfig.from_json(canonical_json(fact["description"]), f"facts/{task.name}.json")
        sees = tuple(keys.get(name, "") for name in task.sees)
        seen = tuple(key for key in description.sees if key not in dropped)
        if (seen, description.base_model_digest, description.method) != (sees, base.digest, package.method):
            raise DataError(f"facts/{task.name}.json is not about what {CONFIG_FILE} says.")
        ref = from_json(CommittedRef, fact["result"])
        learnt = Learnt(
            task.name,
            task.key,
            description.task,
            base,
            package.method,
            package.settings,
            description.sees,
            ref,
            float(fact["at"]),
            package.run,
            description.form,
        )
        mine = {name.removeprefix(f"{task.name}/"): t for name, t in tensors.items() if name.startswith(f"{task.name}/")}
        adapter = {n: t for n, t in mine.items() if n.startswith(("adapter/", "key/"))}
        own = {n: t for n, t in mine.items() if n.startswith(("queries/", "coefficients/", "head/"))}
        if len(adapter) + len(own) != len(mine) or ref.job != task.key or (task.key in dropped and adapter):
            raise DataError(f"{folder}: the tensors or the key of {task.name} are not what they should be.")
        signature = data.get(_beside(task.name, SIGNATURE_FILE))
        if signature is not None:
            check_safetensors(signature, SIGNATURE_FILE)
        tasks[task.key] = LearntWeights(learnt, adapter, own, task.labels, parse_tensors(signature) if signature else {})
    if sum(len(t.adapter) + len(t.own) for t in tasks.values()) != len(tensors):
        raise DataError(f"{folder}/{WEIGHTS_FILE} holds tensors of tasks that {CONFIG_FILE} does not name.")
    scores = {keys[name]: score for name, score in package.pruned.scores.items()} if package.pruned else {}
    imported = {}
    for each in package.imported or ():
        if each.key not in dropped:
            imported[each.key] = read_imported(data, each.name, each.key, package.run)
    return BankWeights(package.run, package.precision, tasks, dropped, scores, imported)


def original_files(folder: Path, task: LearntWeights) -> dict[str, bytes]:
    """The files of a learnt task as its run wrote them, to the last byte.

    Raises:
        DataError: they cannot be made again: a hash that its run recorded is not met, as in a pruned bank.
    """
    fact = _parse_fact((folder / "facts" / f"{task.learnt.name}.json").read_bytes(), task.learnt.name)
    files = {
        ADAPTER_FILE: pack_tensors(task.adapter),
        TASK_FILE: pack_tensors(task.own),
        CONFIG_FILE: canonical_json(fact["description"]),
        DETAILS_FILE: canonical_json(fact["details"]),
    }
    for name in (blob.name for blob in task.learnt.ref.blobs if blob.name in _FURTHER):
        files[name] = _read_bytes(folder, _beside(task.learnt.name, name), _WEIGHTS_LIMIT)
    for blob in task.learnt.ref.blobs:
        if blob.name not in files or sha256_hex(files[blob.name]) != blob.sha256:
            raise DataError(f"{task.learnt.name}: {blob.name} is not the file that run {task.learnt.adopted_from} committed.")
    return {blob.name: files[blob.name] for blob in task.learnt.ref.blobs}


_FURTHER = (SAMPLES_FILE, SIGNATURE_FILE, SIGNATURES_FILE, VALIDATION_FILE)
"""Files of a result that a bank carries as they are."""


def _further(store: ObjectStore, learnt: Learnt) -> dict[str, bytes]:
    names = {blob.name for blob in learnt.ref.blobs}
    return {name: artifacts.load(store, learnt.ref, name) for name in _FURTHER if name in names}


def _beside(task: str, name: str) -> str:
    return f"facts/{task}/{name}"


def _named(weights: BankWeights) -> dict[str, Tensor]:
    return {
        f"{task.learnt.name}/{name}": tensor
        for task in weights.tasks.values()
        for name, tensor in {**task.adapter, **task.own}.items()
    }


def _fact(store: ObjectStore, learnt: Learnt) -> bytes:
    """What the run recorded, without places and hosts: those are of where it came from."""
    ref = replace(learnt.ref, prefix=f"facts/{learnt.name}", metrics=without_hosts(learnt.ref.metrics))
    known = {blob.name for blob in ref.blobs}
    return canonical_json(
        {
            "result": ref,
            "at": learnt.at,
            "description": json.loads(artifacts.load(store, learnt.ref, CONFIG_FILE)),
            "details": json.loads(artifacts.load(store, learnt.ref, DETAILS_FILE)) if DETAILS_FILE in known else {},
        }
    )


def _describe(weights: BankWeights, files: Mapping[str, bytes]) -> _Package:
    base = weights.base
    known = BACKBONES.get(base.name)
    hub = known is not None and known.revision is not None and not base.source
    names = {key: weights.name_of(key) for key in (*weights.tasks, *weights.imported)}
    return _Package(
        # A backbone that ships with this package has no address on the hub; its name is one that `load_backbone` knows.
        base_model_name_or_path=known.source if hub and known else base.source or base.name,
        revision=(known.revision or "") if hub and known else base.revision,
        base_model={name: value for name, value in base.address.items() if name != "tiles"},
        tiles=base.tiles if base.tiles > 1 else None,
        base_model_digest=base.digest,
        method=weights.first.method,
        settings=dict(plain(weights.first.settings)),
        precision=weights.precision,  # type: ignore[arg-type]
        run=weights.run,
        tasks=tuple(
            _Task(
                name=t.learnt.name,
                key=t.learnt.key,
                sees=tuple(names[key] for key in t.learnt.sees if key not in weights.dropped),
                kind=t.learnt.task.kind.value,
                classes=t.learnt.task.classes,
                labels=t.labels,
                score=t.learnt.score,
            )
            for t in weights.tasks.values()
        ),
        files={name: _File(size=len(data), sha256=sha256_hex(data)) for name, data in sorted(files.items())},
        pruned=_Pruned(
            dropped=tuple(names[key] for key in names if key in weights.dropped),
            scores={names[key]: score for key, score in weights.rescored.items()},
        )
        if weights.rescored
        else None,
        imported=tuple(_Named(name=one.entry.name, key=key) for key, one in weights.imported.items()) or None,
    )


def _read_config(folder: Path) -> _Package:
    data = _read_bytes(folder, CONFIG_FILE, _JSON_LIMIT)
    try:
        package = _Package.model_validate_json(data)
    except ValidationError as error:
        raise DataError(
            f"{folder / CONFIG_FILE} is not an exported bank: {faults(error)[0]}",
            fix="Export it again: atlas-dist bank export.",
        ) from None
    wanted = {WEIGHTS_FILE, *(f"facts/{task.name}.json" for task in package.tasks)} | ({PRUNE_FILE} if package.pruned else set())
    about = set(package.base_model) - {"architecture"}  # which older versions did not write
    wanted |= {name for task in package.tasks for further in _FURTHER if (name := _beside(task.name, further)) in package.files}
    dropped = package.pruned.dropped if package.pruned else ()
    imported = package.imported or ()
    wanted |= {_within(each.name, name) for each in imported if each.name not in dropped for name in IMPORTED_FILES}
    if set(package.files) != wanted or about != {"name", "source", "revision"}:
        raise DataError(f"{folder / CONFIG_FILE} names the files {sorted(package.files)}; it should name {sorted(wanted)}.")
    every: tuple[_Named, ...] = (*package.tasks, *imported)
    if len({each.name for each in every}) != len(every) or len({each.key for each in every}) != len(every):
        raise DataError(f"{folder / CONFIG_FILE} names a task twice.")
    names = {task.name for task in package.tasks}
    if package.pruned and (set(package.pruned.scores) != names or not {each.name for each in every}.issuperset(dropped)):
        raise DataError(f"{folder / CONFIG_FILE} was pruned of tasks, or has scores of tasks, that are not here.")
    return package


def _read_file(folder: Path, name: str, about: _File) -> bytes:
    data = _read_bytes(folder, name, _WEIGHTS_LIMIT if name.endswith(".safetensors") else _JSON_LIMIT)
    if (len(data), sha256_hex(data)) != (about.size, about.sha256):
        raise DataError(
            f"{folder / name} is damaged: {len(data)} bytes with sha256 {sha256_hex(data)[:12]}, expected {about.size} with "
            f"{about.sha256[:12]}.",
            fix="Copy the folder again from where it is whole.",
        )
    return data


def _read_bytes(folder: Path, name: str, limit: int) -> bytes:
    path = folder / name
    try:
        if path.stat().st_size > limit:
            raise DataError(f"{path} has more than the {limit} bytes allowed here.")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"There is no {path}.", fix="Name a folder that `atlas-dist bank export` wrote.") from error
    except OSError as error:
        raise StoreError(f"Cannot read {path}: {error}.") from error


def _parse_fact(data: bytes, name: str) -> dict[str, Any]:
    try:
        fact = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"facts/{name}.json is not JSON: {error}.") from error
    if not isinstance(fact, dict) or set(fact) != {"result", "at", "description", "details"}:
        raise DataError(f"facts/{name}.json is not a fact of an exported bank.")
    return fact
