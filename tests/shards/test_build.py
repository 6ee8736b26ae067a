import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from PIL import Image

from stargan_dist import storage
from stargan_dist.errors import UserError
from stargan_dist.shards.build import build
from stargan_dist.shards.index import read_index, read_offsets


def digest(folder):
    return {
        str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in sorted(Path(folder).rglob("*")) if f.is_file()
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """Two domains of three noise images each."""
    source = tmp_path / "images"
    for domain in ("b c", "a.é"):
        (source / domain).mkdir(parents=True)
        for i in range(3):
            pixels = np.random.default_rng(i).integers(0, 255, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(source / domain / f"x.y {i}.png")
    return source


def test_webdataset_reads_the_shards(shards, animals):
    index = read_index(shards)
    for domain, rows in index.splits["train"].items():
        assert len(rows) > 1
        for shard in rows:
            path = f"{shards}/{shard.name}"
            data = Path(path).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (shard.bytes, shard.sha256)
            samples = list(wds.WebDataset(path, shardshuffle=False).decode("pil"))
            assert len(samples) == shard.samples == len(read_offsets(shards, shard.name)) - 1
            for sample in samples:
                assert sample["json"]["domain"] == domain
                assert sample["png"].size == Image.open(animals / sample["json"]["path"]).size


def test_every_image_is_in_one_split_once(shards, animals):
    paths = [
        sample["json"]["path"]
        for split in read_index(shards).splits.values()
        for rows in split.values()
        for shard in rows
        for sample in wds.WebDataset(f"{shards}/{shard.name}", shardshuffle=False).decode()
    ]
    assert sorted(paths) == sorted(str(p.relative_to(animals)) for p in animals.rglob("*.png"))


def test_the_same_images_give_the_same_bytes(animals, shards, tmp_path):
    build(str(animals), str(tmp_path / "again"), val_fraction=0.25, shard_bytes=10_000)
    assert digest(tmp_path / "again") == digest(shards)


def test_odd_names_survive(folder, tmp_path):
    build(str(folder), str(tmp_path / "set"), val_fraction=0.34)
    index = read_index(str(tmp_path / "set"))
    assert index.domains == ["a.é", "b c"]
    assert index.counts("train") == ((2,), (2,))
    for shard in index.splits["train"]["a.é"]:
        samples = list(wds.WebDataset(str(tmp_path / "set" / shard.name), shardshuffle=False))
        assert len(samples) == 2
        assert all(set(s) >= {"png", "json"} for s in samples)


def test_split_folders_are_kept(folder, tmp_path):
    source = tmp_path / "split"
    shutil.copytree(folder, source / "train")
    shutil.copytree(folder, source / "val")
    index = build(str(source), str(tmp_path / "set"))
    assert index.domains == ["a.é", "b c"]
    assert index.counts("train") == index.counts("val") == ((3,), (3,))


def test_memory_urls(folder):
    build(str(folder), "memory://built/set")
    assert read_index("memory://built/set").domains == ["a.é", "b c"]
    storage.remove_folder("memory://built")


def spoil(folder, fault):
    if fault == "unreadable":
        (folder / "b c" / "bad.jpg").write_bytes(b"\xff\xd8 not a jpeg")
        return "b c/bad.jpg"
    if fault == "empty file":
        (folder / "b c" / "zero.png").touch()
        return "b c/zero.png"
    if fault == "stray file":
        (folder / "notes.txt").write_text("hello")
        return "notes.txt: a stray file"
    if fault == "stray in domain":
        (folder / "b c" / "notes.txt").write_text("hello")
        return "b c/notes.txt: not an image file"
    (folder / "nothing").mkdir()
    return "nothing: the domain has no images"


FAULTS = ["unreadable", "empty file", "stray file", "stray in domain", "empty domain"]


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_stop_the_build_before_it_publishes(folder, tmp_path, fault):
    where = spoil(folder, fault)
    with pytest.raises(UserError, match=r"1 faults in .*nothing was published") as caught:
        build(str(folder), str(tmp_path / "set"))
    assert where in str(caught.value)
    assert not (tmp_path / "set" / "index.json").exists()


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_can_be_left_out_and_are_listed(folder, tmp_path, fault):
    where = spoil(folder, fault)
    build(str(folder), str(tmp_path / "set"), val_fraction=0, skip_bad=True)
    index = read_index(str(tmp_path / "set"))
    assert index.domains == ["a.é", "b c"]
    assert index.counts("train") == ((3,), (3,))
    assert [where in fault for fault in index.skipped] == [True]


def test_hidden_files_are_no_faults(folder, tmp_path):
    (folder / ".DS_Store").touch()
    (folder / "b c" / ".DS_Store").touch()
    build(str(folder), str(tmp_path / "set"))


def test_an_existing_set_is_not_overwritten(folder, tmp_path):
    build(str(folder), str(tmp_path / "set"))
    before = digest(tmp_path / "set")
    with pytest.raises(UserError, match="holds shards already"):
        build(str(folder), str(tmp_path / "set"))
    assert digest(tmp_path / "set") == before


def test_one_domain_is_not_enough(folder, tmp_path):
    shutil.rmtree(folder / "b c")
    with pytest.raises(UserError, match="at least two folders"):
        build(str(folder), str(tmp_path / "set"))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "is not an index of shards"),
        ('{"version": 99}', "has version 99"),
        ('{"version": 1}', "is not an index of shards"),
        ("[]", "is not an index of shards"),
    ],
)
def test_a_bad_index_is_one_clear_line(tmp_path, text, complaint):
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(UserError, match=complaint):
        read_index(str(tmp_path))


def test_missing_shards_say_how_to_build_them(tmp_path):
    with pytest.raises(UserError, match=r"stargan_dist\.shards build"):
        read_index(str(tmp_path))


def test_the_command_line(folder, tmp_path):
    command = [
        sys.executable,
        "-m",
        "stargan_dist.shards",
        "build",
        str(folder),
        str(tmp_path / "x"),
    ]
    good, again = (
        subprocess.run(command, capture_output=True, text=True, check=False) for _ in range(2)
    )
    assert good.returncode == 0
    assert "b c" in good.stdout
    assert again.returncode == 2
    assert again.stderr.startswith("error: ")
    assert len(again.stderr.splitlines()) == 1
