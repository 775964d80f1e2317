"""A run's bank as its ledger tells it: which tasks were learnt, what each of them sees, how it was scored. No Ray, no shards.

Only the ledger commits; what a commit *is* stands in its own `adapter_config.json`, so that a bank can be read by people who have
neither the run's settings nor its data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from atlas_dist.core.attempts import CommittedRef
from atlas_dist.core.imported import Provenance
from atlas_dist.core.keys import SHORT
from atlas_dist.core.ledger import Entry
from atlas_dist.core.records import Adopt, Commit
from atlas_dist.core.result_files import CONFIG_FILE, PROVENANCE_FILE, AdapterConfig
from atlas_dist.core.results import EvalResult, SelectResult, TrainResult
from atlas_dist.core.selection import Form
from atlas_dist.core.state import RunState
from atlas_dist.core.types import TaskSpec, View
from atlas_dist.errors import ConfigError, DataError
from atlas_dist.runs.status import load_run
from atlas_dist.store import artifacts
from atlas_dist.store.objects import ObjectStore


@dataclass(frozen=True)
class Base:
    """The frozen backbone that adapters belong to. `digest` is of its weights, tokenizer and configuration."""

    name: str
    source: str
    revision: str
    digest: str
    architecture: str = "vilt"
    """Older versions wrote none: they knew no other."""
    tiles: int = 1
    """Likewise."""

    @property
    def address(self) -> dict[str, Any]:
        """All but the digest: what finds the backbone again, under the names of the settings `backbone.*`."""
        named = {"name": self.name, "source": self.source, "revision": self.revision, "architecture": self.architecture}
        return {**named, "tiles": self.tiles}

    @property
    def sees(self) -> str:
        """How it sees pictures, for a sentence that goes on behind its name; "" = whole."""
        return f", pictures in {self.tiles} x {self.tiles} tiles" if self.tiles > 1 else ""

    @property
    def recorded(self) -> dict[str, Any]:
        """The address as files have it: with tiles only where there are any, so that other files stay as they were."""
        return {name: value for name, value in self.address.items() if name != "tiles" or value != 1}


@dataclass(frozen=True)
class Evaluation:
    """A recorded evaluation of a task as it was learnt (task view), scores in percent."""

    score: float
    loss: float
    samples: int
    predictions_sha256: str
    without: tuple[float, ...] = ()
    """The score without each adapter of the task's view in turn, in its order; () where it was not measured."""


@dataclass(frozen=True)
class Learnt:
    """One learnt task: its adapter, queries and head, and where they lie.

    `name` is the task's, with a part of the key where a run learnt the task more than once (several orders or seeds).
    """

    name: str
    key: str
    task: TaskSpec
    base: Base
    method: str
    settings: Mapping[str, Any]
    sees: tuple[str, ...]
    """Keys of the earlier adapters it draws on, in bank order; its own comes after them."""
    ref: CommittedRef
    at: float
    """Wall clock of the commit, seconds since 1970: for people."""
    adopted_from: str = ""
    """The run whose fact this is, when it was not trained in this one."""
    form: str = ""
    """Where several forms were trained, the one that was committed (`core.selection.Form`)."""

    @property
    def has_adapter(self) -> bool:
        """Whether it has an adapter of its own: a task may do with the earlier ones."""
        return self.form != Form.EXPERIENCE

    @property
    def view(self) -> tuple[str, ...]:
        """Keys of all adapters that the task uses, its own last."""
        return (*self.sees, self.key) if self.has_adapter else self.sees

    @property
    def score(self) -> float:
        """Validation score in percent that training measured for what it kept."""
        return TrainResult.of(self.ref).score


@dataclass(frozen=True)
class ImportedEntry:
    """An adapter of a bank that nobody here trained: it has no head, so it answers nothing by itself, and later tasks read it."""

    name: str
    key: str
    provenance: Provenance
    ref: CommittedRef
    at: float
    """Wall clock of the commit, seconds since 1970: for people."""
    adopted_from: str = ""
    """The run that imported it, when that is another one."""


@dataclass(frozen=True)
class Bank:
    """Everything that a run has learnt, in the order of its commits."""

    run: str
    precision: str
    learnt: Mapping[str, Learnt]
    evaluations: tuple[tuple[str, Evaluation], ...]
    """(key of the learnt task, or "" where an older version did not note it; the evaluation), in ledger order."""
    imported: Mapping[str, ImportedEntry] = field(default_factory=dict)
    """Adapters that nobody here trained, by key."""

    def name_of(self, key: str) -> str:
        """What an adapter is called; the beginning of its key where the bank does not have it."""
        found = self.learnt.get(key) or self.imported.get(key)
        return found.name if found else key[:SHORT]

    def ref_of(self, key: str) -> CommittedRef:
        """Where an adapter's result lies; KeyError when the bank does not have it."""
        return (self.imported[key] if key in self.imported else self.learnt[key]).ref

    def find_imported(self, wanted: str) -> ImportedEntry | None:
        """By name or beginning of a key, where no learnt task is called so; None = there is none."""
        if any(wanted in (e.name, e.task.name) for e in self.learnt.values()):
            return None
        found = [e for e in self.imported.values() if wanted == e.name or (wanted and e.key.startswith(wanted))]
        return found[0] if len(found) == 1 else None

    def find(self, wanted: str) -> Learnt:
        """By task name or beginning of a key. Raises ConfigError listing what there is, or which ones it could be."""
        found = [e for e in self.learnt.values() if wanted in (e.name, e.task.name)]
        found = found or [e for e in self.learnt.values() if wanted and e.key.startswith(wanted)]
        if len(found) == 1:
            return found[0]
        if found:
            raise ConfigError(f"{wanted!r} was learnt {len(found)} times.", fix=f"Say which: {_names(found)}.")
        raise ConfigError(f"Run {self.run} has not learnt {wanted!r}.", fix=f"It has learnt: {_names(self.learnt.values())}.")

    def needed_for(self, keys: Iterator[str] | tuple[str, ...]) -> tuple[Learnt, ...]:
        """The given ones with every adapter that they see, in the order of the bank."""
        keys = tuple(keys)
        wanted = {seen for key in keys for seen in self.learnt[key].view} | set(keys)
        missing = wanted - set(self.learnt) - set(self.imported)
        if missing:
            raise DataError(f"Run {self.run} lacks adapters that its tasks see: {', '.join(sorted(missing))}.")
        return tuple(e for e in self.learnt.values() if e.key in wanted)

    def evaluation_of(self, key: str) -> Evaluation | None:
        """The first recorded evaluation of a learnt task in its own view; later ones must be equal."""
        return next((e for of, e in self.evaluations if of == key), None)


