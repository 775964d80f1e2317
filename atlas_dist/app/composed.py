"""What settings mean: composed and validated once, at the door of a command or of the Python API."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas_dist.config import RunConfig
from atlas_dist.errors import ConfigError

if TYPE_CHECKING:
    from atlas_dist.core.plan import Plan
    from atlas_dist.model.backbone_facts import BackboneFacts
    from atlas_dist.store import ObjectStore


@dataclass(frozen=True)
class ComposedRun:
    """One configuration, or the rows of a sweep, which share all that a run has once; with what is opened of it, once."""

    rows: Mapping[str, RunConfig]
    """Name of the row ("" for the only one) -> its configuration."""

    @property
    def config(self) -> RunConfig:
        """Where the run lies, what it is called and how it computes: the same for every row."""
        return next(iter(self.rows.values()))

    @property
    def swept(self) -> bool:
        """Several rows."""
        return list(self.rows) != [""]

    @cached_property
    def store(self) -> ObjectStore:
        """Where the run is kept. Raises ConfigError, AuthError, StoreError: it can't be opened."""
        from atlas_dist.runs.stores import open_run_store

        return open_run_store(self.config)

    @property
    def folder(self) -> Path:
        """Where the report goes: beside a local store, else in the working folder."""
        url = self.config.store.url
        beside = Path(f"report-{self.config.run}") if "://" in url else Path(url).parent / f"report-{self.config.run}"
        return Path(self.config.report) if self.config.report else beside

    @cached_property
    def decided(self) -> ComposedRun:
        """The same with `train.precision=auto` decided: as the run recorded it, else by what this machine can do. Raises
        ConfigError, StoreError."""
        from atlas_dist.app.precision import decided

        return decided(self)

    def plan(self) -> Plan:
        """All jobs, laid out once. Raises ConfigError, DataError."""
        return self._plan

    @cached_property
    def _plan(self) -> Plan:
        from atlas_dist.coordinator.expand import expand_rows

        return expand_rows(self.decided.rows, self.backbone)

    @cached_property
    def backbone(self) -> BackboneFacts:
        """What is known of the backbone, one for all rows. Raises ConfigError, DataError."""
        from atlas_dist.train.configured import configured_facts

        return configured_facts(self.config)

    def specification(self) -> dict[str, Any]:
        """For the ledger's first entry."""
        from atlas_dist.coordinator.expand import specification_of_rows

        return specification_of_rows(self.decided.rows, self.plan(), self.backbone.tiles)

    def no_such_run(self) -> ConfigError:
        """For whoever looks at a run that never began."""
        return ConfigError(
            f"There is no run {self.config.run} in {self.config.store.url}.", fix="Start it with `atlas-dist run`."
        )


Settings = str | Mapping[str, Any] | RunConfig | ComposedRun
"""A word as on the command line (`experiment=toy`), a mapping (`{"experiment": "toy", "train": {"workers": 2}}`), or what has
been composed already."""


def compose_run(*settings: Settings, many: bool = False) -> ComposedRun:
    """Compose and validate.

    Args:
        settings: words and mappings, later ones win; or one RunConfig or ComposedRun, which is taken as it is.
        many: several values of a key (`train.budget.lr=1e-3,5e-4`) make a row for each combination.

    Raises:
        ConfigError: an unknown key or choice, a value that is not valid, or a finished configuration beside other settings.
    """
    if len(settings) == 1 and isinstance(settings[0], ComposedRun):
        return settings[0]
    if len(settings) == 1 and isinstance(settings[0], RunConfig):
        return ComposedRun({"": settings[0].at(Path.cwd())})
    from atlas_dist.compose import compose_config, compose_rows  # Hydra takes a moment to import: `--help` does not pay for it

    words = words_of(*settings)
    return ComposedRun(compose_rows(words) if many else {"": compose_config(words)})


def words_of(*settings: Settings) -> list[str]:
    """Settings as words of the command line. Raises ConfigError: a finished configuration is among them."""
    return [word for each in settings for word in _words(each)]


def _words(settings: Settings) -> Iterator[str]:
    if isinstance(settings, str):
        yield settings
    elif isinstance(settings, Mapping):
        for key, value in settings.items():
            yield from (
                (f"{key}.{word}" for word in _words(value)) if isinstance(value, Mapping) else (f"{key}={_written(value)}",)
            )
    else:
        raise ConfigError(
            f"A {type(settings).__name__} stands beside other settings.",
            fix='Give it alone, or change it first: config.model_copy(update={"run": "other"}).',
        )


_BARE = re.compile(r"[A-Za-z_./][A-Za-z0-9_./:@+-]*")
_NOT_TEXT = {"true", "false", "null", "nan", "inf"}


def _written(value: object) -> str:
    """As Hydra reads it again. A list goes by its items; texts are quoted where they could be read as something else."""
    if value is None:
        return "null"
    if isinstance(value, bool | int | float):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_written, value))}]"
    text = str(value)
    if _BARE.fullmatch(text) and text.lower() not in _NOT_TEXT:
        return text
    from atlas_dist.compose import quoted

    return quoted(text)
