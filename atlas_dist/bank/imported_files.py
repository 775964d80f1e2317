"""An imported adapter among the files of an exported bank: written, read and believed as little as the rest of it.

imported/<name>/adapter.safetensors     as its run committed them, to the last byte
imported/<name>/signature.safetensors
imported/<name>/provenance.json         where it came from, with its licence texts and model card
imported/<name>/result.json             what its run recorded: key, files with their hashes, when
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load as parse_tensors

from atlas_dist.bank.contents import ImportedEntry
from atlas_dist.bank.weights import ImportedWeights
from atlas_dist.core.attempts import CommittedRef
from atlas_dist.core.imported import Provenance
from atlas_dist.core.keys import canonical_json, check_name, sha256_hex
from atlas_dist.core.records import from_json
from atlas_dist.core.result_files import ADAPTER_FILE, PROVENANCE_FILE, SIGNATURE_FILE
from atlas_dist.core.results import without_hosts
from atlas_dist.errors import DataError, StoreError
from atlas_dist.model.lora import ranks_in
from atlas_dist.store import artifacts
from atlas_dist.store.objects import ObjectStore
from atlas_dist.store.safetensors_check import check_safetensors

RECORD_FILE = "result.json"
COMMITTED = (ADAPTER_FILE, SIGNATURE_FILE, PROVENANCE_FILE)
"""Files of the result of an import."""
IMPORTED_FILES = (*COMMITTED, RECORD_FILE)
"""Files of one imported adapter in an exported bank."""


def within(name: str, file: str) -> str:
    """Where a file of an imported adapter lies in an exported bank."""
    return f"imported/{check_name(name, 'imported adapter')}/{file}"


def imported_files(store: ObjectStore, entry: ImportedEntry) -> dict[str, bytes]:
    """The files of an imported adapter, each against its hash. Raises DataError, StoreError."""
    ref = replace(entry.ref, prefix=f"imported/{entry.name}", metrics=without_hosts(entry.ref.metrics))
    files = {within(entry.name, file): artifacts.load(store, entry.ref, file) for file in COMMITTED}
    return {**files, within(entry.name, RECORD_FILE): canonical_json({"result": ref, "at": entry.at})}


def read_imported(data: Mapping[str, bytes], name: str, key: str, run: str) -> ImportedWeights:
    """An imported adapter out of the files of an exported bank. Raises DataError: they do not belong together."""
    record = within(name, RECORD_FILE)
    try:
        raw = json.loads(data[record])
        ref, at = from_json(CommittedRef, raw["result"]), float(raw["at"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{record} is not what an exported bank has: {error}.") from error
    for file in COMMITTED:
        if sha256_hex(data[within(name, file)]) != ref.blob(file).sha256:
            raise DataError(f"{within(name, file)} is not the file that {record} says.")
    for file in (ADAPTER_FILE, SIGNATURE_FILE):
        check_safetensors(data[within(name, file)], within(name, file))
    provenance = Provenance.from_json(data[within(name, PROVENANCE_FILE)], within(name, PROVENANCE_FILE))
    adapter, signature = (parse_tensors(data[within(name, file)]) for file in (ADAPTER_FILE, SIGNATURE_FILE))
    if ref.job != key or ranks_in(adapter) != dict(provenance.ranks):
        raise DataError(f"The key or the layers of the imported adapter {name} are not what they should be.")
    return ImportedWeights(ImportedEntry(name, key, provenance, ref, at, run), adapter, signature)


def original_imported(folder: Path, entry: ImportedEntry) -> dict[str, bytes]:
    """The files as the import committed them. Raises StoreError: they cannot be read any more."""
    try:
        return {file: (folder / within(entry.name, file)).read_bytes() for file in COMMITTED}
    except OSError as error:
        raise StoreError(f"Cannot read {folder}: {error}.") from error
