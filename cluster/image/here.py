"""Build the Dockerfile's cpu image without a container registry, and run the toy experiment in it (`make image-here`).

The base is a Debian that mmdebstrap makes; buildah builds on it, each step in a chroot; an index on loopback serves the one torch
wheel; runc runs the result as a pod would. The build uses what pip is set to on this machine: no host is written here.

    FOLDER/base.tar      the base: made once
    FOLDER/wheels        the torch wheel: fetched once
    FOLDER/storage       buildah's: the image is localhost/atlas-dist:here (buildah --root FOLDER/storage … push)
    FOLDER/rootfs        the image's files, for runc and for tests/integration/test_pods.py
    FOLDER/image.json    its size, its environment, what it was built from
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import http.server
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from cluster.image.container import Container, Image, folder_of_the_host, tmpfs

ROOT = Path(__file__).parents[2]
TOOLS = {"buildah": "buildah", "mmdebstrap": "mmdebstrap", "runc": "runc"}
"""Command -> Debian's package."""
SUITE = "bookworm"
INCLUDE = "python3,python3-venv,python3-pip,ca-certificates"
DPKG = ("path-exclude=/usr/share/locale/*", "path-exclude=/usr/share/man/*", "path-exclude=/usr/share/doc/*", "force-unsafe-io")
"""As in the official slim images; and nobody needs half a base after a power cut."""
BASE, NAME = "localhost/atlas-base", "localhost/atlas-dist:here"
LIMIT_MB = 1600
SETTINGS = ("experiment=toy", "sequence.upstream=[toy_shape,toy_kin]", "sequence.downstream=[]", "train.workers=1")
PACK = ("atlas-dist", "shards", "pack", *SETTINGS)
RUN = ("atlas-dist", "run", *SETTINGS, "train.log_every=1")


class Missing(SystemExit):
    """Something that this needs is not here: what, and what to do."""


def check_tools() -> None:
    """Raises Missing."""
    if os.geteuid() != 0:
        raise Missing("make image-here mounts and changes users: run it as root (in a virtual machine, or with sudo).")
    lacking = [package for tool, package in TOOLS.items() if shutil.which(tool) is None]
    if importlib.util.find_spec("pip") is None:
        lacking.append("python3-pip")
    if lacking:
        raise Missing(f"Not installed here: {', '.join(lacking)}. On Debian or Ubuntu: apt-get install {' '.join(lacking)}")


def sources() -> str:
    """The sha256 of everything that the image is built from."""
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    digest = hashlib.sha256()
    for place in ["Dockerfile", *sorted(sent)]:
        path = ROOT / place
        for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
            if file.suffix != ".pyc":
                digest.update(f"{file.relative_to(ROOT)}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def run(*words: str, folder: Path = ROOT) -> None:
    """A command whose output is shown. Raises SystemExit where it fails."""
    done = subprocess.run(words, cwd=folder, check=False)  # noqa: S603 - nothing of it is foreign
    if done.returncode:
        raise SystemExit(f"exit {done.returncode}: {' '.join(words)}")


def base(folder: Path) -> Path:
    """A minimal Debian with Python, as a tar file. Which mirror: mmdebstrap's default, or apt's settings of this machine."""
    made = folder / "base.tar"
    if not made.exists():
        unfinished = folder / "base.part.tar"
        how = [f"--dpkgopt={option}" for option in DPKG]
        run("mmdebstrap", "--quiet", "--variant=minbase", f"--include={INCLUDE}", *how, SUITE, str(unfinished))
        unfinished.rename(made)
    return made


def torch_wheel(folder: Path) -> Path:
    """A CPU build of the torch that the image is pinned to, from wherever pip finds it. Raises Missing if it finds none."""
    place = folder / "wheels"
    (version,) = set(re.findall(r"torch==([\d.]+)", (ROOT / "Dockerfile").read_text()))
    if not list(place.glob("torch-*.whl")):
        how = ("--no-deps", "--only-binary", ":all:", "--python-version", "3.11", "--dest", str(place))
        run(sys.executable, "-m", "pip", "download", *how, f"torch=={version}")
    (wheel,) = place.glob("torch-*.whl")
    if wheel.stat().st_size > 400e6:
        wheel.unlink()
        raise Missing(
            f"pip finds torch {version} only with CUDA in it ({wheel.name}). Name an index that has CPU builds: "
            "PIP_EXTRA_INDEX_URL=URL make image-here, or put such a wheel where PIP_FIND_LINKS points."
        )
    return wheel


@contextlib.contextmanager
def index(wheel: Path) -> Iterator[tuple[str, str]]:
    """An index on loopback that has this one wheel: its URL, the wheel's sha256."""
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    with tempfile.TemporaryDirectory() as temporary:
        page = Path(temporary) / "simple" / "torch"
        page.mkdir(parents=True)
        (page / wheel.name).symlink_to(wheel)
        (page / "index.html").write_text(f'<a href="{wheel.name}#sha256={digest}">{wheel.name}</a>')
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=temporary)
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            try:
                yield f"http://127.0.0.1:{server.server_port}/simple", digest
            finally:
                server.shutdown()


