"""The only Hydra file: groups of `configs/` and `key=value` overrides in, one validated RunConfig out."""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException, HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from atlas_dist.choices import config_dir, groups, own_configs
from atlas_dist.config import RunConfig, check_rows, load_config, takes_text
from atlas_dist.errors import ConfigError


class _OwnFirst(SearchPathPlugin):  # type: ignore[misc]
    """A user's own configs/ come before the packaged ones: a file of theirs is never passed over for one of ours."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Called by Hydra whenever it is started."""
        own = own_configs()
        if own is not None:
            search_path.prepend("own", f"file://{own}", anchor="main")


Plugins.instance().register(_OwnFirst)


def compose_config(overrides: Sequence[str]) -> RunConfig:
    """Compose and validate.

    Args:
        overrides: Hydra's `key=value` words, such as `experiment=real_small`, `train.workers=4`, `+tasks.x.max_text=8`.

    Raises:
        ConfigError: unknown key, unknown choice, a value left open (`???`), a word without effect, or what RunConfig finds.
    """
    config = load_config(compose_tree(overrides)).at(Path.cwd())
    _check_method_counts(overrides, config)
    return config


def compose_rows(overrides: Sequence[str]) -> dict[str, RunConfig]:
    """Each combination of a sweep, composed and validated, by the name of its row; {"": …} when nothing varies.

    Args:
        overrides: as for `compose_config`; several values of a key in Hydra's words: `train.budget.lr=1e-3,5e-4`,
            `seeds=[0],[1]`, `method=atlas,ewc`, `tasks.x.shots=range(1,4)`.

    Raises:
        ConfigError: as `compose_config`; a sweep without an end; rows that differ in what one run has only once.
    """
    rows = {name: compose_config(words) for name, words in _rows(overrides).items()}
    check_rows(rows)
    return rows


_MOST_ROWS = 1000


@dataclass(frozen=True)
class _Axis:
    """A word of the command line: the key it sets and the values it gives it; a word that is no sweep has one, itself."""

    key: str
    values: tuple[str, ...]

    @property
    def varies(self) -> bool:
        return len(self.values) > 1


def _rows(overrides: Sequence[str]) -> dict[str, list[str]]:
    """Name of the row -> the words of its combination."""
    _check_words(overrides)
    axes = [_axis(word) for word in overrides]
    if math.prod(len(axis.values) for axis in axes) > _MOST_ROWS:
        raise ConfigError(f"The sweep has more than {_MOST_ROWS} combinations.", fix="Give fewer values.")
    short = _shortened([axis.key for axis in axes if axis.varies])
    rows: dict[str, list[str]] = {}
    for combination in itertools.product(*(axis.values for axis in axes)):
        varying = [(axis, word) for axis, word in zip(axes, combination, strict=True) if axis.varies]
        name = row_name((short[axis.key], word.partition("=")[2]) for axis, word in varying)
        if name in rows:
            raise ConfigError(f"Two rows of the sweep would both be called {name}.", fix="Leave out the value that stands twice.")
        rows[name] = list(combination)
    return rows


def row_name(settings: Iterable[tuple[str, str]]) -> str:
    """`lr=0.001,seeds=0` of key and value: part of paths, so of a list only its items are left."""
    return re.sub(r"[^A-Za-z0-9._=,+-]", "", ",".join(f"{key}={value}" for key, value in settings))


def _axis(word: str) -> _Axis:
    """Raises ConfigError: a sweep without an end, or what Hydra cannot read."""
    key = word.partition("=")[0]
    parsed = _parsed(word)
    plain_key = key.lstrip("+").partition("@")[0]
    if parsed is None and (takes_text(plain_key) or plain_key in groups()):
        return _Axis(key, (word,))  # composing puts it in quotes
    if parsed is None:
        fix = "Write key=value, or with -m key=a,b,c; quote what has spaces, commas or brackets."
        raise ConfigError(f"{word!r} can't be read as a setting.", fix=fix)
    key = parsed.get_key_element()
    if not parsed.is_sweep_override():
        return _Axis(key, (word,))
    if not parsed.is_discrete_sweep():
        raise ConfigError(f"{word!r} does not say which values.", fix="Write them out: key=a,b,c or key=range(1,5).")
    return _Axis(key, tuple(f"{key}={value}" for value in parsed.sweep_string_iterator()))


def _parsed(word: str) -> Override | None:
    """As Hydra reads it; None where it can't."""
    try:
        return OverridesParser.create().parse_override(word)
    except (HydraException, OmegaConfBaseException):
        return None


def _shortened(keys: Sequence[str]) -> dict[str, str]:
    """Each key by its last part, where no other ends so."""
    ends = Counter(key.rpartition(".")[2] for key in keys)
    return {key: end if ends[end := key.rpartition(".")[2]] == 1 else key for key in keys}


def compose_tree(overrides: Sequence[str]) -> dict[str, Any]:
    """The composed dictionary, not yet judged. Raises ConfigError."""
    tree = _composed(overrides)
    tree.pop("hydra", None)
    return tree


def chosen(overrides: Sequence[str]) -> dict[str, str]:
    """Which choice of each group a configuration is composed from, as `group` or `group@package`. Raises ConfigError."""
    choices = _composed(overrides)["hydra"]["runtime"]["choices"]
    return {str(k): str(v) for k, v in choices.items() if v is not None and not str(k).startswith("hydra/")}


