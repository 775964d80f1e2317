"""A Kubernetes CRD as a strict JSON schema: unknown fields fail, a required field that has a default is optional."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import yaml

_DROPPED = ("x-kubernetes-validations", "default", "format", "description")


def crd_schema(path: Path, version: str) -> dict[str, Any]:
    """The schema of `version` in a gzipped CRD."""
    with gzip.open(path) as file:
        crd = yaml.load(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    found = next(v for v in crd["spec"]["versions"] if v["name"] == version)
    schema = strict(found["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def strict(node: Any) -> Any:
    """The same schema, closed."""
    if isinstance(node, list):
        return [strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    out = {key: strict(value) for key, value in node.items() if key not in _DROPPED and key != "properties"}
    if node.get("x-kubernetes-int-or-string"):
        return {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    properties = node.get("properties")
    if isinstance(properties, dict):
        out["properties"] = {name: strict(each) for name, each in properties.items()}
        if not node.get("x-kubernetes-preserve-unknown-fields"):
            out.setdefault("additionalProperties", False)
        optional = {name for name, each in properties.items() if isinstance(each, dict) and "default" in each}
        if "required" in node:
            out["required"] = [name for name in node["required"] if name not in optional]
    return out