def pip_settings(folder: Path) -> list[str]:
    """buildah's options that give the build this machine's pip settings, and the files and folders that they name."""
    asked = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(asked, capture_output=True, text=True, check=True).stdout  # noqa: S603 - as above
    found = dict(re.findall(r"^(?:global|:env:)\.([\w-]+)='(.*)'$", listed, re.MULTILINE))
    conf = folder / "pip.conf"
    lines = [name + " = " + value.replace(r"\n", " ") for name, value in found.items()]
    conf.write_text("\n".join(["[global]", *lines, ""]))
    named = {Path(path) for value in found.values() for path in re.findall(r"(?:^|file://|\s)(/[^\s:]+)", value)}
    paths = {path.parent if path.name == "simple" else path for path in named}  # an index's files lie beside its pages
    volumes = [f"{conf}:/etc/pip.conf:ro", *(f"{path}:{path}:ro" for path in sorted(paths) if path.exists())]
    return [word for volume in volumes for word in ("--volume", volume)]


def buildah(folder: Path) -> list[str]:
    """The command, with a storage of its own: nobody else's containers are touched."""
    own = ("--root", str(folder / "storage"), "--runroot", str(folder / "runroot"), "--storage-driver", "vfs")
    return ["buildah", *own]


def ask(*words: str) -> str:
    """What a command prints."""
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603 - as above


def build(folder: Path) -> Image:
    """Base, wheel, image; its files unpacked for runc. An image that was built before is replaced."""
    (folder / "image.json").unlink(missing_ok=True)
    for old in ("storage", "rootfs"):
        shutil.rmtree(folder / old, ignore_errors=True)
    made_from, tool = sources(), buildah(folder)
    scratch = ask(*tool, "from", "scratch")
    run(*tool, "add", "--quiet", scratch, str(base(folder)), "/")
    run(*tool, "commit", "--quiet", "--rm", scratch, BASE)
    with index(torch_wheel(folder)) as (url, digest):
        arguments = {"BASE": BASE, "TORCH_INDEX": url, "TORCH_SHA256": digest}
        given = [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
        how = ["--isolation", "chroot", "--layers=false", "--pull-never", "--target", "cpu", "--tag", NAME]
        run(*tool, "build", *how, *given, *pip_settings(folder), str(ROOT))
    return unpack(folder, made_from)


def unpack(folder: Path, made_from: str) -> Image:
    """The image's files, as a folder."""
    tool = buildah(folder)
    config = json.loads(ask(*tool, "inspect", "--type", "image", NAME))["OCIv1"]["config"]
    container = ask(*tool, "from", "--pull-never", NAME)
    try:
        run("cp", "--archive", ask(*tool, "mount", container), str(folder / "rootfs"))
    finally:
        run(*tool, "rm", container)
    rootfs = folder / "rootfs"
    for name in ("hosts", "resolv.conf"):  # what a node puts there
        (rootfs / "etc" / name).touch()
    image = Image(str(rootfs), tuple(config["Env"]), config["WorkingDir"], made_from, size_of(rootfs))
    image.save(folder)
    return image


def size_of(folder: Path) -> int:
    """Bytes, each file with several names once."""
    found = {s.st_ino: s.st_size for path in folder.rglob("*") if not (s := path.lstat()).st_mode & 0o040000}
    return sum(found.values())


def in_the_image(folder: Path, image: Image, command: Sequence[str]) -> str:
    """Run a command as a pod's process, with loopback alone. Raises SystemExit where it fails. When its first step was reported:
    seconds since the start, and of processor time."""
    state = folder / "run"
    state.mkdir(exist_ok=True)
    os.chown(state, 1000, 1000)
    mounts = (
        tmpfs("/tmp", 4096),  # noqa: S108 - the container's own
        tmpfs("/dev/shm", 8192),  # noqa: S108 - Ray wants 30 % of the memory
        tmpfs("/home/atlas", 256),
        folder_of_the_host(state, "/home/atlas/toy-run", writable=True),
    )
    container = Container(image, f"atlas-here-{os.getpid()}", folder / "container", mounts=mounts)
    begun, first = time.monotonic(), ""
    try:
        process = container.start(command)
        assert process.stdout is not None
        for line in process.stdout:
            print(line.decode(errors="replace"), end="", flush=True)
            if not first and re.search(rb"\bstep \d+/", line):
                seconds, used = time.monotonic() - begun, container.processor_seconds()
                first = f"the first step {seconds:.0f} s after its start, for which it used {used:.0f} s of a processor"
        if code := process.wait():
            raise SystemExit(f"exit {code}: {' '.join(command)}")
        return first
    finally:
        container.remove()
        shutil.rmtree(folder / "container", ignore_errors=True)


def main() -> None:
    """Build, check, run, and say what came of it."""
    options = argparse.ArgumentParser(description="Build the cpu image without a registry and run the toy experiment in it.")
    options.add_argument("--folder", type=Path, default=ROOT / "build" / "image")
    options.add_argument("--only-run", action="store_true", help="of an image that is there already")
    given = options.parse_args()
    folder = given.folder.absolute()
    check_tools()
    folder.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    image = Image.of(folder) if given.only_run else build(folder)
    minutes = (time.monotonic() - begun) / 60
    shutil.rmtree(folder / "run", ignore_errors=True)
    for command in (("python", "-m", "pip", "check"), PACK, RUN):
        print(f"in the image: {' '.join(command)}", flush=True)
        first = in_the_image(folder, image, command)
    built = "" if given.only_run else f"built in {minutes:.1f} min, "
    print(f"\n{built}{image.size / 1e6:.0f} MB; {first}")
    print(f"(load of this machine meanwhile: {os.getloadavg()[1]:.1f} on {os.cpu_count()} cores)")
    if image.size > LIMIT_MB * 1e6:
        raise SystemExit(f"The image is larger than {LIMIT_MB} MB. Look at cluster/image/trim.py.")


if __name__ == "__main__":
    main()
