"""From folders of data to configuration files that `shards pack` and `run` understand."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from atlas_dist.choices import config_dir
from atlas_dist.data.recognise import FoundTask, recognise
from atlas_dist.errors import ConfigError

CONFIGS = Path("configs")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,79}")
_VALUES = frozenset(["y", "n", "yes", "no", "on", "off", "true", "false", "null", "none", "nan", "inf", "infinity"])
"""What YAML or Hydra read as a value where it is not in quotes."""


@dataclass(frozen=True)
class NewExperiment:
    """The configuration of an experiment, written."""

    files: tuple[Path, ...]
    tasks: tuple[FoundTask, ...]
    """In the order of learning."""


def init(experiment: str, folders: Sequence[Path], held_out: float = 0.2) -> NewExperiment:
    """Look at folders of data and write `configs/{task,sequence,experiment}/…` below the working folder; nothing else is written.

    Args:
        folders: one a task; what they may hold: `data/recognise.py`. held_out: as there.

    Raises:
        ConfigError: a name cannot be used, or a file that would be written exists. DataError: as `recognise`.
    """
    if not _NAME.fullmatch(experiment):
        raise ConfigError(f"{experiment!r} cannot name an experiment.", fix="Use letters, digits and _, a letter first.")
    for group in ("experiment", "sequence"):
        _refuse_taken(group, experiment)
    found = tuple(recognise(folder, held_out) for folder in folders)
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
    return NewExperiment(tuple(files), found)


def _refuse_taken(group: str, name: str) -> None:
    """Raises ConfigError: the name is one of the package's own choices."""
    if (config_dir() / group / f"{name}.yaml").exists():
        raise ConfigError(f"The {group} cannot be called {name}: that is one of atlas-dist's own.", fix="Choose another name.")


def _task_yaml(task: FoundTask) -> str:
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


def _experiment_yaml(experiment: str, found: Sequence[FoundTask]) -> str:
    decoder = "  - override /backbone: smolvlm_256m      # answers are written: it needs a decoder; backbone.tiles=1 is cheaper\n"
    backbone = decoder if any(task.kind.generates for task in found) else ""
    batch = max(1, min(32, *(2 ** (max(1, task.samples // 4).bit_length() - 1) for task in found), 32))
    return f"""# @package _global_
# Written by `atlas-dist init`. What any key means: atlas-dist config --explain train.budget.lr experiment={experiment}
defaults:
  - override /sequence: {_as_text(experiment)}
{backbone}run: {_as_text(experiment)}              # a run is known by this name: with other settings it needs another one
store: {{url: {experiment}-run/store}}
shards: {{url: {experiment}-run/shards}}
raw_root: .                 # where the `source` of each task is looked for
train:
  workers: 1                # processes that share each batch; with 2 and two cores it takes half as long
  eval_batch: 32
  budget: {{global_batch: {batch}, lr: 2e-3, validations: 2}}
  # Passes over the training samples; where these are few, as many steps of learning at least.
  stage1: {{epochs: 5, min_steps: 60}}      # how to use earlier tasks
  stage2: {{epochs: 20, min_steps: 300}}    # what they do not know
"""
