"""Is a bank still what was written down of it? Its files are hashed again, and its tasks scored again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from atlas_dist.app.composed import Settings, compose_run
from atlas_dist.app.process import restored_process
from atlas_dist.bank.contents import read_bank
from atlas_dist.bank.package import read_package
from atlas_dist.bank.verify import Checked, rescore, rescoring_context, verify_results, worth
from atlas_dist.bank.weights import BankWeights
from atlas_dist.errors import ConfigError, DataError


@dataclass(frozen=True)
class VerifiedRun:
    """Every committed result of a run, read again and hashed."""

    run: str
    results: tuple[Checked, ...]

    @property
    def faults(self) -> tuple[Checked, ...]:
        """Those that are damaged."""
        return tuple(c for c in self.results if c.fault)

    @property
    def size(self) -> int:
        """Bytes that were read."""
        return sum(c.size for c in self.results)

    def require_whole(self) -> None:
        """Raises DataError: something is damaged."""
        if self.faults:
            raise DataError(
                f"{len(self.faults)} of {len(self.results)} committed results of run {self.run} are damaged.",
                fix="Copy the files named above again from a replica; or give the run another name: "
                "it trains only what is missing.",
            )


def verify_run(*settings: Settings) -> VerifiedRun:
    """Re-read and re-hash every committed file of a run. Raises ConfigError: there is no such run. StoreError as `open_bank`."""
    composed_run = compose_run(*settings)
    store, run = composed_run.store, composed_run.config.run
    with suppress(DataError):  # a description that cannot be read is about to be named with its file
        read_bank(store, run)
    return VerifiedRun(run, tuple(verify_results(store, run)))


@dataclass(frozen=True)
class VerifiedFolder:
    """An exported bank, every file of which is whole."""

    folder: Path
    weights: BankWeights

    @property
    def names(self) -> dict[str, str]:
        """Key of each task -> what it is called."""
        return {key: task.learnt.name for key, task in self.weights.tasks.items()}

    @property
    def left_out(self) -> tuple[str, ...]:
        """Tasks whose adapter was pruned."""
        return tuple(name for key, name in self.names.items() if key in self.weights.dropped)


def verify_folder(folder: Path) -> VerifiedFolder:
    """Read an exported bank again. Raises DataError: a file is missing or damaged."""
    return VerifiedFolder(folder, read_package(folder))


@dataclass(frozen=True)
class ScoredAgain:
    """A task, loaded from its files and scored again. Scores in percent."""

    task: str
    score: float
    expected: float
    source: str
    """Where the expected score stands."""
    reproduced: bool
    bitwise: bool = False
    """Every logit is equal to the last bit; False also where none is recorded."""


Tell = Callable[[ScoredAgain], None]


def rescore_run(*settings: Settings, tasks: Sequence[str] = (), tell: Tell = lambda again: None) -> tuple[ScoredAgain, ...]:
    """Score the tasks of a run again.

    Args:
        settings: as for `run`. tasks: names; () = all. tell: hears of each as it is scored.

    Raises:
        ConfigError: there is no such run or task. DataError: backbone or shards are not those that it was learnt with.
    """
    composed_run = compose_run(*settings)
    config = composed_run.config
    bank = read_bank(composed_run.store, config.run)
    with restored_process():
        chosen = [bank.find(name) for name in tasks] or list(bank.learnt.values())
        context, found = None, []
        for learnt in chosen:
            context = context or rescoring_context(config, bank, learnt)
            got = rescore(config, bank, learnt, context)
            source = "its recorded evaluation" if got.evaluation else "what training measured (not evaluated yet)"
            found.append(ScoredAgain(learnt.name, got.score, got.expected, source, got.reproduced, got.bitwise))
            tell(found[-1])
        return tuple(found)


def rescore_folder(
    bank: VerifiedFolder, *settings: Settings, tasks: Sequence[str] = (), tell: Tell = lambda again: None
) -> tuple[ScoredAgain, ...]:
    """Score the tasks of an exported bank again. Args and errors as `rescore_run`."""
    with restored_process():
        if unknown := sorted(set(tasks) - set(bank.names.values())):
            raise ConfigError(f"{bank.folder} has no task {unknown[0]!r}.", fix=f"It has: {', '.join(bank.names.values())}.")
        context, found = rescoring_context(compose_run(*settings).config, bank.weights, bank.weights.first), []
        for key in (key for key, name in bank.names.items() if not tasks or name in tasks):
            got = worth(context, bank.weights, key)
            found.append(ScoredAgain(bank.names[key], got.score, got.expected, got.source, got.reproduced))
            tell(found[-1])
        return tuple(found)


def require_reproduced(scored: Sequence[ScoredAgain]) -> None:
    """Raises DataError: a task does not meet its recorded score."""
    if missed := sum(not again.reproduced for again in scored):
        raise DataError(
            f"{missed} of {len(scored)} tasks do not reproduce their recorded score.",
            fix="Compare library versions and train.eval_batch with those of the run.",
        )
