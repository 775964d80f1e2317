"""What a plan needs to know of a backbone. Loading one takes seconds, and importing what loads it takes more: so what a
checkpoint was found to be is kept in the user's cache folder, under what its files hold.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from pydantic import TypeAdapter, ValidationError

from atlas_dist.model.backbone_refs import BackboneRef

if TYPE_CHECKING:
    from atlas_dist.model.backbone import Backbone

FACTS_VERSION = 1
"""Raised whenever the same checkpoint would have other facts, such as another digest, than before."""


@dataclass(frozen=True)
class BackboneFacts:
    """What plans are made of; everything else of a backbone concerns those who compute with it."""

    digest: str
    """As `Backbone.digest`."""
    architecture: str
    text_tokens: int
    """Most text tokens of a sample, those at its ends included."""
    image_types: int
    """How many pictures of a sample it tells apart."""
    writes: bool
    """It is a decoder, which can write answers."""

    @classmethod
    def of(cls, backbone: Backbone) -> BackboneFacts:
        """Of a backbone that is loaded."""
        kind = backbone.architecture
        return cls(backbone.digest, kind.name, backbone.max_text_tokens, kind.image_types, kind.decoder is not None)


def facts_of(ref: BackboneRef) -> BackboneFacts:
    """Remembered where a process of this user has loaded the same files with the same packages; else the backbone is loaded.

    Raises:
        ConfigError, DataError: as `load_backbone`.
    """
    file = _file_of(ref)
    known = _read(file)
    if known is None:
        from atlas_dist.model.backbone import load_backbone

        known = BackboneFacts.of(load_backbone(ref))
        _keep(file, known)
    return known


def _file_of(ref: BackboneRef) -> Path | None:
    """Where its facts are kept; None = what it is may change without a sign, or there is no place."""
    folder, contents = Path(ref.source), {}
    try:
        if ref.source and folder.is_dir():
            for path in sorted(path for path in folder.iterdir() if path.is_file()):
                with path.open("rb") as file:
                    contents[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
        elif ref.source and not ref.revision:
            return None
        place = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except (OSError, RuntimeError):  # unreadable, or nobody's home: loading says what is wrong, if anything is
        return None
    packages = {name: version(name) for name in ("atlas-dist", "tokenizers", "torch", "transformers")}
    told = json.dumps([FACTS_VERSION, asdict(ref), contents, packages], sort_keys=True)
    return place / "atlas-dist" / "backbones" / f"{hashlib.sha256(told.encode()).hexdigest()}.json"


def _read(file: Path | None) -> BackboneFacts | None:
    try:
        return TypeAdapter(BackboneFacts).validate_json(file.read_bytes()) if file else None
    except (OSError, ValidationError):
        return None


def _keep(file: Path | None, facts: BackboneFacts) -> None:
    """A folder that cannot be written is no fault: the next process loads the backbone again."""
    if file is None:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh = file.with_name(f"{file.stem}.{uuid4().hex}")
        fresh.write_bytes(TypeAdapter(BackboneFacts).dump_json(facts))
        fresh.replace(file)
    except OSError:
        pass
