"""Which linear layers of a backbone LoRA adapters act on: named as in PEFT, by a list of suffixes of module paths, or by a
regular expression that a whole path must match.

    ()                       where bottleneck adapters sit (docs/method.md, Where adapters sit)
    ("query", "value")       every linear layer whose path ends in `.query` or `.value`
    "all-linear"             every linear layer inside the transformer layers
    r"encoder\\.layer\\.[01]\\..*dense"
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn

from atlas_dist.errors import ConfigError
from atlas_dist.model.backbones import architecture_of
from atlas_dist.model.mixing_spec import Targets

ALL_LINEAR = "all-linear"


def target_paths(model: nn.Module, targets: Targets) -> tuple[str, ...]:
    """Paths of the linear layers of a backbone that `targets` names, in the model's own order.

    Raises:
        ConfigError: a name or the expression fits no linear layer, or the expression is none; the message says what there is.
    """
    linear = linear_paths(model)
    if targets == ():
        sites = {site.path for site in architecture_of(model).sites(model)}
        return tuple(path for path in linear if path in sites)
    if targets == ALL_LINEAR:
        inside = tuple(f"{tower.layers}." for tower in architecture_of(model).towers(model))
        return tuple(path for path in linear if path.startswith(inside))
    if isinstance(targets, str):
        try:
            chosen = tuple(path for path in linear if re.fullmatch(targets, path))
        except re.error as error:
            raise ConfigError(
                f"target_modules is {targets!r}, which is no regular expression: {error}.",
                fix="Give a list of suffixes, such as [query,value], or mend the expression.",
            ) from error
        if not chosen:
            raise _no_such_layer(targets, linear)
        return chosen
    for target in targets:
        if not any(_ends_in(path, target) for path in linear):
            raise _no_such_layer(target, linear)
    return tuple(path for path in linear if any(_ends_in(path, target) for target in targets))


def linear_paths(model: nn.Module) -> tuple[str, ...]:
    """Paths of all layers that LoRA adapters can act on: those that are called as linear layers, whose input can be listened to.

    Kinds of linear layers whose weights another module reads without calling them (as in torch's own attention) are left out.
    """
    return tuple(path for path, module in model.named_modules() if type(module) is nn.Linear)


def _ends_in(path: str, target: str) -> bool:
    return path == target or path.endswith(f".{target}")


def _no_such_layer(target: str, linear: Iterable[str]) -> ConfigError:
    kinds = sorted({path.rpartition(".")[2] for path in linear})
    return ConfigError(
        f"target_modules names {target!r}, which fits no linear layer of the backbone.",
        fix=f"Its linear layers end in: {', '.join(kinds)}; or set target_modules={ALL_LINEAR}.",
    )
