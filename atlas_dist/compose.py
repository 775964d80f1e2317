"""The only Hydra file: groups of `configs/` and `key=value` overrides in, one validated RunConfig out."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from atlas_dist.config import RunConfig, load_config
from atlas_dist.errors import ConfigError


def config_dir() -> Path:
    """Where the configuration groups lie: inside the installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parent
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "config.yaml").exists():
            return folder
    raise ConfigError(f"No configs folder beside {package}.", fix="Install atlas-dist again.")


def own_configs() -> Path | None:
    """The user's own groups: `configs/` of the working folder, as `atlas-dist init` writes it; None when there is none."""
    folder = Path.cwd() / "configs"
    own = folder.is_dir() and folder.resolve() != config_dir().resolve() and not (folder / "config.yaml").exists()
    return folder if own else None


def groups() -> dict[str, list[str]]:
    """Every configuration group and its choices, the user's own among them, for messages and `atlas-dist config`."""
    found: dict[str, set[str]] = {}
    for root in filter(None, (config_dir(), own_configs())):
        for file in root.glob("*/*.yaml"):
            found.setdefault(file.parent.name, set()).add(file.stem)
    return {name: sorted(choices) for name, choices in sorted(found.items())}


def compose_config(overrides: Sequence[str]) -> RunConfig:
    """Compose and validate.

    Args:
        overrides: Hydra's `key=value` words, such as `experiment=real_small`, `train.workers=4`, `+tasks.x.max_text=8`.

    Raises:
        ConfigError: unknown key, unknown choice, a value left open (`???`), or what RunConfig finds.
    """
    return load_config(compose_tree(overrides)).at(Path.cwd())


def compose_tree(overrides: Sequence[str]) -> dict[str, Any]:
    """The composed dictionary, not yet judged. Raises ConfigError."""
    tree = _composed(overrides)
    tree.pop("hydra", None)
    return tree


def chosen(overrides: Sequence[str]) -> dict[str, str]:
    """Which choice of each group a configuration is composed from, as `group` or `group@package`. Raises ConfigError."""
    choices = _composed(overrides)["hydra"]["runtime"]["choices"]
    return {str(k): str(v) for k, v in choices.items() if v is not None and not str(k).startswith("hydra/")}


def choice_file(group: str, choice: str) -> Path:
    """The file that a choice stands in: the package's, or the user's own."""
    files = (root / group / f"{choice}.yaml" for root in (config_dir(), own_configs()) if root is not None)
    return next(file for file in files if file.exists())


def _composed(overrides: Sequence[str]) -> dict[str, Any]:
    _check_words(overrides)
    own = own_configs()
    search = [f'hydra.searchpath=["file://{own}"]'] if own else []
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            composed = compose("config", overrides=[*search, *map(_settable, overrides)], return_hydra_config=True)
            with open_dict(composed):
                kept = {"runtime": {"choices": OmegaConf.to_container(composed.hydra.runtime.choices)}}
                composed.pop("hydra")
            tree = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except (HydraException, ConfigCompositionException, OmegaConfBaseException) as error:
        raise _explained(error) from None
    assert isinstance(tree, dict)
    return {**{str(key): value for key, value in tree.items()}, "hydra": kept}


def _check_words(overrides: Sequence[str]) -> None:
    """Catch the two commonest slips with a better message than the parser's: no `=`, and an unknown choice of a group."""
    known = groups()
    for word in overrides:
        if "=" not in word and not word.startswith("~"):
            raise ConfigError(
                f"{word!r} is not a setting.", fix="Write key=value, for example experiment=demo or train.workers=4."
            )
        name, _, choice = word.lstrip("+").partition("=")
        if name in known and "," not in choice and choice not in known[name]:
            near = difflib.get_close_matches(choice, known[name], n=1)
            hint = f"Did you mean {near[0]}? " if near else ""
            raise ConfigError(f"{name}={choice}: there is no such {name}.", fix=f"{hint}Choose one of: {', '.join(known[name])}.")


def _settable(word: str) -> str:
    """Let `key=value` set any key that RunConfig declares, whether or not a yaml file mentions it; RunConfig refuses the
    others."""
    name = word.partition("=")[0]
    plain_key = name not in groups() and not name.startswith(("+", "~", "hydra.")) and "@" not in name and "/" not in name
    return f"++{word}" if plain_key else word


def _explained(error: Exception) -> ConfigError:
    """Hydra's message in one line, with what to do."""
    text = " ".join(str(error).split())
    if "Missing mandatory value" in text:
        key = text.partition("full_key: ")[2].partition(" ")[0]
        return ConfigError(f"{key or 'A value'} is left open.", fix=f"Give it on the command line: {key or 'key'}=value.")
    return ConfigError(text, fix="`atlas-dist config` shows the groups, their choices and every key.")
