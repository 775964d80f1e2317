"""`atlas-dist init`: from folders of data to configuration files that `shards pack` and `run` understand."""

from __future__ import annotations

import itertools
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from atlas_dist.choices import config_dir
from atlas_dist.core.types import TaskKind
from atlas_dist.data.leftout import shown
from atlas_dist.data.records import RECORD_ENDS
from atlas_dist.data.source import is_quiet, open_source
from atlas_dist.data.tasks import CONVERTERS
from atlas_dist.data.tasks.generic import RecordOptions
from atlas_dist.errors import ConfigError, DataError

CONFIGS = Path("configs")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,79}")
_VALUES = frozenset(["y", "n", "yes", "no", "on", "off", "true", "false", "null", "none", "nan", "inf", "infinity"])
"""What YAML or Hydra read as a value where it is not in quotes."""


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
    """Look at the data and write `configs/{task,sequence,experiment}/…` below the working folder; nothing else is written.

    A folder holds `train.jsonl` and `val.jsonl`; or one `.jsonl`, of which every `held_out`-th share is put aside for validation
    (by a hash of the record: the same ones each time); or `train/CLASS/…` and `val/CLASS/…` with pictures; or tables (`.csv`,
    `.tsv`, `.parquet`) in the place of `.jsonl`.

    Raises:
        ConfigError: a name cannot be used, or a file that would be written exists.
        DataError: a folder is none of these.
    """
    if not _NAME.fullmatch(experiment):
        raise ConfigError(f"{experiment!r} cannot name an experiment.", fix="Use letters, digits and _, a letter first.")
    for group in ("experiment", "sequence"):
        _refuse_taken(group, experiment)
    found = [_look(folder, held_out, console) for folder in folders]
    by_name: dict[str, Path] = {}
    for task in found:
        if task.name in by_name:
            raise ConfigError(
                f"{by_name[task.name]} and {task.folder} would both be the task {task.name}.",
                fix="Give the folders different names.",
            )
        by_name[task.name] = task.folder
    names = list(by_name)
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


def _refuse_taken(group: str, name: str) -> None:
    """Raises ConfigError: the name is one of the package's own choices."""
    if (config_dir() / group / f"{name}.yaml").exists():
        raise ConfigError(f"The {group} cannot be called {name}: that is one of atlas-dist's own.", fix="Choose another name.")


def task_name(folder: Path) -> str:
    """The task that a folder is: its name, with what cannot stand in a task's name replaced; other alphabets by a short hash."""
    own = folder.resolve().name
    if not own:
        raise ConfigError(f"The folder {folder} cannot name a task.", fix="Put the data into a folder of its own.")
    name = re.sub(r"[^A-Za-z0-9_]", "_", own)[:80]
    if not re.search(r"[A-Za-z0-9]", name):
        name = f"task_{blake2b(own.encode('utf-8', 'surrogateescape'), digest_size=4).hexdigest()}"
    return name if name[0].isalpha() else f"task_{name.lstrip('_')}"[:80]


def _look(folder: Path, held_out: float, console: Console) -> Found:
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}.", fix="Name the folder that holds the pictures and the .jsonl file.")
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"The path {shown(str(folder))} is not UTF-8.", fix="Rename the folder.") from error
    name = task_name(folder)
    for ends in (("jsonl", "ndjson"), ("csv", "tsv", "parquet")):
        files = sorted(f.name for f in folder.iterdir() if f.suffix[1:] in ends and not is_quiet(f.name))
        if files:
            return _records(name, folder, _record_options(folder, files, held_out), console)
        if ends[0] == "jsonl" and any((folder / "train").glob("*/*")):
            return _pictures(name, folder)
    return _pictures(name, folder)


def _record_options(folder: Path, files: Sequence[str], held_out: float) -> dict[str, Any]:
    """The converter's options that say where the records are."""
    for end in RECORD_ENDS:
        if {f"train.{end}", f"val.{end}"} <= set(files):
            return {} if end == RECORD_ENDS[0] else {"file": f"{{split}}.{end}"}
    if len(files) > 1:
        raise DataError(
            f"{folder} holds {', '.join(files)}: which is which is unclear.",
            fix=f"Name them train.{files[0].rpartition('.')[2]} and val.{files[0].rpartition('.')[2]}, or leave one.",
        )
    return {"file": files[0], "held_out": held_out}


def _pictures(name: str, folder: Path) -> Found:
    counts: dict[str, int] = {}
    for split in ("train", "val"):
        try:
            counts[split] = len(CONVERTERS["image_folder"].run(folder, split, {}).samples)
        except DataError:
            if all((folder / split).is_dir() for split in ("train", "val")):
                raise  # it is meant to be this; what is wrong with it is the answer
    if len(counts) < 2:
        raise DataError(
            f"{folder} holds neither a .jsonl file nor pictures in train/CLASS/ and val/CLASS/.",
            fix='Add a .jsonl with one object a line, such as {"image": "a.jpg", "text": "What is it?", "label": "cat"}.',
        )
    return Found(name, folder, TaskKind.SINGLE, "image_folder", {}, counts["train"], 8)


