"""The one entry point: a command runs, and what goes wrong becomes cause, value and fix, and an exit code."""

from __future__ import annotations

import errno
import logging
import os
import sys
import traceback
from typing import NoReturn

from rich.console import Console

from atlas_dist.cli.app import app
from atlas_dist.cli.terminal import spell_out
from atlas_dist.errors import AtlasError, ConfigError, StoreError
from atlas_dist.logs import in_json, log_fields
from atlas_dist.redact import redact

INTERRUPTED = 130


def main() -> NoReturn:
    """Run the command line and exit: 0 done, 2 config, 3 data, 4 auth, 5 training, 6 store, 7 fenced, 8 paused, 130 Ctrl-C."""
    spell_out()
    try:
        app(prog_name="atlas-dist")
        sys.exit(0)
    except AtlasError as error:
        _tell(error)
        if not error.retry:
            _not_again()
        sys.exit(error.exit_code)
    except SystemExit as ended:
        if ended.code == ConfigError.exit_code:  # a command line that cannot be read
            _not_again()
        raise
    except KeyboardInterrupt:
        if in_json():
            logging.getLogger("atlas_dist.cli").warning("interrupted")
        else:
            Console(stderr=True).print("Interrupted.")
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output (`| head`) has seen enough. Nothing may be written any more, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        _tell(StoreError(_what_failed(error), fix=_MENDS.get(error.errno or 0, _LOOK)), error)
        sys.exit(StoreError.exit_code)
    except Exception as error:
        _tell(AtlasError(f"This should not have happened: {type(error).__name__}: {str(error)[:500]}", fix=_REPORT), error)
        sys.exit(AtlasError.exit_code)


def _not_again() -> None:
    """Where a machine starts failed runs again: end so that it does not."""
    from atlas_dist.coordinator.ray_job import stop_own_job

    stop_own_job()


def _what_failed(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror or error}."


_IN_THE_WAY = "A file has the name that a folder needs: move it, or set report (store.url, shards.url) to another place."
_MENDS = {
    errno.ENOSPC: "The disk is full: make room, then give the same command again; what was committed stays.",
    errno.EDQUOT: "Your quota of the disk is used up: make room, then give the same command again.",
    errno.EEXIST: _IN_THE_WAY,
    errno.ENOTDIR: _IN_THE_WAY,
    errno.EACCES: "Write where you may: set store.url, shards.url and report, or change the folder's permissions.",
    errno.EROFS: "This file system is read-only: set store.url, shards.url and report to places that can be written.",
}
_LOOK = "`atlas-dist --debug …` shows where it happened."
_REPORT = "`atlas-dist --debug …` shows where it happened; please report it with that."


_MOST_LINES = 7
"""Of a message; with the fix it stays below ten."""


def _tell(error: AtlasError, origin: Exception | None = None) -> None:
    """Cause, value and fix; the traceback (of `origin`, where the error only names it) with --debug. A log in JSON stays one."""
    if in_json():
        trace = (origin or error) if os.environ.get("ATLAS_DEBUG") else None
        fields = log_fields(error=type(error).__name__, fix=error.fix, exit_code=error.exit_code)
        logging.getLogger("atlas_dist.cli").error("%s", error.message, exc_info=trace, extra=fields)
        return
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if os.environ.get("ATLAS_DEBUG"):
        traceback.print_exception(origin or error)
    first, *more = redact(error.message).splitlines() or [""]
    kept = more if len(more) < _MOST_LINES else [*more[: _MOST_LINES - 2], f"  and {len(more) - _MOST_LINES + 2} lines more"]
    console.print(f"[bold red]{type(error).__name__}[/bold red]: ", end="")
    console.print("\n".join([first, *kept]), markup=False)
    if error.fix:
        console.print("[bold]Fix[/bold]: ", end="")
        console.print(error.fix, markup=False)
