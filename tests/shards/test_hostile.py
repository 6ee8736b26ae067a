"""Indexes, parts and records of strangers: nothing outside the destination is touched."""

import json
import shutil
from dataclasses import asdict

import pytest
from PIL import Image

from stargan_dist.data.index import from_json, read_index, read_sample_table, to_json
from stargan_dist.errors import UserError
from stargan_dist.shards import build as building
from stargan_dist.shards.build import build
from stargan_dist.shards.listing import list_source, split_listing
from stargan_dist.shards.pack import read_record, record_url
from stargan_dist.shards.publish import BuildPart, merge
from tests.conftest import digest

NAMES = (
    "../victim.tar", "train/../../victim.tar", "train/../victim.tar", "./victim.tar",
    "/etc/passwd", "{folder}/victim.tar", "train\\0000-a-000000.tar", "..\\victim.tar",
    "train/0000-a-000000.tar\n",
    "train/0000-a-000000.tar\0", "", ".", "..", "train", "train/", "train//0000-a-000000.tar",
    "train/0000-[ab]-000000.tar", "train/*.tar", "train/0000-a-000000.json", "index.json",
    "dev/0000-a-000000.tar", "train/0000-é-000000.tar", "train/٠٠٠٠-a-000000.tar",
    "file:///etc/passwd", "train/0000-a-000000.tar" * 300,
)  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two domains of two images each."""
    folder = tmp_path_factory.mktemp("images")
    for domain in ("a", "b"):
        (folder / domain).mkdir()
        for i in range(2):
            Image.new("RGB", (8, 8), (i, 0, 0)).save(folder / domain / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def built(images, tmp_path_factory):
    dest = tmp_path_factory.mktemp("built") / "set"
    build(str(images), str(dest), val_fraction=0)
    return dest


@pytest.fixture
def dest(built, tmp_path):
    """A copy of the dataset, beside a file that an index may name."""
    (tmp_path / "victim.tar").write_text("precious")
    (tmp_path / "victim.json").write_text("precious")
    return shutil.copytree(built, tmp_path / "set")


def edit(path, change):
    """Change the JSON of a file."""
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))


def first_shard(fields):
    return fields["splits"]["train"]["a"][0]


def refused(function, *args, **options):
    """Return the message of the UserError that a call raises, which must be one line."""
    with pytest.raises(UserError) as caught:
        function(*args, **options)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# Names.


@pytest.mark.parametrize("name", NAMES)
def test_no_file_outside_is_removed_by_an_index_that_names_it(images, dest, name):
    name = name.format(folder=dest.parent)
    edit(dest / "index.json", lambda fields: first_shard(fields).update(name=name))
    before = digest(dest.parent)
    message = refused(build, str(images), str(dest), overwrite=True)
    assert "not of the form SPLIT/NNNN-DOMAIN-NNNNNN.tar" in message
    assert digest(dest.parent) == before


@pytest.mark.parametrize("folder", ["train", "parts", "progress", "progress/train"])
def test_no_file_is_written_or_removed_through_a_link_out_of_the_destination(
    images, dest, folder, tmp_path
):
    outside = tmp_path / "outside"
    shutil.copytree(dest / "train", outside)
    (outside / ".partial-of-someone").touch()
    shutil.rmtree(dest / folder, ignore_errors=True)
    (dest / folder).parent.mkdir(exist_ok=True)
    (dest / folder).symlink_to(outside)
    before = digest(outside)
    for part in (BuildPart(), BuildPart(1, 2)):
        message = refused(build, str(images), str(dest), overwrite=True, part=part)
        assert f"{dest}/{folder} is a link that leads out of {dest}" in message
    assert f"{folder} is a link" in refused(merge, str(dest), overwrite=True)
    assert digest(outside) == before


def test_links_to_a_destination_and_inside_it_are_followed(images, dest, tmp_path):
    (dest / "train").rename(dest / "elsewhere")
    (dest / "train").symlink_to("elsewhere")
    (tmp_path / "link").symlink_to(dest)
    build(str(images), str(tmp_path / "link"), overwrite=True, val_fraction=0)
    assert (dest / "train").is_symlink() and (dest / "elsewhere" / "0000-a-000000.tar").is_file()


def test_a_part_that_names_files_outside_is_not_merged(images, tmp_path):
    dest = str(tmp_path / "set")
    for number in (1, 2):
        build(str(images), dest, val_fraction=0, part=BuildPart(number, 2))

    def rename(fields):
        first_shard(fields["index"])["name"] = "../victim.tar"

    edit(tmp_path / "set" / "parts" / "1-of-2.json", rename)
    assert "names the shard '../victim.tar'" in refused(merge, dest)


@pytest.mark.parametrize("damage", ["name", "other shard", "type", "deep"])
def test_a_record_that_does_not_describe_its_shard_is_ignored(images, built, tmp_path, damage):
    """The record has the right plan, which a stranger can compute."""
    dest = str(tmp_path / "set")
    listing = split_listing(list_source(str(images)), 0, seed=0)
    task = next(building.plan_shards(listing, dest, 1024, None, False))
    shard = asdict(read_index(str(built)).splits["train"]["a"][0])
    record = {"plan": task.plan, "shard": shard}
    path = tmp_path / "set" / "progress" / "train" / "0000-a-000000.json"
    assert record_url(dest, task.name) == str(path)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(record))
    assert read_record(dest, task.name).shard.name == task.name  # the record is used
    changes = {"name": {"name": "../a.tar"}, "other shard": {"name": "train/0001-b-000000.tar"}}
    shard.update(changes.get(damage, {"samples": "2"}))
    path.write_text("[" * 10**5 if damage == "deep" else json.dumps(record))
    build(str(images), dest, val_fraction=0)
    assert digest(dest) == digest(built)


@pytest.mark.parametrize("name", ["1-of-999999999.json", "01-of-2.json", "0-of-1.json"])
def test_a_name_of_a_part_does_not_choose_how_much_is_listed(tmp_path, name):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / name).write_text("{}")
    assert "parts" in refused(merge, str(tmp_path))


@pytest.mark.parametrize("text", ["", "null", "[]", '{"plan": 1, "index": {}}', "[" * 10**5])
def test_a_damaged_part_is_reported(tmp_path, images, text):
    (tmp_path / "set" / "parts").mkdir(parents=True)
    (tmp_path / "set" / "parts" / "1-of-1.json").write_text(text)
    assert "1-of-1.json is invalid" in refused(merge, str(tmp_path / "set"))
    assert "1-of-1.json is invalid" in refused(build, str(images), str(tmp_path / "set"))


def test_parts_with_different_domains_are_not_joined(images, tmp_path):
    for number in (1, 2):
        build(str(images), str(tmp_path / "set"), val_fraction=0, part=BuildPart(number, 2))
    edit(
        tmp_path / "set" / "parts" / "2-of-2.json",
        lambda fields: (fields["index"].pop("sha256"), fields["index"]["splits"]["train"].pop("a")),
    )
    assert "different domains" in refused(merge, str(tmp_path / "set"))


# Types and bounds.


INDEXES = {
    "a number for a name": (lambda f: first_shard(f).update(name=5), "Expected `str`, got `int`"),
    "no sample": (lambda f: first_shard(f).update(samples=0), "Expected `int` >= 1"),
    "too many samples": (lambda f: first_shard(f).update(samples=2**40), "Expected `int` <="),
    "a fraction": (lambda f: first_shard(f).update(samples=1.5), "Expected `int`, got `float`"),
    "negative bytes": (lambda f: first_shard(f).update(bytes=-1), "Expected `int` >= 0"),
    "huge bytes": (lambda f: first_shard(f).update(bytes=10**30), "is invalid"),
    "short hash": (lambda f: first_shard(f).update(sha256="0" * 63), "matching regex"),
    "long hash": (lambda f: first_shard(f).update(sha256="0" * 64 + "\n"), "matching regex"),
    "one width": (lambda f: first_shard(f).update(widths=[8]), "Expected `array` of length"),
    "width 0": (lambda f: first_shard(f).update(widths=[0, 8]), "Expected `int` >= 1"),
    "unknown field": (lambda f: f.update(other=1), "unknown field `other`"),
    "unknown field of a shard": (lambda f: first_shard(f).update(other=1), "unknown field `other`"),
    "domains of other types": (lambda f: f.update(domains=["a", 1]), "Expected `str`, got `int`"),
    "no domains": (lambda f: f.update(domains=[]), "length >= 1"),
    "empty domain": (lambda f: f.update(domains=["a", ""]), "length >= 1"),
    "long domain": (lambda f: f.update(domains=["a" * 5000]), "length <= 4096"),
    "duplicate domains": (lambda f: f.update(domains=["a", "a"]), "names the domain a twice"),
    "duplicate shards": (
        lambda f: f["splits"]["train"]["b"].append(first_shard(f)),
        "names the shard train/0000-a-000000.tar twice",
    ),
    "another split's shard": (
        lambda f: f["splits"].update(val={"a": [first_shard(f)]}, train={}),
        "has the shard train/0000-a-000000.tar in split val",
    ),
    "a split outside": (lambda f: f["splits"].update({"../x": {}}), "Invalid enum value"),
    "skipped numbers": (lambda f: f.update(skipped=[1]), "Expected `str`, got `int`"),
}  # fmt: skip


@pytest.mark.parametrize("damage", INDEXES)
def test_an_index_is_checked_where_it_is_parsed(built, damage):
    change, message = INDEXES[damage]
    fields = json.loads((built / "index.json").read_text())
    change(fields)
    assert message in refused(from_json, "index.json", json.dumps(fields).encode())


def test_all_that_the_builder_writes_is_read(built):
    index = read_index(str(built))
    assert from_json("index.json", to_json(index)) == index


TABLES = {
    "a fraction": ({"offsets": [0, 512.5, 4096]}, "Expected `int`, got `float`"),
    "negative": ({"offsets": [-512, 512, 4096]}, "Expected `int` >= 0"),
    "not from 0": ({"offsets": [512, 1024, 4096]}, "do not ascend from 0"),
    "equal": ({"offsets": [0, 0, 4096]}, "do not ascend from 0"),
    "beyond the end": ({"offsets": [0, 512, 10**9]}, "it ends at byte 1000000000 of"),
    "too few": ({"offsets": [0, 512]}, "1 samples and 2 checksums of 2 samples"),
    "empty": ({"offsets": [], "crc32": []}, "0 samples and 0 checksums of 2 samples"),
    "large checksum": ({"crc32": [2**32, 0]}, "Expected `int` <= 4294967295"),
    "text": ({"crc32": ["0", 0]}, "Expected `int`, got `str`"),
    "unknown": ({"other": 1}, "unknown field `other`"),
}


@pytest.mark.parametrize("damage", TABLES)
def test_a_sample_table_is_checked_where_it_is_parsed(dest, damage):
    changes, message = TABLES[damage]
    edit(dest / "train" / "0000-a-000000.json", lambda fields: fields.update(changes))
    shard = read_index(str(dest)).splits["train"]["a"][0]
    assert message in refused(read_sample_table, str(dest), shard)


def test_a_file_larger_than_any_that_is_written_is_not_parsed(dest, monkeypatch):
    (dest / "train" / "0000-a-000000.json").write_text(" " * 2**16)
    shard = read_index(str(dest)).splits["train"]["a"][0]
    assert "has more than 6528 bytes" in refused(read_sample_table, str(dest), shard)
    monkeypatch.setattr("stargan_dist.data.index.MAX_INDEX_BYTES", 100)
    assert "has more than 100 bytes" in refused(read_index, str(dest))


def test_one_request_reads_a_file_of_bounded_size(dest, http):
    shutil.copytree(dest, http.folder, dirs_exist_ok=True)
    shard = read_index(http.url).splits["train"]["a"][0]
    read_sample_table(http.url, shard)
    assert http.gets() == {"/index.json": 1, "/train/0000-a-000000.json": 1}
    assert len(http.log) == 2
