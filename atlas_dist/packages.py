"""Which packages a process of ours cannot do without, and which of them are not here. Imports nothing from elsewhere but the
standard library: it must be able to speak on an image that lacks everything."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from atlas_dist.errors import ConfigError

REQUIRED = {
    "torch": "torch",
    "deepspeed": "deepspeed",
    "ray": "ray",
    "transformers": "transformers",
    "huggingface_hub": "huggingface_hub",
    "tokenizers": "tokenizers",
    "safetensors": "safetensors",
    "webdataset": "webdataset",
    "hydra": "hydra-core",
    "boto3": "boto3",
    "pydantic": "pydantic",
    "google_crc32c": "google-crc32c",
    "simplejpeg": "simplejpeg",
    "PIL": "pillow",
    "numpy": "numpy",
    "rich": "rich",
    "typer": "typer",
}
"""Name to import -> name to install; the dependencies of pyproject.toml."""

ALIKE = ("ray", "torch", "deepspeed")
"""Packages whose versions must be equal on every node: they talk to each other."""


def missing() -> list[str]:
    """Names to install of what is not here."""
    return [package for module, package in REQUIRED.items() if find_spec(module) is None]


def need_extra(name: str, asked: str, instead: str) -> None:
    """The package that `asked` needs, which is an extra of ours by the same name, is here. Raises ConfigError."""
    if find_spec(name) is None:
        raise ConfigError(
            f"{asked} needs {name}, which is not installed.", fix=f"pip install 'atlas-dist[{name}]', or {instead}."
        )


def need_modules(modules: Sequence[str], extra: str, asked: str) -> None:
    """The modules that `asked` needs, which our extra `extra` brings, are all here. Raises ConfigError."""
    lacking = [module for module in modules if find_spec(module) is None]
    if lacking:
        raise ConfigError(f"{asked} needs {', '.join(lacking)}, not installed here.", fix=f"pip install 'atlas-dist[{extra}]'.")


def versions() -> dict[str, str]:
    """Versions of Python and of what must be alike everywhere; "" for what is absent."""
    return {"python": f"{sys.version_info[0]}.{sys.version_info[1]}"} | {name: _version(name) for name in ALIKE}


def environment() -> dict[str, str]:
    """What numbers may depend on besides settings: Python, the kind of machine, versions of the libraries that compute."""
    found = {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"}
    for package in ("atlas-dist", *_COMPUTE):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


_COMPUTE = ("torch", "deepspeed", "ray", "transformers", "webdataset", "numpy")


def cpu_only() -> bool:
    """Whether torch was built without CUDA, as far as its version says so; asked without importing it."""
    try:
        return version("torch").endswith("+cpu")
    except PackageNotFoundError:
        return True


LEAST_DRIVER = {12: 525, 13: 580}
"""CUDA's major version -> the oldest major version of NVIDIA's driver for Linux that runs it (CUDA's compatibility guide)."""
_C, _CPP = ("cc", "gcc", "clang"), ("c++", "g++", "clang++")


def compiler(*, cpp: bool) -> str:
    """The C (or C++) compiler that torch.compile would find here; "" when there is none."""
    named = os.environ.get("CXX" if cpp else "CC", "")
    return next((found for name in (named, *(_CPP if cpp else _C)) if name and (found := shutil.which(name))), "")


def cuda_of_torch() -> str:
    """The CUDA that torch was built for, as 13.0; "" for none. Asked without importing it."""
    spec = find_spec("torch")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        with suppress(OSError):
            found = re.search(r"^cuda\b[^=]*= *'([\d.]+)'", (Path(folder) / "version.py").read_text(), re.MULTILINE)
            return found[1] if found else ""
    return ""


def nvidia_driver(file: Path = Path("/proc/driver/nvidia/version")) -> str:
    """The version of the kernel's NVIDIA driver, as 580.65.06; "" when there is none."""
    try:
        found = re.search(r"\b(\d{3}\.\d+(?:\.\d+)?)\b", file.read_text())
    except OSError:
        return ""
    return found[1] if found else ""


def fault_of_device(name: str = "cuda:0") -> str:
    """What is wrong with a device that is asked for one product of two matrices; "" when it gives the right one. A driver, a CUDA
    and a GPU that do not fit each other fail here, and not in the first step."""
    import torch

    try:
        left = torch.arange(256.0).reshape(16, 16)
        product = (left.to(name) @ left.to(name).T).cpu()
    except Exception as error:  # whatever a driver says
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:300]
    return "" if torch.equal(product, left @ left.T) else "it multiplies wrongly"


def nccl_of_torch() -> str:
    """The NCCL that torch was built with, as 2.27.5; "" when without."""
    if not cuda_of_torch():
        return ""
    import torch

    return ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]


def driver_too_old(driver: str, cuda: str) -> int:
    """The oldest driver that this CUDA runs on, where `driver` is older; 0 when it is not, or when either is not known."""
    least = LEAST_DRIVER.get(int(cuda.partition(".")[0] or 0), 0)
    return least if driver and int(driver.partition(".")[0]) < least else 0


def complaint(packages: list[str], where: str) -> str:
    """What to tell somebody whose image lacks `packages`."""
    return (
        f"{where} lacks {', '.join(packages)}.\n"
        "Fix: run it with the project's image (Dockerfile), or where atlas-dist was installed with its dependencies."
    )


def _version(package: str) -> str:
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return ""
