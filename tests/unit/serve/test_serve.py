"""Answers: those of the trained model, whatever else is in the batch; and what is asked wrongly is refused with its fix."""

from __future__ import annotations

import io
import json
import tarfile
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from atlas_dist import AtlasModel, Request
from atlas_dist.bank.package import export_bank
from atlas_dist.bank.weights import BankWeights, load_weights
from atlas_dist.core.types import TaskKind
from atlas_dist.data.decode import TextEncoder
from atlas_dist.errors import ConfigError, DataError
from atlas_dist.methods import make_method
from atlas_dist.model.atlas import AdaptedModel
from atlas_dist.model.backbone import load_backbone
from atlas_dist.model.heads import HeadSpec
from atlas_dist.model.mixing_call import Stack
from atlas_dist.model.pixels import Normalise
from atlas_dist.runs.stores import open_shards
from atlas_dist.serve.inputs import pixels_of, texts_of
from atlas_dist.serve.mixed import MixedModel, TaskBatch
from tests.kits.bank import Toys, toys

PICTURE = Image.fromarray(np.random.default_rng(3).integers(0, 256, (50, 70, 3), np.uint8))
REQUESTS = {
    "toy_shape": Request("toy_shape", PICTURE),
    "toy_kin": Request("toy_kin", None, "red is to rose", ("as blue is to sky", "as one is to two", "as left")),
    "toy_ask": Request("toy_ask", PICTURE, "what colour is it?"),
    "toy_pair": Request("toy_pair", [PICTURE, PICTURE.rotate(90)], "the left one is bigger"),
}


@pytest.fixture(scope="module")
def learnt() -> Toys:
    return toys()


@pytest.fixture(scope="module")
def weights(learnt: Toys) -> BankWeights:
    return load_weights(learnt.store, learnt.bank, shards=open_shards(learnt.config))


@pytest.fixture(scope="module")
def model(weights: BankWeights) -> AtlasModel:
    return AtlasModel.from_weights(weights)


def _batch(model: AtlasModel, weights: BankWeights, key: str, count: int, seed: int, dtype: torch.dtype) -> TaskBatch:
    spec = weights.tasks[key].learnt.task
    pair = HeadSpec(spec.kind, spec.classes)
    generator = torch.Generator().manual_seed(seed)
    encoder = TextEncoder(model.backbone.tokenizer, spec.max_text)
    texts = [f"sample {seed} {n} of {spec.name}" for n in range(count * pair.texts)]
    ids, mask, types = (torch.from_numpy(a).view(count, pair.texts, -1) for a in encoder([(t,) for t in texts]))
    side = model.backbone.image_size
    pixels = torch.randn((count, pair.images, 3, side, side), generator=generator, dtype=dtype)
    return TaskBatch(key, ids, mask, types, pixels)


def test_a_mixed_batch_gives_every_row_what_a_pass_of_its_own_gives(weights: BankWeights) -> None:
    """In float64 against the model that trains: all kinds of task, in any order, a task twice."""
    backbone = load_backbone("random-tiny")
    model = AtlasModel(weights, backbone)
    backbone.model.double()
    method = weights.method()
    mixed = MixedModel(backbone.model, weights, method.mixing)
    for head in mixed.heads.values():
        head.double()
    for site in mixed.sites.values():
        site.views = {
            k: replace(v, stack=Stack(*(None if t is None else t.double() for t in v.stack))) for k, v in site.views.items()
        }
    keys = list(weights.tasks)
    batches = [_batch(model, weights, key, n + 1, n, torch.float64) for n, key in enumerate([*reversed(keys), keys[1]])]
    together = mixed(batches)
    for batch, output in zip(batches, together, strict=True):
        learnt = weights.tasks[batch.key].learnt
        with AdaptedModel(
            backbone.model, HeadSpec(learnt.task.kind, learnt.task.classes), method.mixing,
            visible=len(learnt.view), grows=False, seed=0,
        ) as alone:  # fmt: skip
            in64 = lambda tensors: {n: t.double() for n, t in tensors.items()}  # noqa: E731
            alone.load_adapters([in64(weights.tasks[key].adapter) for key in learnt.view])
            own = in64(weights.tasks[batch.key].own)
            alone.load_head({n: t for n, t in own.items() if n.startswith("head/")})
            alone.load_queries({n: t for n, t in own.items() if n.startswith("queries/")})
            alone.eval()
            with torch.no_grad():
                logits, _ = alone(
                    {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask,
                     "token_type_ids": batch.token_type_ids, "pixel_values": batch.pixels}
                )  # fmt: skip
            alpha = alone.alpha_report()
        torch.testing.assert_close(output.logits, logits, rtol=0, atol=1e-12)
        assert alpha.keys() == output.alpha.keys()
        for site in alpha:
            torch.testing.assert_close(output.alpha[site], alpha[site], rtol=0, atol=1e-12)


