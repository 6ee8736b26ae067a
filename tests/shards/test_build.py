import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from PIL import Image

from stargan_dist import storage
from stargan_dist.config import StorageConfig
from stargan_dist.data.index import read_index, read_sample_table
from stargan_dist.errors import UserError
from stargan_dist.shards import pack as packing
from stargan_dist.shards import publish
from stargan_dist.shards.build import build
from stargan_dist.shards.pack import Encoding
from stargan_dist.shards.publish import BuildPart, merge, merge_if_last
from stargan_dist.shards.verify import verify
from tests.conftest import digest


def samples(url, split="train"):
    """Return the samples of a split as WebDataset reads them: domain -> samples."""
    return {
        domain: [
            sample
            for shard in shards
            for sample in wds.WebDataset(f"{url}/{shard.name}", shardshuffle=False).decode()
        ]
        for domain, shards in read_index(url).splits[split].items()
    }


def noise(seed=0, size=(16, 16)):
    pixels = np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def folder(tmp_path):
    """Two domains of three noise images each."""
    source = tmp_path / "images"
    for domain in ("b c", "a.é"):
        (source / domain).mkdir(parents=True)
        for i in range(3):
            noise(i).save(source / domain / f"x.y {i}.png")
    return source


@pytest.fixture
def dest(tmp_path):
    return str(tmp_path / "set")


def test_webdataset_reads_the_shards(shards, animals):
    index = read_index(shards)
    for domain, domain_shards in index.splits["train"].items():
        assert len(domain_shards) > 1
        for shard in domain_shards:
            path = f"{shards}/{shard.name}"
            data = Path(path).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (shard.bytes, shard.sha256)
            found = list(wds.WebDataset(path, shardshuffle=False).decode("pil"))
            offsets, crc32 = read_sample_table(shards, shard)
            assert len(found) == shard.samples == len(offsets) - 1 == len(crc32)
            for sample in found:
                assert sample["json"]["domain"] == domain
                assert sample["png"].size == Image.open(animals / sample["json"]["path"]).size


def test_every_image_is_packed_once_with_a_unique_key(shards, animals):
    found = [s for split in ("train", "val") for d in samples(shards, split).values() for s in d]
    paths = sorted(sample["json"]["path"] for sample in found)
    assert paths == sorted(str(p.relative_to(animals)) for p in animals.rglob("*.png"))
    assert len({sample["__key__"] for sample in found}) == len(found)


def test_the_same_images_give_the_same_bytes_for_any_number_of_processes(animals, shards, tmp_path):
    build(str(animals), str(tmp_path / "two"), val_fraction=0.25, shard_images=4, num_processes=2)
    assert digest(tmp_path / "two") == digest(shards)


def test_merged_parts_equal_a_single_build(animals, shards, tmp_path):
    url = str(tmp_path / "parts")
    for number in (3, 1, 2):
        build(str(animals), url, val_fraction=0.25, shard_images=4, part=BuildPart(number, 3))
        assert not (tmp_path / "parts" / "index.json").exists()
    merge(url)
    assert digest(url) == digest(shards)


@pytest.mark.parametrize("published", [True, False])
def test_two_parts_may_end_and_merge_at_the_same_time(
    animals, shards, tmp_path, monkeypatch, published
):
    """Both parts found all parts; the other one has removed them, and has published or failed."""
    url = str(tmp_path / "parts")
    for number in (1, 2):
        build(str(animals), url, val_fraction=0.25, shard_images=4, part=BuildPart(number, 2))

    def merge_late(dest):
        if published:
            merge(dest)
        shutil.rmtree(tmp_path / "parts" / "parts", ignore_errors=True)
        return merge(dest)

    monkeypatch.setattr(publish, "merge", merge_late)
    if published:
        assert merge_if_last(url, BuildPart(2, 2)) == read_index(shards)
    else:
        with pytest.raises(UserError, match="holds no parts"):
            merge_if_last(url, BuildPart(2, 2))


