"""Real S3 servers on loopback for tests: moto in this process, SeaweedFS as a process of its own."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
from botocore.config import Config

from atlas_dist.store import StoreOptions

KEY_ID, SECRET = "atlas-test", "atlas-test-secret"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"}


@dataclass(frozen=True)
class Server:
    """A running S3 server with one bucket."""

    endpoint: str
    bucket: str = "bucket"

    def url(self, prefix: str) -> str:
        """The store URL of a folder in the bucket."""
        return f"s3://{self.bucket}/{prefix}"

    def options(self, endpoint: str = "", **more: object) -> StoreOptions:
        """Options to reach it (or `endpoint`, a proxy before it)."""
        return StoreOptions(endpoint_url=endpoint or self.endpoint, region="us-east-1", **more)  # type: ignore[arg-type]


@contextlib.contextmanager
def credentials() -> Iterator[None]:
    """Test credentials in the environment; nobody's real ones are touched or used."""
    before = {name: os.environ.get(name) for name in CREDENTIALS}
    os.environ.update(CREDENTIALS)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def moto() -> Iterator[Server]:
    """Moto's S3 in a thread of this process."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    thread = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    with credentials():
        thread.start()
        try:
            host, port = thread.get_host_and_port()
            server = Server(f"http://{host}:{port}")
            _make_bucket(server)
            yield server
        finally:
            thread.stop()


@contextlib.contextmanager
def seaweedfs(folder: Path, address: str = "127.0.0.1") -> Iterator[Server]:
    """SeaweedFS' S3 gateway: another implementation than AWS' and moto's, with a disk below it. `address`: of this host."""
    weed = shutil.which("weed") or str(Path(sys.executable).parent / "weed")
    ports = _free_ports(5)
    identities = folder / "s3.json"
    who = {"name": "test", "credentials": [{"accessKey": KEY_ID, "secretKey": SECRET}], "actions": ["Admin"]}
    identities.write_text(json.dumps({"identities": [who]}))
    names = ("master.port", "volume.port", "filer.port", "s3.port", "s3.port.grpc")
    command = [weed, "server", f"-dir={folder}", f"-ip={address}", f"-ip.bind={address}", "-s3", f"-s3.config={identities}"]
    command += [f"-{name}={port}" for name, port in zip(names, ports, strict=True)]
    command += [
        "-volume.max=8",
        "-master.volumeSizeLimitMB=64",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
    ]  # fixed ports otherwise
    own_logs = {**os.environ, "TMPDIR": str(folder)}  # its further logs are to go with the folder
    with (folder / "weed.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=own_logs, start_new_session=True)
    try:
        with credentials():
            server = Server(f"http://{address}:{ports[3]}")
            _make_bucket(server, patience_s=60.0, process=process, log=folder / "weed.log")
            yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _free_ports(count: int) -> list[int]:
    """Ports whose +10000 (gRPC, by SeaweedFS' habit) is free too."""
    found: list[int] = []
    while len(found) < count:
        with socket.socket() as low, socket.socket() as high:
            low.bind(("127.0.0.1", 0))
            port = low.getsockname()[1]
            if port > 55000 or port in found:
                continue
            try:
                high.bind(("127.0.0.1", port + 10000))
            except OSError:
                continue
            found.append(port)
    return found


def client(server: Server) -> object:
    """A plain boto3 client, for what tests do behind the store's back."""
    config = Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=10)
    return boto3.session.Session(aws_access_key_id=KEY_ID, aws_secret_access_key=SECRET, region_name="us-east-1").client(
        "s3", endpoint_url=server.endpoint, config=config
    )


def _make_bucket(
    server: Server, patience_s: float = 10.0, process: subprocess.Popen[bytes] | None = None, log: Path | None = None
) -> None:
    give_up_at = time.monotonic() + patience_s
    while True:
        try:
            client(server).create_bucket(Bucket=server.bucket)  # type: ignore[attr-defined]
            return
        except Exception as error:
            dead = process is not None and process.poll() is not None
            if dead or time.monotonic() > give_up_at:
                tail = log.read_text(errors="replace")[-2000:] if log else ""
                raise RuntimeError(f"no S3 server at {server.endpoint}: {error}\n{tail}") from error
            time.sleep(0.2)
