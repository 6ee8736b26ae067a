"""Command line of videos."""

import sys

import pytest
from PIL import Image

from stargan_dist.models import folder
from tests.conftest import here
from tests.helpers.models import tiny_model
from tests.helpers.pictures import picture


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


def shape_and_duration(path):
    """Return the size in pixels and the duration in ms. Equal frames are stored as one."""
    with Image.open(path) as image:
        milliseconds = 0
        for frame in range(image.n_frames):
            image.seek(frame)
            image.load()
            milliseconds += image.info["duration"]
        return image.size, milliseconds


def test_seeds_of_several_domains(place):
    done = run(place, "a.webp", "--domain", "cat", "fox", "--seeds", "0", "1", "--frames", "2")
    assert "a.webp: 7 frames, 0.3 s" in done.stdout
    assert shape_and_duration(place / "a.webp") == ((32, 64), 7 * 40)


def test_references_in_the_layout_of_the_authors(place):
    references = (place / "1.png", place / "2.png")
    done = run(place, "b.webp", "--domain", "cat", "--references", *references,
               "--layout", "authors")  # fmt: skip
    assert "41 frames, 3.3 s" in done.stdout
    assert shape_and_duration(place / "b.webp") == ((32 + 32 + 32, 64), 41 * 80)


@pytest.mark.parametrize(("options", "message"), [
    (("--domain", "owl"), "'owl' is not a domain"),
    (("--domain", "cat", "fox", "bear", "--references", "1.png", "2.png"), "one for each of the 2"),
    (("--domain", "cat", "fox", "--references", "1.png", "2.png", "--layout", "authors"),
     "two of one domain"),
    (("--domain", "cat", "--layout", "authors"), "needs --references"),
    (("--domain", "cat", "--frames", "0"), "--frames"),
    (("--domain", "cat", "--fps", "0"), "--fps"),
    (("--domain", "cat", "--references", "missing.png"), "missing.png"),
])  # fmt: skip
def test_user_errors_are_explained(place, options, message):
    words = [str(place / word) if word in ("1.png", "2.png") else word for word in options]
    refused = run(place, "c.webp", *words, code=2)
    assert message in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (place / "c.webp").exists()


def test_mp4_without_its_package_names_the_extra(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    refused = run(place, "d.mp4", "--domain", "cat", code=2)
    assert "pip install 'stargan_dist[video]', or write a .webp" in refused.stderr
