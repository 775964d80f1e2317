"""Folders to and from the Hugging Face hub. The only file that knows huggingface_hub.

What is pushed is what `bank export` wrote, file for file. What is pulled are weights, JSON and texts of one commit: nothing that
could run, and nothing of a commit that came in between. The address (`HF_ENDPOINT`) and the token (`HF_TOKEN`, or that of
`hf auth login`) are those of huggingface_hub.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub import errors as hub

from atlas_dist.bank.adopt_adapter import PULLED_FILE
from atlas_dist.bank.package import require_new
from atlas_dist.errors import AuthError, ConfigError, DataError, StoreError

PATTERNS = ("*.json", "*.safetensors", "*.md", "*.txt", "*LICEN*", "*licen*", "*NOTICE*", "*COPYING*", "*POLICY*", "*policy*")
"""Files that are pulled, in any folder of the repository …"""
NEVER = ("*.py", "*.sh", "*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", "*.so", "*.exe", "*.bat")
"""… but pickles and programs never, whatever else their names say."""
_HTTP_ERROR: type[Exception] = hub.HfHubHTTPError.__bases__[0]
"""Of the HTTP client that huggingface_hub brings along, which has changed its name."""
_MESSAGE = "Written by atlas-dist bank push"


@dataclass(frozen=True)
class Pushed:
    """A folder that is a commit of a repository now."""

    repo: str
    commit: str
    url: str


@dataclass(frozen=True)
class Pulled:
    """Where a folder came from."""

    repo: str
    commit: str


def push(folder: Path, repo: str, *, private: bool = True, revision: str = "") -> Pushed:
    """Upload a folder as one commit; the repository is made where there is none.

    Args:
        repo: `owner/name`. private: of a new repository. revision: branch; "" = main.

    Raises:
        ConfigError: the name is none, or the hub is switched off. AuthError: no token, or it may not write there.
        DataError: the hub refuses what the folder says. StoreError: the hub does not answer.
    """
    with _explained(repo):
        api = _api()
        api.create_repo(repo, private=private, exist_ok=True)
        if revision:
            api.create_branch(repo, branch=revision, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message=_MESSAGE, revision=revision or None, ignore_patterns=[PULLED_FILE]
        )
    return Pushed(repo, str(done.oid), str(done.commit_url))


def pull(repo: str, folder: Path, *, revision: str = "") -> Pulled:
    """Download the newest commit of a branch, or the commit that `revision` names, into a folder that does not exist yet.

    Raises:
        ConfigError: there is no such repository or revision, or the hub is switched off. AuthError: it is not open to this user.
        DataError: `folder` holds something, or there is nothing to pull. StoreError: the hub does not answer, the disk is full.
    """
    require_new(folder)
    with _explained(repo):
        api = _api()
        commit = str(api.model_info(repo, revision=revision or None).sha or "")
        api.snapshot_download(repo, revision=commit, local_dir=folder, allow_patterns=list(PATTERNS), ignore_patterns=list(NEVER))
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    if not any(path.is_file() for path in folder.rglob("*")):
        raise DataError(
            f"{repo} at {commit[:12]} has no weights, JSON or texts.", fix="Name a repository with an adapter or a bank."
        )
    (folder / PULLED_FILE).write_text(json.dumps({"repo": repo, "commit": commit}), encoding="utf-8")
    return Pulled(repo, commit)


def _api() -> HfApi:
    """As the environment is now: huggingface_hub itself looks at the address only once, when it is imported."""
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, library_name="atlas-dist")


@contextmanager
def _explained(repo: str) -> Iterator[None]:
    """What goes wrong at the hub, as our errors."""
    try:
        yield
    except hub.HFValidationError as error:
        raise ConfigError(f"{repo!r} names no repository: {error}", fix="Write it as owner/name.") from error
    except hub.GatedRepoError as error:
        raise AuthError(f"{repo} is gated.", fix="Accept its terms on the hub, and set HF_TOKEN.") from error
    except hub.RepositoryNotFoundError as error:
        raise ConfigError(
            f"There is no {repo} on the hub, or it is private.", fix="Look at the name; set HF_TOKEN for a private one."
        ) from error
    except hub.RevisionNotFoundError as error:
        raise ConfigError(f"{repo} has no such revision.", fix="Name a branch, a tag or a commit that it has.") from error
    except hub.OfflineModeIsEnabled as error:
        raise ConfigError("The hub is switched off by HF_HUB_OFFLINE.", fix="Unset it, or use a folder.") from error
    except hub.LocalTokenNotFoundError as error:
        raise AuthError("There is no token for the hub.", fix="Set HF_TOKEN, or run `hf auth login`.") from error
    except hub.HfHubHTTPError as error:
        raise _of_status(repo, error) from error
    except (_HTTP_ERROR, hub.LocalEntryNotFoundError, OSError) as error:
        raise StoreError(f"The hub cannot be reached for {repo}: {error}.", fix="Try again; look at HF_ENDPOINT.") from error
    except ValueError as error:  # the hub's own check of a model card, before anything is uploaded
        raise DataError(f"The hub refuses what the folder says: {error}") from error


def _of_status(repo: str, error: hub.HfHubHTTPError) -> AuthError | DataError | StoreError:
    status = error.response.status_code if error.response is not None else 0
    said = str(error).strip().splitlines()[0][:300] if str(error).strip() else ""
    if status in (401, 403):
        return AuthError(f"The hub does not allow this at {repo} ({status}).", fix="Set HF_TOKEN to one that may write there.")
    if 400 <= status < 500 and status != 429:
        return DataError(f"The hub refuses this at {repo} ({status}): {said}")
    return StoreError(f"The hub is in trouble at {repo} ({status}): {said}", fix="Try again later.")