def _records(name: str, folder: Path, where: dict[str, Any], console: Console) -> Found:
    """A task from the fields of its first records."""
    source = open_source(folder)
    reader = RecordOptions(**where)
    file, records = reader.read(source, "train")
    if "held_out" in where:
        rest = len(reader.read(source, "val")[1])
        if not rest or not records:
            raise DataError(
                f"{folder / file} has {len(records) + rest} records: too few to hold out {where['held_out']:.0%}.",
                fix=f"Write train.{file.rpartition('.')[2]} and val.{file.rpartition('.')[2]}.",
            )
        console.print(f"{rest} of the {len(records) + rest} records of {file} are held out for validation", markup=False)
    first, some = (records[0].values if records else {}), records[:200]
    columns = [c for c in ("choices", "choice_a,choice_b", "a,b") if set(c.split(",")) <= set(first)]
    if {"question", "answer"} <= set(first) and columns:
        choices = _columns(first, columns[0])
        options = (
            where | ({"image": "image"} if "image" in first else {}) | ({"choices": choices} if choices != "choices" else {})
        )
        count = len(records[0].texts(choices)[0])
        texts = [f"{r.text('question')} {choice}" for r in some for choice in r.texts(choices)[0]]
        return _checked(name, folder, TaskKind.CHOICE, "choice_jsonl", {**options, "count": count}, texts)
    if "label" in first and ("image" in first or "text" in first or {"left", "right"} <= set(first)):
        pair = {"left", "right"} <= set(first)
        options = where | {
            "text": "text" if "text" in first else "",
            "image": "left,right" if pair else "image" if "image" in first else "",
        }
        texts = [r.text("text") for r in some] if "text" in first else []
        kind = TaskKind.PAIR if pair else TaskKind.SINGLE
        return _checked(name, folder, kind, "classify_jsonl", options, texts)
    raise DataError(
        f"{folder / file}: a record has the fields {', '.join(sorted(first)) or 'none'}.",
        fix="Use image and/or text with label; left, right, text and label; or question, choices and answer.",
    )


def _columns(first: Mapping[str, Any], choices: str) -> str:
    """All the columns of a table's choices: choice_a, choice_b, … or a, b, …"""
    if choices == "choices":
        return choices
    prefix = "choice_" if choices.startswith("choice_") else ""
    letters = itertools.takewhile(lambda letter: f"{prefix}{letter}" in first, string.ascii_lowercase)
    return ",".join(f"{prefix}{letter}" for letter in letters)


def _checked(name: str, folder: Path, kind: TaskKind, converter: str, options: dict[str, Any], texts: Sequence[str]) -> Found:
    """The task, once its converter has read every record of both splits: what is wrong with one is said here, not when
    packing."""
    samples = [len(CONVERTERS[converter].run(folder, split, options).samples) for split in ("train", "val")]
    return Found(name, folder, kind, converter, options, samples[0], _tokens(texts))


def _tokens(texts: Sequence[str]) -> int:
    """Text tokens to provide for: words cost more than one token now and then, and [CLS] and [SEP] come on top."""
    words = max((len(re.findall(r"\w+|[^\w\s]", text)) for text in texts), default=6)
    return min(40, max(8, -(-(words * 3 // 2 + 3) // 4) * 4))


def _task_yaml(task: Found) -> str:
    source = task.folder.as_posix().replace("${", "\\${")  # a path is no reference to another key
    raw = {"converter": task.converter, "source": source, "options": task.options}
    tree = {"kind": task.kind.value, "data": {"dataset": task.name}, "max_text": task.max_text, "raw": raw}
    about = f"# {task.name}: {task.samples} training samples. `atlas-dist shards converters` lists what converters can read.\n"
    return about + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def _as_text(name: str) -> str:
    """A name as YAML has it."""
    return f'"{name}"' if name.lower() in _VALUES else name


def _sequence_yaml(names: Sequence[str]) -> str:
    tasks = "".join(f"  - /task@tasks.{name}: {_as_text(name)}\n" for name in names)
    return (
        "# @package _global_\n"
        "# The tasks in the order in which they are learnt. `downstream` tasks start from the final bank and stay out of it.\n"
        f"defaults:\n{tasks}sequence:\n  upstream: [{', '.join(map(_as_text, names))}]\n  downstream: []\n"
    )


def _experiment_yaml(experiment: str, found: Sequence[Found]) -> str:
    batch = max(1, min(32, *(2 ** (max(1, task.samples // 4).bit_length() - 1) for task in found), 32))
    return f"""# @package _global_
# Written by `atlas-dist init`. What any key means: atlas-dist config --explain train.budget.lr experiment={experiment}
defaults:
  - override /sequence: {_as_text(experiment)}
run: {_as_text(experiment)}              # a run is known by this name: with other settings it needs another one
store: {{url: {experiment}-run/store}}
shards: {{url: {experiment}-run/shards}}
raw_root: .                 # where the `source` of each task is looked for
train:
  workers: 1                # processes that share each batch; with 2 and two cores it takes half as long
  eval_batch: 32
  budget: {{global_batch: {batch}, lr: 2e-3, validations: 2}}
  stage1: {{epochs: 5}}              # how to use earlier tasks
  stage2: {{epochs: 20}}             # what they do not know
"""
