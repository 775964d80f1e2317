"""`atlas-dist bank push` and `bank pull`: the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from atlas_dist.app.show import standard_console
from atlas_dist.cli.bank_peft import ExportForm
from atlas_dist.cli.words import Overrides
from atlas_dist.errors import ConfigError

Repo = Annotated[str, typer.Argument(help="Repository on the hub, as owner/name", show_default=False)]


def push(
    repo: Repo,
    overrides: Overrides = None,
    folder: Annotated[Path | None, typer.Option("--from", help="A folder that `bank export` wrote, instead of a run.")] = None,
    task: Annotated[list[str] | None, typer.Option("--task", help="Only this one and what it sees; may be given again.")] = None,
    form: Annotated[
        ExportForm, typer.Option("--format", help="peft: one folder an adapter, for PEFT; peft-task: one a task.")
    ] = ExportForm.BANK,
    public: Annotated[bool, typer.Option("--public", help="Of a new repository; left out = private.")] = False,
    revision: Annotated[str, typer.Option("--revision", help='Branch; "" = main.')] = "",
) -> None:
    """Upload learnt tasks to the Hugging Face hub as one commit, as `bank export` would write them. The token is HF_TOKEN's."""
    from atlas_dist.app.hub import push_bank, push_folder

    if folder is not None:
        if task or form is not ExportForm.BANK:
            raise ConfigError("--from names a folder that is written already.", fix="Leave out --task and --format.")
        if not folder.is_dir():
            raise ConfigError(f"There is no folder {folder}.", fix="Write it: atlas-dist bank export FOLDER.")
        done = push_folder(folder, repo, private=not public, revision=revision)
    else:
        done = push_bank(
            repo,
            *(overrides or ()),
            tasks=task or (),
            peft=form is not ExportForm.BANK,
            whole=form is ExportForm.PEFT_TASK,
            private=not public,
            revision=revision,
        )
    standard_console().print(f"{done.repo} at {done.commit}: {done.url}", markup=False, soft_wrap=True)


def pull(
    repo: Repo,
    folder: Annotated[Path, typer.Argument(help="Folder to write; must not exist yet", show_default=False)],
    revision: Annotated[str, typer.Option("--revision", help='Branch, tag or commit; "" = main.')] = "",
) -> None:
    """Download one commit of a repository: weights, JSON and texts, nothing that could run. Then: `bank import FOLDER`."""
    from atlas_dist.app.hub import pull_folder

    done = pull_folder(repo, folder, revision=revision)
    standard_console().print(f"{done.repo} at {done.commit} is in {folder}", markup=False, soft_wrap=True)
