"""How pictures become pixels, by a checkpoint's preprocessor_config.json: what is honoured, what is refused, when a digest
changes, and that it is what transformers' own preprocessing makes."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from atlas_dist.core.types import Resample, TaskKind, TaskSpec
from atlas_dist.data.decode import decode_into
from atlas_dist.data.images import stored_form
from atlas_dist.errors import DataError
from atlas_dist.model.backbone import BACKBONES, Backbone, load_backbone
from atlas_dist.model.backbones import ARCHITECTURES
from atlas_dist.model.pixels import Normalise
from atlas_dist.model.preprocessor import PictureForm, form_of, usual_form
from atlas_dist.serve.inputs import pixels_of
from tests.kits.towers import saved

HALF = (0.5, 0.5, 0.5)
SIGLIP_2 = {
    "do_convert_rgb": None,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": list(HALF),
    "image_processor_type": "SiglipImageProcessor",
    "image_std": list(HALF),
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 32, "width": 32},
}
"""As the released checkpoints have it, but for the size; those of the first SigLIP have resample 3."""
CLIP = {
    "crop_size": 32,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 32,
}
VILT = {"do_normalize": True, "image_mean": list(HALF), "image_std": list(HALF), "resample": 3, "size": 32, "size_divisor": 32}


@pytest.fixture(scope="module")
def siglip() -> Backbone:
    return load_backbone("random-siglip")


# ------------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("siglip", {}),
        ("siglip", SIGLIP_2 | {"resample": 3}),
        ("clip", CLIP),
        ("clip", CLIP | {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}),
        ("vilt", VILT),
        ("vilt", VILT | {"size": {"shortest_edge": 384}}),
    ],
)
def test_what_agrees_with_an_architecture_is_its_usual_form(name: str, said: dict[str, Any]) -> None:
    assert form_of(said, ARCHITECTURES[name], 32, "mine") == usual_form(ARCHITECTURES[name])


def test_mean_deviation_and_filter_are_the_checkpoints() -> None:
    siglip = ARCHITECTURES["siglip"]
    assert form_of(SIGLIP_2, siglip, 32, "mine") == PictureForm(HALF, HALF, Resample.BILINEAR)
    said = SIGLIP_2 | {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 0.5], "resample": 1}
    assert form_of(said, siglip, 32, "mine") == PictureForm((0.1, 0.2, 0.3), (1.0, 1.0, 0.5), Resample.LANCZOS)
    plain = form_of(SIGLIP_2 | {"do_normalize": False}, siglip, 32, "mine")
    assert plain == PictureForm((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), Resample.BILINEAR)


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("siglip", {"do_center_crop": True}, "do_center_crop=true; pictures are not cut here"),
        ("siglip", {"size": {"shortest_edge": 32}}, r"size=.*pictures are squares of 32 pixels, as config\.json says"),
        ("siglip", {"size": {"height": 64, "width": 64}}, "pictures are squares of 32 pixels"),
        ("siglip", {"size": {"height": 32, "width": 48}}, "pictures are squares of 32 pixels"),
        ("siglip", {"do_resize": False}, "do_resize=false; it is always true here"),
        ("siglip", {"do_rescale": False}, "do_rescale=false; it is always true here"),
        ("siglip", {"do_flip_channel_order": True}, "it is always false here"),
        ("siglip", {"rescale_factor": 1 / 127.5}, "pixels are divided by 255 here"),
        ("siglip", {"resample": 0}, r"resample=0; there are 1 \(Lanczos\), 2 \(bilinear\) and 3 \(bicubic\)"),
        ("siglip", {"image_mean": 0.5}, "it must be three numbers"),
        ("siglip", {"image_mean": [0.5, 0.5]}, "it must be three numbers"),
        ("siglip", {"image_mean": [0.5, 0.5, "x"]}, "it must be three numbers"),
        ("siglip", {"image_std": [0.5, 0, 0.5]}, "it must be above 0"),
        ("clip", {"crop_size": 64}, "pictures are squares of 32 pixels"),
        ("vilt", {"size": {"height": 64, "width": 64}}, "pictures are squares of 32 pixels"),
    ],
)
def test_what_cannot_be_honoured_is_refused(name: str, change: dict[str, Any], told: str) -> None:
    said = {"siglip": SIGLIP_2, "clip": CLIP, "vilt": VILT}[name] | change
    with pytest.raises(DataError, match=f"preprocessor_config.json of backbone 'mine' has .*{told}"):
        form_of(said, ARCHITECTURES[name], 32, "mine")


# -------------------------------------------------------------------------------------------------------------- loading


def test_it_is_part_of_the_digest_where_it_is_not_the_usual_one(tmp_path: Path, siglip: Backbone) -> None:
    ref = saved(tmp_path, siglip)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(SIGLIP_2 | {"resample": 3}))
    same = load_backbone(ref)
    assert (same.digest, same.own_pictures, same.pictures) == (siglip.digest, None, PictureForm(HALF, HALF))
    file.write_text(json.dumps(SIGLIP_2))
    other = load_backbone(ref)
    assert other.digest != siglip.digest and other.pictures.resample is Resample.BILINEAR
    # What newer versions of transformers write comes first, as there.
    nested = {"image_processor": SIGLIP_2 | {"image_mean": [0.25] * 3}, "processor_class": "SiglipProcessor"}
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    third = load_backbone(ref)
    assert len({siglip.digest, other.digest, third.digest}) == 3
    assert (third.pixel_mean, third.pixel_std) == ((0.25,) * 3, HALF)
    (tmp_path / "processor_config.json").write_text('{"processor_class": "SiglipProcessor"}')
    assert load_backbone(ref).digest == other.digest
    file.write_text("[1]")
    with pytest.raises(DataError, match=r"preprocessor_config\.json is not a JSON object"):
        load_backbone(ref)
    file.write_text(json.dumps(SIGLIP_2 | {"do_center_crop": True}))
    with pytest.raises(DataError, match="do_center_crop"):
        load_backbone(ref)


def test_the_old_names_ask_for_no_file_that_they_did_not_ask_for() -> None:
    assert [ref.name for ref in BACKBONES.values() if ref.usual_pictures] == ["vilt-b32-mlm", "clip-vit-b32"]


# --------------------------------------------------------------------------------------------------------------- pixels


def scene(width: int, height: int) -> Image.Image:
    """Waves, edges and noise."""
    y, x = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(width).integers(0, 40, (height, width, 3))
    waves = np.stack([100 + 80 * np.sin(x / 5), 100 + 80 * np.cos(y / 7), 120 * ((x // 9 + y // 9) % 2)], axis=-1)
    return Image.fromarray(np.clip(waves + noise, 0, 255).astype(np.uint8))


def compressed(picture: Image.Image, kind: str) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **({"quality": 90} if kind == "JPEG" else {}))
    return out.getvalue()


def greys(normalised: torch.Tensor, form: PictureForm) -> torch.Tensor:
    """Pixels [3, H, W] as grey levels, 0 to 255."""
    mean, std = (torch.tensor(part)[:, None, None] for part in (form.mean, form.std))
    return 255 * (normalised * std + mean)


SIDE = 48


def stock(data: bytes, said: dict[str, Any]) -> torch.Tensor:
    processor = SiglipImageProcessorPil(**{k: v for k, v in said.items() if k != "image_processor_type"})
    return processor(Image.open(io.BytesIO(data)), return_tensors="pt")["pixel_values"][0]


@pytest.mark.parametrize("resample", [1, 2, 3])
@pytest.mark.parametrize(("width", "height"), [(90, 61), (48, 48), (30, 40), (400, 300), (20, 300)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_pixels_are_those_of_transformers_to_one_grey_level(kind: str, width: int, height: int, resample: int) -> None:
    said = SIGLIP_2 | {"size": {"height": SIDE, "width": SIDE}, "resample": resample, "image_mean": [0.4, 0.5, 0.6]}
    form = form_of(said, ARCHITECTURES["siglip"], SIDE, "mine")
    data = compressed(scene(width, height), kind)
    normalise, wanted = Normalise(form.mean, form.std, torch.device("cpu")), greys(stock(data, said), form)
    streamed = np.empty((SIDE, SIDE, 3), np.uint8)
    decode_into(memoryview(data), streamed, form.resample)
    # A JPEG that is larger both ways is decoded at a smaller scale, which is no filter of Pillow's: a look at the mean, then.
    difference = (greys(normalise(torch.from_numpy(streamed)), form) - wanted).abs()
    scaled = kind == "JPEG" and min(width, height) > SIDE
    assert float(difference.mean()) <= 6 if scaled else float(difference.max()) <= 1.001
    task = TaskSpec("t", TaskKind.SINGLE, 2, 8, "t", "train", "val", "", "")
    packed = torch.from_numpy(pixels_of(task, [data], SIDE, form.resample))[0]
    difference = (greys(normalise(packed), form) - wanted).abs()
    # A larger JPEG is packed as a smaller JPEG.
    stays = kind == "PNG" or max(width, height) <= SIDE
    assert float(difference.max()) <= 1.001 if stays else float(difference.mean()) <= 3


def test_the_filter_is_part_of_what_is_remembered() -> None:
    data = compressed(scene(90, 61), "PNG")
    found = {stored_form(data, SIDE, resample) for resample in (*Resample, *Resample)}
    assert len(found) == len(Resample)
