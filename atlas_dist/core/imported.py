"""Adapters that nobody here trained: what a plan knows of one, where it came from, and the key that names it.

An imported adapter is a fact as any other. Its key is the digest of its content: the weights as this package keeps them, what
came with them (configuration, licence, model card), the samples that its signature was made from, and the backbone. Who imported
it, and when, is told beside it and is not part of the key: the same adapter imported twice is one fact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

from atlas_dist.core.keys import canonical_json, key_of, plain
from atlas_dist.core.records import from_json
from atlas_dist.core.result_files import only_fields, parsed
from atlas_dist.core.types import TaskSpec
from atlas_dist.errors import DataError

PROVENANCE_FORMAT = "atlas-dist imported adapter 1"
SPECIFIED = "imported_adapter"
"""Where the ledger of an import says what it imported: `ImportedAdapter.as_specified`."""
CARD = "README.md"
"""The model card among the texts of a `Provenance`."""


@dataclass(frozen=True)
class ImportedAdapter:
    """An imported adapter as a plan needs it."""

    name: str
    """What it is called here, which is also the name of the run that imported it."""
    key: str
    task: TaskSpec
    """The samples that its signature was made from, under the adapter's name."""

    def as_specified(self) -> dict[str, Any]:
        """As ledgers have it."""
        return {"name": self.name, "key": self.key, "task": plain(self.task.as_stored())}

    @classmethod
    def from_specified(cls, raw: Mapping[str, Any]) -> Self:
        """Raises DataError: a field is missing, or of another type."""
        task = raw.get("task")
        return from_json(cls, {**raw, "task": only_fields(TaskSpec, task if isinstance(task, Mapping) else {})})


@dataclass(frozen=True)
class Provenance:
    """Where an imported adapter came from, with the texts that have to travel along."""

    name: str
    source: str
    """Folder or repository that it was read from, as it was given."""
    base_model: str
    """`base_model_name_or_path` of its configuration; "" = it names none."""
    revision: str
    """Of the base model, as its configuration says; "" = it says none."""
    licence: str
    """As the front matter of its model card names it; "" = it does not."""
    files: Mapping[str, str]
    """Name of each file that was read -> its sha256."""
    texts: Mapping[str, str]
    """Model card and licence files by name, whole."""
    config: Mapping[str, Any]
    """Its `adapter_config.json`, as it was."""
    ranks: Mapping[str, int]
    """Path of each linear layer that it acts on -> its rank there."""
    task: TaskSpec
    """The samples that its signature was made from, under the adapter's name."""
    backbone: Mapping[str, Any]
    """The settings `backbone.*` of the backbone that it was fitted to here."""
    backbone_digest: str
    imported_by: str = ""
    imported_at: float = 0.0
    """Wall clock, seconds since 1970."""
    commit: str = ""
    """Of the repository that it was pulled from; "" = from a folder."""
    format: str = field(default=PROVENANCE_FORMAT)

    @classmethod
    def from_json(cls, data: bytes, what: str) -> Self:
        """Fields that this version does not know are passed over. `what`: the file's name, for messages.

        Raises:
            DataError: it is not JSON, of another format, or a field is missing or of another type.
        """
        raw = parsed(data, what)
        if not isinstance(raw, dict) or raw.get("format") != PROVENANCE_FORMAT:
            raise DataError(f"{what} is not of the format {PROVENANCE_FORMAT!r}.", fix="Another version of atlas-dist wrote it.")
        if isinstance(raw.get("task"), dict):
            raw["task"] = only_fields(TaskSpec, raw["task"])
        return from_json(cls, only_fields(cls, raw))

    def to_json(self) -> bytes:
        """As the file has it."""
        written = {f.name: getattr(self, f.name) for f in fields(self)} | {"task": self.task.as_stored()}
        return canonical_json(written)

    @property
    def licence_files(self) -> dict[str, str]:
        """Licence texts by the names of their files, without the model card."""
        return {name: text for name, text in self.texts.items() if name != CARD}

    def key(self, adapter_sha256: str, numerics: Mapping[str, Any]) -> str:
        """The job key: of everything that the result holds but who imported it, when, and from which place.

        Args:
            adapter_sha256: of the weights' file as this package keeps it.
            numerics: what may change the signature at equal samples.
        """
        content = {f.name: plain(getattr(self, f.name)) for f in fields(self) if f.name not in _NOT_CONTENT}
        content["task"] = self.task.as_stored()
        return key_of({"kind": "import", "adapter": adapter_sha256, "provenance": content, "numerics": numerics})

    def as_imported(self, key: str) -> ImportedAdapter:
        """As a plan needs it."""
        return ImportedAdapter(self.name, key, self.task)

    def at(self, by: str, when: float) -> Provenance:
        """With who imported it, and when."""
        return replace(self, imported_by=by, imported_at=when)


# The address of the backbone is beside its digest, which says what it is wherever it lies.
_NOT_CONTENT = frozenset({"imported_by", "imported_at", "source", "commit", "backbone", "format"})
