"""Banks and adapters to and from the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from atlas_dist.app.bank import export, export_peft
from atlas_dist.app.composed import Settings
from atlas_dist.app.process import restored_process

if TYPE_CHECKING:
    from atlas_dist.bank.hub import Pulled, Pushed


@restored_process()
def push_folder(folder: Path, repo: str, *, private: bool = True, revision: str = "") -> Pushed:
    """Upload what `export` or `export_peft` wrote as one commit.

    Args:
        repo: `owner/name`, made where there is none. private: of a new repository. revision: branch; "" = main.

    Raises:
        ConfigError: the name is none, or the hub is switched off. AuthError: no token, or not a good one.
        DataError: the hub refuses the folder. StoreError: the hub does not answer.
    """
    from atlas_dist.bank.hub import push

    return push(folder, repo, private=private, revision=revision)


@restored_process()
def push_bank(
    repo: str,
    *settings: Settings,
    tasks: Sequence[str] = (),
    peft: bool = False,
    whole: bool = False,
    private: bool = True,
    revision: str = "",
) -> Pushed:
    """Export a run's tasks and upload them, without leaving a folder behind.

    Args:
        repo, private, revision: as for `push_folder`. settings, tasks: as for `export`.
        peft: folders for PEFT; of what each task makes of all adapters where `whole`.

    Raises:
        As `push_folder` and `export` or `export_peft`.
    """
    with TemporaryDirectory(prefix="atlas-push-") as parent:
        folder = Path(parent) / "bank"
        if peft:
            export_peft(folder, *settings, tasks=tasks, whole=whole)
        else:
            export(folder, *settings, tasks=tasks)
        return push_folder(folder, repo, private=private, revision=revision)


@restored_process()
def pull_folder(repo: str, folder: Path, *, revision: str = "") -> Pulled:
    """Download one commit of a repository: weights, JSON and texts, nothing that could run.

    Args:
        folder: must not exist yet. revision: branch, tag or commit; "" = main.

    Raises:
        ConfigError: there is no such repository or revision. AuthError: it is not open to this user.
        DataError: `folder` holds something, or there is nothing to pull. StoreError: the hub does not answer.
    """
    from atlas_dist.bank.hub import pull

    return pull(repo, folder, revision=revision)
