"""The README of an exported bank: a model card that a person reads, with the front matter that the Hugging Face hub reads."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

from atlas_dist.bank.contents import Bank, Learnt
from atlas_dist.bank.weights import BankWeights
from atlas_dist.core.results import TrainResult


def model_card(bank: Bank, weights: BankWeights, base_model: str) -> str:
    """Markdown with YAML front matter: tasks, scores, lineage, how to use it, what it depends on."""
    tasks = [task.learnt for task in weights.tasks.values()]
    names = {key: weights.name_of(key) for key in (*weights.imported, *weights.tasks)}
    listed = ", ".join(learnt.name for learnt in tasks)
    first, base = tasks[0].name, weights.base
    return f"""---
library_name: atlas-dist
base_model: {json.dumps(base_model)}
pipeline_tag: visual-question-answering
tags: [atlas-dist, adapters, continual-learning, vision-language]
---

# {bank.run}: a bank of {len(tasks)} learnt tasks

One frozen vision-language transformer (`{base.name}`) and, for each task, one small adapter with its key, queries and
head (ATLAS, arXiv 2410.10923). Tasks: {listed}. They were learnt one after the other; what an earlier task uses has not changed
since.

## Use

```python
from atlas_dist import AtlasModel

model = AtlasModel.from_pretrained("path/to/this/folder")
print(model.predict(task="{first}", image="picture.jpg", text="…"))
```

`output_adapter_coefficients=True` also returns α: how much of each adapter's output entered the answer, by site.
On a shell: `atlas-dist predict --from path/to/this/folder --task {first} --image picture.jpg`.

## Tasks and scores

| task | kind | classes | validation score (%) | samples | by chance (%) | draws on |
|---|---|---|---|---|---|---|
{_rows(bank, tasks, names)}

{_pruned(weights, names) or _WHOLE}

## Lineage

{_lineage(tasks, names)}
{_imported(weights)}
## What it depends on

- Backbone: `{base_model}`{f" at `{base.revision}`" if base.revision else ""} ({base.architecture}{base.sees}), \
digest `{base.digest}`.
- Method: {weights.first.method} `{json.dumps(dict(weights.first.settings), sort_keys=True)}`; products in {weights.precision}.
- Written by atlas-dist{_version()}. Files are safetensors and JSON; `adapter_config.json` has their sizes and sha256.

## Limits

The scores hold for data like that of the validation splits and for nothing else. A small adapter inherits what its backbone and
its data get wrong. The licences of the backbone and of the data sets apply.
"""


_WHOLE = """Scores are those that the run recorded on its validation splits, every task read as it was learnt.
`atlas-dist bank verify --from` this folder `--rescore` measures them again where the data are."""


def _pruned(weights: BankWeights, names: dict[str, str]) -> str:
    """What a pruned bank lacks, and what its tasks score without it."""
    if not weights.rescored:
        return ""
    left_out = ", ".join(names[key] for key in names if key in weights.dropped) or "none"
    lines = "\n".join(
        f"| {names[key]} | {score:.2f} | {', '.join(names[seen] for seen in weights.view(key)) or 'the backbone alone'} |"
        for key, score in weights.rescored.items()
    )
    return f"""The table is about the whole bank as its run learnt it. **This folder holds a pruned one**: the adapters of
{left_out} are left out. What its tasks score on their validation splits with what is left (step by step in `prune.json`):

| task | validation score (%) | reads the adapters of |
|---|---|---|
{lines}

`atlas-dist bank verify --from` this folder `--rescore` measures them again where the data are."""


def _imported(weights: BankWeights) -> str:
    """Adapters that nobody here trained: where they came from, and under which licence; "" where there are none."""
    if not weights.imported:
        return ""
    lines = []
    for one in weights.imported.values():
        told, name = one.entry.provenance, one.entry.name
        base = f"for `{told.base_model}`" if told.base_model else "which names no base model"
        texts = ", ".join(f"`imported/{name}/{file}`" for file in told.texts) or "none came with it"
        licence = told.licence or "not named in its model card"
        lines.append(f"- **{name}** from `{told.source}`, {base}; licence: {licence}; texts: {texts}")
    return "\n## Imported adapters\n\nNobody trained these here; their licences apply to them.\n\n" + "\n".join(lines) + "\n"


def _version() -> str:
    """Of this package, where it is installed and not only on the path."""
    try:
        return f" {version('atlas-dist')}"
    except PackageNotFoundError:
        return ""


def _rows(bank: Bank, tasks: list[Learnt], names: dict[str, str]) -> str:
    lines = []
    for learnt in tasks:
        evaluation = bank.evaluation_of(learnt.key)
        score = evaluation.score if evaluation else learnt.score
        samples = evaluation.samples if evaluation else TrainResult.of(learnt.ref).samples or ""
        sees = ", ".join(names[key] for key in learnt.sees) or "itself alone"
        lines.append(
            f"| {learnt.name} | {learnt.task.kind.value} | {learnt.task.classes} | {score:.2f} | {samples} "
            f"| {learnt.task.random_score:.1f} | {sees} |"
        )
    return "\n".join(lines)


def _lineage(tasks: list[Learnt], names: dict[str, str]) -> str:
    lines = []
    for learnt in tasks:
        when = datetime.fromtimestamp(learnt.at, UTC).strftime("%Y-%m-%d %H:%M UTC")
        ancestors = " + ".join(names[key] for key in learnt.sees)
        made = f"on {ancestors}" if ancestors else "on the backbone alone"
        lines.append(
            f"- **{learnt.name}** {made}; {when}; key `{learnt.key}`; data `{learnt.task.dataset}` with digests "
            + " and ".join(f"`{digest[:12]}`" for digest in learnt.task.splits.values())
        )
    return "\n".join(lines)
