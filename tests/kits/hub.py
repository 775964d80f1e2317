"""The endpoints of the Hugging Face hub that pushing and pulling use, on the loopback: repositories in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

TOKEN = "hf_test"


@dataclass
class Repo:
    """Branches by name -> commit; commits -> path -> content."""

    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: bool = True

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        """Put files on top of a branch."""
        whole = {**self.commits.get(self.branches.get(branch, ""), {}), **files}
        oid = hashlib.sha1(json.dumps([sorted(map(str, whole.items())), len(self.commits)]).encode()).hexdigest()
        self.commits[oid] = whole
        self.branches[branch] = oid
        return oid


@dataclass
class Hub:
    """What the server knows."""

    repos: dict[str, Repo] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    """Large files by sha256, before a commit names them."""
    log: list[str] = field(default_factory=list)
    refuse: int = 0
    """Answer everything with this status; 0 = as usual."""
    url: str = ""


@contextmanager
def fake_hub() -> Iterator[Hub]:
    """A hub at `hub.url` while it lasts."""
    hub = Hub()

    class Handler(_Handler):
        known = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    known: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path, _, query = self.path.partition("?")
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.known.log.append(f"{self.command} {path}")
        if self.known.refuse:
            self._json({"error": "as the test asked"}, self.known.refuse)
            return
        writes = self.command != "GET" and self.command != "HEAD" and not path.startswith("/upload/")
        if writes and path != "/api/validate-yaml" and self.headers.get("authorization") != f"Bearer {TOKEN}":
            self._json({"error": "no"}, 401)
            return
        for pattern, method in _ROUTES:
            found = re.fullmatch(pattern, path)
            if found:
                getattr(self, method)(*found.groups(), body=body, query=query)
                return
        self._json({"error": f"no {path}"}, 404)

    # ------------------------------------------------------------------------------------------------------- writing

    def create(self, *, body: bytes, query: str) -> None:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        if name in self.known.repos:
            self._json({"error": "You already created this model repo", "url": f"{self.known.url}/{name}"}, 409)
            return
        self.known.repos[name] = Repo(private=bool(asked.get("private")) or asked.get("visibility") == "private")
        self.known.repos[name].commit("main", {".gitattributes": b""})
        self._json({"url": f"{self.known.url}/{name}", "id": name})

    def validate(self, *, body: bytes, query: str) -> None:
        text = json.loads(body)["content"]
        bad = "license: nonsense" in text
        self._json({"errors": [{"message": "license must be known"}] if bad else [], "warnings": []}, 400 if bad else 200)

    def preupload(self, repo: str, revision: str, *, body: bytes, query: str) -> None:
        files = json.loads(body)["files"]
        modes = {f["path"]: "lfs" if f["path"].endswith(".safetensors") else "regular" for f in files}
        self._json({"files": [{"path": p, "uploadMode": mode, "shouldIgnore": False} for p, mode in modes.items()]})

    def batch(self, repo: str, *, body: bytes, query: str) -> None:
        objects = json.loads(body)["objects"]
        actions = [
            {**o, "authenticated": True, "actions": {"upload": {"href": f"{self.known.url}/upload/{o['oid']}", "header": {}}}}
            for o in objects
        ]
        self._json({"transfer": "basic", "objects": actions}, kind="application/vnd.git-lfs+json")

    def upload(self, oid: str, *, body: bytes, query: str) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.known.uploads[oid] = body
        self._json({})

    def commit(self, repo: str, revision: str, *, body: bytes, query: str) -> None:
        files = {}
        for line in body.decode().splitlines():
            said = json.loads(line)
            if said["key"] == "file":
                files[said["value"]["path"]] = base64.b64decode(said["value"]["content"])
            elif said["key"] == "lfsFile":
                files[said["value"]["path"]] = self.known.uploads[said["value"]["oid"]]
        oid = self.known.repos[repo].commit(revision, files)
        url = f"{self.known.url}/{repo}/commit/{oid}"
        self._json({"commitUrl": url, "commitOid": oid, "pullRequestUrl": None, "success": True})

    # ------------------------------------------------------------------------------------------------------- reading

    def info(self, repo: str, revision: str | None = None, *, body: bytes, query: str) -> None:
        found = self._found(repo, revision or "main")
        if found:
            siblings = [{"rfilename": path} for path in found[1]]
            self._json({"id": repo, "modelId": repo, "sha": found[0], "private": False, "tags": [], "siblings": siblings})

    def tree(self, repo: str, revision: str, *, body: bytes, query: str) -> None:
        found = self._found(repo, revision)
        if found:
            self._json([{"type": "file", "path": p, "size": len(d), "oid": _blob(d)} for p, d in found[1].items()])

    def resolve(self, repo: str, revision: str, path: str, *, body: bytes, query: str) -> None:
        found = self._found(repo, revision)
        if not found:
            return
        if path not in found[1]:
            self._json({"error": "no entry"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        data = found[1][path]
        self._send(200, data, "application/octet-stream", {"ETag": f'"{_blob(data)}"', "X-Repo-Commit": found[0]})

    def _found(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        known = self.known.repos.get(repo)
        if known is None:
            self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            return None
        oid = known.branches.get(revision, revision)
        if oid not in known.commits:
            self._json({"error": "Revision not found"}, 404, {"X-Error-Code": "RevisionNotFound"})
            return None
        return oid, known.commits[oid]

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None, kind: str = "application/json") -> None:
        self._send(status, json.dumps(value).encode(), kind, headers or {})

    def _send(self, status: int, data: bytes, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def use_hub(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let huggingface_hub talk to `hub` with its token, and keep what it caches in `folder`."""
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(folder / "no-token"))


def _blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


_REPO = r"([\w.-]+/[\w.-]+)"
_ROUTES = (
    (r"/api/repos/create", "create"),
    (r"/api/validate-yaml", "validate"),
    (rf"/api/models/{_REPO}/preupload/([^/]+)", "preupload"),
    (rf"/{_REPO}\.git/info/lfs/objects/batch", "batch"),
    (r"/upload/([0-9a-f]{64})", "upload"),
    (rf"/api/models/{_REPO}/commit/([^/]+)", "commit"),
    (rf"/api/models/{_REPO}/tree/([^/]+)", "tree"),
    (rf"/api/models/{_REPO}/revision/([^/]+)", "info"),
    (rf"/api/models/{_REPO}", "info"),
    (rf"/{_REPO}/resolve/([^/]+)/(.+)", "resolve"),
)
