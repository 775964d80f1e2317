"""What is declared where: the tree of settings, walked by its types."""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from atlas_dist.config.run import RunConfig


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


def fields_at(key: str) -> dict[str, FieldInfo]:
    """The settings directly below a dotted key ("" = all at the top), by name; {} where there are none, or any name may stand."""
    inside = section(_type_at(key))
    return dict(inside.model_fields) if inside is not None else {}


def field_at(key: str) -> FieldInfo | None:
    """How a dotted key was declared; None where it was not."""
    above, _, name = key.rpartition(".")
    return fields_at(above).get(name)


def _type_at(key: str) -> Any:
    kind: Any = RunConfig
    for part in filter(None, key.split(".")):
        inside = section(kind)
        if inside is not None:
            kind = inside.model_fields[part].annotation if part in inside.model_fields else None
        else:
            kind = get_args(plain(kind))[1] if get_origin(plain(kind)) is dict else None
    return kind
