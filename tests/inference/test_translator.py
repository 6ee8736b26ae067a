"""The public translator: any kind of picture in, the same kind out, the outputs of the networks."""

import doctest
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from stargan_dist import Translator
from stargan_dist.data.batch import to_unit
from stargan_dist.data.transforms import resize
from stargan_dist.errors import UserError
from stargan_dist.inference import translator as module
from stargan_dist.inference.model import TrainedModel
from stargan_dist.models import folder, landmarks
from tests.helpers.models import tiny_landmarks, tiny_model
from tests.helpers.pictures import picture

SIZE = 32


@pytest.fixture(scope="module")
def translator():
    return Translator(tiny_model(dtype=torch.float64), device="cpu")


def test_the_example_of_the_docstring_runs(tmp_path):
    model = tiny_model(style_dim=64)
    folder.write(str(tmp_path / "model"), model, "")
    names = {"model": str(tmp_path / "model"), "cat": picture()}
    [example] = doctest.DocTestFinder(recurse=False).find(Translator, "Translator", globs=names)
    assert len(example.examples) >= 7
    assert doctest.DocTestRunner().run(example).failed == 0


def test_outputs_equal_those_of_the_networks(translator):
    """Fused kernels, batches and one encoding per source change nothing but rounding."""
    plain = TrainedModel.from_saved(translator.saved)
    images = [picture(seed=i) for i in range(3)]
    seeds, y = [5, 6, 7, 8], torch.tensor([2] * 4)
    styles = translator.styles(seeds, "fox")
    outputs = translator.translate(torch.stack([tensor_of(i) for i in images]), "fox", seed=seeds)
    assert outputs.shape == (3, 4, 3, SIZE, SIZE)
    for image, row in zip(images, outputs, strict=True):
        expected = plain.translate(tensor_of(image)[None], plain.conditioning.vector(styles, y))
        assert (row - expected.clamp(-1, 1)).abs().max() < 1e-12
    assert (outputs[:, 0] - outputs[:, 1]).abs().max() > 1e-3


def tensor_of(image):
    return to_unit(torch.from_numpy(resize(image, SIZE)), torch.float64)


def values(output):
    """Return the values of an output of any kind, as an array (H, W, 3) from 0 to 255."""
    if not isinstance(output, torch.Tensor):
        return np.asarray(output)
    if output.is_floating_point():
        output = ((output + 1) * 127.5).round()
    return output.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("convert", [
    lambda i: i,
    np.asarray,
    lambda i: torch.from_numpy(np.asarray(i).copy()).permute(2, 0, 1),
    tensor_of,
], ids=["pil", "array", "uint8 tensor", "float tensor"])  # fmt: skip
def test_outputs_are_of_the_kind_that_was_given(translator, convert):
    reference = np.asarray(translator.translate(picture(), "cat"))
    one = translator.translate(convert(picture()), "cat")
    assert type(one) is type(convert(picture()))
    many = translator.translate([convert(picture()), convert(picture(seed=1))], "cat")
    assert isinstance(many, list)
    rows = translator.translate([convert(picture())], "cat", seed=[0, 1])
    assert len(rows[0]) == 2
    for output in (one, many[0], rows[0][0]):
        assert np.array_equal(values(output), reference)


def test_batches_are_returned_as_batches(translator):
    array = np.stack([np.asarray(picture(seed=i)) for i in range(2)])
    assert translator.translate(array, "cat").shape == (2, SIZE, SIZE, 3)
    assert translator.translate(array, "cat", seed=[1, 2, 3]).shape == (2, 3, SIZE, SIZE, 3)
    tensor = torch.from_numpy(array).permute(0, 3, 1, 2)
    assert translator.translate(tensor, "cat").shape == (2, 3, SIZE, SIZE)


def test_paths_and_urls_are_pictures(translator, tmp_path):
    picture().save(tmp_path / "a.png")
    expected = translator.translate(picture(), "cat")
    for path in (tmp_path / "a.png", str(tmp_path / "a.png"), f"file://{tmp_path}/a.png"):
        assert translator.translate(path, "cat") == expected


def test_grey_transparent_palette_and_large_images_are_pictures(translator):
    for mode in ("L", "RGBA", "P", "CMYK", "1", "LA"):
        assert translator.translate(picture(50, 40).convert(mode), "cat").mode == "RGB"


