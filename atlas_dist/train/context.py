"""What a rank keeps between jobs: its place in the group, its stores, the frozen backbone and the manifests it has read.

A pool lives for a whole run. What is expensive to make (importing torch and transformers, loading the backbone) is made once a
process, so that the next job's set-up costs a tenth of a second.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from atlas_dist.config import Precision, RunConfig
from atlas_dist.core.keys import digest_of
from atlas_dist.core.manifest import ShardManifest
from atlas_dist.core.sampling import fixed_sample, select_shots
from atlas_dist.core.seeds import seed_from, seed_of
from atlas_dist.core.types import StageJob, TaskSpec
from atlas_dist.data.manifest import read_manifest
from atlas_dist.data.stream import Stream, open_stream
from atlas_dist.device import device
from atlas_dist.errors import DataError
from atlas_dist.methods import Method, make_method, stored_method
from atlas_dist.model.backbone import Backbone, store_products_in_bf16
from atlas_dist.model.tensors import load as load_tensors
from atlas_dist.runs.stores import open_run_store, open_shards
from atlas_dist.store import ObjectStore
from atlas_dist.store.noted import NotedStore
from atlas_dist.train.answers import answer_encoder, asked_of
from atlas_dist.train.configured import configured_backbone, stream_limits
from atlas_dist.train.feed import Feeder


@dataclass
class RankContext:
    """One process of a pool. `config` is the run's; ranks differ in `rank` only."""

    config: RunConfig
    rank: int
    world: int
    control: Any = None
    """A gloo group for small objects and barriers, whatever the tensors travel on; None = the default group."""
    store: ObjectStore = field(init=False)
    shards: ObjectStore = field(init=False)
    method: Method = field(init=False)
    """The run's main method; a job's own is `method_of(job)`."""
    _backbone: Backbone | None = field(default=None, init=False)
    _is_apart: bool = field(default=False, init=False)
    """A model trained on it, and ZeRO-3 has its parameters."""
    _feeder: Feeder | None = field(default=None, init=False)
    _pretrained: nn.Module | None = field(default=None, init=False)
    _methods: dict[str, Method] = field(default_factory=dict, init=False)
    _manifests: dict[tuple[str, str], ShardManifest] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        torch.set_num_threads(self.config.train.threads)
        self.store = NotedStore(open_run_store(self.config))
        self.shards = NotedStore(open_shards(self.config))
        self.method = make_method(self.config.method.name, self.config.method.settings)

    def method_of(self, job: StageJob) -> Method:
        """The method that a job belongs to, with its settings."""
        name = digest_of([job.method, job.settings])
        if name not in self._methods:
            self._methods[name] = stored_method(job.method, job.settings)
        return self._methods[name]

    @property
    def is_rank_zero(self) -> bool:
        """Rank 0 talks to the store and to the coordinator."""
        return self.rank == 0

    def backbone(self) -> Backbone:
        """The frozen backbone, for whoever wants to know something of it: with ZeRO-3 a job may have its parameters."""
        return self._backbone or self.whole_backbone()

    def whole_backbone(self) -> Backbone:
        """The frozen backbone on this rank's device, for a pass through it.

        ZeRO-3 takes a backbone's parameters apart for good, so after a job of it there is a fresh one; not before it is asked
        for, because it has room only where the other one is gone.
        """
        if self._backbone is None or self._is_apart:
            self._backbone = None
            backbone = configured_backbone(self.config)
            backbone.model.to(device())
            if self.config.train.precision is Precision.BF16:
                store_products_in_bf16(backbone.model)
            self._backbone, self._is_apart = backbone, False
        return self._backbone

    def model_backbone(self) -> nn.Module:
        """The frozen backbone for a model that trains."""
        model = self.whole_backbone().model
        self._is_apart = self.config.train.zero_stage == 3
        return model

    def own_backbone(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """A copy of the pretrained backbone for one job to change, in float32, with `weights` (by parameter name) put into it.

        Raises:
            DataError: weights that do not fit.
        """
        if self._pretrained is None:
            self._pretrained = configured_backbone(self.config).model.to(device())
        backbone = copy.deepcopy(self._pretrained)
        parameters = dict(backbone.named_parameters())
        load_tensors({n: [parameters[n].data] for n in weights if n in parameters}, weights, "the backbone")
        return backbone

    def feeder(self) -> Feeder:
        """Pixels normalised as the backbone was pretrained. One a process: on a GPU each has a queue of its own, and memory that
        one queue has had is not used by another."""
        if self._feeder is None:
            backbone = self.backbone()
            self._feeder = Feeder(backbone.pixel_mean, backbone.pixel_std, device())
        return self._feeder

    def training_stream(self, job: StageJob, start_step: int) -> Stream:
        """This rank's share of the training split, at `start_step`."""
        only = self.low_shot(job, job.task)
        return self._open(job.task, job.task.train, job.task.train_digest, job, job.budget.global_batch, start_step, only=only)

    def low_shot(self, job: StageJob, task: TaskSpec) -> Sequence[int] | None:
        """The training samples that a task with `shots` may learn from, as ordinals; None = all.

        The choice depends on the run's seed and the task alone: every stage of a task, and whatever it is compared with, learns
        from the same ones. Raises ConfigError, DataError as `select_shots`.
        """
        manifest = self._manifest(task.dataset, task.train, task.train_digest)
        labels = manifest.labels() if task.shots >= 1 else None
        chosen = select_shots(manifest.samples, labels, task.shots, seed_from(job.seed, task.name, "shots"))
        return None if chosen is None else [int(ordinal) for ordinal in chosen]

    def auxiliary_stream(self, job: StageJob, task: TaskSpec, only: Sequence[int] | None) -> Stream:
        """This rank's share of another task's training split, in this job's batches: all that the task would learn from, or
        `only` some."""
        only = self.low_shot(job, task) if only is None else only
        return self._open(task, task.train, task.train_digest, job, job.budget.global_batch, 0, only=only)

    def validation_stream(self, job: StageJob, task: TaskSpec | None = None, samples: int = 0) -> Stream:
        """This rank's share of the validation split (of the job's task), in batches of a fixed size a rank. `samples`: a fixed
        choice of so many; 0 = all."""
        task, batch = task or job.task, self.config.train.eval_batch * self.world
        only = fixed_sample(self._manifest(task.dataset, task.val, task.val_digest).counts, samples)
        return self._open(task, task.val, task.val_digest, job, batch, 0, shuffle=False, only=only)

    def scoring_stream(self, job: StageJob, samples: int = 0) -> Stream:
        """This rank's share of the split that evaluations score (the test split where the task has one, else the validation
        split), in batches of a fixed size a rank. `samples`: a fixed choice of so many; 0 = all."""
        task, batch = job.task, self.config.train.eval_batch * self.world
        only = fixed_sample(self._manifest(task.dataset, task.scored, task.scored_digest).counts, samples)
        return self._open(task, task.scored, task.scored_digest, job, batch, 0, shuffle=False, only=only)

    def _open(
        self, task: TaskSpec, split: str, digest: str, job: StageJob, global_batch: int, start_step: int, **options: Any
    ) -> Stream:
        backbone = self.backbone()
        return open_stream(
            self.shards,
            self._manifest(task.dataset, split, digest),
            task,
            backbone.tokenizer,
            backbone.image_size,
            seed=seed_of(job, "data"),
            rank=self.rank,
            world=self.world,
            global_batch=global_batch,
            start_step=start_step,
            padded_text=backbone.text_length(task.max_text),
            resample=backbone.pictures.resample,
            encode_answers=answer_encoder(backbone, task),
            asked=asked_of(backbone, task.max_text) if task.kind.generates else None,
            limits=stream_limits(self.config),
            **options,
        )

    def _manifest(self, dataset: str, split: str, digest: str) -> ShardManifest:
        """The split's manifest, which must still be the one that the job's key was made from."""
        manifest = self._manifests.get((dataset, split)) or read_manifest(self.shards, dataset, split)
        if manifest.digest != digest:
            raise DataError(
                f"{dataset}/{split} has changed since the run was planned: "
                f"its digest is {manifest.digest[:12]}, the plan's {digest[:12]}.",
                fix="Restore the shards, or start a run with another name.",
            )
        self._manifests[dataset, split] = manifest
        return manifest

    def barrier(self) -> None:
        """Wait until every rank is here."""
        dist.barrier(group=self.control)

    def from_rank_zero(self, value: bool) -> bool:
        """Rank 0's value, on every rank."""
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def masked(self, *streams: Stream) -> list[dict[str, str]]:
        """The bad samples of every rank's streams, each once; [] but on rank 0. Every rank must call it."""
        parts = self.gather([asdict(bad) for stream in streams for bad in stream.stats().bad])
        return list({(b["split"], b["shard"], b["key"]): b for part in parts for b in part}.values())

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order, on rank 0; [] elsewhere."""
        out: list[Any] = [None] * self.world if self.is_rank_zero else []
        dist.gather_object(value, out if self.is_rank_zero else None, dst=0, group=self.control)
        return out