def _composed(overrides: Sequence[str]) -> dict[str, Any]:
    _check_words(overrides)
    words = [_settable(_literal(word)) for word in overrides]
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            composed = compose("config", overrides=words, return_hydra_config=True)
            with open_dict(composed):
                kept = {"runtime": {"choices": OmegaConf.to_container(composed.hydra.runtime.choices)}}
                composed.pop("hydra")
            tree = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except (HydraException, ConfigCompositionException, OmegaConfBaseException) as error:
        raise _explained(error) from None
    except (ValueError, TypeError, yaml.YAMLError) as error:  # Hydra lets these out where a file is not what it expects
        raise _unreadable(error) from error
    assert isinstance(tree, dict)
    return {**{str(key): value for key, value in tree.items()}, "hydra": kept}


def _check_words(overrides: Sequence[str]) -> None:
    """Catch the two commonest slips with a better message than the parser's: no `=`, and an unknown choice of a group."""
    known = groups()
    for word in overrides:
        if not word.lstrip("+").partition("=")[0] or ("=" not in word and not word.startswith("~")):
            raise ConfigError(
                f"{word!r} is not a setting.", fix="Write key=value, for example experiment=demo or train.workers=4."
            )
        name, _, choice = word.lstrip("+").partition("=")
        if name in known and "," not in choice and choice not in known[name]:
            near = difflib.get_close_matches(choice, known[name], n=1)
            hint = f"Did you mean {near[0]}? " if near else ""
            raise ConfigError(f"{name}={choice}: there is no such {name}.", fix=f"{hint}Choose one of: {', '.join(known[name])}.")


def _check_method_counts(overrides: Sequence[str], config: RunConfig) -> None:
    """A comparison takes the place of `method`: whoever sets it there would wait for a run that pays no attention to it."""
    ignored = next((word for word in overrides if re.match(r"\+*method(\.[^=]*)?=", word)), None)
    if ignored is None or not config.compare:
        return
    setting = ignored.lstrip("+").removeprefix("method").removeprefix(".")
    of_row = f"Set it for a row: compare.NAME.{setting}" if "." in ignored.partition("=")[0] else "Choose rows: only=[NAME]"
    raise ConfigError(
        f"{ignored} would have no effect: the run compares {', '.join(config.variants)}, and `method` is none of its rows.",
        fix=f"{of_row}; or run one method instead of the comparison: '~compare'.",
    )


def _literal(word: str) -> str:
    """The word with its value in quotes, where Hydra would take the value for something that its user did not write: the choice
    `on` for True, the run 20240101 for a number, a path for a syntax error or a call.

    Raises:
        ConfigError: a word that can't be read, whatever is quoted.
    """
    key, _, value = word.partition("=")
    if key.startswith("~"):
        return word
    plain_key = key.lstrip("+")
    parsed = _parsed(word)
    if plain_key.partition("@")[0] in groups():
        literal = parsed is None or not (parsed.is_sweep_override() or isinstance(parsed.value(), str | list))
    elif parsed is None:
        literal = True
    else:
        a_path = parsed.is_sweep_override() and "/" in value
        literal = takes_text(plain_key) and (a_path or not (parsed.is_sweep_override() or isinstance(parsed.value(), str)))
    if not literal:
        return word
    literally = f"{key}={quoted(value)}"
    if _parsed(literally) is None:
        raise ConfigError(f"{word!r} can't be read as a setting.", fix="Write key=value, a key of letters, digits, '_' and '.'.")
    return literally


def quoted(value: str) -> str:
    """In Hydra's quotes: there a backslash means something before a quote only."""
    return "'" + re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value) + "'"


def _settable(word: str) -> str:
    """Let `key=value` set any key that RunConfig declares, whether or not a yaml file mentions it; RunConfig refuses the
    others."""
    name = word.partition("=")[0]
    plain_key = name not in groups() and not name.startswith(("+", "~", "hydra.")) and "@" not in name and "/" not in name
    return f"++{word}" if plain_key else word


def _unreadable(error: Exception) -> ConfigError:
    """A file of configs/ that is no YAML, or whose YAML says something else than it looks like."""
    text = " ".join(str(error).split())
    if "in defaults" in text:
        return ConfigError(
            "A list of `defaults` in configs/ names true, false or a number where a file is meant: YAML reads on, off, yes, no "
            "and digits so.",
            fix='Write the name in quotes there: - override /sequence: "on".',
        )
    return ConfigError(f"A file of configs/ can't be read: {text}", fix="Mend it; YAML wants names such as on or 2024 in quotes.")


def _explained(error: Exception) -> ConfigError:
    """Hydra's message in one line, with what to do."""
    text = " ".join(str(error).split())
    if "Missing mandatory value" in text:
        key = text.partition("full_key: ")[2].partition(" ")[0]
        return ConfigError(f"{key or 'A value'} is left open.", fix=f"Give it on the command line: {key or 'key'}=value.")
    if "To sweep over it" in text or "requires --multirun" in text:
        word = text.partition("'")[2].partition("'")[0].lstrip("+")
        return ConfigError(
            f"{word} gives several values.", fix="A row for each: -m. A list: key=[a,b]. A text with a comma: \"key='a,b'\"."
        )
    return ConfigError(text, fix="`atlas-dist config` shows the groups, their choices and every key.")
