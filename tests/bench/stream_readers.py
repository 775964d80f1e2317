"""One reader of the stream benchmark, run as a process of its own, so that its time and CPU are its own.

    python -m tests.bench.stream_readers READER MODE FOLDER ENDPOINT       prints {"seconds", "cpu", "bytes", "samples"}

Every reader reads the same samples from the same server once. MODE `parse` ends at the compressed bytes of each sample, `decode`
at batches of 64 uint8 images. Peers are used as their documentation shows, with the settings that suit them best here.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import json
import os
import resource
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

SIDE, BATCH, WORKERS = 256, 64, 2
Result = tuple[int, int]
"""(bytes, samples) that a reader saw."""


def atlas(mode: str, folder: Path, endpoint: str, threads: int = 8) -> Result:
    """Ours: ranged reads, CRC32C of every part, shuffled order."""
    from atlas_dist.data.batch import StreamLimits
    from atlas_dist.data.manifest import read_manifest
    from atlas_dist.data.stream import open_stream
    from atlas_dist.store import StoreOptions, open_store
    from tests.kits.data import letter_tokenizer, task_of

    store = open_store("s3://bucket", options=StoreOptions(endpoint_url=endpoint, region="us-east-1", check=False))
    manifest = read_manifest(store, "wds", "train")
    # Manifest order, as the peers read. Memory for a part of 8 MiB a thread and a shard in use: less than the split has, so that
    # buffers are used again as in a long run.
    limits = StreamLimits(memory_bytes=(8 * threads + 32) << 20, fetch_threads=threads, decode_threads=WORKERS)
    size = samples = 0
    task = task_of(manifest, 8)
    with open_stream(
        store, manifest, task, letter_tokenizer(), SIDE, seed=0, rank=0, world=1, global_batch=BATCH, shuffle=False, limits=limits
    ) as s:
        if mode == "decode":
            for batch in s.epochs_from(0, s.steps_per_epoch):
                samples += int(batch.mask.sum())
        else:
            for located in s.compressed(0, s.steps_per_epoch):
                for files in located.files:
                    if files is not None:
                        samples += 1
                        size += len(files["jpg"])
    return size, samples


def atlas16(mode: str, folder: Path, endpoint: str) -> Result:
    """Ours with 16 fetch threads."""
    return atlas(mode, folder, endpoint, threads=16)


def webdataset_boto3(mode: str, folder: Path, endpoint: str) -> Result:
    """webdataset over a boto3 streaming body, as its users write it."""
    import boto3
    from botocore.config import Config

    def opened(source: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        client = boto3.session.Session().client(
            "s3", endpoint_url=endpoint, region_name="us-east-1", config=Config(s3={"addressing_style": "path"})
        )
        for item in source:
            body = client.get_object(Bucket="bucket", Key=f"wds/train/{item['url']}")["Body"]
            yield {"url": item["url"], "stream": body}

    return _webdataset(mode, shard_names(folder), opened)


def webdataset_curl(mode: str, folder: Path, endpoint: str) -> Result:
    """webdataset over `pipe:curl`."""
    from webdataset.tariterators import url_opener

    return _webdataset(mode, [f"pipe:curl -s {endpoint}/bucket/wds/train/{n}" for n in shard_names(folder)], url_opener)


def webdataset_awscli(mode: str, folder: Path, endpoint: str) -> Result:
    """webdataset over `pipe:aws s3 cp`."""
    from webdataset.tariterators import url_opener

    aws = f"{sys.executable} -m awscli --endpoint-url {endpoint} s3 cp s3://bucket/wds/train"
    return _webdataset(mode, [f"pipe:{aws}/{n} -" for n in shard_names(folder)], url_opener)


def _webdataset(mode: str, urls: list[str], opener: Callable[..., Any]) -> Result:
    import webdataset as wds
    from webdataset.tariterators import group_by_keys, tar_file_expander

    def expand(source: Any) -> Iterator[dict[str, Any]]:
        return tar_file_expander(source)

    stages = [wds.SimpleShardList(urls)]
    if mode == "parse":
        pipeline = wds.DataPipeline(*stages, opener, expand, group_by_keys)
        size = samples = 0
        for sample in pipeline:
            size += len(sample["jpg"])
            samples += 1
        return size, samples

    from torch.utils.data import DataLoader

    pipeline = wds.DataPipeline(
        *stages,
        wds.split_by_worker,
        opener,
        expand,
        group_by_keys,
        wds.map(_decoded),
        wds.batched(BATCH, collation_fn=np.stack),
    )
    return 0, _count(DataLoader(pipeline, batch_size=None, num_workers=WORKERS))


def _decoded(sample: dict[str, Any]) -> Any:
    import simplejpeg

    return simplejpeg.decode_jpeg(sample["jpg"], "RGB")


def mosaicml(mode: str, folder: Path, endpoint: str) -> Result:
    """mosaicml-streaming over S3, the same samples as MDS shards."""
    _without_torchvision()
    os.environ["S3_ENDPOINT_URL"] = endpoint
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    with tempfile.TemporaryDirectory() as cache:
        if mode == "parse":
            data = StreamingDataset(remote="s3://bucket/mds", local=cache, shuffle=False, batch_size=BATCH, predownload=4096)
            samples = size = 0
            for sample in data:
                samples += 1
                size += len(sample["jpg"])
            return size, samples
        from torch.utils.data import DataLoader

        class Decoding(StreamingDataset):  # type: ignore[misc,valid-type]
            def __getitem__(self, at: Any) -> Any:
                return _decoded(super().__getitem__(at))

        decoding = Decoding(remote="s3://bucket/mds", local=cache, shuffle=False, batch_size=BATCH, predownload=4096)
        return 0, _count(DataLoader(decoding, batch_size=BATCH, num_workers=WORKERS, collate_fn=np.stack))


def litdata(mode: str, folder: Path, endpoint: str) -> Result:
    """litdata over S3, the same samples as its chunks."""
    import litdata as ld
    from litdata.streaming import downloader

    downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True  # the bench's server is plain, which its client refuses otherwise
    options = {"endpoint_url": endpoint, "region_name": "us-east-1"}
    with tempfile.TemporaryDirectory() as cache:
        where = {"input_dir": "s3://bucket/lit", "cache_dir": cache, "storage_options": options, "max_pre_download": 8}
        if mode == "parse":
            samples = size = 0
            for sample in ld.StreamingDataset(**where):
                samples += 1
                size += len(sample["jpg"])
            return size, samples

        class Decoding(ld.StreamingDataset):  # type: ignore[misc]
            def __getitem__(self, at: Any) -> Any:
                return _decoded(super().__getitem__(at))

        loader = ld.StreamingDataLoader(Decoding(**where), batch_size=BATCH, num_workers=WORKERS, collate_fn=np.stack)
        return 0, _count(loader)


def write_mosaicml(folder: Path) -> None:
    """The WebDataset samples again as MDS."""
    _without_torchvision()
    from streaming import MDSWriter

    with MDSWriter(out=str(folder / "mds"), columns={"jpg": "bytes", "json": "bytes"}, size_limit=32 << 20) as writer:
        for sample in local_samples(folder):
            writer.write(sample)


def write_litdata(folder: Path) -> None:
    """The WebDataset samples again as litdata chunks."""
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder / "lit"), chunk_bytes=32 << 20)
    for number, sample in enumerate(local_samples(folder)):
        writer.add_item(number, sample)
    writer.done()
    writer.merge(num_workers=1)


def local_samples(folder: Path) -> Iterator[dict[str, bytes]]:
    """{"jpg", "json"} of each sample, read from disk."""
    from atlas_dist.data import tarwalk
    from atlas_dist.data.sample import EXTENSIONS

    for name in shard_names(folder):
        data = memoryview((folder / "wds/train" / name).read_bytes())
        index = tarwalk.samples(data, EXTENSIONS)
        for number in range(len(index)):
            yield {ext: bytes(content) for ext, content in index.content(number, data).items()}


def shard_names(folder: Path) -> list[str]:
    """The tars, by name."""
    return sorted(p.name for p in (folder / "wds/train").glob("*.tar"))


def _count(loader: Iterable[Any]) -> int:
    return sum(len(batch) for batch in loader)


def _without_torchvision() -> None:
    """mosaicml-streaming imports torchvision for data sets that are not used here; stand in for it where it is missing."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        for name, attributes in (
            ("torchvision", ()),
            ("torchvision.datasets", ("VisionDataset", "CIFAR10")),
            ("torchvision.transforms", ()),
            ("torchvision.transforms.functional", ("to_tensor",)),
        ):
            module = types.ModuleType(name)
            module.__spec__ = importlib.machinery.ModuleSpec(name, None)
            for attribute in attributes:
                setattr(module, attribute, type(attribute, (), {}))
            sys.modules[name] = module


