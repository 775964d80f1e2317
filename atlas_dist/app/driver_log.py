"""What a driver on a cluster prints, kept in the store too: a head's pod takes its files with it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from atlas_dist.config import RunConfig
from atlas_dist.errors import AtlasError
from atlas_dist.output_tail import STDERR, STDOUT, OutputTail
from atlas_dist.redact import redact
from atlas_dist.runs.stores import open_run_store
from atlas_dist.store.attempt_logs import driver_log, kept_log

LOCAL = "local"


@contextmanager
def kept_driver_log(config: RunConfig) -> Iterator[None]:
    """While the block runs, the newest output of this process is kept; when it raises, with the error.

    Only where the run joins a cluster and the output is a file, as it is for a driver that Ray's job server has started. A driver
    on somebody's terminal has been read already, and its files stay.
    """
    stream = next((s for s in (STDOUT, STDERR) if OutputTail(s).from_file), None)
    if config.cluster.address == LOCAL or stream is None:
        yield
        return
    try:
        store = open_run_store(config)
    except AtlasError:
        yield  # whoever needs the store will say what is wrong with it
        return
    ended = ""
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{socket.gethostname()}-{os.getpid()}"
    with OutputTail(stream) as tail:

        def read() -> str:
            return tail.text() + ended

        with kept_log(store, driver_log(config.run, name), read, config.track.every_s, quiet=False):
            try:
                yield
            except BaseException as error:
                ended = f"{type(error).__name__}: {redact(str(error))}\n"
                raise