def test_the_backbone_is_as_before_after_an_answer_and_after_a_failure(model: AtlasModel) -> None:
    backbone = model.backbone.model
    model.predict("toy_shape", PICTURE)
    with pytest.raises(DataError):
        model.predict("toy_pair", PICTURE, "one picture only")
    hooked = [m for m in backbone.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert hooked == []


def test_answers_to_a_batch_are_those_to_each_alone(model: AtlasModel) -> None:
    requests = [REQUESTS[name] for name in ("toy_pair", "toy_ask", "toy_shape", "toy_ask", "toy_kin", "toy_shape")]
    together = model.predict_batch(requests, output_adapter_coefficients=True)
    for request, got in zip(requests, together, strict=True):
        alone = model.predict(request.task, request.image, request.text, request.choices, output_adapter_coefficients=True)
        assert (got.task, got.index, got.answer) == (alone.task, alone.index, alone.answer)
        np.testing.assert_allclose(got.scores, alone.scores, atol=1e-5)
        assert got.adapter_coefficients is not None and alone.adapter_coefficients is not None
        assert list(got.adapter_coefficients) == [*alone.adapter_coefficients]


def test_more_rows_than_fit_are_cut_into_several_passes(weights: BankWeights, model: AtlasModel) -> None:
    small = AtlasModel(weights, load_backbone("random-tiny"), max_rows=3)
    requests = list(REQUESTS.values()) * 2
    for a, b in zip(small.predict_batch(requests), model.predict_batch(requests), strict=True):
        assert a.index == b.index
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-5)


def test_coefficients_name_the_adapters_a_task_sees_and_lie_in_range(model: AtlasModel) -> None:
    answer = model.predict("toy_kin", None, "a", ["b", "c", "d"], output_adapter_coefficients=True)
    assert answer.adapter_coefficients is not None
    assert list(answer.adapter_coefficients) == ["toy_shape", "toy_kin"]
    sites = answer.adapter_coefficients["toy_shape"]
    assert list(sites) == ["L0.aftattn", "L0.aftmlp", "L1.aftattn", "L1.aftmlp"]
    assert all(0 <= a <= 1 for per_site in answer.adapter_coefficients.values() for a in per_site.values())
    assert model.predict("toy_shape", PICTURE).adapter_coefficients is None


def test_a_picture_is_the_same_as_file_bytes_image_and_array(model: AtlasModel, tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "p.png")
    data = (tmp_path / "p.png").read_bytes()
    forms = (tmp_path / "p.png", str(tmp_path / "p.png"), data, PICTURE, np.asarray(PICTURE))
    assert len({model.predict("toy_shape", form).scores for form in forms}) == 1


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "I;16"])
def test_a_picture_in_memory_is_what_its_file_shows(model: AtlasModel, tmp_path: Path, mode: str) -> None:
    grey = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    image = Image.fromarray(grey) if mode == "I;16" else PICTURE.convert(mode)
    image.save(tmp_path / "p.tif")
    assert model.predict("toy_shape", image).scores == model.predict("toy_shape", tmp_path / "p.tif").scores


