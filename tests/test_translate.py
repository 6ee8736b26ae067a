"""Translation of folders: stable files, shared by processes, resumable."""

import json
import os
import subprocess

import numpy as np
import pytest
from PIL import Image

from stargan_dist import Translator
from stargan_dist.models import folder
from tests.conftest import PATIENCE_SECONDS, ROOT, digest, here, launch
from tests.helpers.models import tiny_model

NAMES = [f"photo{i:02d}" for i in range(11)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    url = tmp_path_factory.mktemp("models") / "model"
    folder.write(str(url), tiny_model(), "")
    return url


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Eleven pictures of several sizes; the last two are in a folder of their own."""
    photos = tmp_path_factory.mktemp("photos") / "photos"
    (photos / "more").mkdir(parents=True)
    random = np.random.default_rng(0)
    for i, name in enumerate(NAMES):
        pixels = random.integers(0, 256, (30 + i, 40, 3), np.uint8)
        path = photos / ("more" if i > 8 else "") / f"{name}.png"
        Image.fromarray(pixels).save(path)
    return photos


OPTIONS = ("--domain", "cat", "fox", "--seeds", "0", "5")


@pytest.fixture(scope="module")
def translated(model, photos, tmp_path_factory):
    """The outputs of one process."""
    out = tmp_path_factory.mktemp("out") / "out"
    done = here("translate", model, photos, out, *OPTIONS)
    assert "11 of 11 pictures" in done.stdout
    return out


def test_names_are_stable_and_the_table_lists_all(translated, photos):
    stems = [*NAMES[:9], "more/photo09", "more/photo10"]
    expected = [
        f"{stem}_{d}_seed{s}.png" for stem in sorted(stems) for d in ("cat", "fox") for s in (0, 5)
    ]
    table = [json.loads(line) for line in (translated / "index.jsonl").read_text().splitlines()]
    assert [line["file"] for line in table] == expected
    assert {*digest(translated)} == {*expected, "index.jsonl", "translation.json"}
    assert table[0] == {
        "file": expected[0],
        "source": f"{photos}/{sorted(stems)[0]}.png",
        "target": "cat",
        "guide": "seed0",
    }


def test_outputs_inside_the_sources_are_not_translated_again(model, tmp_path):
    Image.new("RGB", (40, 40), "red").save(tmp_path / "photo.png")
    for _ in range(2):
        done = here("translate", model, tmp_path, tmp_path / "out", "--domain", "cat")
        assert "1 of 1 pictures" in done.stdout


def test_outputs_are_those_of_the_translator(translated, photos, model):
    translator = Translator.from_pretrained(str(model))
    expected = translator.translate(photos / "photo03.png", "fox", seed=5)
    output = Image.open(translated / "photo03_fox_seed5.png")
    difference = np.asarray(output).astype(int) - np.asarray(expected)
    assert np.abs(difference).max() <= 1  # the batch may change the last bits


def test_two_processes_write_the_same_files(translated, photos, model, tmp_path):
    command = [
        *launch(2),
        "-m",
        "stargan_dist.translate",
        model,
        photos,
        tmp_path / "out",
        *OPTIONS,
    ]
    done = subprocess.run(
        [*map(str, command)], cwd=ROOT, capture_output=True, text=True, check=False,
        timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert digest(tmp_path / "out") == digest(translated)
    assert done.stdout.count("11 of 11 pictures") == 1


def test_what_is_there_is_not_made_again(translated, photos, model, tmp_path, monkeypatch):
    out = tmp_path / "out"
    here("translate", model, photos, out, *OPTIONS)
    made = []
    original = Translator.translate_fitted
    monkeypatch.setattr(
        Translator, "translate_fitted", lambda *args: made.append(len(args[1])) or original(*args)
    )
    (out / "photo00_cat_seed0.png").unlink()
    here("translate", model, photos, out, *OPTIONS)
    assert made == [8]  # its chunk
    assert digest(out) == digest(translated)
    here("translate", model, photos, out, *OPTIONS)
    assert made == [8]


@pytest.mark.parametrize(("options", "differing"), [
    (("--domain", "cat", "--seeds", "0", "5"), "domains, guides"),
    ((*OPTIONS, "--strength", "0.5"), "guides, strength"),
    ((*OPTIONS, "--fit", "pad"), "fit"),
])  # fmt: skip
def test_other_settings_are_not_mixed(translated, photos, model, options, differing):
    refused = here("translate", model, photos, translated, *options, code=2)
    assert f"with other settings ({differing} differ): name another folder" in refused.stderr


def test_outputs_of_other_pictures_are_not_mixed(model, tmp_path, monkeypatch):
    first, second, out = (tmp_path / name for name in ("first", "second", "out"))
    for folder_of_one, colour in ((first, "red"), (second, "blue")):
        folder_of_one.mkdir()
        Image.new("RGB", (40, 40), colour).save(folder_of_one / "a.png")
    here("translate", model, first, out, "--domain", "cat")
    refused = here("translate", model, second, out, "--domain", "cat", code=2)
    assert f"{out} has a_cat_seed0.png of {first}/a.png, not of {second}/a.png" in refused.stderr
    monkeypatch.chdir(tmp_path)
    assert "1 of 1 pictures" in here("translate", model, "first", out, "--domain", "cat").stdout


def test_splits_of_shards_are_not_mixed(model, shards, tmp_path):
    here("translate", model, shards, tmp_path, "--domain", "cat")
    refused = here("translate", model, shards, tmp_path, "--domain", "cat", "--split", "train",
                   code=2)  # fmt: skip
    assert "with other settings (split differ): name another folder" in refused.stderr


def test_another_model_is_not_mixed(translated, photos, tmp_path):
    folder.write(str(tmp_path / "model"), tiny_model(seed=1), "")
    refused = here("translate", tmp_path / "model", photos, translated, *OPTIONS, code=2)
    assert "(guides, model differ)" in refused.stderr


def test_bad_pictures_are_listed_and_skipped(model, photos, tmp_path):
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "a.jpg").write_bytes(b"text")
    (sources / "b.jpg").write_bytes(b"")
    (sources / "c.png").write_bytes((photos / "photo00.png").read_bytes())
    out = tmp_path / "out"
    done = here("translate", model, sources, out, "--domain", "cat", "--format", "jpg", code=1)
    lines = done.stdout.splitlines()
    assert lines[0] == f"1 of 3 pictures, in {out}"
    assert [line.partition(": ")[0] for line in lines[1:]] == ["skipped", "skipped"]
    assert "a.jpg" in lines[1]
    assert {*digest(out)} == {"c_cat_seed0.jpg", "index.jsonl", "translation.json"}
    assert here("translate", model, sources, out, "--domain", "cat", "--format", "jpg",
                code=1).stdout == done.stdout  # fmt: skip


def test_a_picture_whose_name_is_not_utf8_is_listed_and_skipped(model, tmp_path):
    sources, out = tmp_path / "sources", tmp_path / "out"
    sources.mkdir()
    for name in (b"a.png", b"\xff.png"):
        Image.new("RGB", (40, 40), "red").save(sources / os.fsdecode(name))
    done = here("translate", model, sources, out, "--domain", "cat", code=1)
    assert "1 of 2 pictures" in done.stdout
    assert r"sources/\udcff.png: its name is not UTF-8: rename it" in done.stdout
    assert {*digest(out)} == {"a_cat_seed0.png", "index.jsonl", "translation.json"}


def test_references_name_the_outputs(model, photos, tmp_path):
    out = tmp_path / "out"
    references = photos / "more"
    here("translate", model, photos / "photo00.png", out, "--domain", "cat",
         "--references", references, "--format", "webp")  # fmt: skip
    names = {f"photo00_cat_photo{i}.webp" for i in ("09", "10")}
    assert names <= {*digest(out)}


def test_sources_with_one_stem_keep_their_suffixes(model, photos, tmp_path):
    sources = tmp_path / "sources"
    sources.mkdir()
    for name in ("a.png", "a.jpg", "b.png"):
        Image.open(photos / "photo00.png").save(sources / name)
    here("translate", model, f"{sources}/*", tmp_path / "out", "--domain", "cat")
    assert {*digest(tmp_path / "out")} - {"index.jsonl", "translation.json"} == {
        "a.png_cat_seed0.png", "a.jpg_cat_seed0.png", "b_cat_seed0.png",
    }  # fmt: skip


def test_shards_and_attributes(shards, tmp_path):
    model = tiny_model("stargan", ["Male", "Young"], binary=True)
    folder.write(str(tmp_path / "model"), model, "")
    out = tmp_path / "out"
    here("translate", tmp_path / "model", shards, out, "--attributes", "Male=1", "Young=0")
    assert "cat/00000000_Male_seed0.png" in digest(out)
    assert len(digest(out)) == 9 + 2


@pytest.mark.parametrize(("arguments", "message"), [
    (("MODEL", "missing", "OUT", "--domain", "cat"), "missing: no such file"),
    (("MODEL", "PHOTOS", "OUT", "--domain", "owl"), "'owl' is not a domain"),
    (("MODEL", "PHOTOS", "OUT", "--domain", "cat", "--seeds", "1", "1"), "two guides"),
    (("MODEL", "PHOTOS/*.gif", "OUT", "--domain", "cat"), "has no images"),
    (("PHOTOS", "PHOTOS", "OUT", "--domain", "cat"), "holds no model"),
    (("MODEL", "PHOTOS", "/proc/out", "--domain", "cat"), "cannot write to /proc/out"),
    (("MODEL", "PHOTOS", "OUT", "--attributes", "Male=1"), "the labels are domains"),
])  # fmt: skip
def test_user_errors_are_one_line(model, photos, tmp_path, arguments, message):
    places = {"MODEL": model, "PHOTOS": photos, "OUT": tmp_path / "out"}
    words = [
        str(places[word]) if word in places else word.replace("PHOTOS", str(photos))
        for word in arguments
    ]
    refused = here("translate", *words, code=2)
    assert message in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
