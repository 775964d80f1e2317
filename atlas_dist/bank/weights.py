"""Learnt tasks with their tensors, in memory and apart from any run: what is exported, imported, and answered with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from atlas_dist.bank.contents import Bank, Base, ImportedEntry, Learnt
from atlas_dist.core.result_files import SIGNATURE_FILE
from atlas_dist.data.manifest import read_manifest
from atlas_dist.errors import AtlasError, DataError
from atlas_dist.methods import Method, stored_method
from atlas_dist.store.objects import ObjectStore
from atlas_dist.train.inputs import read_adapters, read_if_there, read_task


@dataclass(frozen=True)
class LearntWeights:
    """A learnt task and its tensors. `adapter`: `adapter/<site>/…` and `key/<site>`; `own`: `queries/<site>` and `head/…`.

    `labels` are the names of its classes or answers; () where nobody knew them.
    """

    learnt: Learnt
    adapter: Mapping[str, Tensor]
    own: Mapping[str, Tensor]
    labels: tuple[str, ...] = ()
    signature: Mapping[str, Tensor] = field(default_factory=dict)
    """What its training samples look like to the frozen backbone, of its SIGNATURE_FILE; {} where nobody looked."""

    def label(self, index: int) -> str:
        """The name of a class, or its number."""
        return self.labels[index] if self.labels else str(index)


@dataclass(frozen=True)
class ImportedWeights:
    """An imported adapter and its tensors, as `LearntWeights` has them; there is no head."""

    entry: ImportedEntry
    adapter: Mapping[str, Tensor]
    signature: Mapping[str, Tensor]


@dataclass(frozen=True)
class BankWeights:
    """Some learnt tasks of one backbone and one method, with every adapter that they see. Keys are job keys, in bank order.

    A task whose own adapter was left out (`dropped`) has an empty `adapter`, and queries for what is left of its view.
    """

    run: str
    precision: str
    tasks: Mapping[str, LearntWeights]
    dropped: frozenset[str] = frozenset()
    """Keys of adapters that were left out by pruning: no task reads them any more."""
    rescored: Mapping[str, float] = field(default_factory=dict)
    """Of a pruned bank: key -> the task's validation score in percent with what is left."""
    imported: Mapping[str, ImportedWeights] = field(default_factory=dict)
    """Adapters that nobody here trained and that tasks may see, by key."""

    def __post_init__(self) -> None:
        if not self.tasks:
            raise DataError("There is nothing in this bank.", fix="Learn a task first, or name one that was learnt.")
        first = self.first
        for task in self.tasks.values():
            odd = sorted(name for name in task.own if not name.startswith(("queries/", "coefficients/", "head/")))
            if odd:
                raise DataError(
                    f"The method {task.learnt.method} keeps {odd[0]}: only adapters, queries and heads can be carried."
                )
            if (task.learnt.base.digest, task.learnt.method, dict(task.learnt.settings)) != (
                first.base.digest,
                first.method,
                dict(first.settings),
            ):
                raise DataError(
                    f"{task.learnt.name} and {first.name} have another backbone or method: they cannot share a model.",
                    fix="Name the tasks that belong together with --task.",
                )
            missing = [key for key in task.learnt.sees if key not in {*self.tasks, *self.imported, *self.dropped}]
            if missing:
                raise DataError(f"{task.learnt.name} sees adapters that are not here: {', '.join(missing)}.")
        for one in self.imported.values():
            if one.entry.provenance.backbone_digest != first.base.digest:
                raise DataError(f"The imported adapter {one.entry.name} belongs to another backbone than {first.name}.")

    @property
    def first(self) -> Learnt:
        """Any of them: backbone, method and settings are the same for all."""
        return next(iter(self.tasks.values())).learnt

    @property
    def base(self) -> Base:
        """The backbone they belong to."""
        return self.first.base

    @property
    def adapters(self) -> dict[str, Mapping[str, Tensor]]:
        """Every adapter that is here, imported ones first; learnt tasks without one are left out."""
        imported = {key: one.adapter for key, one in self.imported.items() if key not in self.dropped}
        return imported | {key: task.adapter for key, task in self.tasks.items() if task.adapter}

    def name_of(self, key: str) -> str:
        """What a task or an imported adapter is called."""
        return self.imported[key].entry.name if key in self.imported else self.tasks[key].learnt.name

    def view(self, key: str) -> tuple[str, ...]:
        """Keys of the adapters that a task reads here, in bank order, its own last."""
        return tuple(seen for seen in self.tasks[key].learnt.view if seen not in self.dropped)

    def without(self, dropped: frozenset[str], rescored: Mapping[str, float]) -> BankWeights:
        """A bank without some adapters: their tensors and every task's queries for them are left out; this one stays as it is."""
        tasks = {key: _pruned(task, dropped) for key, task in self.tasks.items()}
        imported = {key: replace(one, adapter={}) if key in dropped else one for key, one in self.imported.items()}
        return replace(self, tasks=tasks, dropped=dropped, rescored=dict(rescored), imported=imported)

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        tasks = sum(t.nbytes for task in self.tasks.values() for part in (task.adapter, task.own) for t in part.values())
        return tasks + sum(t.nbytes for one in self.imported.values() for t in one.adapter.values())

    def method(self) -> Method:
        """The method they were learnt with. Raises ConfigError when this version does not know it."""
        return stored_method(self.first.method, self.first.settings)


