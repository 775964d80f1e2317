"""`atlas-dist init`: from folders of data to configuration files that `shards pack` and `run` understand."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from atlas_dist.core.types import TaskKind
from atlas_dist.data.sample import IMAGE_EXTENSIONS
from atlas_dist.data.tasks.base import share_of
from atlas_dist.errors import ConfigError, DataError

CONFIGS = Path("configs")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,79}")


@dataclass(frozen=True)
class Found:
    """What a data folder turned out to be. `samples`: of the training split; `max_text`: tokens a text."""

    name: str
    folder: Path
    kind: TaskKind
    converter: str
    options: dict[str, Any]
    samples: int
    max_text: int


def init(experiment: str, folders: Sequence[Path], held_out: float, console: Console) -> None:
    """Look at the data and write `configs/{task,sequence,experiment}/…` below the working folder.

    A folder holds `train.jsonl` and `val.jsonl`; or one `.jsonl`, of which every `held_out`-th share is put aside for validation
    (by a hash of the line: the same lines each time); or `train/CLASS/…` and `val/CLASS/…` with pictures.

    Raises:
        ConfigError: a name cannot be used, or a file that would be written exists.
        DataError: a folder is none of these.
    """
    if not _NAME.fullmatch(experiment):
        raise ConfigError(f"{experiment!r} cannot name an experiment.", fix="Use letters, digits and _, a letter first.")
    found = [_look(folder, held_out, console) for folder in folders]
    names = [task.name for task in found]
    if len(set(names)) != len(names):
        raise ConfigError(f"Two folders would both be the task {names[0]}.", fix="Give the folders different names.")
    files = {CONFIGS / "task" / f"{task.name}.yaml": _task_yaml(task) for task in found}
    files[CONFIGS / "sequence" / f"{experiment}.yaml"] = _sequence_yaml(names)
    files[CONFIGS / "experiment" / f"{experiment}.yaml"] = _experiment_yaml(experiment, found)
    taken = [str(file) for file in files if file.exists()]
    if taken:
        raise ConfigError(f"{', '.join(taken)} exists already.", fix="Choose another name, or delete it first.")
    for file, text in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        console.print(f"wrote {file}")
    console.print("Next, from this folder:")
    for command in (f"shards pack experiment={experiment}", f"plan experiment={experiment}", f"run experiment={experiment}"):
        console.print(f"  atlas-dist {command}")


def _look(folder: Path, held_out: float, console: Console) -> Found:
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}.", fix="Name the folder that holds the pictures and the .jsonl file.")
    name = re.sub(r"[^A-Za-z0-9_]", "_", folder.resolve().name)
    if not _NAME.fullmatch(name):
        raise ConfigError(f"The folder {folder} cannot name a task.", fix="Rename it: letters, digits and _, a letter first.")
    lines = sorted(folder.glob("*.jsonl"))
    if not lines:
        return _pictures(name, folder)
    if {"train.jsonl", "val.jsonl"} <= {file.name for file in lines}:
        return _records(name, folder)
    if len(lines) > 1:
        raise DataError(
            f"{folder} holds {', '.join(file.name for file in lines)}: which is which is unclear.",
            fix="Name them train.jsonl and val.jsonl, or leave one.",
        )
    _split(lines[0], held_out, console)
    return _records(name, folder)


def _split(file: Path, held_out: float, console: Console) -> None:
    """One file into train.jsonl and val.jsonl beside it."""
    lines = [line for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
    parts: dict[str, list[str]] = {"train": [], "val": []}
    for line in lines:
        parts["val" if share_of(line, 0) < held_out else "train"].append(line)
    if not all(parts.values()):
        raise DataError(
            f"{file} has {len(lines)} lines: too few to hold out {held_out:.0%}.", fix="Write train.jsonl and val.jsonl."
        )
    for split, chosen in parts.items():
        (file.parent / f"{split}.jsonl").write_text("\n".join(chosen) + "\n", encoding="utf-8")
        console.print(f"wrote {file.parent / f'{split}.jsonl'}: {len(chosen)} of the {len(lines)} lines of {file.name}")


def _pictures(name: str, folder: Path) -> Found:
    counts = {
        split: sum(p.suffix[1:].lower() in IMAGE_EXTENSIONS for p in (folder / split).glob("*/**/*"))
        for split in ("train", "val")
    }
    if not all(counts.values()):
        raise DataError(
            f"{folder} holds neither a .jsonl file nor pictures in train/CLASS/ and val/CLASS/.",
            fix='Add a .jsonl with one object a line, such as {"image": "a.jpg", "text": "What is it?", "label": "cat"}.',
        )
    return Found(name, folder, TaskKind.SINGLE, "image_folder", {}, counts["train"], 8)


def _records(name: str, folder: Path) -> Found:
    """A task from the fields of its first records."""
    lines = [line for line in (folder / "train.jsonl").read_text(encoding="utf-8").split("\n") if line.strip()]
    records = []
    for number, line in enumerate(lines[:200], start=1):
        try:
            records.append(dict(json.loads(line)))
        except (ValueError, TypeError) as error:
            raise DataError(f"{folder / 'train.jsonl'}, line {number} is not a JSON object: {error}.") from error
    first = records[0] if records else {}
    if {"question", "choices", "answer"} <= set(first):
        options = {"image": "image"} if "image" in first else {}
        count = len(first["choices"])
        texts = [f"{r['question']} {choice}" for r in records for choice in r["choices"]]
        return Found(name, folder, TaskKind.CHOICE, "choice_jsonl", {**options, "count": count}, len(lines), _tokens(texts))
    if "label" in first and ("image" in first or "text" in first or {"left", "right"} <= set(first)):
        pair = {"left", "right"} <= set(first)
        options = {
            "text": "text" if "text" in first else "",
            "image": "left,right" if pair else "image" if "image" in first else "",
        }
        texts = [str(r.get("text", "")) for r in records]
        return Found(
            name, folder, TaskKind.PAIR if pair else TaskKind.SINGLE, "classify_jsonl", options, len(lines), _tokens(texts)
        )
    raise DataError(
        f"{folder / 'train.jsonl'}: a record has the fields {', '.join(sorted(first)) or 'none'}.",
        fix="Use image and/or text with label; left, right, text and label; or question, choices and answer.",
    )


def _tokens(texts: Sequence[str]) -> int:
    """Text tokens to provide for: words cost more than one token now and then, and [CLS] and [SEP] come on top."""
    words = max((len(re.findall(r"\w+|[^\w\s]", text)) for text in texts), default=6)
    return min(40, max(8, -(-(words * 3 // 2 + 3) // 4) * 4))


def _task_yaml(task: Found) -> str:
    raw = {"converter": task.converter, "source": task.folder.as_posix(), "options": task.options}
    tree = {"kind": task.kind.value, "data": {"dataset": task.name}, "max_text": task.max_text, "raw": raw}
    about = f"# {task.name}: {task.samples} training samples. `atlas-dist shards converters` lists what converters can read.\n"
    return about + yaml.safe_dump(tree, sort_keys=False)


def _sequence_yaml(names: Sequence[str]) -> str:
    tasks = "".join(f"  - /task@tasks.{name}: {name}\n" for name in names)
    return (
        "# @package _global_\n"
        "# The tasks in the order in which they are learnt. `downstream` tasks start from the final bank and stay out of it.\n"
        f"defaults:\n{tasks}sequence:\n  upstream: [{', '.join(names)}]\n  downstream: []\n"
    )


def _experiment_yaml(experiment: str, found: Sequence[Found]) -> str:
    batch = max(1, min(32, *(2 ** (max(1, task.samples // 4).bit_length() - 1) for task in found), 32))
    return f"""# @package _global_
# Written by `atlas-dist init`. What any key means: atlas-dist config --explain train.budget.lr experiment={experiment}
defaults:
  - override /sequence: {experiment}
run: {experiment}              # a run is known by this name: with other settings it needs another one
store: {{url: {experiment}-run/store}}
shards: {{url: {experiment}-run/shards}}
raw_root: .                 # where the `source` of each task is looked for
train:
  workers: 1                # processes that share each batch; with 2 and two cores it takes half as long
  eval_batch: 32
  budget: {{global_batch: {batch}, lr: 2e-3, validations: 2}}
  stage1: {{epochs: 5, lr: 5e-4}}     # how to use earlier tasks
  stage2: {{epochs: 20}}             # what they do not know
"""