def test_however_many_are_asked_only_one_pass_is_in_memory(weights: BankWeights, monkeypatch: pytest.MonkeyPatch) -> None:
    model = AtlasModel(weights, load_backbone("random-tiny"), max_rows=4)
    alive = most = 0
    prepare = AtlasModel._prepare

    def counted(self: AtlasModel, task: Any, request: Request, pixels: Any) -> Any:
        nonlocal alive, most
        batch = prepare(self, task, request, pixels)
        alive += 1
        most = max(most, alive)
        weakref.finalize(batch, lowered)
        return batch

    def lowered() -> None:
        nonlocal alive
        alive -= 1

    monkeypatch.setattr(AtlasModel, "_prepare", counted)
    answers = model.predict_each(Request("toy_shape", PICTURE) for _ in range(40))
    assert len({answer.index for answer in answers}) == 1
    assert most <= 8
    assert model.predict_batch([]) == []


def test_predictions_on_packed_samples_reach_the_recorded_score(model: AtlasModel, learnt: Toys) -> None:
    """From the files of the validation split, through `predict`, to the score that the run recorded."""
    for name in ("toy_shape", "toy_kin", "toy_pair"):
        spec = learnt.bank.find(name).task
        requests, labels = [], []
        for path in sorted((learnt.folder / "shards" / spec.dataset / spec.val).glob("*.tar")):
            files: dict[str, dict[str, bytes]] = {}
            with tarfile.open(path) as tar:
                for member in tar.getmembers():
                    key, _, ending = member.name.partition(".")
                    files.setdefault(key, {})[ending] = tar.extractfile(member).read()  # type: ignore[union-attr]
            for parts in files.values():
                about = json.loads(parts["json"])
                pictures = [parts[e] for e in sorted(parts) if e != "json"]
                texts = about["texts"]
                if spec.kind is TaskKind.CHOICE:
                    requests.append(Request(name, pictures or None, texts[0][0], tuple(t[1] for t in texts)))
                else:
                    requests.append(Request(name, pictures, texts[0][0]))
                labels.append(about["label"])
        right = [p.index == label for p, label in zip(model.predict_batch(requests), labels, strict=True)]
        recorded = learnt.bank.evaluation_of(learnt.bank.find(name).key)
        assert recorded is not None
        assert len(right) == recorded.samples
        assert 100 * sum(right) / len(right) == pytest.approx(recorded.score, abs=100 / len(right) + 1e-9)


def test_three_lines_of_python(weights: BankWeights, learnt: Toys, tmp_path: Path) -> None:
    export_bank(learnt.store, learnt.bank, weights, tmp_path / "bank")
    model = AtlasModel.from_pretrained(tmp_path / "bank", device="cpu")
    answer = model.predict(task="toy_shape", image=PICTURE, text="This is an image.")
    assert answer.answer in {"circle", "square", "triangle"} or answer.answer
    assert answer.scores == AtlasModel.from_weights(weights, device="cpu").predict("toy_shape", PICTURE).scores