def _pruned(task: LearntWeights, dropped: frozenset[str]) -> LearntWeights:
    view = task.learnt.view
    kept = {
        "queries/": [row for row, key in enumerate(view) if key not in dropped],
        "coefficients/": [row for row, key in enumerate(v for v in view if v != task.learnt.key) if key not in dropped],
    }
    own = {}
    for name, tensor in task.own.items():
        rows = next((rows for prefix, rows in kept.items() if name.startswith(prefix)), None)
        if rows is None or rows:
            own[name] = tensor if rows is None else tensor[rows]
    return replace(task, adapter={} if task.learnt.key in dropped else task.adapter, own=own)


def load_weights(store: ObjectStore, bank: Bank, wanted: Sequence[str] = (), *, shards: ObjectStore | None = None) -> BankWeights:
    """Read learnt tasks from a store, every file against its hash.

    Args:
        wanted: task names or beginnings of keys; () = all. The adapters they see come along.
        shards: where the names of the classes stand; None, or without the task's manifest: the classes stay numbers.

    Raises:
        ConfigError: a name is not in the bank. DataError: a file is damaged. StoreError: the store is in trouble.
    """
    keys = tuple(bank.find(name).key for name in wanted) or tuple(bank.learnt)
    tasks = {}
    for learnt in bank.needed_for(keys):
        refs = {learnt.key: learnt.ref}
        adapter = read_adapters(store, refs, [learnt.key])[0] if learnt.has_adapter else {}
        tasks[learnt.key] = LearntWeights(
            learnt,
            adapter,
            read_task(store, learnt.ref),
            _labels(shards, learnt),
            read_if_there(store, learnt.ref, SIGNATURE_FILE),
        )
    seen = {key for task in tasks.values() for key in task.learnt.view}
    imported = {
        key: ImportedWeights(
            entry, read_adapters(store, {key: entry.ref}, [key])[0], read_if_there(store, entry.ref, SIGNATURE_FILE)
        )
        for key, entry in bank.imported.items()
        if key in seen or not wanted
    }
    return BankWeights(bank.run, bank.precision, tasks, imported=imported)


def _labels(shards: ObjectStore | None, learnt: Learnt) -> tuple[str, ...]:
    """Names of the classes from the very split that the task was validated on. Choices have none, which come with the
    question, nor have answers that are written."""
    if shards is None or not learnt.task.kind.named:
        return ()
    try:
        return read_manifest(shards, learnt.task.dataset, learnt.task.val, digest=learnt.task.val_digest).classes
    except AtlasError:
        return ()
