"""A container of the image that `make image-here` built, started by runc as a node's container runtime starts a pod's: the root
read-only, user 1000, no capabilities, namespaces of its own, nothing writable but what it is given."""

from __future__ import annotations

import json
import resource
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

NAMESPACES = ("pid", "ipc", "uts", "mount")
HIDDEN = ("/proc/acpi", "/proc/keys", "/proc/timer_list", "/proc/sched_debug", "/sys/firmware")
SYS = (("/sys", "sysfs"), ("/sys/fs/cgroup", "cgroup"))
FROZEN = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


@dataclass(frozen=True)
class Image:
    """What lies in a folder after `make image-here`."""

    rootfs: str
    environment: tuple[str, ...]
    """`NAME=value`"""
    workdir: str
    sources: str
    """sha256 of the files that it was built from."""
    size: int
    """bytes"""

    @classmethod
    def of(cls, folder: Path) -> Image:
        """Raises FileNotFoundError where none was built."""
        found = json.loads((folder / "image.json").read_text())
        return cls(**{**found, "environment": tuple(found["environment"])})

    def save(self, folder: Path) -> None:
        """For `of`; written last, when all the rest is there."""
        (folder / "image.json").write_text(json.dumps(asdict(self), indent=1) + "\n")


def tmpfs(where: str, mib: int, *options: str) -> dict[str, Any]:
    """A folder in memory that user 1000 may write."""
    options = (*options, "nosuid", "nodev", "uid=1000", "gid=1000", f"size={mib}m")
    return {"destination": where, "type": "tmpfs", "source": "tmpfs", "options": list(options)}


def folder_of_the_host(source: Path, where: str, *, writable: bool = False) -> dict[str, Any]:
    """A folder or a file of the host at `where`."""
    access = "rw" if writable else "ro"
    return {"destination": where, "type": "bind", "source": str(source), "options": ["rbind", access, "nosuid", "nodev"]}


@dataclass(frozen=True)
class Container:
    """One container; it exists once `start` was called."""

    image: Image
    name: str
    home: Path
    """A folder of the host for what runc wants to know of it."""
    environment: Mapping[str, str] = field(default_factory=dict)
    mounts: tuple[dict[str, Any], ...] = ()
    hosts: Mapping[str, str] = field(default_factory=dict)
    """What its /etc/hosts says: name -> address. Its own name is 127.0.0.1 unless it stands here."""
    network: str = ""
    """A network namespace that is there already, by its path; "" = one of its own that has only a loopback."""
    memory: int = 0
    """A limit in bytes; 0 = none."""

    def start(self, command: Sequence[str], output: IO[bytes] | int = subprocess.PIPE) -> subprocess.Popen[bytes]:
        """The container with `command` as its first process; what is returned ends with it, and has its exit code."""
        self.home.mkdir(parents=True, exist_ok=True)
        hosts = {"localhost": "127.0.0.1", self.name: "127.0.0.1"} | dict(self.hosts)
        (self.home / "hosts").write_text("".join(f"{address} {name}\n" for name, address in hosts.items()))
        # Nobody answers there, and that is said at once: gRPC asks for an IPv6 address too, and would wait for a far server.
        (self.home / "resolv.conf").write_text("nameserver 127.0.0.1\n")
        (self.home / "config.json").write_text(json.dumps(self.config(command)))
        return subprocess.Popen(  # noqa: S603 - nothing of it is foreign
            [*self._runc, "run", "--bundle", str(self.home), self.name],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def run(self, command: Sequence[str], timeout: float = 300.0) -> subprocess.CompletedProcess[str]:
        """One more process in it, as `kubectl exec` and a preStop hook start one."""
        return self._ask("exec", self.name, *command, timeout=timeout)

    def processor_seconds(self) -> float:
        """What its processes have used so far."""
        told = json.loads(self._ask("events", "--stats", self.name).stdout)
        return int(told["data"]["cpu"]["usage"]["total"]) / 1e9

    def signal(self, name: str) -> None:
        """To its first process. No error where it has gone."""
        self._ask("kill", self.name, name)

    def remove(self) -> None:
        """End it at once, and everything in it; no error where there is none."""
        self._ask("delete", "--force", self.name)

    def config(self, command: Sequence[str]) -> dict[str, Any]:
        """As the OCI runtime specification writes it."""
        variables = dict(each.split("=", 1) for each in self.image.environment) | dict(self.environment)
        _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
        network = {"type": "network", **({"path": self.network} if self.network else {})}
        own = (
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64m"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance"]},
            *(
                {"destination": where, "type": kind, "source": kind, "options": ["nosuid", "noexec", "nodev", "ro"]}
                for where, kind in SYS
            ),
            folder_of_the_host(self.home / "hosts", "/etc/hosts"),
            folder_of_the_host(self.home / "resolv.conf", "/etc/resolv.conf"),
        )
        return {
            "ociVersion": "1.0.2",
            "hostname": self.name,
            "root": {"path": self.image.rootfs, "readonly": True},
            "process": {
                "terminal": False,
                "user": {"uid": 1000, "gid": 1000},
                "args": list(command),
                "env": [f"{name}={value}" for name, value in variables.items()],
                "cwd": self.image.workdir,
                "capabilities": {},
                "noNewPrivileges": True,
                "rlimits": [{"type": "RLIMIT_NOFILE", "soft": files, "hard": files}],
            },
            "mounts": [*own, *self.mounts],
            "linux": {
                "namespaces": [*({"type": each} for each in NAMESPACES), network],
                "resources": {
                    "devices": [{"allow": False, "access": "rwm"}],
                    **({"memory": {"limit": self.memory}} if self.memory else {}),
                },
                "maskedPaths": list(HIDDEN),
                "readonlyPaths": list(FROZEN),
            },
        }

    @property
    def _runc(self) -> tuple[str, ...]:
        return ("runc", "--root", str(self.home / "runc"))

    def _ask(self, *words: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        command = [*self._runc, *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)  # noqa: S603 - as above
