"""What a run has learnt, opened from its settings: its bank, a model that answers from it, and the way to another store."""

from __future__ import annotations

import getpass
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from atlas_dist.app.composed import Settings, compose_run
from atlas_dist.app.process import restored_process
from atlas_dist.bank.contents import Bank, read_bank
from atlas_dist.bank.difference import TaskDifference, compare_banks
from atlas_dist.core.keys import SHORT, digest_of
from atlas_dist.data.manifest import read_manifest
from atlas_dist.errors import ConfigError
from atlas_dist.runs.stores import open_shards, shards_if_there

if TYPE_CHECKING:
    from atlas_dist.bank.adopt_adapter import AdapterImport
    from atlas_dist.bank.similar import Similar
    from atlas_dist.bank.weights import BankWeights
    from atlas_dist.serve import AtlasModel


def open_bank(*settings: Settings) -> Bank:
    """Everything that a run has learnt, in the order of its commits, as its ledger tells it.

    Args:
        settings: as for `run`; `store.url=…` and `run=…` are enough.

    Raises:
        ConfigError: there is no such run. DataError: a description is damaged. StoreError: the store is in trouble.
    """
    composed_run = compose_run(*settings)
    return read_bank(composed_run.store, composed_run.config.run)


def load_model(*settings: Settings, tasks: Sequence[str] = ()) -> AtlasModel:
    """A model that answers straight from a run's store, without exporting its bank first.

    Args:
        settings: as for `open_bank`. tasks: only these, with what they see; () = all.

    Raises:
        As `open_bank`; ConfigError: the run has not learnt such a task. DataError: a file is damaged.
    """
    with restored_process():  # torch sets variables of the environment when it is imported
        from atlas_dist.serve import AtlasModel

        return AtlasModel.from_weights(_weights(*settings, tasks=tasks)[1])


def diff_banks(before: str, after: str, *settings: Settings) -> tuple[TaskDifference, ...]:
    """The banks of two runs of one store, task by task. Raises as `open_bank`."""
    store = compose_run(*settings).store
    return compare_banks(read_bank(store, before), read_bank(store, after))


def similar_adapters(task: str, *settings: Settings, folder: Path | None = None) -> tuple[Similar, str]:
    """Which adapters would help a packed data set, before anything is trained.

    Args:
        task: of the configuration; nothing of it need be learnt. folder: an exported bank; None = that of the run.

    Returns:
        The adapters beside the task, and the name of the run that has them.

    Raises:
        ConfigError: there is no such task or run. DataError: shards or a file of the bank are missing or damaged.
    """
    composed_run = compose_run(*settings)
    config = composed_run.config
    with restored_process():
        from atlas_dist.bank.package import read_package
        from atlas_dist.bank.similar import similar
        from atlas_dist.coordinator.expand import packed_task

        if task not in config.tasks:
            raise ConfigError(f"This configuration has no task {task!r}.", fix=f"It has: {', '.join(config.tasks)}.")
        spec = packed_task(config, task, partial(read_manifest, open_shards(config)))
        weights = read_package(folder) if folder else _weights(composed_run)[1]
        return similar(config, spec, weights), weights.run


@dataclass(frozen=True)
class Exported:
    """A bank, written as a folder."""

    tasks: tuple[str, ...]
    unnamed: tuple[str, ...]
    """Tasks without class names, because `shards` are out of reach."""
    shards: str
    """Where they were looked for."""
    files: tuple[Path, ...]
    size: int
    """Bytes of the files."""


@restored_process()
def export(folder: Path, *settings: Settings, tasks: Sequence[str] = ()) -> Exported:
    """Write learnt tasks as a folder in the manner of the Hugging Face hub, with a model card.

    Args:
        folder: must not exist yet. settings: as for `open_bank`. tasks: only these and what they see; () = all.

    Raises:
        As `load_model`; DataError: `folder` holds something. StoreError: it cannot be written.
    """
    from atlas_dist.bank.package import export_bank

    composed_run = compose_run(*settings)
    bank, weights = _weights(composed_run, tasks=tasks)
    files = export_bank(composed_run.store, bank, weights, folder)
    learnt = weights.tasks.values()
    return Exported(
        tasks=tuple(t.learnt.name for t in learnt),
        unnamed=tuple(t.learnt.name for t in learnt if not t.labels and t.learnt.task.kind.named),
        shards=composed_run.config.shards.url,
        files=tuple(files),
        size=sum(f.stat().st_size for f in files),
    )


