"""What a plan needs to know of a backbone. Loading one takes seconds, and importing what loads it takes more: so what a
checkpoint was found to be is kept in the user's cache folder, under what its files hold.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from atlas_dist.core.keys import digest_of
from atlas_dist.errors import AtlasError
from atlas_dist.model.backbone_refs import BackboneRef
from atlas_dist.store.local import LocalStore

if TYPE_CHECKING:
    from atlas_dist.model.backbone import Backbone

FACTS_VERSION = 2
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
    tiles: int
    """As `PictureForm.tiles`."""

    @classmethod
    def of(cls, backbone: Backbone) -> BackboneFacts:
        """Of a backbone that is loaded."""
        kind, tiles = backbone.architecture, backbone.pictures.tiles
        return cls(backbone.digest, kind.name, backbone.max_text_tokens, kind.image_types, kind.decoder is not None, tiles)


def facts_of(ref: BackboneRef) -> BackboneFacts:
    """Remembered where a process of this user has loaded the same files with the same packages; else the backbone is loaded.

    Raises:
        ConfigError, DataError: as `load_backbone`.
    """
    name = _name_of(ref)
    known = _read(name)
    if known is None:
        from atlas_dist.model.backbone import load_backbone

        known = BackboneFacts.of(load_backbone(ref))
        _keep(name, known)
    return known


def _name_of(ref: BackboneRef) -> str:
    """What its facts are kept under; "" = its files may change without a sign, or cannot be read: then it is loaded."""
    folder, contents = Path(ref.source), {}
    if ref.source and folder.is_dir():
        try:
            for path in sorted(path for path in folder.iterdir() if path.is_file()):
                with path.open("rb") as file:
                    contents[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            return ""
    elif ref.source and not ref.revision:
        return ""
    packages = {name: version(name) for name in ("atlas-dist", "tokenizers", "torch", "transformers")}
    return f"{digest_of([FACTS_VERSION, asdict(ref), contents, packages])}.json"


def _kept() -> LocalStore:
    """Raises RuntimeError: this user has no home."""
    return LocalStore(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "atlas-dist" / "backbones")


def _read(name: str) -> BackboneFacts | None:
    try:
        return TypeAdapter(BackboneFacts).validate_json(_kept().get(name)) if name else None
    except (AtlasError, RuntimeError, ValidationError):
        return None


def _keep(name: str, facts: BackboneFacts) -> None:
    """A folder that cannot be written is no fault: the next process loads the backbone again."""
    if name:
        with suppress(AtlasError, RuntimeError):
            _kept().put(name, TypeAdapter(BackboneFacts).dump_json(facts))
