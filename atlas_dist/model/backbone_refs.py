"""Which backbones there are.

A backbone is chosen by name:

    tiny            our own small ViLT, weights committed in ``assets/tiny_vilt``: the demo and the tests learn with it
    random-tiny     a few thousand random ViLT weights from a seed: tests of plumbing, never of learning
    random-clip     the same of CLIP, whose two towers differ in depth and width
    random-siglip   the same of SigLIP
    random-smolvlm  the same of SmolVLM, a decoder
    vilt-b32-mlm    dandelin/vilt-b32-mlm from the Hugging Face hub, at a pinned revision: the paper's
    clip-vit-b32    openai/clip-vit-base-patch32 from the hub, at a pinned revision
    siglip2-b16     google/siglip2-base-patch16-224 from the hub, at a pinned revision
    smolvlm-256m    HuggingFaceTB/SmolVLM-256M-Instruct from the hub, at a pinned revision

Any other folder or hub checkpoint is reached with a ``BackboneRef`` of one's own that says its architecture (``backbones/``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from atlas_dist.errors import ConfigError

TINY_FOLDER = Path(__file__).parent / "assets" / "tiny_vilt"

DEFAULT_ARCHITECTURE = "vilt"
"""Of a folder or repository that is given without one. It is said rather than read from the checkpoint, so that what a command
means does not hang on a file; the file is asked whether it agrees."""


@dataclass(frozen=True)
class BackboneRef:
    """Where weights come from.

    Attributes:
        name: what reports and errors call it.
        source: a folder, or a repository id on the hub; "" for random weights.
        revision: the hub commit (full hash); None for folders.
        leftovers: checkpoint keys that we knowingly do not load, besides the heads and leftovers that its architecture knows. Any
            other surplus or missing key is an error.
        architecture: a key of `backbones.ARCHITECTURES`.
        usual_pictures: its preprocessor_config.json is known to say what its architecture has anyway: it is not asked for, so
            that what was downloaded before it was read still loads without a network.
        tiles: n, where large pictures are to be cut into n x n tiles; None = as its preprocessor_config.json asks.
    """

    name: str
    source: str
    revision: str | None = None
    leftovers: tuple[str, ...] = ()
    architecture: str = DEFAULT_ARCHITECTURE
    usual_pictures: bool = False
    tiles: int | None = None


BACKBONES: dict[str, BackboneRef] = {
    ref.name: ref
    for ref in (
        BackboneRef("tiny", str(TINY_FOLDER)),
        BackboneRef("random-tiny", ""),
        BackboneRef("random-clip", "", architecture="clip"),
        BackboneRef("random-siglip", "", architecture="siglip"),
        BackboneRef("random-smolvlm", "", architecture="smolvlm"),
        # The first commit with weights, config and fixed tokenizer; later ones change the README and a length we set ourselves.
        BackboneRef("vilt-b32-mlm", "dandelin/vilt-b32-mlm", "6acc83f152113edb2d3b503e2ea4b107ed592a49", usual_pictures=True),
        BackboneRef(
            "clip-vit-b32",
            "openai/clip-vit-base-patch32",
            "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268",
            architecture="clip",
            usual_pictures=True,
        ),
        BackboneRef(
            "siglip2-b16", "google/siglip2-base-patch16-224", "75de2d55ec2d0b4efc50b3e9ad70dba96a7b2fa2", architecture="siglip"
        ),
        # Of SmolVLM's first generation, whose checkpoints call themselves Idefics3.
        BackboneRef(
            "smolvlm-256m",
            "HuggingFaceTB/SmolVLM-256M-Instruct",
            "7e3e67edbbed1bf9888184d9df282b700a323964",
            architecture="idefics3",
        ),
    )
}


def backbone_ref(
    name: str, source: str = "", revision: str = "", architecture: str = "", tiles: int | None = None
) -> BackboneRef:
    """What the settings `backbone.*` name: a row of ``BACKBONES``, or with a `source` a checkpoint of one's own.

    Raises:
        ConfigError: an unknown name or architecture, or an architecture that is not the named backbone's.
    """
    if source:
        place = str(Path(source).expanduser()) if source.startswith("~/") else source
        return BackboneRef(name, place, revision or None, architecture=architecture or DEFAULT_ARCHITECTURE, tiles=tiles)
    ref = replace(named_backbone(name), tiles=tiles)
    if architecture not in ("", ref.architecture):
        from atlas_dist.model.backbones import architecture_named  # all of transformers, for an error

        architecture_named(architecture)
        raise ConfigError(
            f"Backbone {name!r} is of the architecture {ref.architecture!r}, not {architecture!r}.",
            fix="Leave backbone.architecture out, or name a checkpoint of that architecture with backbone.source.",
        )
    return ref


def named_backbone(name: str) -> BackboneRef:
    """A row of ``BACKBONES``. Raises ConfigError listing the valid names."""
    if name not in BACKBONES:
        raise ConfigError(f"Unknown backbone {name!r}.", fix=f"Use one of: {', '.join(sorted(BACKBONES))}.")
    return BACKBONES[name]
