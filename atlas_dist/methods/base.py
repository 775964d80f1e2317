"""What a continual-learning method is here: data for the plan, a spec for the model, and one function for the loss.
 A method never sees workers, shards or stores. The plan reads its `MethodSpec` (which stages, what each sees and trains); the
trainer asks for the mixing spec and lets it add its own terms to the loss.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from atlas_dist.core.types import MethodSpec, StagePlan
from atlas_dist.errors import ConfigError
from atlas_dist.model.mixing import MixingSpec


class Settings(BaseModel):
    """Base of every method's settings: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


@dataclass(frozen=True)
class Method:
    """One method with its settings, as plan and trainer use it.

    `penalty_weight` multiplies the orthogonality penalty that the model returns (METHOD.md, Orthogonality penalty).
    """

    spec: MethodSpec
    mixing: MixingSpec
    penalty_weight: float = 0.0
    normalize_ortho: bool = False
    inherit_queries: bool = True
    second_image_type: int = 1


Maker = Callable[[Mapping[str, Any]], Method]
S = TypeVar("S", bound=Settings)


def checked(kind: type[S], method: str, settings: Mapping[str, Any]) -> S:
    """Validate a method's settings; ConfigError names the key, its value and what would be valid."""
    try:
        return kind.model_validate(dict(settings))
    except ValidationError as error:
        lines = []
        for e in error.errors():
            where = ".".join(str(p) for p in e["loc"])
            if e["type"] == "extra_forbidden":
                near = difflib.get_close_matches(where, kind.model_fields, n=1)
                hint = f"did you mean {near[0]}? " if near else ""
                lines.append(
                    f"method.settings.{where}: {method} has no such setting; {hint}valid: {', '.join(kind.model_fields)}."
                )
            else:
                lines.append(f"method.settings.{where}: {e['msg']} (it is {e['input']!r}).")
        raise ConfigError("The method's settings are not valid:\n" + "\n".join(f"  {x}" for x in lines)) from None


def spec_of(name: str, stages: tuple[StagePlan, ...], settings: Settings, *, grows_bank: bool) -> MethodSpec:
    """The plan's view of a method; every setting becomes part of every job key."""
    return MethodSpec(name=name, stages=stages, settings=settings.model_dump(mode="json"), grows_bank=grows_bank)
