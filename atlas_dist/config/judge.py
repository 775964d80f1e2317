"""A composed tree becomes a RunConfig or an error that says, in the user's words, what would be valid."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from atlas_dist.config.run import RunConfig
from atlas_dist.errors import ConfigError


def check_rows(rows: Mapping[str, RunConfig]) -> None:
    """Whether these can be rows of one run: one store, one cluster, one backbone, one engine.

    Raises:
        ConfigError: naming the first keys that differ although one run has them only once.
    """
    first, *others = (dict(_flat(_once(config))) for config in rows.values())
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
_PER_ROW_OF_TRAIN = ("budget", "stage1", "stage2")


def _once(config: RunConfig) -> dict[str, Any]:
    """What a run has only once: everything but what job keys are made from."""
    tree = config.model_dump(mode="json", exclude=set(_PER_ROW))
    tree["train"] = {name: value for name, value in tree["train"].items() if name not in _PER_ROW_OF_TRAIN}
    tree["tasks"] = {name: {"raw": task["raw"]} for name, task in tree["tasks"].items()}
    return tree


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, value


def load_config(tree: Mapping[str, Any]) -> RunConfig:
    """Validate a composed tree.

    Raises:
        ConfigError: with one line a fault: the key, its current value, and what would be valid.
    """
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(e, tree) for e in error.errors()]
        raise ConfigError("The configuration is not valid:\n" + "\n".join(f"  {line}" for line in lines)) from None


def _explain(error: Any, tree: Mapping[str, Any]) -> str:
    """One line for one fault, in the user's words rather than the library's."""
    where = ".".join(str(part) for part in error["loc"])
    value = error.get("input")
    if error["type"] == "extra_forbidden":
        valid = sorted(keys_at(error["loc"][:-1]))
        near = difflib.get_close_matches(str(error["loc"][-1]), valid, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"{where}: there is no such key; {hint}valid here: {', '.join(valid)}."
    shown = "" if isinstance(value, Mapping) else f" (it is {value!r})"
    return f"{where or 'configuration'}: {error['msg'].removeprefix('Value error, ')}{shown}."


def keys_at(location: tuple[Any, ...]) -> set[str]:
    """The valid keys of the model at `location`, found by walking the declared types."""
    model: Any = RunConfig
    for part in location:
        field = model.model_fields.get(part) if isinstance(model, type) and issubclass(model, BaseModel) else None
        model = field.annotation if field else getattr(model, "__args__", (None, None))[-1]
    return set(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else set()
