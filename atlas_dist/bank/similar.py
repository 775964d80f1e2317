"""Which adapters of a bank would help a packed data set? By signature, in seconds, before anything is trained.

The task's first training samples go through the frozen backbone in this process; nothing is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from atlas_dist.bank.verify import require_base, rescoring_context
from atlas_dist.bank.weights import BankWeights
from atlas_dist.config import RunConfig
from atlas_dist.core.signature import nearest, similarity
from atlas_dist.core.types import Budget, JobKind, StageJob, TaskSpec
from atlas_dist.errors import ConfigError
from atlas_dist.methods import make_method
from atlas_dist.train.context import RankContext
from atlas_dist.train.signatures import observe_training, signature_of, signature_tensors

DESCRIBING_BATCH = 64
"""Samples of a forward pass."""


@dataclass(frozen=True)
class SimilarAdapter:
    """An adapter of a bank beside a new task. Similarities are in [0, 1], 1 = the same (core/signature.py: `similarity`)."""

    task: str
    key: str
    similarity: float
    """Of the pooled features: what retrieval goes by."""
    site_similarity: float
    """Of what each adapter would read: the mean over its sites."""
    retrieved: bool
    """Whether `method.settings.retrieve` would let the new task look at it."""


@dataclass(frozen=True)
class Similar:
    """A packed task beside the adapters of a bank."""

    task: str
    samples: int
    """Training samples that were looked at."""
    retrieve: int
    """How many adapters a task looks at; 0 = all."""
    adapters: tuple[SimilarAdapter, ...]
    """Most similar first."""
    without_adapter: tuple[str, ...] = ()
    """Learnt tasks that declined to grow: there is nothing of theirs to look at."""


def similar(config: RunConfig, task: TaskSpec, weights: BankWeights) -> Similar:
    """Compare a task of the configuration with a bank.

    Args:
        config: says where the shards are, and `method.settings.retrieve`.
        task: as its packed data define it (coordinator/expand.py: `packed_task`).

    Raises:
        ConfigError: the configured method does not look back by signature, or the bank was learnt without any.
        DataError: the task's shards are damaged.
    """
    method = make_method(config.method.name, config.method.settings)
    if method.selecting is None:
        raise ConfigError(f"{config.method.name} sees every earlier adapter, not the nearest ones.", fix="Set method=atlas.")
    grown = {key: known for key, known in weights.tasks.items() if known.learnt.has_adapter and key not in weights.dropped}
    unsigned = [known.learnt.name for known in grown.values() if not known.signature]
    if unsigned:
        raise ConfigError(
            f"{', '.join(unsigned)} learnt without a signature (method {weights.first.method}, or an older version).",
            fix="Compare with a bank of method=atlas.",
        )
    tensors, samples = described(config, task, weights)
    imported = {key: one.signature for key, one in weights.imported.items() if key not in weights.dropped}
    known = imported | {key: learnt.signature for key, learnt in grown.items()}
    signatures = {key: signature_of(signature) for key, signature in known.items()}
    found, chosen = nearest(signature_of(tensors), signatures, method.selecting.retrieve)
    adapters = [
        SimilarAdapter(weights.name_of(key), key, found[key], _at_the_sites(tensors, signature), retrieved=key in chosen)
        for key, signature in known.items()
    ]
    return Similar(
        task.name,
        samples,
        method.selecting.retrieve,
        tuple(sorted(adapters, key=lambda adapter: -adapter.similarity)),
        tuple(other.learnt.name for key, other in weights.tasks.items() if key not in grown),
    )


def described(config: RunConfig, task: TaskSpec, weights: BankWeights) -> tuple[dict[str, Tensor], int]:
    """What `signature.safetensors` of a packed task would hold, on a bank's backbone, and from how many samples."""
    context = rescoring_context(config, weights, weights.first)
    require_base(context.backbone(), weights.first)
    return describe_here(context, task, config.seeds[0] if task.shots else 0)


def describe_here(context: RankContext, task: TaskSpec, seed: int = 0) -> tuple[dict[str, Tensor], int]:
    """The same on the backbone of a context. `seed`: matters to a low-shot task only."""
    ordinals, rows = observe_training(context, describing_job(task, seed))
    order = np.argsort(ordinals)
    return signature_tensors({part: values[order] for part, values in rows.items()}), len(ordinals)


def describing_job(task: TaskSpec, seed: int = 0) -> StageJob:
    """The description of a packed task, as a job. `seed`: matters to a low-shot task only."""
    budget = Budget(global_batch=DESCRIBING_BATCH)
    return StageJob(key="describe", kind=JobKind.DESCRIBE, task=task, method="describe", seed=seed, parents=(), budget=budget)


def _at_the_sites(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    sites = sorted({name.rpartition("/")[0] for name in one if name.startswith("site/")})
    return float(np.mean([similarity(signature_of(one, site), signature_of(other, site)) for site in sites]))
