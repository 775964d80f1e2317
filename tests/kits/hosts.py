"""Hosts of a test's own: network namespaces with addresses of their own, on one switch. Needs root and iproute2."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

LINK = "atlas0"


def ip(*words: str) -> None:
    """Raises CalledProcessError."""
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextlib.contextmanager
def inside(namespace: str) -> Iterator[None]:
    """This thread, and what it starts, in a network namespace. (`os.setns` comes with Python 3.12.)"""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{namespace}") as there:
        try:
            if libc.setns(there.fileno(), 0):
                raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
            yield
        finally:
            libc.setns(home.fileno(), 0)


@dataclass
class Switch:
    """A host with an address, on which services run, and the others' way to each other. Nothing of it is seen outside."""

    address: str = "10.77.0.1"
    mark: str = field(default_factory=lambda: uuid.uuid4().hex[:6])
    hosts: dict[str, str] = field(default_factory=dict)
    """Host -> its network namespace."""

    @property
    def namespace(self) -> str:
        return f"atlas{self.mark}"

    def open(self) -> None:
        """Raises CalledProcessError where namespaces are not allowed."""
        ip("netns", "add", self.namespace)
        ip("-n", self.namespace, "link", "set", "lo", "up")
        ip("-n", self.namespace, "link", "add", LINK, "type", "bridge")
        ip("-n", self.namespace, "address", "add", f"{self.address}/24", "dev", LINK)
        ip("-n", self.namespace, "link", "set", LINK, "up")

    def add(self, host: str, address: str) -> Path:
        """A host with a cable to the switch and a default route, as a pod has one. Its namespace, by its path."""
        made = self.hosts[host] = f"{self.namespace}-{host}"
        ip("netns", "add", made)
        cable = f"{len(self.hosts)}-{uuid.uuid4().hex[:6]}"
        ip("link", "add", cable, "netns", self.namespace, "type", "veth", "peer", "name", "eth0", "netns", made)
        ip("-n", self.namespace, "link", "set", cable, "master", LINK, "up")
        ip("-n", made, "link", "set", "lo", "up")
        ip("-n", made, "address", "add", f"{address}/24", "dev", "eth0")
        ip("-n", made, "link", "set", "eth0", "up")
        ip("-n", made, "route", "add", "default", "via", self.address)
        return Path("/run/netns") / made

    def cut(self, host: str) -> None:
        """Pull the host's cable."""
        ip("-n", self.hosts[host], "link", "set", "eth0", "down")

    def remove(self, host: str) -> None:
        """The namespace goes when its last process has gone."""
        with contextlib.suppress(subprocess.CalledProcessError):
            ip("netns", "delete", self.hosts.pop(host))

    def close(self) -> None:
        """Remove them all."""
        for host in list(self.hosts):
            self.remove(host)
        with contextlib.suppress(subprocess.CalledProcessError):
            ip("netns", "delete", self.namespace)


def why_not() -> str:
    """Why there can be no hosts here; "" where there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    probe = Switch()
    try:
        probe.open()
    except (OSError, subprocess.CalledProcessError) as error:
        said = error.stderr.decode().strip() if isinstance(error, subprocess.CalledProcessError) else str(error)
        return f"network namespaces are not allowed here: {said}"
    finally:
        with contextlib.suppress(OSError):
            probe.close()
    return ""
