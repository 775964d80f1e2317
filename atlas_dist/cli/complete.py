"""What a shell offers at TAB for `key=value` words: keys of the configuration, choices of its groups, values where they are few.

It answers while somebody waits: nothing here imports torch, Ray or Hydra (a test looks), and nothing is composed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import Enum
from typing import Any, Literal, get_args, get_origin

import typer

from atlas_dist.choices import choice_file, groups
from atlas_dist.config.keys import field_at, fields_at, plain, section

Offer = tuple[str, str]
"""(what the word becomes, what it means)"""
_TASKS = "task"
"""The one group that is not chosen by itself: sequences name its choices."""


def complete_word(ctx: typer.Context, incomplete: str) -> list[Offer]:
    """For the words of a command: `tr`, `train.work`, `train.precision=`, `experiment=de`."""
    said = ctx.params.get("overrides") or ctx.params.get("runs") or []
    before = [word for word in said if word != "="]  # bash cuts a word at `=`: it asks about the value alone
    if before and "=" not in before[-1] and (values := _values(before[-1])):
        return _beginning(incomplete, values)
    key, equals, begun = incomplete.partition("=")
    if equals:
        return [(f"{key}={value}", about) for value, about in _beginning(begun, _values(key))]
    found = _beginning(incomplete, _below(incomplete.rpartition(".")[0]))
    while len(found) == 1 and (further := _further(found[0][0])):
        found = further
    return found


def complete_key(incomplete: str) -> list[Offer]:
    """For `config --explain`: a key alone."""
    found = _beginning(incomplete, _keys(incomplete.rpartition(".")[0]))
    while len(found) == 1 and found[0][0].endswith("."):
        found = _keys(found[0][0][:-1])
    return [(key.removesuffix("="), about) for key, about in found]


def _beginning(start: str, offers: Iterable[Offer]) -> list[Offer]:
    return [offer for offer in offers if offer[0].startswith(start)]


def _further(only: str) -> list[Offer]:
    """What may follow the only word that fits. With a free value: its default, and the bare key, so that a shell stops at `=`."""
    if only.endswith("."):
        return _below(only[:-1])
    if not only.endswith("="):
        return []
    filled = [(f"{only}{value}", about) for value, about in _values(only[:-1])]
    return filled if len(filled) != 1 else [*filled, (only, "another value")]


def _below(key: str) -> list[Offer]:
    chosen = [] if key else [(f"{name}=", f"one of configs/{name}") for name in groups() if name != _TASKS]
    return [*chosen, *_keys(key)]


def _keys(key: str) -> list[Offer]:
    """Everything directly below `key`: `train.workers=` and, where it goes on, `train.budget.`."""
    start = f"{key}." if key else ""
    declared = [(f"{start}{name}{_end(f'{start}{name}')}", _about(info.description)) for name, info in fields_at(key).items()]
    return declared or [(f"{start}{name}{'.' if fields_at(f'{start}{name}') else '='}", "") for name in _names(key)]


def _end(key: str) -> str:
    return "." if fields_at(key) or _names(key) else "="


def _names(key: str) -> list[str]:
    """Names below a key that may have any: those that the package's files give it."""
    if key == "tasks":
        return groups()[_TASKS]
    return _settings() if key == "method.settings" else []


def _settings() -> list[str]:
    """Every setting of every method, as `configs/method/` has them."""
    import yaml

    files = (choice_file("method", name) for name in groups()["method"])
    trees = (yaml.safe_load(file.read_text(encoding="utf-8")) for file in files)
    return sorted({name for tree in trees for name in tree.get("settings") or {}})


def _values(key: str) -> list[Offer]:
    """Choices of a group, else all valid values where they are few, else the default where it is one plain word."""
    known = groups()
    if key in known and key != _TASKS:
        return [(choice, "") for choice in known[key]]
    info = field_at(key)
    if info is None:
        return []
    kind = plain(info.annotation)
    listed = _few(kind)
    if listed or section(kind) or info.is_required():
        return [(value, "") for value in listed]
    default = info.get_default(call_default_factory=True, validated_data={})
    return [(str(default), "the default")] if isinstance(default, int | float | str) and str(default) else []


def _few(kind: Any) -> list[str]:
    if kind is bool:
        return ["true", "false"]
    if get_origin(kind) is Literal:
        return [str(value) for value in get_args(kind)]
    return [str(member.value) for member in kind] if isinstance(kind, type) and issubclass(kind, Enum) else []


def _about(text: str | None) -> str:
    """The first sentence, short, without what a shell would take for its own."""
    words = re.sub(r"[^\w ,./-]+", "", " ".join((text or "").split()).partition(". ")[0])
    return words if len(words) <= _SHORT else words[: _SHORT - 1].rpartition(" ")[0] + " …"


_SHORT = 60
