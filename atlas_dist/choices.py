"""The files of `configs/`: which groups there are and what each offers. No Hydra here: TAB in a shell must be quick."""

from __future__ import annotations

from pathlib import Path

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


def choice_file(group: str, choice: str) -> Path:
    """The file that a choice stands in: the user's own, or the package's."""
    files = (root / group / f"{choice}.yaml" for root in (own_configs(), config_dir()) if root is not None)
    return next(file for file in files if file.exists())
