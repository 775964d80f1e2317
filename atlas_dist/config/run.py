"""Everything one run is told, and what has to be so of all of it together."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator, model_validator

from atlas_dist.config.infrastructure import ClusterConfig, LogConfig, PackConfig, ShardsConfig, StoreConfig, TrackConfig
from atlas_dist.config.learning import BackboneConfig, MethodConfig, ReferencesConfig, SequenceConfig, TaskConfig, TrainConfig
from atlas_dist.core.types import Work, WorkerGroupSpec
from atlas_dist.store.places import absolute_url
from atlas_dist.validation import Name, Section


class RunConfig(Section):
    """Everything one run is told. See `configs/` for the groups it is composed from."""

    run: Name = "demo"
    """Name of the run in the store. The same name with the same settings attaches and resumes."""
    seeds: list[int] = Field(default_factory=lambda: [0], min_length=1)
    """Each seed learns every order once; what does not depend on the seed is shared."""
    store: StoreConfig = StoreConfig()
    """Where what was learnt lies, with the ledger."""
    shards: ShardsConfig = ShardsConfig()
    """Where the packed data lie."""
    pack: PackConfig = PackConfig()
    """How raw data become shards."""
    raw_root: str = "."
    """Folder of the data sets as distributed, for `atlas-dist shards pack`."""
    backbone: BackboneConfig = BackboneConfig()
    """The frozen backbone."""
    method: MethodConfig = MethodConfig()
    """The continual-learning method and its settings."""
    compare: dict[Name, MethodConfig] = Field(default_factory=dict)
    """Several methods in one run, by the names of their rows in the comparison; they then take the place of `method`."""
    only: list[Name] = Field(default_factory=list)
    """Of `compare`, run these rows only; [] = all."""
    references: ReferencesConfig = ReferencesConfig()
    """What measures of transfer compare with."""
    tasks: dict[Name, TaskConfig] = Field(default_factory=dict)
    """Every task that the sequence may name."""
    sequence: SequenceConfig = SequenceConfig()
    """Which tasks are learnt, in which orders."""
    train: TrainConfig = TrainConfig()
    """How the engine steps, and for how long."""
    cluster: ClusterConfig = ClusterConfig()
    """Where workers run."""
    track: TrackConfig = TrackConfig()
    """Where curves go while the run learns."""
    log: LogConfig = LogConfig()
    """What the run's processes write to their standard error."""
    report: str = ""
    """Folder for the report; "" = `<store>/…` beside a local store, else ./report-<run>."""

    def at(self, folder: Path) -> RunConfig:
        """The same run with relative local places resolved against `folder`: workers have working folders of their own.

        Raises:
            ConfigError: a URL that is none.
        """
        store = self.store.model_copy(update={"url": absolute_url(self.store.url, folder)})
        shards = self.shards.model_copy(update={"url": absolute_url(self.shards.url, folder)})
        return self.model_copy(update={"store": store, "shards": shards})

    @field_validator("seeds")
    @classmethod
    def _different(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) != len(seeds):
            raise ValueError(f"seeds must differ, they are {seeds}")
        return seeds

    @property
    def variants(self) -> dict[str, MethodConfig]:
        """The methods of the run by name of row: `compare` where it is given, else the one `method`."""
        if not self.compare:
            return {self.method.name: self.method}
        return {name: method for name, method in self.compare.items() if not self.only or name in self.only}

    @property
    def methods(self) -> tuple[MethodConfig, ...]:
        """Every method that the run trains with, those of its references too."""
        references = (self.references.alone, self.references.pretrained)
        return (*self.variants.values(), *(method for method in references if method is not None))

    @model_validator(mode="after")
    def _rows_exist(self) -> RunConfig:
        unknown = sorted(set(self.only) - set(self.compare))
        if unknown:
            raise ValueError(f"only names {', '.join(unknown)}; the rows of compare are {', '.join(self.compare) or 'none'}")
        return self

    @model_validator(mode="after")
    def _rows_have_methods(self) -> RunConfig:
        """A slip in a row's name would otherwise be a further row, of the default method."""
        for row, method in self.compare.items():
            if "name" not in method.model_fields_set:
                others = ", ".join(other for other in self.compare if other != row)
                raise ValueError(f"compare.{row} names no method: give compare.{row}.name; the other rows are {others or 'none'}")
        return self

    @model_validator(mode="after")
    def _tasks_exist(self) -> RunConfig:
        named = {t for order in self.sequence.all_orders for t in order} | set(self.sequence.downstream)
        unknown = sorted(named - set(self.tasks))
        if unknown:
            raise ValueError(
                f"sequence names {', '.join(unknown)}; "
                f"the tasks of this configuration are {', '.join(sorted(self.tasks)) or 'none'}"
            )
        return self

    @property
    def worker_groups(self) -> tuple[WorkerGroupSpec, ...]:
        """The pools with what they take from `train`."""
        return tuple(
            WorkerGroupSpec(
                name=name,
                workers=pool.workers or self.train.workers,
                min_workers=pool.min_workers or (0 if pool.workers else self.train.min_workers),
                takes=frozenset(pool.takes),
                labels=pool.labels,
            )
            for name, pool in self.cluster.pools.items()
        )

    @model_validator(mode="after")
    def _min_workers_fit(self) -> RunConfig:
        for group in self.worker_groups:
            if group.min_workers > group.workers:
                raise ValueError(
                    f"pool {group.name} has {group.workers} workers, fewer than its min_workers of {group.min_workers}"
                )
        return self

    @model_validator(mode="after")
    def _everything_is_taken(self) -> RunConfig:
        wanted = [Work.UPSTREAM, Work.EVALUATION]
        wanted += [Work.TRANSFER] if self.sequence.downstream else []
        wanted += [Work.REFERENCE] if self.references.alone or self.references.pretrained else []
        taken = {work for group in self.worker_groups for work in group.takes}
        left = [work.value for work in wanted if work not in taken]
        if left:
            raise ValueError(f"no pool takes {' or '.join(left)}; add it to the `takes` of one of cluster.pools")
        return self

    @model_validator(mode="after")
    def _batches_suffice(self) -> RunConfig:
        most = max((group.workers for group in self.worker_groups if group.takes - {Work.EVALUATION}), default=0)
        for name, task in self.tasks.items():
            for stage, budget in task.budgets(self.train).items():
                if budget.global_batch < most:
                    raise ValueError(
                        f"tasks.{name}: the global batch of {stage.value} is {budget.global_batch}, too few for "
                        f"{most} workers: a worker without a sample only costs; lower train.workers, or those of the pool"
                    )
        return self
