"""What a setting is, what it may be, what it is now and who said so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from atlas_dist.app.composed import Settings, words_of
from atlas_dist.choices import choice_file, config_dir
from atlas_dist.compose import chosen, compose_tree
from atlas_dist.config import RunConfig, load_config
from atlas_dist.config.keys import declared, plain, section
from atlas_dist.errors import ConfigError


@dataclass(frozen=True)
class Explanation:
    """A key in words; `valid` and `default` are "" where nothing declares it (a whole mapping of names, say)."""

    key: str
    about: str
    valid: str
    default: str
    now: str
    source: str
    """Who said so last."""
    keys: tuple[str, ...]
    """Of a section; () = it is a value."""


def explain(key: str, *settings: Settings) -> Explanation:
    """What `key` (dotted, as in `train.stage2.lr`) is.

    Args:
        settings: as for `run`; the ones that the key's present value is of.

    Raises:
        ConfigError: there is no such key; the message lists those beside it.
    """
    found = declared(key)
    words = words_of(*settings)
    info, inside = found.info, section(found.kind)
    config = load_config(compose_tree(words))
    if key.startswith("method.settings."):
        info = _setting(config, key.removeprefix("method.settings."))
    now = _shown(_value(config.model_dump(mode="json"), key))
    return Explanation(
        key=key,
        about=_about(info, inside),
        valid=_valid(info) if info is not None else "",
        default=_default(info) if info is not None else "",
        now=now if len(now) <= _LONG else "too long for a line: `atlas-dist config` prints it",
        source=_source(key, words),
        keys=tuple(inside.model_fields) if inside is not None else (),
    )


_LONG = 160
"""Characters above which a whole section is not printed in one line."""


def _about(info: FieldInfo | None, section: type[BaseModel] | None) -> str:
    text = (info.description if info is not None else None) or (section.__doc__ if section is not None else None)
    return " ".join((text or "Not described.").split())


def _setting(config: RunConfig, name: str) -> FieldInfo:
    """A setting of the configured method, from the class that checks it. Raises ConfigError."""
    from atlas_dist.methods import method_named

    declared = method_named(config.method.name).settings.model_fields
    if name not in declared:
        raise ConfigError(
            f"The method {config.method.name} has no setting {name}.", fix=f"It has: {', '.join(sorted(declared))}."
        )
    return declared[name]


def _valid(info: FieldInfo) -> str:
    kind = plain(info.annotation)
    limits = [
        f"{_SIGNS[name]} {limit}" for item in info.metadata for name in _SIGNS if (limit := getattr(item, name, None)) is not None
    ]
    optional = " or left out" if NoneType in get_args(info.annotation) else ""
    return _type(kind) + (f" {' and '.join(limits)}" if limits else "") + optional


_SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "min_length": "with a length of at least", "pattern": "matching"}
_NAMES: Mapping[Any, str] = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", Any: "any value"}


def _type(kind: Any) -> str:
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ", ".join(str(member.value) for member in kind)
    if get_origin(kind) is Literal:
        return ", ".join(map(str, get_args(kind)))
    if get_origin(kind) is list:
        return f"a list, each {_type(plain(get_args(kind)[0]))}"
    if get_origin(kind) in (dict, Mapping):
        return f"names, each with {_type(plain(get_args(kind)[1]))}"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return f"a section with the keys {', '.join(kind.model_fields)}"
    return _NAMES.get(kind, getattr(kind, "__name__", str(kind)))


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "none: it must be given"
    value = info.get_default(call_default_factory=True, validated_data={})
    return _shown(to_jsonable_python(value, exclude_none=True))


def _shown(value: Any) -> str:
    if isinstance(value, Enum):
        return str(value.value)
    if value is _ABSENT:
        return "not in this configuration"
    if value in ("", None):
        return '"" (empty)' if value == "" else "left out"
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**6).strip()
    return text.removesuffix("\n...").removesuffix("...").strip()


_ABSENT = object()


def _value(tree: Any, key: str) -> Any:
    for part in key.split("."):
        if not isinstance(tree, Mapping) or part not in tree:
            return _ABSENT
        tree = tree[part]
    return tree


def _source(key: str, overrides: Sequence[str]) -> str:
    """Who said it last: the command line, a file of `configs/`, or nobody (the declared default)."""
    for word in reversed(overrides):
        name = word.lstrip("+").partition("=")[0]
        if key == name or key.startswith(f"{name}."):
            return f"the command line: {word}"
    found = [file for file, tree in _files(overrides) if _value(tree, key) is not _ABSENT]
    return _place(found[-1]) if found else "the declared default"


def _files(overrides: Sequence[str]) -> Iterator[tuple[Path, Any]]:
    """Every file that the configuration is composed from, with what it sets as a whole tree; later ones win."""
    choices = chosen(overrides)
    experiment = choices.pop("experiment", "")
    for name, choice in choices.items():
        group, _, package = name.partition("@")
        file = choice_file(group, choice)
        yield file, _placed(file, package or group)
    yield config_dir() / "config.yaml", _placed(config_dir() / "config.yaml", "")
    if experiment:
        file = choice_file("experiment", experiment)
        yield file, _placed(file, "experiment")


def _placed(file: Path, package: str) -> Any:
    text = file.read_text(encoding="utf-8")
    tree = yaml.safe_load(text) or {}
    tree.pop("defaults", None)
    if "@package _global_" in text.split("\n", 1)[0]:
        return tree
    for part in reversed([p for p in package.split(".") if p]):
        tree = {part: tree}
    return tree


def _place(file: Path) -> str:
    """Without the place of the installation: `configs/train/default.yaml`."""
    return str(Path("configs") / file.relative_to(config_dir())) if file.is_relative_to(config_dir()) else str(file)
