"""Packing over Ray: the same bytes as in one process, and a pack that was killed goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from atlas_dist.data.manifest import read_manifest
from atlas_dist.data.pack import run_pack
from atlas_dist.errors import DataError
from atlas_dist.store.local import LocalStore

pytestmark = pytest.mark.ray
HOW = {"shard_samples": 4, "part_bytes": 1 << 12, "image_size": 24}
PACK = """
import sys, time
from pathlib import Path
from atlas_dist.config import RunConfig
from atlas_dist.coordinator.ray_env import before_ray
from atlas_dist.data.pack import run_pack
from atlas_dist.store.local import LocalStore
config = RunConfig()
before_ray(config.cluster)
from atlas_dist.coordinator.ray_pack import packers
raw, store, halt = Path(sys.argv[1]), LocalStore(Path(sys.argv[2])), int(sys.argv[3])
def told(done, total):
    print(done, flush=True)
    if done == halt:
        time.sleep(600)
with packers(config) as map_fn:
    report = run_pack("image_folder", raw, store, "pets", "train", shard_samples=4, part_bytes=1 << 12, image_size=24,
                      progress=told, map_fn=map_fn)
print("reused", report.reused_shards, report.manifest.digest, flush=True)
"""


def test_the_same_bytes_and_a_killed_pack_goes_on(tmp_path: Path) -> None:
    for i in range(24):
        folder = tmp_path / "raw/train" / ("cat" if i % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (i * 10, 0, 0)).save(folder / f"{i}.jpg")
    here = LocalStore(tmp_path / "here")
    wanted = run_pack("image_folder", tmp_path / "raw", here, "pets", "train", **HOW).manifest  # type: ignore[arg-type]

    command = [sys.executable, "-c", PACK, str(tmp_path / "raw"), str(tmp_path / "there")]
    first = subprocess.Popen([*command, "3"], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert first.stdout is not None
    for line in first.stdout:
        if line.strip() == "3":
            break
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    there = LocalStore(tmp_path / "there")
    with pytest.raises(DataError):
        read_manifest(there, "pets", "train")
    time.sleep(1)
    made = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "there/pets/train").glob("*.tar")}
    assert len(made) >= 3

    second = subprocess.run([*command, "0"], stdout=subprocess.PIPE, text=True, timeout=400, check=True)
    _, reused, digest = second.stdout.splitlines()[-1].split()
    assert int(reused) >= 3
    assert digest == wanted.digest
    assert read_manifest(there, "pets", "train") == wanted
    for name in made:
        path = tmp_path / "there/pets/train" / name
        assert path.read_bytes() == (tmp_path / "here/pets/train" / name).read_bytes()
    kept = [name for name, written in made.items() if (tmp_path / "there/pets/train" / name).stat().st_mtime_ns == written]
    assert len(kept) >= 3, "what was finished is not made again"
