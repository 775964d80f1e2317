"""What the banks of two runs have in common, task by task."""

from __future__ import annotations

from dataclasses import dataclass

from atlas_dist.bank.contents import Bank, Learnt


@dataclass(frozen=True)
class TaskDifference:
    """One task in two banks."""

    task: str
    only_in: str
    """The run that alone has learnt it; "" = both have."""
    same_job: bool
    same_bytes: bool
    why: tuple[str, ...]
    """What another job differs in; () = budget, seed or numerics, or it is the same one."""
    scores: tuple[tuple[float, ...], tuple[float, ...]]
    """In percent, before and after; several where a run has learnt the task several times."""


def compare_banks(before: Bank, after: Bank) -> tuple[TaskDifference, ...]:
    """Every task of either bank, in the order of `before`."""
    names = dict.fromkeys(e.task.name for bank in (before, after) for e in bank.learnt.values())
    return tuple(_difference(name, before, after) for name in names)


def _difference(name: str, before: Bank, after: Bank) -> TaskDifference:
    a, b = ([e for e in bank.learnt.values() if e.task.name == name] for bank in (before, after))
    both = bool(a and b)
    return TaskDifference(
        task=name,
        only_in="" if both else (before if a else after).run,
        same_job=both and {e.key for e in a} == {e.key for e in b},
        same_bytes=both and {_bytes(e) for e in a} == {_bytes(e) for e in b},
        why=_reasons(a[0], b[0], before, after) if both else (),
        scores=(tuple(e.score for e in a), tuple(e.score for e in b)),
    )


def _reasons(a: Learnt, b: Learnt, before: Bank, after: Bank) -> tuple[str, ...]:
    differing = {
        "data": a.task != b.task,
        "method or settings": (a.method, a.settings) != (b.method, b.settings),
        "backbone": a.base.digest != b.base.digest,
        "precision": before.precision != after.precision,
        "earlier adapters": a.sees != b.sees,
    }
    return tuple(word for word, differs in differing.items() if differs)


def _bytes(e: Learnt) -> tuple[tuple[str, str], ...]:
    return (e.key, ""), *((b.name, b.sha256) for b in e.ref.blobs)