@pytest.mark.parametrize(("fit", "shape"), [
    ("crop", (SIZE, SIZE)), ("stretch", (SIZE, SIZE)), ("pad", (SIZE, SIZE // 2)),
])  # fmt: skip
def test_pictures_of_any_shape_fit(translator, fit, shape):
    assert translator.translate(picture(100, 50), "cat", fit=fit).size == shape


def test_crop_takes_the_central_square_and_pad_all(translator):
    wide = Image.new("RGB", (96, 32))
    wide.paste(picture(), (32, 0))
    central = translator.translate(picture(), "cat", seed=3)
    assert translator.translate(wide, "cat", seed=3) == central
    tall = picture(8, 64)
    assert translator.translate(tall, "cat", fit="pad").size == (4, 32)


def test_references_give_the_style_of_the_encoder(translator):
    reference = picture(seed=4)
    style = translator.styles(reference, "fox")
    by_reference = translator.translate(picture(), "fox", reference=reference)
    assert by_reference == translator.translate(picture(), "fox", style=style)
    assert by_reference != translator.translate(picture(), "fox", reference=picture(seed=5))
    many = translator.translate(picture(), "fox", reference=[reference, picture(seed=5)])
    assert many[0] == by_reference


def test_strength_moves_styles_to_the_mean_of_their_domain(translator):
    mean, style = translator.mean_style("fox"), translator.styles(1, "fox")
    half = translator.translate(picture(), "fox", style=(mean + style) / 2)
    assert translator.translate(picture(), "fox", seed=1, strength=0.5) == half
    at_mean = translator.translate(picture(), "fox", style=mean)
    assert translator.translate(picture(), "fox", seed=9, strength=0.0) == at_mean
    seeds = translator.styles(range(2000, 4000), "fox")
    assert (seeds.mean(0) - mean).norm() < 0.1 * (seeds - mean).norm(dim=1).mean()


def test_attributes_name_all_of_an_output(translator):
    model = Translator(tiny_model("stargan", ["Black_Hair", "Male"], binary=True), device="cpu")
    male = model.translate(picture(), attributes={"Male": True})
    assert male == model.translate(picture(), attributes={"Male": 1, "Black_Hair": 0})
    assert male != model.translate(picture(), attributes={})
    with pytest.raises(UserError, match="is an attribute: give all attributes"):
        model.translate(picture(), "Male")
    with pytest.raises(UserError, match="Beard is not an attribute"):
        model.translate(picture(), attributes={"Beard": 1})
    with pytest.raises(UserError, match="not both"):
        model.translate(picture(), "Male", attributes={"Male": 1})


@pytest.mark.parametrize("recipe", ["munit", "stargan", "a", "c", "d", "e"])
def test_other_recipes_translate(recipe):
    model = Translator(tiny_model(recipe), device="cpu")
    outputs = [model.translate(picture(), domain) for domain in model.domains]
    assert len({output.tobytes() for output in outputs}) == 3
    varied = model.translate(picture(), "cat", seed=[1, 2])
    assert (varied[0] != varied[1]) == model.model.diverse


@pytest.mark.parametrize("recipe", ["drit", "msgan"])
def test_pairs_with_attributes_translate_by_seeds_and_references(recipe):
    """A source is encoded as an image of the other domain."""
    model = Translator(tiny_model(recipe, ["bear", "cat"]), device="cpu")
    one, two = model.translate(picture(), "cat", seed=[1, 2])
    by_reference = model.translate(picture(), "cat", reference=picture(seed=1))
    other = model.translate(picture(), "bear", seed=1)
    assert len({output.tobytes() for output in (one, two, by_reference, other)}) == 4
    networks, x = model.model.networks, torch.rand(1, 3, 32, 32) * 2 - 1
    y = torch.tensor([1])
    vector = model.model.condition_on_references(x, y)
    mean = networks["E"](x, y)[:, :4]
    assert torch.equal(vector, torch.cat([torch.eye(2)[y], mean], 1))
    known = networks["G"].decode(networks["G"].encode(x, None, 1 - y), vector)
    assert torch.allclose(model.model.translate(x, vector), known, atol=1e-6)


@pytest.mark.parametrize(("options", "message"), [
    ({"domain": "owl"}, "'owl' is not a domain of this model: name a domain of bear, cat, fox"),
    ({}, "^name a domain of bear, cat, fox"),
    ({"domain": "cat", "seed": 1, "style": torch.zeros(6)}, "one guide"),
    ({"domain": "cat", "seed": []}, "seed: name at least one"),
    ({"domain": "cat", "seed": [0, -1]}, "seed: -1 is negative: name 0 or more"),
    ({"domain": "cat", "fit": "zoom"}, "'zoom' is not one of crop, pad, stretch"),
    ({"domain": "cat", "attributes": {"a": 1}}, "not both"),
    ({"attributes": {"a": 1}}, "the labels are domains: name one of bear, cat, fox"),
    ({"domain": "cat", "style": torch.zeros(5)}, "style: codes of this model have length 6"),
])  # fmt: skip
def test_wrong_options_are_explained(translator, options, message):
    with pytest.raises(UserError, match=message):
        translator.translate(picture(), **options)


@pytest.mark.parametrize(("images", "message"), [
    ([], "there are no pictures"),
    (7, "int is not a picture"),
    ([3.5], "float is not a picture"),
    ("missing.png", r"cannot read the image missing\.png"),
    (np.zeros((4, 4, 4), np.uint8), r"shape \(4, 4, 4\)"),
    (np.zeros((4, 4, 3)), "type float64"),
    (torch.zeros(4, 4, 3), r"shape \(4, 4, 3\)"),
    (np.zeros((0, 4, 3), np.uint8), r"shape \(0, 4, 3\)"),
    (torch.full((3, 4, 4), torch.nan), "not finite"),
    (Image.new("I", (4, 4)), "32 bits"),
])  # fmt: skip
def test_what_is_not_a_picture_is_explained(translator, images, message):
    with pytest.raises(UserError, match=message):
        translator.translate(images, "cat")


def test_models_without_styles_say_so():
    model = Translator(tiny_model("stargan"), device="cpu")
    for call in (lambda: model.styles(1, "cat"),
                 lambda: model.translate(picture(), "cat", strength=0.5),
                 lambda: model.translate(picture(), "cat", style=torch.zeros(6))):  # fmt: skip
        with pytest.raises(UserError, match="have no styles"):
            call()
    with pytest.raises(UserError, match="take none"):
        model.translate(picture(), "cat", reference=picture())


def test_a_strength_that_is_no_number_is_refused(translator):
    with pytest.raises(UserError, match="strength: nan is not a finite number"):
        translator.translate(picture(), "cat", strength=float("nan"))


def test_high_pass_models_need_a_landmark_network(tmp_path):
    model, path = tiny_model(w_hpf=1.0), str(tmp_path / "landmarks.safetensors")
    without = replace(model, landmarks=None)
    with pytest.raises(UserError, match="landmark network, and has none: name one"):
        Translator(without)
    folder.write(str(tmp_path / "model"), without.without("D"), "")
    landmarks.write(path, model.landmarks)
    named = Translator.from_pretrained(str(tmp_path / "model"), landmarks=path)
    outputs = [t.translate(picture(), "fox", seed=[1, 2]) for t in (named, Translator(model))]
    assert [[o.tobytes() for o in each] for each in outputs[:1]] == [
        [o.tobytes() for o in outputs[1]]
    ]


def test_other_models_take_no_landmark_network(tmp_path):
    folder.write(str(tmp_path / "model"), tiny_model().without("D"), "")
    landmarks.write(str(tmp_path / "l.safetensors"), tiny_landmarks())
    with pytest.raises(UserError, match=r"--landmarks: .*model was trained without the high-pass"):
        Translator.from_pretrained(
            str(tmp_path / "model"), landmarks=str(tmp_path / "l.safetensors")
        )


def test_huge_pictures_are_refused_before_they_are_decoded(translator, tmp_path, monkeypatch):
    picture().save(tmp_path / "a.png")
    monkeypatch.setattr("stargan_dist.data.transforms.MAX_PIXELS", 1000)
    with pytest.raises(UserError, match="are more than 1000"):
        translator.translate(tmp_path / "a.png", "cat")
    assert module.MEAN_LATENTS >= 100
