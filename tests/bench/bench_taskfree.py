"""How often a sample finds its task by signature, and how often one of a data set that was never learnt is refused.

    python -m tests.bench.bench_taskfree SHARDS [--raw DATA] [--samples 2000] [--threads 1]

Nothing is trained: the tasks are described with the frozen backbone, and their validation samples are sorted as
`AtlasModel.predict` without a task would. SHARDS is packed first where it is empty; --raw is the folder of the raw data of
`experiment=real_small` (left out: the demo's tasks alone). Every sample is read as its own task packs it; where a task cuts texts
shorter than another one's, serving reads it anew for each.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from atlas_dist.app.pack import pack
from atlas_dist.bank.similar import describing_job
from atlas_dist.compose import compose_config
from atlas_dist.coordinator.expand import packed_task
from atlas_dist.core.signature import Parts, TaskProfile, choose
from atlas_dist.core.types import TaskKind
from atlas_dist.data.manifest import read_manifest
from atlas_dist.runs.stores import open_shards
from atlas_dist.train.context import RankContext
from atlas_dist.train.engine import join_alone
from atlas_dist.train.signatures import FORM, POOLED, observe, observe_training, profile_of, signature_tensors

DEMO = ("digits", "digit_parity", "toy_kin", "easy_vqa_pypi", "toy_pair")
REAL = ("cifar10", "trec", "easy_vqa", "omniglot")


@dataclass(frozen=True)
class Looked:
    """A task: what its training samples look like, and its validation samples' features [n, P]."""

    profile: TaskProfile
    parts: Parts
    features: NDArray[np.float64]


def look(shards: str, experiment: str, raw: Sequence[str], samples: int, threads: int) -> dict[str, Looked]:
    """Pack where needed, and look at every task of an experiment."""
    words = [f"experiment={experiment}", f"shards.url={shards}", "train.precision=fp32", f"train.threads={threads}", *raw]
    pack(*words)
    config = compose_config(words)
    join_alone()
    context, out = RankContext(config, 0, 1), {}
    for name in config.tasks:
        task = packed_task(config, name, partial(read_manifest, open_shards(config)))
        job = describing_job(task)
        ordinals, rows = observe_training(context, job)
        order = torch.from_numpy(np.argsort(ordinals))
        profile = profile_of(signature_tensors({part: values[order] for part, values in rows.items()}), task)
        assert profile is not None
        with context.validation_stream(job) as stream:
            batches = islice(stream.validation(), math.ceil(samples / config.train.eval_batch))
            _, seen = observe(context, task, batches)
        pictured, texted, paired = (bool(part) for part in seen[FORM][0])
        choices = task.classes if task.kind is TaskKind.CHOICE else 0
        parts = Parts(task.images if pictured else 0, choices, texted, paired)
        out[name] = Looked(profile, parts, np.asarray(seen[POOLED].double().numpy()))
        print(f"looked at {name}: {len(out[name].features)} validation samples", flush=True)
    return out


def table(tasks: dict[str, Looked], learnt: Sequence[str]) -> None:
    """Every task's validation samples, against a bank of those `learnt`."""
    print(f"\nlearnt: {', '.join(learnt)}\n")
    print("| samples of | n | kinds left | find their task % | refused % | answered by their task % | mean probability % |")
    print("|---|---|---|---|---|---|---|")
    for name, looked in tasks.items():
        fitting = {task: tasks[task].profile for task in learnt if tasks[task].profile.fits(looked.parts)}
        n = len(looked.features)
        if not fitting:
            print(f"| {name}{'' if name in learnt else ' (never learnt)'} | {n} | 0 | – | 100.0 | – | – |")
            continue
        choices = choose(fitting, dict.fromkeys(fitting, looked.features))
        best = [(choice.candidates[0], choice.refused) for choice in choices]
        found = 100 * np.mean([candidate.task == name for candidate, _ in best])
        refused = 100 * np.mean([no for _, no in best])
        right = 100 * np.mean([candidate.task == name and not no for candidate, no in best])
        sure = 100 * np.mean([candidate.probability for candidate, _ in best])
        own = (f"{found:.1f}", f"{right:.1f}") if name in learnt else ("–", "–")
        said = f"{name}{'' if name in learnt else ' (never learnt)'}"
        print(f"| {said} | {n} | {len(fitting)} | {own[0]} | {refused:.1f} | {own[1]} | {sure:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--raw", default="")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    tasks = look(str(asked.shards), "demo", (), asked.samples, asked.threads)
    if asked.raw:
        tasks |= look(str(asked.shards), "real_small", [f"raw_root={asked.raw}"], asked.samples, asked.threads)
    for learnt in (DEMO, REAL, (*DEMO, *REAL)) if asked.raw else (DEMO,):
        table(tasks, learnt)


if __name__ == "__main__":
    main()