@restored_process()
def export_peft(
    folder: Path, *settings: Settings, tasks: Sequence[str] = (), whole: bool = False
) -> tuple[dict[str, Path], list[str]]:
    """Write LoRA adapters as folders that PEFT loads (bank/peft_folders.py); those that were imported as well.

    Args:
        folder, settings, tasks: as for `export`. whole: what each task makes of all adapters that it reads, instead of its own.

    Returns:
        The folder of each task that has one, and the names of those that have none.

    Raises:
        As `export`; ConfigError: the adapters are bottlenecks.
    """
    from atlas_dist.bank import peft_folders

    _, weights = _weights(compose_run(*settings), tasks=tasks)
    content = peft_folders.PeftContent.TASK if whole else peft_folders.PeftContent.ADAPTER
    written = peft_folders.export_peft(weights, folder, content)
    return written, [t.learnt.name for t in weights.tasks.values() if t.learnt.name not in written]


@dataclass(frozen=True)
class Imported:
    """An exported bank that is a run of a store now."""

    run: str
    tasks: int
    store: str


@restored_process()
def import_folder(folder: Path, *settings: Settings, name: str = "") -> Imported:
    """Take an exported bank into the store as a run of its own; runs that plan the same jobs then adopt its results.

    Args:
        name: of the run that it becomes; "" = import-<a digest>.

    Raises:
        DataError: the folder is not what `export` wrote. ConfigError, StoreError: as `import_bank`.
    """
    from atlas_dist.bank.adopt import import_bank
    from atlas_dist.bank.package import read_package

    store, weights = compose_run(*settings).store, read_package(folder)
    run = name or f"import-{digest_of(sorted(weights.tasks))[:SHORT]}"
    import_bank(store, folder, weights, run)
    return Imported(run, len(weights.tasks), store.url)


def import_peft(
    folder: Path, *settings: Settings, task: str, name: str = "", by: str = "", source: str = "", commit: str = ""
) -> AdapterImport:
    """Take a LoRA adapter as PEFT saves it into the store, as experience for runs that name it in `sequence.experience`.

    Args:
        folder: with `adapter_config.json` and `adapter_model.safetensors`. settings: as for `run`; they say which backbone.
        task: of the configuration, packed: samples of the kind that the adapter was trained on, for its signature.
        name: what it is called here; "" = as the folder.
        by: who imports it; "" = the user of this process.
        source: where the folder came from, and the `commit` there; "" = as `bank pull` noted beside it, else the folder's name.

    Raises:
        DataError: the folder is not plain LoRA, is damaged or does not fit the backbone, or shards are missing.
        ConfigError: there is no such task, or another run of that name. StoreError: the store is in trouble.
    """
    composed_run = compose_run(*settings)
    config = composed_run.config
    with restored_process():
        from atlas_dist.bank.adopt_adapter import Origin, import_adapter, pulled_from
        from atlas_dist.coordinator.expand import packed_task

        if task not in config.tasks:
            fix = f"It has: {', '.join(config.tasks)}. Pack samples of the adapter's kind as a task and name it with --task."
            raise ConfigError(f"This configuration has no task {task!r}.", fix=fix)
        spec = packed_task(config, task, partial(read_manifest, open_shards(config)))
        own = folder.resolve().name
        place = (source, commit) if source else pulled_from(folder.resolve()) or (own, "")
        origin = Origin(name or own, by or _user(), *place)
        return import_adapter(config, composed_run.store, folder, spec, origin)


def _user() -> str:
    """Who runs this process, as far as the system says."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container may run under a number that has no name
        return ""


def _weights(*settings: Settings, tasks: Sequence[str] = ()) -> tuple[Bank, BankWeights]:
    """The bank of a run, and its tensors."""
    from atlas_dist.bank.weights import load_weights

    composed_run = compose_run(*settings)
    bank = read_bank(composed_run.store, composed_run.config.run)
    return bank, load_weights(composed_run.store, bank, tasks, shards=shards_if_there(composed_run.config))
