"""What is declared where: the tree of settings, walked by its types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from atlas_dist.config.run import RunConfig
from atlas_dist.errors import ConfigError


def plain(annotation: Any) -> Any:
    """The type without `Annotated` and `| None`."""
    if get_origin(annotation) is Annotated:
        return plain(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        (first, *_) = [a for a in get_args(annotation) if a is not NoneType]
        return plain(first)
    return annotation


def section(annotation: Any) -> type[BaseModel] | None:
    """The group of settings that a type stands for; None for a single value."""
    kind = plain(annotation)
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


@dataclass(frozen=True)
class Declared:
    """What stands at a key: `info` is None at the top and below a name that may be any."""

    info: FieldInfo | None
    kind: Any
    """Its type, without `Annotated` and `| None`; `Any` where anything may stand."""

    @property
    def fields(self) -> Mapping[str, FieldInfo]:
        """The settings directly below, by name; {} for a single value, and where any name may stand."""
        inside = section(self.kind)
        return inside.model_fields if inside is not None else {}


def declared(key: str | Sequence[Any]) -> Declared:
    """How a key was declared, dotted or as its parts ("" = the whole tree).

    Raises:
        ConfigError: there is no such key; the message lists those beside it.
    """
    parts = [part for part in key.split(".") if part] if isinstance(key, str) else list(key)
    found = Declared(None, RunConfig)
    for number, part in enumerate(parts):
        place = ".".join(map(str, parts[:number]))
        if section(found.kind) is not None:
            if part not in found.fields:
                whole = ".".join(map(str, parts))
                raise ConfigError(
                    f"There is no key {whole}{f': {place} has no {part}' if place else ''}.",
                    fix=f"Valid here: {', '.join(sorted(found.fields))}.",
                )
            info = found.fields[part]
            found = Declared(info, plain(info.annotation))
        elif get_origin(found.kind) in (dict, list, Mapping):
            found = Declared(found.info, plain(get_args(found.kind)[-1]))
        elif found.kind is Any:
            found = Declared(None, Any)
        else:
            raise ConfigError(f"{place} is a single value: it has no {part}.")
    return found


def fields_at(key: str | Sequence[Any]) -> Mapping[str, FieldInfo]:
    """The settings directly below a key; {} where there are none, where any name may stand, and where there is no such key."""
    try:
        return declared(key).fields
    except ConfigError:
        return {}


def field_at(key: str) -> FieldInfo | None:
    """How a dotted key was declared; None where it was not."""
    above, _, name = key.rpartition(".")
    return fields_at(above).get(name)