@pytest.mark.parametrize(
    ("request_", "kind", "says"),
    [
        (Request("film"), ConfigError, "toy_shape, toy_kin"),
        (Request("toy_kin", None, "q", ("only one",)), DataError, "chooses between 3 texts; 1 were given"),
        (Request("toy_kin", None, None, ("a", "b", "c")), DataError, "no text"),
        (Request("toy_shape", PICTURE, None, ("a",)), DataError, "has no choices"),
        (Request("toy_pair", PICTURE, "t"), DataError, "looks at 2 pictures"),
        (Request("toy_shape", "/nowhere/x.jpg"), DataError, "Cannot read the picture"),
        (Request("toy_shape", b"\x7fELF"), DataError, "neither JPEG nor PNG"),
        (Request("toy_shape", b"GIF89a"), DataError, "request 2 of 2: Cannot read a picture: it is a damaged"),
        (Request("toy_shape", "https://example.org/x.jpg"), DataError, "is a URL"),
        (Request("toy_shape", Path("https://example.org/x.jpg")), DataError, "is a URL"),
        (Request("toy_shape", 5), DataError, "a int is no picture"),
        (Request("toy_shape", np.zeros((3, 8, 8), np.float32)), DataError, r"float32 \[3, 8, 8\] is no picture"),
        (Request("toy_shape", PICTURE, 5), DataError, "5 is a int and no text"),
        (Request("toy_ask", PICTURE), DataError, "answers questions; no text"),
        (Request("toy_kin", None, "q", ("a", "b", 3)), DataError, "3 is a int and no text"),
        (Request("toy_shape"), DataError, "toy_shape was asked with neither a picture nor a text"),
        (Request("toy_ask", None, None), DataError, "no text was given"),
        (Request("toy_kin"), DataError, "chooses between 3 texts; 0 were given, and no text"),
        (Request("toy_ask", PICTURE, "  "), DataError, "answers questions; no text"),
        (Request("toy_ask", PICTURE, ()), DataError, "`text` has 0 segments"),
        (Request("toy_ask", PICTURE, ("a", "b", "c")), DataError, "`text` has 3 segments"),
        (Request("toy_ask", PICTURE, ("a", None)), DataError, "None is a NoneType and no text"),
        (Request("toy_ask", PICTURE, "caf\udce9"), DataError, r"'caf\\\\xe9' is not Unicode"),
        (Request("toy_kin", None, "q", "abc"), DataError, "`choices` is a str.*list of texts"),
        (Request("toy_kin", None, "q", (c for c in "abc")), DataError, "`choices` is a generator"),
        (Request("toy_shape", Image.new("RGB", (0, 0))), DataError, "a picture of 0 x 0 has no pixels"),
        (Request("toy_shape", "data:image/png;base64," + "iVBO" * 200), DataError, "^request 2.{0,350}… is a URL"),
        (Request("toy_shape", "x" * 300), DataError, "Cannot read the picture x+: File name too long"),
        (Request("toy_shape", "a\0b"), DataError, r"picture a\\x00b: there is a NUL in its name|no such file"),
        (Request("toy_shape", Path("/")), DataError, "Cannot read the picture /: it is a folder"),
        (Request("toy_shape", "/dev/null"), DataError, "Cannot read the picture /dev/null: it is no plain file"),
    ],
)
def test_what_is_asked_wrongly_says_how_to_ask(model: AtlasModel, request_: Request, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        model.predict_batch([REQUESTS["toy_shape"], request_])


def test_another_backbone_is_refused(weights: BankWeights) -> None:
    with pytest.raises(ConfigError, match="learnt on another backbone"):
        AtlasModel(weights, load_backbone("random-tiny", seed=1))


def test_inputs_are_those_of_the_data_plane(learnt: Toys) -> None:
    """Pixels of `Feeder` and of here are equal to the last bit."""
    from atlas_dist.train.feed import Feeder

    spec = learnt.bank.find("toy_shape").task
    pixels = pixels_of(spec, [PICTURE], 32)
    mean, std = (0.5, 0.4, 0.3), (0.5, 0.6, 0.7)
    ours = Normalise(mean, std, torch.device("cpu"))(torch.from_numpy(pixels))
    theirs = Feeder(mean, std, torch.device("cpu"))._normalise(torch.from_numpy(pixels)[None])
    assert torch.equal(ours, theirs[0])
    assert texts_of(spec, None, ()) == [("This is an image.",)]
    buffer = io.BytesIO()
    PICTURE.save(buffer, "JPEG")
    assert pixels_of(spec, [buffer.getvalue()], 32).shape == (1, 32, 32, 3)


def test_methods_without_queries_answer_too(tmp_path: Path) -> None:
    alone = toys("method=individual_adapters", "sequence.upstream=[toy_shape,toy_kin]", "sequence.downstream=[]")
    model = AtlasModel.from_weights(load_weights(alone.store, alone.bank), device="cpu")
    got = model.predict("toy_kin", None, "a", ["b", "c", "d"], output_adapter_coefficients=True)
    assert make_method("individual_adapters", {}).mixing.weighting.value == "plain"
    assert got.adapter_coefficients is not None
    assert set(got.adapter_coefficients) == {"toy_kin"}
