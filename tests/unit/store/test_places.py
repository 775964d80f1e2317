"""What the URL of a store means. Defends: nothing is written where its user did not mean it; odd letters are letters."""

from __future__ import annotations

from pathlib import Path

import pytest

from atlas_dist.config import load_config
from atlas_dist.errors import ConfigError
from atlas_dist.store import open_store
from atlas_dist.store.places import Bucket, Folder, Memory, absolute_url, file_url, parse_url


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("runs/x", "runs/x"),
        ("/tmp/a#b?c", "/tmp/a#b?c"),
        ("run:1/store", "run:1/store"),
        ("2024-01-01T10:00/store", "2024-01-01T10:00/store"),
        ("/tmp/[x", "/tmp/[x"),
        ("données/übung", "données/übung"),
        ("file:///tmp/x", "/tmp/x"),
        ("file:/tmp/x", "/tmp/x"),
        ("file://localhost/tmp/x", "/tmp/x"),
        ("FILE:///tmp/x", "/tmp/x"),
        ("file:///tmp/with%20space", "/tmp/with space"),
        ("file:///tmp/a#b?c", "/tmp/a#b?c"),
    ],
)
def test_a_folder_is_the_folder_that_was_written(url: str, path: str) -> None:
    place = parse_url(url)
    assert isinstance(place, Folder)
    assert place.path == Path(path)


@pytest.mark.parametrize(
    ("url", "bucket", "prefix"),
    [
        ("s3://b", "b", ""),
        ("s3://b/", "b", ""),
        ("s3://b/a/c/", "b", "a/c"),
        ("S3://b/a", "b", "a"),
        ("s3://b/a#1/b?2/100%/[x]", "b", "a#1/b?2/100%/[x]"),
        ("s3://b/my data/données+ü=1,2'(x)", "b", "my data/données+ü=1,2'(x)"),
        ("s3://b/.hidden/-x", "b", ".hidden/-x"),
    ],
)
def test_a_prefix_is_taken_letter_by_letter(url: str, bucket: str, prefix: str) -> None:
    assert parse_url(url) == Bucket(bucket, prefix)


def test_memory_has_a_name() -> None:
    assert parse_url("memory://one") == Memory("one")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("file://runs/x", r"'runs' here.*runs/x for a folder below this one.*file:///"),
        ("file://runs", r"'runs' here.*file:///"),
        ("file:runs/x", r"file:///"),
        ("s3:/bucket/x", r"two slashes: s3://bucket/x"),
        ("s3:bucket/x", r"two slashes: s3://bucket/x"),
        ("s3://", "needs a bucket"),
        ("s3:///prefix", "needs a bucket"),
        ("s3://key:secret@bucket/x", "no credentials"),
        ("s3://<bucket>/x", "cannot name a bucket"),
        ("s3://[b/x", "cannot name a bucket"),
        ("s3://b/a/../c", r"'\.\.'"),
        ("s3://b/a//c", "''"),
        ("s3://b/a\nb", "control character"),
        (f"s3://b/{'x' * 700}", "700 bytes"),
        ("gs://b/x", "Unknown store URL"),
        ("hdfs://host/x", "Unknown store URL"),
        ("https://b.s3.amazonaws.com/x", "Unknown store URL"),
        ("memory:one", "Unknown store URL"),
        ("~nobody-of-that-name/x", "home"),
        ("a\0b", "NUL"),
    ],
)
def test_what_is_no_place_is_refused_before_anything_is_written(url: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        open_store(url)
    assert caught.value.fix
    with pytest.raises(ConfigError):
        load_config({"store": {"url": url}}).at(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_secret_in_a_url_is_not_repeated() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_url("s3://key:canary@bucket/x")
    assert "canary" not in str(caught.value)


def test_workers_with_another_folder_find_the_same_place(tmp_path: Path) -> None:
    assert absolute_url("runs:1/x", tmp_path) == f"{tmp_path}/runs:1/x"
    assert absolute_url("file:/tmp/x y", tmp_path) == "file:///tmp/x y"
    for url in ("s3://b/x#y", "file:///tmp/x%20y", "memory://m"):
        assert absolute_url(url, tmp_path) == url


@pytest.mark.parametrize("name", ["with space", "100%", "a%20b", "a#b", "é"])
def test_the_url_of_a_folder_leads_back_to_it(name: str, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / name))
    store.put("k", b"v")
    assert open_store(store.url).get("k") == b"v"
    assert parse_url(file_url(tmp_path / name)) == Folder(tmp_path / name, given_as_url=True)
