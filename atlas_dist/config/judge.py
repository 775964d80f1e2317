"""A composed tree becomes a RunConfig or an error that says, in the user's words, what would be valid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from atlas_dist.config.keys import fields_at
from atlas_dist.config.run import RunConfig
from atlas_dist.core.keys import flattened
from atlas_dist.errors import ConfigError
from atlas_dist.validation import faults


def check_rows(rows: Mapping[str, RunConfig]) -> None:
    """Whether these can be rows of one run: one store, one cluster, one backbone, one engine.

    Raises:
        ConfigError: naming the first keys that differ although one run has them only once.
    """
    first, *others = (dict(flattened(_once(config))) for config in rows.values())
    differing = sorted({key for other in others for key in first.keys() | other.keys() if first.get(key) != other.get(key)})
    if differing:
        shown = "; ".join(
            f"{key} ({', '.join(dict.fromkeys(str(c.get(key)) for c in (first, *others)))})" for key in differing[:4]
        )
        raise ConfigError(
            f"One run has only one value of: {shown}.",
            fix="Give each value a run of its own (run=NAME): what is equal is trained once all the same.",
        )


_PER_ROW = ("seeds", "method", "compare", "only", "references", "sequence")
_PER_ROW_OF_TRAIN = ("budget", "stage1", "stage2", "both")


def _once(config: RunConfig) -> dict[str, Any]:
    """What a run has only once: everything but what job keys are made from."""
    tree = config.model_dump(mode="json", exclude=set(_PER_ROW))
    tree["train"] = {name: value for name, value in tree["train"].items() if name not in _PER_ROW_OF_TRAIN}
    tree["tasks"] = {name: {"raw": task["raw"]} for name, task in tree["tasks"].items()}
    return tree


def load_config(tree: Mapping[str, Any]) -> RunConfig:
    """Validate a composed tree.

    Raises:
        ConfigError: with one line a fault: the key, its current value, and what would be valid.
    """
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        lines = faults(error, fields_at, whole="configuration")
        raise ConfigError("The configuration is not valid:\n" + "\n".join(f"  {line}" for line in lines)) from None