def read_bank(store: ObjectStore, run: str) -> Bank:
    """The bank of one run.

    Raises:
        ConfigError: there is no such run; the message lists those that there are.
        DataError: a description is damaged. StoreError: the ledger is, or the store is in trouble.
    """
    state, entries = load_run(store, run)
    if not entries:
        known = ", ".join(runs_of(store)) or "none"
        raise ConfigError(f"There is no run {run} in {store.url}.", fix=f"Set run=… to one of: {known}; or store.url=….")
    when = {e.record.job: e.at for e in entries if isinstance(e.record, Commit | Adopt)}
    described = {key: _described(store, ref) for key, ref in _learnt_refs(state, entries)}
    imported = {key: _provenance(store, ref) for key, ref in _imported_refs(state, entries)}
    twice = Counter((*(config.task.name for config in described.values()), *(p.name for p in imported.values())))
    learnt = {}
    for key, config in described.items():
        name = config.task.name if twice[config.task.name] == 1 else f"{config.task.name}-{key[:SHORT]}"
        job = state.job(key)
        assert job.committed is not None, "only committed results are described"
        address = {f: str(v) for f in ("name", "source", "revision", "architecture") if (v := config.base_model.get(f))}
        named = {"name": "", "source": "", "revision": "", **address}
        base = Base(**named, digest=config.base_model_digest, tiles=int(config.base_model.get("tiles") or 1))
        learnt[key] = Learnt(
            name,
            key,
            config.task,
            base,
            config.method,
            config.settings,
            config.sees,
            job.committed,
            when[key],
            job.adopted_from,
            config.form,
        )
    train = state.spec.get("train", {})
    carried = {}
    for key, provenance in imported.items():
        name = provenance.name if twice[provenance.name] == 1 else f"{provenance.name}-{key[:SHORT]}"
        job = state.job(key)
        assert job.committed is not None, "only committed results have a provenance"
        origin = "" if job.adopted_from == run else job.adopted_from
        carried[key] = ImportedEntry(name, key, provenance, job.committed, when[key], origin)
    return Bank(run, str(train.get("precision", "fp32")), learnt, tuple(_evaluations(state, entries)), carried)


def runs_of(store: ObjectStore) -> list[str]:
    """Names of the runs that have a ledger in the store, sorted."""
    parts = (info.key.split("/") for info in store.list("runs/"))
    return sorted(p[1] for p in parts if len(p) == 4 and p[2:] == ["ledger", f"{0:016d}"])


def _described(store: ObjectStore, ref: CommittedRef) -> AdapterConfig:
    return AdapterConfig.from_json(artifacts.load(store, ref, CONFIG_FILE), f"{ref.prefix}/{CONFIG_FILE}")


def _learnt_refs(state: RunState, entries: list[Entry]) -> Iterator[tuple[str, CommittedRef]]:
    """Committed jobs that learnt a task, in the order of their commits; without forms of a task that were candidates only."""
    committed = [entry.record for entry in entries if isinstance(entry.record, Commit | Adopt)]
    candidates = {key for record in committed for key in SelectResult.from_json(record.metrics).candidates.values()}
    candidates -= {EvalResult.from_json(record.metrics).model_from for record in committed}
    for entry in entries:
        if isinstance(entry.record, Commit | Adopt):
            ref = state.job(entry.record.job).committed
            if ref is not None and ref.job not in candidates and any(blob.name == CONFIG_FILE for blob in ref.blobs):
                yield ref.job, ref


def _provenance(store: ObjectStore, ref: CommittedRef) -> Provenance:
    return Provenance.from_json(artifacts.load(store, ref, PROVENANCE_FILE), f"{ref.prefix}/{PROVENANCE_FILE}")


def _imported_refs(state: RunState, entries: list[Entry]) -> Iterator[tuple[str, CommittedRef]]:
    """Committed results that are imported adapters, in the order of their commits."""
    for entry in entries:
        if isinstance(entry.record, Commit | Adopt):
            ref = state.job(entry.record.job).committed
            if ref is not None and any(blob.name == PROVENANCE_FILE for blob in ref.blobs):
                yield ref.job, ref


def _evaluations(state: RunState, entries: list[Entry]) -> Iterator[tuple[str, Evaluation]]:
    for entry in entries:
        if isinstance(entry.record, Commit | Adopt):
            result = EvalResult.from_json(entry.record.metrics)
            found = result.views.get(View.TASK)
            if found is not None:
                told = Evaluation(found.score, found.loss, found.samples, found.predictions_sha256, result.without)
                yield result.model_from, told


def _names(entries: Any) -> str:
    return ", ".join(e.name for e in entries) or "nothing"