OURS = ("tests.kits.data", "atlas_dist.data.stream", "atlas_dist.store.s3", "boto3")
PRELOADED = {
    "atlas": OURS,
    "atlas16": OURS,
    "webdataset_boto3": ("webdataset", "boto3", "torch.utils.data", "simplejpeg"),
    "webdataset_curl": ("webdataset", "torch"),
    "webdataset_awscli": ("webdataset", "torch"),
    "mosaicml": ("streaming", "boto3", "simplejpeg"),
    "litdata": ("litdata", "boto3", "simplejpeg"),
}
READERS = {f.__name__: f for f in (atlas, atlas16, webdataset_boto3, webdataset_curl, webdataset_awscli, mosaicml, litdata)}
WRITERS = {"mosaicml": write_mosaicml, "litdata": write_litdata}


def main() -> None:
    reader, mode, folder, endpoint = sys.argv[1:5]
    os.environ.update(AWS_ACCESS_KEY_ID="bench", AWS_SECRET_ACCESS_KEY="bench", AWS_DEFAULT_REGION="us-east-1")
    if mode == "write":
        WRITERS[reader](Path(folder))
        return
    _without_torchvision()
    for module in PRELOADED[reader]:  # imports are not what is measured
        importlib.import_module(module)
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    before, begin = sum(u.ru_utime + u.ru_stime for u in usage), time.perf_counter()
    size, samples = READERS[reader](mode, Path(folder), endpoint)
    seconds = time.perf_counter() - begin
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(u.ru_utime + u.ru_stime for u in usage) - before
    print(json.dumps({"seconds": seconds, "cpu": cpu, "bytes": size, "samples": samples}))


if __name__ == "__main__":
    main()