def test_missing_parts_and_parts_of_other_builds_are_rejected(folder, dest):
    with pytest.raises(UserError, match="holds no parts"):
        merge(dest)
    build(str(folder), dest, part=BuildPart(2, 3))
    with pytest.raises(UserError, match=r"2 of 3 parts are missing, the first is 1-of-3\.json"):
        merge(dest)
    with pytest.raises(UserError, match=r"holds part 2-of-3\.json of another build"):
        build(str(folder), dest, part=BuildPart(3, 3), shard_images=1)
    build(str(folder), dest, part=BuildPart(1, 2))
    with pytest.raises(UserError, match="parts of several builds"):
        merge(dest)
    assert not (Path(dest) / "index.json").exists()


def test_a_shard_replaced_after_its_part_was_built_is_rejected(folder, dest):
    """Another build, which did not see the parts, packed one of their shards again."""
    for number in (1, 2):
        build(str(folder), dest, part=BuildPart(number, 2), val_fraction=0)
    parts = {path: path.read_bytes() for path in (Path(dest) / "parts").iterdir()}
    shutil.rmtree(Path(dest) / "parts")
    build(str(folder), dest, part=BuildPart(1, 2), val_fraction=0, encoding=Encoding(size=8))
    for path, data in parts.items():
        path.write_bytes(data)
    with pytest.raises(UserError, match="packed again since its part was built"):
        merge(dest)


def test_an_interrupted_build_continues(animals, shards, tmp_path, monkeypatch):
    """A build killed at its third shard does not pack published shards again."""
    url = str(tmp_path / "set")

    def kill_at_third(tar, offsets, calls=[]):  # noqa: B006 - counts the calls
        calls.append(tar)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return checksums(tar, offsets)

    checksums = packing._checksums
    monkeypatch.setattr(packing, "_checksums", kill_at_third)
    with pytest.raises(KeyboardInterrupt):
        build(str(animals), url, val_fraction=0.25, shard_images=4)
    before = {f: f.stat().st_mtime_ns for f in Path(url).rglob("*.tar")}
    assert len(before) == 2

    monkeypatch.setattr(packing, "_checksums", checksums)
    build(str(animals), url, val_fraction=0.25, shard_images=4)
    assert {f: f.stat().st_mtime_ns for f in before} == before
    assert digest(url) == digest(shards)


def test_other_options_pack_all_shards_again(animals, shards, dest):
    build(str(animals), dest, val_fraction=0.25, shard_images=4, encoding=Encoding(size=16))
    storage.remove_file(f"{dest}/index.json")
    build(str(animals), dest, val_fraction=0.25, shard_images=4)
    assert digest(dest) == digest(shards)


