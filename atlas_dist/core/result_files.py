"""The files of a job's result: their names, the details for reports, and the adapter's configuration. Its metrics:
`core/results.py`.

The names and the JSON are what 0.1 wrote. Reading passes over fields that this version does not know.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from atlas_dist.core.keys import canonical_json
from atlas_dist.core.records import from_json, known_fields
from atlas_dist.core.selection import Form
from atlas_dist.core.types import TaskSpec, View
from atlas_dist.errors import DataError

ADAPTER_FILE = "adapter.safetensors"
"""What later tasks see: `adapter/<site>/…`, `key/<site>`."""
TASK_FILE = "task.safetensors"
"""What only the task itself needs: `queries/<site>`, `fusion/<site>/…`, `head/…`; and the heads of other tasks as they are now,
where those train along: `guest/<task>/head/…`."""
BACKBONE_FILE = "trunk.safetensors"
"""All weights of the backbone that the method trains, by their names in the backbone."""
MEMORY_FILE = "memory.safetensors"
"""What the method leaves to later tasks."""
SAMPLES_FILE = "samples.safetensors"
"""Of a task that learnt from few samples: which, as ordinals in the manifest, `train` int64."""
VALIDATION_FILE = "validation.safetensors"
"""How the kept state does on each validation sample: `sample` int64 [n] ascending, `loss` and `score` (0 to 1) float32 [n]."""
SIGNATURE_FILE = "signature.safetensors"
"""What a task's training samples look like to the frozen backbone: `pooled/{mean,spread}` [P], `site/<site>/…` [D] likewise."""
SIGNATURES_FILE = "signatures.safetensors"
"""The signatures of a whole bank, in its order: `<job key>/{mean,spread}` [P]."""
DETAILS_FILE = "details.json"
"""`Details`."""
PROVENANCE_FILE = "provenance.json"
"""Of an imported adapter: `core.imported.Provenance`. No other result has one."""
CONFIG_FILE = "adapter_config.json"
"""`AdapterConfig`; in an exported bank, that of the bank."""

ADAPTER_FORMAT = "atlas-dist adapter 1"


def predictions_file(view: View) -> str:
    """An evaluation's answers in one view: `sample` int64 [n] ascending, `answer` int32 [n], `bits` uint8 [n, 16] (of each
    sample's logits; 0.1 did not keep them)."""
    return f"predictions-{view.value}.safetensors"


@dataclass(frozen=True)
class Details:
    """`details.json` of a training job: for people and reports, too long for the ledger."""

    curve: tuple[Mapping[str, float], ...] = ()
    """Training, by report: step, loss, score."""
    validation: tuple[Mapping[str, float], ...] = ()
    """The same of each validation."""
    alpha: Mapping[str, Mapping[str, list[float]]] = field(default_factory=dict)
    """{site: {"mean": [T], "std": [T]}} of the coefficients α of each visible adapter."""

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Read leniently. Raises DataError when it is not JSON."""
        return cls(**known_fields(cls, parsed(data, DETAILS_FILE)))

    def to_json(self) -> bytes:
        """As the file has it."""
        return canonical_json(self)


@dataclass(frozen=True)
class AdapterConfig:
    """`adapter_config.json` of a committed adapter: what it is, for people who have neither the run's settings nor its data."""

    base_model: Mapping[str, Any]
    """The settings `backbone.*`, and the architecture's name."""
    base_model_digest: str
    task: TaskSpec
    method: str
    settings: Mapping[str, Any]
    """Of the method."""
    sees: tuple[str, ...]
    """Keys of the earlier adapters it draws on, in bank order."""
    format: str = ADAPTER_FORMAT
    form: str = ""
    """Where several forms were trained, the kept one (`core.selection.Form`)."""

    @classmethod
    def from_json(cls, data: bytes, what: str) -> Self:
        """Fields that this version does not know are passed over. `what`: the file's name, for messages.

        Raises:
            DataError: it is not JSON, of another format, or a field is missing or of another type.
        """
        raw = parsed(data, what)
        if not isinstance(raw, dict) or raw.get("format") != ADAPTER_FORMAT:
            raise DataError(f"{what} is not of the format {ADAPTER_FORMAT!r}.", fix="Another version of atlas-dist wrote it.")
        task = raw.get("task")
        if isinstance(task, dict):
            raw["task"] = only_fields(TaskSpec, task)
        return from_json(cls, only_fields(cls, raw))

    @property
    def has_adapter(self) -> bool:
        """Whether the task has an adapter of its own."""
        return self.form != Form.EXPERIENCE

    def to_json(self) -> bytes:
        """As the file has it; `form` only where there was a choice."""
        written = {f.name: getattr(self, f.name) for f in fields(self)} | {"task": self.task.as_stored()}
        return canonical_json({name: value for name, value in written.items() if value or name != "form"})


def only_fields(kind: Any, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Of what was read, the fields that a dataclass has."""
    return {f.name: raw[f.name] for f in fields(kind) if f.name in raw}


def parsed(data: bytes, what: str) -> Any:
    """JSON, believed in nothing else. Raises DataError."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{what} is not JSON: {error}.") from error
