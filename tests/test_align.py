"""Alignment of photographs: stable files, shared by processes, resumable."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from stargan_dist import storage
from stargan_dist.faces import folder
from stargan_dist.models import landmarks
from tests.conftest import digest, here
from tests.helpers.landmarks import FACE, REFERENCE, centres, dot_finder, photograph, placed

ROTATE_90 = 6  # EXIF: the upright picture is this one, rotated clockwise


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with photographs, a landmark network and a reference."""
    place = tmp_path_factory.mktemp("align")
    photos = place / "photos"
    (photos / "more").mkdir(parents=True)
    photograph(300, 200, placed(180, 90, 120, 30)).save(photos / "a.png")
    face = photograph(200, 260, placed(100, 120, 150, -20))
    face.putalpha(255)
    face.save(photos / "more" / "b.webp", lossless=True)
    sideways = photograph(256, 256, placed(128, 128, 200, 0)).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = ROTATE_90
    sideways.save(photos / "c.jpg", exif=exif, quality=95)
    landmarks.write(str(place / "dots.safetensors"), dot_finder())
    np.savez(place / "mean.npz", mean=REFERENCE)
    return place


def options(place, **changes):
    """Return the options of the command."""
    default = {"landmarks": place / "dots.safetensors", "reference": place / "mean.npz",
               "face": json.dumps(FACE), "size": 64, "workers": 1}  # fmt: skip
    return [word for name, value in (default | changes).items() for word in (f"--{name}", value)]


def align(place, out, *, photos="", code=0, **changes):
    photos = photos or place / "photos"
    return here("align", photos, out, *options(place, **changes), code=code)


@pytest.fixture(scope="module")
def aligned(place):
    done = align(place, place / "out")
    assert done.stdout == f"3 of 3 pictures, in {place}/out\n"
    return place / "out"


def test_faces_come_back_whatever_the_kind_of_picture(aligned):
    for name in ("a", "more/b", "c"):
        image = Image.open(aligned / f"{name}.png")
        assert (image.size, image.mode) == ((64, 64), "RGB")
        assert np.abs(centres(image) - REFERENCE).max() < 256 / 64 / 2, name


def test_the_table_lists_all(aligned, place):
    table = [json.loads(line) for line in (aligned / "index.jsonl").read_text().splitlines()]
    photos = place / "photos"
    assert table == [
        {"file": "a.png", "source": f"{photos}/a.png"},
        {"file": "c.png", "source": f"{photos}/c.jpg"},
        {"file": "more/b.png", "source": f"{photos}/more/b.webp"},
    ]
    files = {line["file"] for line in table}
    assert {*digest(aligned)} == {*files, "index.jsonl", "alignment.json"}


def test_two_processes_write_the_same_files(aligned, place, tmp_path):
    align(place, tmp_path / "out", workers=2)
    assert digest(tmp_path / "out") == digest(aligned)


def test_what_is_there_is_not_made_again(aligned, place, monkeypatch):
    before, made = digest(aligned), []
    original = folder._align
    monkeypatch.setattr(
        folder, "_align", lambda work, source: made.append(source.name) or original(work, source)
    )
    (aligned / "more" / "b.png").unlink()
    align(place, aligned)
    assert made == ["more/b"]
    assert digest(aligned) == before
    align(place, aligned)
    assert made == ["more/b"]


