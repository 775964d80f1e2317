"""A cheap rival that trains nothing: a random projection of the frozen features and ridge regression, task by task.

    python -m tests.bench.ranpac experiment=related_real [--projection 2000] [seeds=[0,1,2]]

After RanPAC (McDonnell et al. 2023, arXiv 2307.02251), each task by itself: what the head would read, pooled by the frozen
backbone, times a random matrix, ReLU, then ridge regression onto one-hot labels in float64. The ridge is chosen on the validation
split, the score is of the split that evaluations score; low-shot tasks learn from the very samples that the run's methods learn
from. Seeds change the projection and the low-shot choice. Needs the packed shards; no Ray, no store, seconds a task.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from functools import cache, partial
from statistics import mean, stdev

import torch
from torch import Tensor, nn

from atlas_dist.compose import compose_config
from atlas_dist.coordinator.expand import packed_task
from atlas_dist.core.seeds import seed_from
from atlas_dist.core.types import JobKind, StageJob, TaskKind, TaskSpec
from atlas_dist.data.manifest import read_manifest
from atlas_dist.device import device
from atlas_dist.model.atlas import AdaptedModel
from atlas_dist.model.heads import HeadSpec
from atlas_dist.model.mixing_spec import MixingSpec, Weighting
from atlas_dist.runs.stores import open_shards
from atlas_dist.train.context import RankContext
from atlas_dist.train.engine import join_alone
from atlas_dist.train.module import StageModule

RIDGES = tuple(10.0**power for power in range(-2, 8))


@dataclass(frozen=True)
class Split:
    """A split through the frozen backbone, in the manifest's order: `features` [n, d] float32, `labels` [n]."""

    features: Tensor
    labels: Tensor

    def only(self, chosen: list[int] | None) -> Split:
        """Some of the samples, by ordinal; None = all."""
        return self if chosen is None else Split(self.features[chosen], self.labels[chosen])


def job_of(task: TaskSpec, seed: int) -> StageJob:
    """Just enough of a job for a stream."""
    return StageJob(key="ranpac", kind=JobKind.EVAL, task=task, method="head_only", seed=seed, parents=())


def frozen(context: RankContext, task: TaskSpec, split: str) -> Split:
    """One pass over a split of a task."""
    spec = HeadSpec(task.kind, task.classes)
    read = replace(task, test=split, test_digest=task.splits[split])
    seen: list[Tensor] = []
    rows: dict[int, tuple[Tensor, int]] = {}

    def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].float().cpu())

    model = AdaptedModel(context.backbone().model, spec, MixingSpec(weighting=Weighting.PLAIN), visible=0, grows=False, seed=0)
    with model, torch.no_grad(), context.scoring_stream(job_of(read, 0)) as stream:
        module = StageModule(model, spec, bf16=False).to(device()).eval()
        handle = model.head.register_forward_pre_hook(note)
        for batch in stream.validation():
            for part in context.feeder()(batch):
                seen.clear()
                module(part.inputs, part.target)
                for row, ordinal in enumerate(part.index.tolist()):
                    if ordinal >= 0:
                        rows[ordinal] = (seen[0][row], int(part.target[row]))
        handle.remove()
    order = sorted(rows)
    return Split(torch.stack([rows[n][0] for n in order]), torch.tensor([rows[n][1] for n in order]))


def accuracy(answers: Tensor, split: Split) -> float:
    """Percent right of answers [n, C]."""
    return 100.0 * float((answers.argmax(1) == split.labels).double().mean())


def ridge_score(train: Split, val: Split, test: Split, classes: int, width: int, seed: int) -> tuple[float, float]:
    """(validation, test) accuracy in percent; of equal ridges on validation the smallest counts."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(train.features.shape[1], width, generator=generator)
    known, checked, scored = (torch.relu(split.features @ matrix).double() for split in (train, val, test))
    wanted = nn.functional.one_hot(train.labels, classes).double()
    values, vectors = torch.linalg.eigh(known @ known.T)  # as many rows as samples: the dual is the smaller system
    best = (-1.0, -1.0)
    for ridge in RIDGES:
        weights = known.T @ (vectors @ ((vectors.T @ wanted) / (values.clamp_min(0) + ridge)[:, None]))
        found = accuracy(checked @ weights, val)
        if found > best[0]:
            best = (found, accuracy(scored @ weights, test))
    return best


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+", help="as for `atlas-dist run`")
    parser.add_argument("--projection", type=int, default=2000)
    args = parser.parse_args()
    config = compose_config([*args.words, "train.workers=1"])
    join_alone()
    context, shards = RankContext(config, 0, 1), open_shards(config)
    read = cache(partial(read_manifest, shards))
    print("| task | samples scored | " + " | ".join(f"seed {seed}" for seed in config.seeds) + " | mean ± s.d. |")
    print("|---|---|" + "---|" * (len(config.seeds) + 1))
    began, table = time.perf_counter(), {}
    for name in (*config.sequence.upstream, *config.sequence.downstream):
        task = packed_task(config, name, read)
        if task.kind not in (TaskKind.SINGLE, TaskKind.PAIR):
            continue
        train, val, test = (frozen(context, task, split) for split in (task.train, task.val, task.scored))
        table[name] = []
        for seed in config.seeds:
            known = train.only(context.low_shot(job_of(task, seed), task))  # type: ignore[arg-type]
            table[name].append(
                ridge_score(known, val, test, task.classes, args.projection, seed_from(seed, name, "projection"))[1]
            )
        print(_line(name, str(len(test.labels)), table[name]), flush=True)
    for title, names in (("upstream", config.sequence.upstream), ("downstream", config.sequence.downstream)):
        rows = [table[name] for name in names if name in table]
        if rows:
            print(_line(f"**mean, {title}**", "", [mean(scores) for scores in zip(*rows, strict=True)]))
    print(f"\n{time.perf_counter() - began:.0f} s")


def _line(name: str, samples: str, scores: list[float]) -> str:
    spread = f" ± {stdev(scores):.1f}" if len(scores) > 1 else ""
    return f"| {name} | {samples} | " + " | ".join(f"{s:.1f}" for s in scores) + f" | {mean(scores):.1f}{spread} |"


if __name__ == "__main__":
    main()
