"""A plain S3 look-alike for benchmarks: files below a folder as objects, served with `sendfile` from a process of its own.

Only what readers ask for: GET with Range, HEAD, ListObjectsV2. It checks no signature. `--first-byte` seconds pass before every
answer and `--rate` bounds the bytes a second of one connection, to stand for a distant bucket.

    python -m tests.bench.file_server FOLDER [--first-byte 0.03] [--rate 52428800]      prints its port, then serves
"""

from __future__ import annotations

import argparse
import os
import socket
import threading
import time
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit


def serve(connection: socket.socket, root: Path, first_byte: float, rate: int) -> None:
    """Answer requests on one connection until it closes."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    pending = b""
    with connection:
        while True:
            while b"\r\n\r\n" not in pending:
                chunk = connection.recv(65536)
                if not chunk:
                    return
                pending += chunk
            head, _, pending = pending.partition(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")
            method, target, _ = lines[0].split(" ", 2)
            headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
            if first_byte:
                time.sleep(first_byte)
            try:
                answer(connection, method, target, headers, root, rate)
            except OSError:
                return


def answer(connection: socket.socket, method: str, target: str, headers: dict[str, str], root: Path, rate: int) -> None:
    """One response. Targets are /BUCKET/KEY; the bucket's name does not matter."""
    url = urlsplit(target)
    key = unquote(url.path).lstrip("/").partition("/")[2]
    if not key:
        listing(connection, parse_qs(url.query).get("prefix", [""])[0], root)
        return
    path = root / key
    if ".." in path.parts or not path.is_file():
        body = b"" if method == "HEAD" else b"<Error><Code>NoSuchKey</Code></Error>"
        connection.sendall(
            b"HTTP/1.1 404 Not Found\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        return
    size = path.stat().st_size
    start, stop = 0, size
    status = "200 OK"
    extra = ""
    if given := headers.get("range", ""):
        first, _, last = given.removeprefix("bytes=").partition("-")
        start, stop = int(first), min(size, int(last) + 1) if last else size
        status, extra = "206 Partial Content", f"Content-Range: bytes {start}-{stop - 1}/{size}\r\n"
    head = (
        f'HTTP/1.1 {status}\r\nContent-Length: {stop - start}\r\nETag: "{size:x}"\r\nAccept-Ranges: bytes\r\n{extra}'
        "Content-Type: binary/octet-stream\r\nLast-Modified: Wed, 01 Jan 2020 00:00:00 GMT\r\n\r\n"
    )
    connection.sendall(head.encode())
    if method == "HEAD":
        return
    begin, sent = time.monotonic(), 0
    with path.open("rb") as file:
        while start + sent < stop:
            step = min(stop - start - sent, 1 << 18) if rate else stop - start - sent
            sent += os.sendfile(connection.fileno(), file.fileno(), start + sent, step)
            if rate and (ahead := sent / rate - (time.monotonic() - begin)) > 0:
                time.sleep(ahead)


def listing(connection: socket.socket, prefix: str, root: Path) -> None:
    """ListObjectsV2, one page."""
    found = sorted((p.relative_to(root).as_posix(), p.stat().st_size) for p in root.rglob("*") if p.is_file())
    entries = "".join(
        f"<Contents><Key>{key}</Key><Size>{size}</Size><ETag>&quot;{size:x}&quot;</ETag>"
        "<LastModified>2020-01-01T00:00:00.000Z</LastModified></Contents>"
        for key, size in found
        if key.startswith(prefix)
    )
    body = f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>".encode()
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--first-byte", type=float, default=0.0)
    parser.add_argument("--rate", type=int, default=0)
    given = parser.parse_args()
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    print(listener.getsockname()[1], flush=True)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection, given.folder, given.first_byte, given.rate), daemon=True).start()


if __name__ == "__main__":
    main()
