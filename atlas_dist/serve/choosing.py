"""Which task does a sample belong to, when nobody says? By signature (docs/method.md, Keys and retrieval).

What a request leaves out is each task's own default, so one sample may read differently as a sample of different tasks. The
frozen backbone sees it once for each way in which it reads, not once a task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from torch import Tensor

from atlas_dist.bank.weights import BankWeights, LearntWeights
from atlas_dist.core.signature import Candidate, Parts, TaskChoice, TaskProfile, choose
from atlas_dist.errors import ConfigError, DataError
from atlas_dist.serve.mixed import TaskBatch
from atlas_dist.train.signatures import profile_of

SHOWN = 3
"""Tasks that a refusal names at most."""

Prepare = Callable[[LearntWeights, int], TaskBatch]
"""(task, number of a request) -> a batch of one."""
Frozen = Callable[[Sequence[TaskBatch]], Sequence[Tensor]]
"""Batches of one -> pooled features [P] of the frozen backbone."""


def profiles_of(weights: BankWeights) -> dict[str, TaskProfile]:
    """What the samples of every task of a bank look like, by key.

    Raises:
        ConfigError: a task was learnt without.
    """
    found = {key: profile_of(task.signature, task.learnt.task) for key, task in weights.tasks.items()}
    missing = [weights.tasks[key].learnt.name for key, profile in found.items() if profile is None]
    if missing:
        raise ConfigError(
            f"No task is named, and this bank cannot find it: {', '.join(missing)} learnt without a signature "
            f"(method {weights.first.method}, or an older version).",
            fix="Name the task (--task NAME, or `task` of the request).",
        )
    return {key: profile for key, profile in found.items() if profile is not None}


def choose_tasks(weights: BankWeights, requests: Mapping[int, Parts], prepare: Prepare, frozen: Frozen) -> dict[int, TaskChoice]:
    """The task of each request, by number; candidates have the tasks' names. Raises ConfigError as `profiles_of`; what `prepare`
    raises."""
    profiles = profiles_of(weights) if requests else {}
    fitting = {n: [key for key, profile in profiles.items() if profile.fits(parts)] for n, parts in requests.items()}
    batches: dict[tuple[int, bytes], TaskBatch] = {}
    reads: dict[tuple[int, str], tuple[int, bytes]] = {}
    for number, keys in fitting.items():
        for key in keys:
            batch = prepare(weights.tasks[key], number)
            reads[number, key] = number, _text_of(batch)
            batches.setdefault(reads[number, key], batch)
    seen = frozen(list(batches.values())) if batches else []
    features = {read: np.asarray(row.double().cpu().numpy()) for read, row in zip(batches, seen, strict=True)}
    names = {key: task.learnt.name for key, task in weights.tasks.items()}
    out: dict[int, TaskChoice] = {}
    for number, keys in fitting.items():
        candidates = {names[key]: profiles[key] for key in keys}
        rows = {names[key]: features[reads[number, key]][None] for key in keys}
        out[number] = choose(candidates, rows)[0] if keys else TaskChoice(())
    return out


class Unlike(DataError):
    """A sample is unlike everything learnt. `nearest`: the tasks that come closest, with distance and limit."""

    def __init__(self, message: str, *, fix: str = "", retry: bool | None = None, nearest: Sequence[Candidate] = ()) -> None:
        super().__init__(message, fix=fix, retry=retry)
        self.nearest = tuple(nearest)


def accepted(choice: TaskChoice, parts: Parts) -> Candidate:
    """The chosen task.

    Raises:
        DataError: no task has such samples. Unlike: it is unlike everything learnt; it names the nearest tasks with their
            numbers.
    """
    best = choice.best
    if best is None:
        raise DataError(
            f"{_said(parts).capitalize()}: this bank has learnt no task with such samples.",
            fix="Give what a task was learnt from, or name the task.",
        )
    if choice.refused:
        nearest = choice.candidates[:SHOWN]
        near = "; ".join(f"{c.task} {c.distance:.2f} (limit {c.limit:.2f})" for c in nearest)
        raise Unlike(
            f"The sample is unlike everything learnt. Distances from the nearest tasks, 1 is ordinary: {near}.",
            fix="If it does belong to one of them, name the task.",
            nearest=nearest,
        )
    return best


def _text_of(batch: TaskBatch) -> bytes:
    """The tokens that the backbone reads: equal for texts that differ in their padding alone."""
    shown = batch.attention_mask.bool().cpu()
    parts = (batch.input_ids.cpu()[shown], batch.token_type_ids.cpu()[shown], shown.sum(-1))
    return b"/".join(part.numpy().tobytes() for part in parts)


def _said(parts: Parts) -> str:
    text = "a text of two segments" if parts.paired else "a text" if parts.texted else "no text"
    choices = f" and {parts.choices} choices" if parts.choices else ""
    return f"{parts.pictures or 'no'} picture{'' if parts.pictures == 1 else 's'}, {text}{choices}"
