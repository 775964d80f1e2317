"""A small evaluator of AWS policies, and a store that writes down what is asked of it as S3 requests.

Only what our files use is understood; anything else raises. An explicit Deny wins, then any Allow, else no.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from atlas_dist.errors import MissingObject
from atlas_dist.store.objects import MemoryStore, ObjectInfo

BUCKET = "arn:aws:s3:::BUCKET"
ACCOUNT = "arn:aws:iam::000000000000:role/"


@dataclass(frozen=True)
class Request:
    """One call of the S3 API. `prefix`: of a list; `create`: it carried If-None-Match."""

    action: str
    key: str = ""
    prefix: str | None = None
    create: bool = False

    @property
    def resource(self) -> str:
        return f"{BUCKET}/{self.key}" if self.key else BUCKET

    def context(self, role: str, secure: bool) -> dict[str, str | None]:
        return {
            "s3:prefix": self.prefix,
            "s3:if-none-match": "*" if self.create else None,
            "aws:SecureTransport": str(secure).lower(),
            "aws:PrincipalArn": ACCOUNT + role,
        }


def allowed(request: Request, role: str, identity: Mapping[str, Any], bucket: Mapping[str, Any], *, secure: bool = True) -> bool:
    """Whether `role` may make the request."""
    context = request.context(role, secure)
    effects = {s["Effect"] for s in identity["Statement"] if _matches(s, request, context)}
    effects |= {s["Effect"] for s in bucket["Statement"] if _is_about(s["Principal"], role) and _matches(s, request, context)}
    return "Allow" in effects and "Deny" not in effects


def _is_about(principal: str | Mapping[str, str], role: str) -> bool:
    return principal == "*" or (isinstance(principal, Mapping) and principal["AWS"] == ACCOUNT + role)


def _matches(statement: Mapping[str, Any], request: Request, context: Mapping[str, str | None]) -> bool:
    if not any(fnmatchcase(request.action, a) for a in _list(statement["Action"])):
        return False
    if not any(fnmatchcase(request.resource, r) for r in _list(statement["Resource"])):
        return False
    tests = statement.get("Condition", {})
    return all(_holds(op, context[key], _list(wanted)) for op, each in tests.items() for key, wanted in each.items())


def _holds(operator: str, value: str | None, wanted: list[str]) -> bool:
    match operator:
        case "Null":
            return (value is None) == (wanted == ["true"])
        case "StringLike":
            return value is not None and any(fnmatchcase(value, w) for w in wanted)
        case "StringLikeIfExists":
            return value is None or any(fnmatchcase(value, w) for w in wanted)
        case "Bool":
            return value is not None and value in wanted
        case "ArnNotEquals":
            return value not in wanted
    raise AssertionError(f"the evaluator does not know {operator}")


def _list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


class RecordingStore(MemoryStore):
    """The same objects as `shared`, seen by one role below one prefix of the bucket."""

    def __init__(self, shared: MemoryStore, prefix: str) -> None:
        self.shared, self.prefix = shared, prefix
        # Opening a store asks the bucket once whether it answers.
        self.requests = {Request("s3:ListBucket", prefix=prefix)}

    @property
    def url(self) -> str:
        return self.shared.url

    def _note(self, action: str, key: str, *, create: bool = False) -> None:
        self.requests.add(Request(f"s3:{action}", self.prefix + key, create=create))

    def create(self, key: str, data: bytes) -> None:
        self._note("PutObject", key, create=True)
        self.shared.create(key, data)

    def put(self, key: str, data: bytes) -> None:
        self._note("PutObject", key)
        self.shared.put(key, data)

    def put_file(self, key: str, path: Path) -> ObjectInfo:
        self._note("PutObject", key)
        self._note("AbortMultipartUpload", key)
        return self.shared.put_file(key, path)

    @contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        """S3 says that a key is missing only to those who may list the bucket; the check comes without a prefix."""
        self._note("GetObject", key)
        try:
            yield
        except MissingObject:
            self.requests.add(Request("s3:ListBucket"))
            raise

    def get(self, key: str, *, limit: int = 1 << 31) -> bytes:
        with self._reading(key):
            return self.shared.get(key, limit=limit)

    def stat(self, key: str) -> ObjectInfo:
        with self._reading(key):
            return self.shared.stat(key)

    def read_range(self, key: str, start: int, out: memoryview, *, if_match: str = "") -> int:
        with self._reading(key):
            return self.shared.read_range(key, start, out, if_match=if_match)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self.requests.add(Request("s3:ListBucket", prefix=self.prefix + prefix))
        return self.shared.list(prefix)

    def delete(self, key: str) -> None:
        self._note("DeleteObject", key)
        self.shared.delete(key)