def test_bad_pictures_are_listed_and_tried_again(place, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_bytes(b"text")
    Image.new("RGB", (90, 60), "gray").save(photos / "b.png")
    photograph(200, 200, placed(100, 100, 150, 0)).save(photos / "c.png")
    out = tmp_path / "out"
    first = align(place, out, photos=photos, code=1)
    lines = first.stdout.splitlines()
    assert lines[0] == f"1 of 3 pictures, in {out}"
    assert lines[1].startswith(f"skipped: cannot read the image {photos}/a.jpg: ")
    assert lines[2] == f"skipped: {photos}/b.png: no face is found: landmarks coincide"
    assert len(lines) == 3
    assert {*digest(out)} == {"c.png", "index.jsonl", "alignment.json"}
    assert align(place, out, photos=photos, code=1).stdout == first.stdout
    photograph(90, 60, placed(45, 30, 50, 0)).save(photos / "b.png")
    assert "2 of 3 pictures" in align(place, out, photos=photos, code=1).stdout
    table = (out / "index.jsonl").read_text().splitlines()
    assert [json.loads(line)["file"] for line in table] == ["b.png", "c.png"]


def test_weak_heat_is_no_face(place, tmp_path):
    changes = {"photos": place / "photos" / "a.png", "min-heat": 2}
    done = align(place, tmp_path / "out", code=1, **changes)
    assert "a.png: no face is found: the heat of landmarks is 0.8" in done.stdout
    assert "(--min-heat 2.0)" in done.stdout
    done = align(place, tmp_path / "out", **changes | {"min-heat": 0.5})  # in the same folder
    assert "1 of 1 pictures" in done.stdout


def test_outputs_among_the_photographs_are_not_aligned_again(place, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    photograph(200, 200, placed(100, 100, 150, 0)).save(photos / "a.png")
    for _ in range(2):
        done = align(place, photos / "aligned", photos=photos)
        assert "1 of 1 pictures" in done.stdout
    refused = align(place, photos, photos=photos, code=2)
    assert f"{photos} has no images (.jpg, " in refused.stderr
    assert f"outside {photos}\n" in refused.stderr


def test_files_of_others_are_not_taken_for_outputs(place, tmp_path):
    (tmp_path / "a.png").write_bytes(b"mine")
    refused = align(place, tmp_path, code=2)
    assert f"{tmp_path} has files of the names of the outputs" in refused.stderr
    assert {*digest(tmp_path)} == {"a.png"}


@pytest.mark.parametrize(("change", "differing"), [
    ({"size": 32}, "size"),
    ({"format": "jpg"}, "format"),
    ({"face": json.dumps(FACE | {"scale": [0, 2]})}, "face"),
])  # fmt: skip
def test_other_settings_are_not_mixed(aligned, place, change, differing):
    refused = align(place, aligned, code=2, **change)
    expected = f"aligned pictures with other settings ({differing} differ): name another folder"
    assert expected in refused.stderr


def test_outputs_of_other_photographs_are_not_mixed(place, tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        photograph(200, 200, placed(100, 100, 150, 0)).save(tmp_path / name / "a.png")
    align(place, tmp_path / "out", photos=tmp_path / "first")
    refused = align(place, tmp_path / "out", photos=tmp_path / "second", code=2)
    assert f"has a.png of {tmp_path}/first/a.png, not of {tmp_path}/second/a.png" in refused.stderr


def test_urls_and_a_reference_in_json(aligned, place):
    for path in (place / "photos").rglob("*.*"):
        name = path.relative_to(place / "photos")
        storage.write_bytes(f"memory://photos/{name}", path.read_bytes())
    mean = json.dumps({"mean": REFERENCE.tolist()})
    storage.write_bytes("memory://mean.json", mean.encode())
    network = (place / "dots.safetensors").read_bytes()
    storage.write_bytes("memory://dots.safetensors", network)
    align(place, "memory://out", photos="memory://photos", reference="memory://mean.json",
          landmarks="memory://dots.safetensors")  # fmt: skip
    assert storage.read_bytes("memory://out/more/b.png") == (aligned / "more/b.png").read_bytes()


def test_a_reference_may_be_a_list(aligned, place, tmp_path):
    (tmp_path / "mean.json").write_text(json.dumps(REFERENCE.tolist()))
    align(place, aligned, reference=tmp_path / "mean.json")  # the same settings


def test_shards_can_be_aligned(place, shards, tmp_path):
    done = align(place, tmp_path / "out", photos=shards, code=1)
    assert "0 of 9 pictures" in done.stdout
    assert f"skipped: {shards}: cat/00000000: no face is found" in done.stdout


@pytest.mark.parametrize(("name", "content", "message"), [
    ("x.npz", None, "cannot read"),
    ("x.npz", b"PK\x03\x04damaged", "is not an npz file with an array `mean`"),
    ("x.json", b"text", "is invalid"),
    ("x.json", b"[[1, 2, 3]]", "is invalid"),
    ("x.json", b"[]", "have the shape (L, 2), not (0, 2)"),
    ("x.json", b"[[1, 2], [1e5, 3], [4, 5]]", "are pixels of a frame of 256 px"),
    ("x.json", b"[[1, 2], [2, 3], [4, 5], [6, 6]]", "has 4 landmarks, and"),
    ("x.json", b"[[1, 2], [1, 2], [1, 2]]", "landmarks coincide in the reference"),
])  # fmt: skip
def test_bad_references_are_one_line(place, tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    refused = align(place, tmp_path / "out", reference=tmp_path / name, code=2)
    assert message in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


@pytest.mark.parametrize("arrays", [
    {"median": REFERENCE},
    {"mean": REFERENCE.astype(object)},  # a pickle
    {"mean": np.array(["x"])},
])  # fmt: skip
def test_npz_files_of_others(place, tmp_path, arrays):
    np.savez(tmp_path / "x.npz", **arrays)
    refused = align(place, tmp_path / "out", reference=tmp_path / "x.npz", code=2)
    assert "is not an npz file with an array `mean`" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


@pytest.mark.parametrize(("changes", "message"), [
    ({"photos": "missing"}, "missing: no such file"),
    ({"landmarks": "missing"}, "cannot read missing"),
    ({"size": 5}, "argument --size: 5 must be at least 16 and at most 4096"),
    ({"workers": 0}, "argument --workers: 0 must be at least 1"),
    ({"min-heat": "x"}, "argument --min-heat: invalid float value: 'x'"),
    ({"face": ""}, "the reference has 3 landmarks, not the 98 of WFLW: name those of eyes"),
    ({"face": "{}"}, "--face is invalid: Object missing required field `left_eye`"),
    ({"face": '{"left_eye": [0], "right_eye": [3], "mouth": [2]}'}, "from 0 to 2"),
    ({"face": '{"left_eye": [], "right_eye": [1], "mouth": [2]}'}, "from 0 to 2"),
])  # fmt: skip
def test_user_errors_are_one_line(place, tmp_path, changes, message):
    refused = align(place, tmp_path / "out", code=2, **changes)
    assert message in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_a_folder_that_cannot_be_written(place):
    assert "cannot write to /proc/out" in align(place, "/proc/out", code=2).stderr


def test_without_opencv_the_remedy_is_one_line(place, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    refused = align(place, tmp_path / "out", code=2)
    assert refused.stderr == (
        "error: alignment needs a package: pip install 'stargan_dist[faces]'\n"
    )