def test_an_interrupted_command_continues_when_run_again(tmp_path, animals, shards):
    """The command runs two processes and receives SIGINT once the first shard exists."""
    command = [
        sys.executable, "-m", "stargan_dist.shards", "build", str(animals), str(tmp_path / "set"),
        "--val-fraction", "0.25", "--shard-images", "4", "--processes", "2",
    ]  # fmt: skip
    # Background processes may have been started with SIGINT ignored.
    interruptible = ["env", "--default-signal=INT", *command]
    process = subprocess.Popen(interruptible, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.rglob("*.tar")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in err
    subprocess.run(command, check=True, capture_output=True)
    assert digest(tmp_path / "set") == digest(shards)


def test_unusual_names_are_kept(folder, dest):
    build(str(folder), dest, val_fraction=0.34)
    index = read_index(dest)
    assert index.domains == ["a.é", "b c"]
    assert index.counts("train") == ((2,), (2,))
    for found in samples(dest).values():
        assert len(found) == 2
        assert all(set(s) >= {"png", "json"} for s in found)


def test_split_folders_are_kept(folder, dest, tmp_path):
    source = tmp_path / "split"
    shutil.copytree(folder, source / "train")
    shutil.copytree(folder, source / "val")
    index = build(str(source), dest)
    assert index.domains == ["a.é", "b c"]
    assert index.counts("train") == index.counts("val") == ((3,), (3,))


def test_attributes_of_a_manifest_are_kept_beside_each_image(folder, dest):
    rows = [
        "path,domain,split,smiling",
        "a.é/x.y 0.png,one,train,-1",
        f"{folder}/b c/x.y 1.png,two,train,1",
    ]
    (folder / "list.csv").write_text("\n".join(rows), encoding="utf-8")
    build(str(folder / "list.csv"), dest)
    found = samples(dest)
    assert found["one"][0]["json"] == {
        "domain": "one", "label": 0, "path": "a.é/x.y 0.png", "attributes": {"smiling": -1},
    }  # fmt: skip
    assert found["two"][0]["json"]["attributes"] == {"smiling": 1}
    assert found["two"][0]["png"] == (folder / "b c" / "x.y 1.png").read_bytes()


def test_the_index_holds_image_sizes_and_the_encoding(folder, dest):
    noise(size=(20, 30)).save(folder / "b c" / "x.y 1.png")
    index = build(str(folder), dest, val_fraction=0)
    (shard,) = index.splits["train"]["b c"]
    assert (shard.widths, shard.heights) == ([16, 20], [16, 30])
    assert index.encoding is None
    encoded = build(str(folder), dest + "2", encoding=Encoding(size=8), val_fraction=0)
    (shard,) = encoded.splits["train"]["b c"]
    assert (shard.widths, shard.heights) == ([8, 8], [8, 12])
    assert read_index(dest + "2").encoding == {
        "size": 8, "crop": 0, "format": "jpeg", "quality": 92,
    }  # fmt: skip


@pytest.mark.parametrize("form", ["jpeg", "png", "webp"])
def test_images_are_re_encoded(folder, dest, form):
    build(str(folder), dest, encoding=Encoding(size=8, crop=12, format=form), val_fraction=0)
    for found in samples(dest).values():
        for sample in found:
            image = Image.open(io.BytesIO(sample[form]))
            assert (image.format, image.size) == (form.upper(), (8, 8))


@pytest.mark.parametrize("protocol", ["memory", "s3"])
def test_sources_and_datasets_may_be_urls(folder, shards, animals, request, protocol):
    base = "memory://built" if protocol == "memory" else request.getfixturevalue("s3")
    for path in animals.rglob("*.png"):
        storage.write_bytes(f"{base}/images/{path.relative_to(animals)}", path.read_bytes())
    index = build(f"{base}/images", f"{base}/set", val_fraction=0.25, shard_images=4)
    assert index.fingerprint == read_index(f"{base}/set").fingerprint
    assert index.fingerprint == read_index(shards).fingerprint
    storage.remove_folder(f"{base}/set")


def test_a_manifest_may_be_on_a_web_server(folder, dest, http):
    for domain in ("a.é", "b c"):
        shutil.copytree(folder / domain, http.folder / "images" / domain)
    rows = ["path,domain", "images/a.é/x.y 0.png,one", f"{http.url}/images/b%20c/x.y%201.png,two"]
    (http.folder / "list.csv").write_text("\n".join(rows), encoding="utf-8")
    build(f"{http.url}/list.csv", dest, val_fraction=0)
    found = samples(dest)
    assert found["one"][0]["png"] == (folder / "a.é" / "x.y 0.png").read_bytes()
    assert found["two"][0]["png"] == (folder / "b c" / "x.y 1.png").read_bytes()


def test_a_temporary_failure_of_the_source_skips_no_image(folder, dest, http):
    """A failure of the server is not a fault of an image, so --skip-bad does not apply."""
    storage.configure(StorageConfig(tries=2, wait_seconds=0.0))
    shutil.copytree(folder / "b c", http.folder / "b")
    rows = ["path,domain", *(f"b/x.y%20{i}.png,{'ab'[i % 2]}" for i in range(3))]
    (http.folder / "list.csv").write_text("\n".join(rows), encoding="utf-8")
    http.faults["b/"] = ["500"] * 8
    with pytest.raises(UserError, match=r"cannot pack .*500.*run the same command again"):
        build(f"{http.url}/list.csv", dest, val_fraction=0, skip_bad=True)
    http.faults.clear()
    index = build(f"{http.url}/list.csv", dest, val_fraction=0, skip_bad=True)
    assert (index.counts("train"), index.skipped) == (((2,), (1,)), [])


# Bad input.


def gif(frames):
    buffer = io.BytesIO()
    noise(0).save(buffer, "GIF", save_all=True, append_images=[noise(i) for i in range(1, frames)])
    return buffer.getvalue()


def png_header(width, height):
    """Return a PNG whose header claims a size and whose pixels are missing."""
    buffer = io.BytesIO()
    noise().save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def encode(image, kind, cut=None):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()[:cut]


BAD = {
    "not an image": ("b c/bad.jpg", b"\xff\xd8 not a jpeg", "b c/bad.jpg: "),
    "no bytes": ("b c/zero.png", b"", "b c/zero.png: "),
    "truncated": ("b c/cut.png", encode(noise(), "PNG", 200), "b c/cut.png: "),
    "gigapixel": ("b c/big.png", png_header(40000, 40000), "40000 × 40000 pixels"),
    "animated": ("b c/moving.gif", gif(3), "animated"),
    "float": ("b c/f.tiff", encode(noise().convert("F"), "TIFF"), "b c/f.tiff: "),
    "stray": ("notes.txt", b"hello", "notes.txt: a stray file"),
    "stray in a domain": ("b c/notes.txt", b"hello", "b c/notes.txt: not an image file"),
    "empty domain": ("nothing/", b"", "nothing: the domain has no images"),
}


def spoil(folder, fault):
    """Add a bad file and return the text that its fault must contain."""
    name, data, text = BAD[fault]
    if name.endswith("/"):
        (folder / name).mkdir()
    else:
        (folder / name).write_bytes(data)
    return text


@pytest.mark.parametrize("fault", BAD)
def test_faults_stop_the_build_before_publication(folder, dest, fault):
    text = spoil(folder, fault)
    with pytest.raises(UserError, match=r"1 fault in .*nothing was published") as raised:
        build(str(folder), dest)
    assert text in str(raised.value)
    assert not (Path(dest) / "index.json").exists()


@pytest.mark.parametrize("fault", BAD)
def test_faults_can_be_left_out_and_are_listed(folder, dest, fault):
    text = spoil(folder, fault)
    build(str(folder), dest, val_fraction=0, skip_bad=True)
    index = read_index(dest)
    assert index.domains == ["a.é", "b c"]
    assert index.counts("train") == ((3,), (3,))
    assert [text in fault for fault in index.skipped] == [True]


def test_a_missing_image_is_reported(folder, dest):
    rows = ["path,domain", "a.é/x.y 0.png,a", "b c/missing.png,b", "b c/x.y 0.png,b"]
    (folder / "list.csv").write_text("\n".join(rows), encoding="utf-8")
    with pytest.raises(UserError, match=r"b c/missing\.png: .*No such file"):
        build(str(folder / "list.csv"), dest)


def test_changed_images_under_the_same_names_are_packed_again(folder, dest):
    """Both after an interrupted build and after the index was removed."""
    build(str(folder), dest, part=BuildPart(1, 2), val_fraction=0)
    build(str(folder), dest, part=BuildPart(2, 2), val_fraction=0)
    shutil.rmtree(Path(dest) / "parts")  # all are packed, nothing is published
    changed = folder / "b c" / "x.y 1.png"
    noise(11).save(changed)
    os.utime(changed, (1, 1))
    for _ in range(2):
        build(str(folder), dest, val_fraction=0)
        found = {s["json"]["path"]: s["png"] for s in samples(dest)["b c"]}
        assert found["b c/x.y 1.png"] == changed.read_bytes()
        storage.remove_file(f"{dest}/index.json")
        noise(12).save(changed)


def test_a_kill_between_tar_and_sample_index_leaves_no_mismatch(folder, dest, monkeypatch):
    """A build with other options replaced a tar and died; then the first build continues."""
    build(str(folder), dest, part=BuildPart(1, 2), val_fraction=0)
    shutil.rmtree(Path(dest) / "parts")

    def kill(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(packing, "_write_json", kill)
    with pytest.raises(KeyboardInterrupt):
        build(str(folder), dest, val_fraction=0, encoding=Encoding(size=8))
    monkeypatch.undo()
    build(str(folder), dest, val_fraction=0)
    assert verify(dest) == []


def test_a_build_that_stopped_at_faults_continues_after_their_repair(folder, dest):
    spoil(folder, "truncated")
    with pytest.raises(UserError):
        build(str(folder), dest, shard_images=1, val_fraction=0)
    noise(9).save(folder / "b c" / "cut.png")
    assert build(str(folder), dest, shard_images=1, val_fraction=0).counts("train") == (
        (1, 1, 1), (1, 1, 1, 1),
    )  # fmt: skip


def test_faults_of_skipped_images_survive_an_interruption(folder, dest):
    spoil(folder, "truncated")
    build(str(folder), dest, skip_bad=True)
    before = digest(dest)
    storage.remove_file(f"{dest}/index.json")
    build(str(folder), dest, skip_bad=True)
    assert digest(dest) == before
    storage.remove_file(f"{dest}/index.json")
    with pytest.raises(UserError, match=r"cut\.png"):
        build(str(folder), dest)


def test_rotated_photographs_are_measured_upright(folder, dest):
    exif = Image.Exif()
    exif[274] = 6  # rotated by 90 degrees
    (folder / "b c" / "x.y 0.png").unlink()
    for i in range(3):
        noise(size=(20, 10)).save(folder / "b c" / f"{i}.jpg", exif=exif.tobytes())
        (folder / "b c" / f"x.y {i}.png").unlink(missing_ok=True)
    (shard,) = build(str(folder), dest, val_fraction=0).splits["train"]["b c"]
    assert (shard.widths, shard.heights) == ([10, 10], [20, 20])


def test_hidden_files_are_no_faults(folder, dest):
    (folder / ".DS_Store").touch()
    (folder / "b c" / ".DS_Store").touch()
    build(str(folder), dest)


# Destinations.


def test_an_existing_dataset_is_replaced_only_with_overwrite(folder, dest):
    build(str(folder), dest, shard_images=1)
    before = digest(dest)
    with pytest.raises(UserError, match="holds shards already"):
        build(str(folder), dest)
    assert digest(dest) == before
    with pytest.raises(UserError, match="not a folder"):
        build(str(folder / "nothing"), dest, overwrite=True)
    assert digest(dest) == before
    build(str(folder), dest, overwrite=True)
    build(str(folder), dest + "2")
    assert digest(dest) == digest(dest + "2")


def test_a_destination_that_cannot_be_written_is_rejected(folder, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write to"):
        build(str(folder), str(tmp_path / "file" / "set"))


def test_a_single_domain_is_rejected(folder, dest):
    shutil.rmtree(folder / "b c")
    with pytest.raises(UserError, match="at least two domains"):
        build(str(folder), dest)


# The index.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is invalid: Input data was truncated; restore the file"),
        ('{"version": 99, "other": 1}', "has version 99"),
        ('{"version": 2}', "is invalid: Object missing required field `domains`"),
        ("[]", "is invalid: Expected `object`"),
        ("[" * 10**5, "is invalid: "),
    ],
)
def test_a_bad_index_is_rejected(tmp_path, text, message):
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_index(str(tmp_path))


def test_the_error_for_missing_shards_names_the_build_command(tmp_path):
    with pytest.raises(UserError, match=r"stargan_dist\.shards build"):
        read_index(str(tmp_path))


def test_the_fingerprint_depends_on_the_samples_and_not_on_their_location(folder, dest, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    one, two = build(str(folder), dest), build(str(tmp_path / "copy"), dest + "2")
    assert one.fingerprint == two.fingerprint
    noise(7).save(folder / "b c" / "x.y 1.png")
    assert build(str(folder), dest + "3").fingerprint != one.fingerprint


def test_the_index_is_readable_json(dest, folder):
    build(str(folder), dest)
    text = Path(dest, "index.json").read_text(encoding="utf-8")
    assert json.loads(text)["domains"] == ["a.é", "b c"]
    assert "a.é" in text
