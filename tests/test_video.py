"""Command line of videos."""

import sys
from fractions import Fraction

import pytest
import torch

from stargan_dist import Translator
from stargan_dist.inference import videos
from stargan_dist.models import folder
from tests.conftest import here
from tests.helpers.models import tiny_model
from tests.helpers.pictures import picture, shape_and_duration
from tests.inference.test_examples import model_of


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("video")
    folder.write(str(place / "model"), tiny_model(), "")
    for i in range(3):
        picture(40, 50, seed=i).save(place / f"{i}.png")
    return place


def run(place, name, *options, code=0):
    model, source = place / "model", place / "0.png"
    return here("video", model, place / name, "--sources", source, *options, code=code)


CAT, FOX = "cat", "fox"


@pytest.mark.parametrize(("options", "keyframes"), [
    ((CAT,), [(CAT, 0), (CAT, 1), (CAT, 2), (CAT, 3)]),
    ((CAT, FOX, CAT), [(CAT, 0), (FOX, 0), (CAT, 0)]),
    ((CAT, "--seeds", "7", "8"), [(CAT, 7), (CAT, 8)]),
    ((CAT, FOX, "--seeds", "7"), [(CAT, 7), (FOX, 7)]),
    ((CAT, FOX, CAT, "--seeds", "7", "8", "9"), [(CAT, 7), (FOX, 8), (CAT, 9)]),
    ((CAT, FOX, "--references", "1.png"), [(CAT, "1.png"), (FOX, "1.png")]),
    ((CAT, FOX, "--references", "1.png", "2.png"), [(CAT, "1.png"), (FOX, "2.png")]),
])  # fmt: skip
def test_keyframes_are_pairs_of_a_domain_and_a_guide(place, monkeypatch, options, keyframes):
    rendered = []
    original = videos.render
    monkeypatch.setattr(
        videos, "render", lambda *args, **kw: rendered.append(args[2]) or original(*args, **kw)
    )
    words = [str(place / word) if word.endswith(".png") else word for word in options]
    done = run(place, "a.webp", "--frames", "1", "--domain", *words)
    assert f"a.webp: {len(keyframes)} frames" in done.stdout
    assert shape_and_duration(place / "a.webp") == ((32, 64), len(keyframes) * 40)
    translator = Translator.from_pretrained(str(place / "model"), device="cpu")
    expected = [
        translator.conditioning(domain, reference=[str(place / guide)])
        if isinstance(guide, str)
        else translator.conditioning(domain, seed=[guide])
        for domain, guide in keyframes
    ]
    assert torch.equal(rendered[0], torch.cat(expected))


def test_keyframes_of_attributes(place):
    model = tiny_model("stargan", ("Male", "Young"), binary=True)
    folder.write(str(place / "attributes"), model, "")
    done = here(
        "video", place / "attributes", place / "f.webp", "--sources", place / "0.png",
        "--frames", "2", "--attributes", "Male", "--attributes", "Male=0", "Young=1",
        "--attributes", "Male=1",
    )  # fmt: skip
    assert "f.webp: 5 frames" in done.stdout
    unknown = here(
        "video", place / "attributes", place / "g.webp", "--sources", place / "0.png",
        "--attributes", "Owl", "--attributes", "Male", code=2,
    )  # fmt: skip
    assert "Owl" in unknown.stderr and "Traceback" not in unknown.stderr


def test_validation_images_stand_for_sources(place, shards, monkeypatch):
    def opened(model, *args, **kwargs):
        return model_of(shards if model == "run" else place / "moved" if model == "moved" else "")

    monkeypatch.setattr("stargan_dist.models.opening.open_model", opened)
    options = (place / "run.webp", "--domain", "cat", "--frames", "1")
    here("video", "run", *options)
    assert shape_and_duration(place / "run.webp") == ((6 * 32, 64), 4 * 40)
    refused = here("video", "moved", *options, code=2)
    assert "error: --sources: name pictures, as validation images cannot be" in refused.stderr
    refused = here("video", "model", *options, code=2)
    assert "error: --sources: name pictures, as this model has no data of its" in refused.stderr


def test_references_in_the_layout_of_the_authors(place):
    references = (place / "1.png", place / "2.png")
    done = run(place, "b.webp", "--domain", "cat", "--references", *references,
               "--layout", "authors")  # fmt: skip
    assert "41 frames, 3.3 s" in done.stdout
    assert shape_and_duration(place / "b.webp") == ((32 + 32 + 32, 64), 41 * 80)


@pytest.mark.parametrize(("options", "message"), [
    (("--domain", "owl"), "'owl' is not a domain"),
    (("--domain", "cat", "fox", "bear", "--references", "1.png", "2.png"), "3 targets and 2"),
    (("--domain", "cat", "fox", "--seeds", "0", "1", "2"), "2 targets and 3"),
    (("--domain", "cat", "--seeds", "0", "--loop"), "one keyframe does not move"),
    (("--domain", "cat", "--seeds", "0", "-1"), "--seeds: -1 must be at least 0"),
    (("--domain", "cat", "fox", "--references", "1.png", "2.png", "--layout", "authors"),
     "two of one domain"),
    (("--domain", "cat", "--layout", "authors"), "needs --domain and --references"),
    (("--attributes", "Male=1", "--seeds", "0", "1"), "the labels are domains"),
    (("--domain", "cat", "--references", "1.png", "2.png", "--layout", "authors", "--loop"),
     "drop --loop"),
    (("--domain", "cat", "--frames", "0"), "--frames"),
    (("--domain", "cat", "--references", "missing.png"), "missing.png"),
])  # fmt: skip
def test_user_errors_are_explained(place, options, message):
    words = [str(place / word) if word in ("1.png", "2.png") else word for word in options]
    refused = run(place, "c.webp", *words, code=2)
    assert message in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (place / "c.webp").exists()


def test_a_frame_has_as_many_sources_as_its_format_allows(place):
    picture().save(place / "p.png")
    refused = here(
        "video", place / "model", place / "e.webp", "--domain", "cat", "--frames", "1",
        "--sources", *[place / "p.png"] * 512, code=2,
    )  # fmt: skip
    assert "e.webp: frames of 16384 × 64 pixels are too large" in refused.stderr


@pytest.mark.parametrize("text", [
    "abc", "nan", "inf", "0", "0/1", "1/0", "-5", "0.999", "241", "1e-9", "1e1", "1/1000000007",
    "29.9701", "30000/01001", " 25", "٢٥", "",
])  # fmt: skip
def test_frame_rates_are_parsed_strictly(text):
    refused = here("video", "model", "a.webp", "--domain", "cat", f"--fps={text}", code=2)
    last = refused.stderr.splitlines()[-1]
    assert f"argument --fps: {text!r}: write a number from 1 to 240" in last


@pytest.mark.parametrize("text", ["29.97", "30000/1001", "12.5", "240", "1"])
def test_frame_rates_are_numbers_or_ratios(place, text):
    run(place, "fps.webp", "--domain", "cat", "--frames", "1", "--fps", text)
    assert shape_and_duration(place / "fps.webp") == ((32, 64), round(4000 / Fraction(text)))


def test_mp4_without_its_package_names_the_extra(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    refused = run(place, "d.mp4", "--domain", "cat", code=2)
    assert "pip install 'stargan_dist[video]', or write a .webp" in refused.stderr
