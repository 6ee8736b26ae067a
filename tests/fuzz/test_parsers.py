"""Damaged files of all formats: one line, whatever they hold, in bounded time and memory.

`STARGAN_FUZZ_EXAMPLES=5000 pytest tests/fuzz` tries more (tests/helpers/mutations.py).
"""

import io
import json
import os
import shutil
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from stargan_dist import config
from stargan_dist.data import transforms
from stargan_dist.data.index import (
    from_json,
    read_index,
    read_sample_table,
    sample_table_name,
    to_json,
)
from stargan_dist.data.labels import LabelSpace
from stargan_dist.data.order import Location
from stargan_dist.data.reader import ShardReader, check_split, working_set_bytes
from stargan_dist.data.sample import parse_metadata, parse_sample
from stargan_dist.errors import UserError
from stargan_dist.models import pairs
from stargan_dist.shards.build import build
from stargan_dist.shards.listing import list_source, split_listing
from stargan_dist.shards.pack import read_record, record_url
from stargan_dist.shards.preview import preview
from stargan_dist.shards.publish import merge
from stargan_dist.shards.summary import summarise, summary_table
from stargan_dist.shards.verify import verify
from tests.conftest import ROOT, SMOKE
from tests.helpers.mutations import check_parser, damage, damage_json, is_one_line


@pytest.fixture(autouse=True)
def no_warnings():
    """PIL warns of much."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_index(shards):
    def parse(data):
        index = from_json("index.json", data)
        assert all(is_one_line(line) for line in summary_table(summarise(index)).split("\n"))
        working_set_bytes(index, "train")
        check_split(index, "train", 2, "url")
        assert from_json("index.json", to_json(index)).fingerprint == index.fingerprint

    check_parser(parse, [to_json(read_index(shards))], damage_json, 300)


def test_domains_of_a_set_of_pairs(tmp_path):
    def parse(data):
        (tmp_path / pairs.FILE).write_bytes(data)
        found = pairs.list_pairs(str(tmp_path), pairs.read_domains(str(tmp_path)))
        assert all(is_one_line(pair.name) for pair in found)
        assert all(Path(pair.run).parent == tmp_path for pair in found)

    pairs.write_domains(str(tmp_path), ["cat", "wild boar", "\n/.."])
    check_parser(parse, [(tmp_path / pairs.FILE).read_bytes()], damage_json, 300)


def test_sample_table(shards, tmp_path):
    shard = read_index(shards).splits["train"]["dog"][0]
    name = sample_table_name(shard.name)
    original = Path(shards, name).read_bytes()
    (tmp_path / "train").mkdir()

    def parse(data):
        (tmp_path / name).write_bytes(data)
        table = read_sample_table(str(tmp_path), shard)
        assert len(table.offsets) == len(table.crc32) + 1 == shard.samples + 1

    check_parser(parse, [original], damage_json, 200)


def test_part(shards, tmp_path):
    index = json.loads(to_json(read_index(shards)))
    dest = tmp_path / "set"

    def parse(data):
        shutil.rmtree(dest, ignore_errors=True)
        (dest / "parts").mkdir(parents=True)
        (dest / "parts" / "1-of-1.json").write_bytes(data)
        merge(str(dest))
        assert [path.name for path in dest.iterdir()] == ["index.json"]

    original = json.dumps({"plan": "0" * 64, "index": index}).encode()
    check_parser(parse, [original], damage_json, 100)


def test_record(shards, tmp_path):
    shard = read_index(shards).splits["train"]["dog"][0]
    fields = json.loads(to_json(read_index(shards)))["splits"]["train"]["dog"][0]
    path = tmp_path / "progress" / sample_table_name(shard.name)
    assert record_url(str(tmp_path), shard.name) == str(path)
    path.parent.mkdir(parents=True)

    def parse(data):
        path.write_bytes(data)
        record = read_record(str(tmp_path), shard.name)
        if record is None:
            raise UserError("none")
        assert record.shard.name == shard.name

    check_parser(
        parse, [json.dumps({"plan": "0" * 64, "shard": fields}).encode()], damage_json, 200
    )


METADATA = [
    b'{"domain": "dog", "label": 1, "path": "dog/1.png"}',
    b'{"domain": "dog", "path": "p", "attributes": {"male": -1, "kind": "a", "x": [1]}}',
]


def test_sample_json():
    spaces = [LabelSpace("", ("male",), binary=True), LabelSpace("", ("a", "b"), key="kind")]

    def parse(data):
        metadata = parse_metadata(data)
        for space in spaces if metadata.attributes else ():
            space.encode(metadata.attributes, metadata.domain)

    check_parser(parse, METADATA, damage_json, 300)


def samples_of(shards):
    """Return the bytes of some samples: header, image, header, JSON."""
    index, samples = read_index(shards), []
    for domain_shards in index.splits["train"].values():
        table = read_sample_table(shards, domain_shards[0])
        data = Path(shards, domain_shards[0].name).read_bytes()
        samples.append(data[table.offsets[0] : table.offsets[1]])
    return samples


def test_tar(shards):
    check_parser(parse_sample, samples_of(shards), damage, 300)


@pytest.fixture
def dataset(tmp_path):
    """A dataset of two domains and a few small images, and its files."""
    for domain in ("a", "b"):
        (tmp_path / "images" / domain).mkdir(parents=True)
        for i in range(2):
            picture((16, 16), i).save(tmp_path / "images" / domain / f"{i}.png")
    build(str(tmp_path / "images"), str(tmp_path / "set"), val_fraction=0)
    return tmp_path / "set"


@pytest.mark.parametrize("suffix", ["tar", "json"])
def test_dataset(dataset, suffix):
    """Any file of a dataset is damaged, and all commands and the reader go over it."""
    file = dataset / "train" / f"0001-b-000000.{suffix}"
    original = file.read_bytes()

    def parse(data):
        file.write_bytes(data)
        assert all(map(is_one_line, verify(str(dataset))))
        _, faults = preview(str(dataset), size=16)
        assert all(map(is_one_line, faults))
        reader = ShardReader(str(dataset), read_index(str(dataset)), "train")
        for sample in range(2):
            reader.read_image(Location(1, 0, sample))
        if faults:
            raise AssertionError(faults)

    check_parser(parse, [original], damage, 40)
    file.unlink()
    assert verify(str(dataset))


def picture(size, seed=0, mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(form, mode="RGB", **options):
    buffer = io.BytesIO()
    picture((24, 20), mode=mode).save(buffer, form, **options)
    return buffer.getvalue()


def images_of_all_formats():
    exif = Image.Exif()
    exif[274] = 6
    return {
        "JPEG": [encoded("JPEG"), encoded("JPEG", "CMYK"), encoded("JPEG", exif=exif.tobytes()),
                 encoded("JPEG", progressive=True), encoded("JPEG", "L")],
        "PNG": [encoded("PNG"), encoded("PNG", "P", transparency=1), encoded("PNG", "RGBA"),
                encoded("PNG", "I;16"), encoded("PNG", "1")],
        "WEBP": [encoded("WEBP"), encoded("WEBP", "RGBA", lossless=True)],
        "GIF": [encoded("GIF", "P")],
        "TIFF": [encoded("TIFF"), encoded("TIFF", compression="tiff_lzw"), encoded("TIFF", "1"),
                 encoded("TIFF", compression="jpeg"), encoded("TIFF", "CMYK")],
        "BMP": [encoded("BMP"), encoded("BMP", "P")],
    }  # fmt: skip


@pytest.mark.parametrize("form", images_of_all_formats())
def test_image(form):
    def parse(data):
        image = transforms.decode_still(data)
        assert image.mode == "RGB"
        assert image.width * image.height <= transforms.MAX_PIXELS
        rng = np.random.default_rng(0)
        assert transforms.load_augmented(data, 8, rng, fast_decoding=True).shape == (3, 8, 8)

    check_parser(parse, images_of_all_formats()[form], damage, 60)


def test_image_for_fast_decoding():
    """The fast decoder is reached although PIL refuses the image."""

    def parse(data):
        transforms.load_augmented(data, 8, np.random.default_rng(0), fast_decoding=True)

    check_parser(parse, images_of_all_formats()["JPEG"], damage, 150)


def configurations():
    joint = yaml.safe_dump(yaml.safe_load((ROOT / "configs" / "joint.yaml").read_text()))
    return [path.encode() for path in (SMOKE.read_text() + "run: r\ndata: {shards: s}\n", joint)]


def test_configuration(tmp_path):
    path = tmp_path / "config.yaml"

    def parse(data):
        path.write_bytes(data)
        yaml.safe_load(config.to_yaml(config.parse(["--config", str(path), "--run", "r"])))

    check_parser(parse, configurations(), damage, 4)


CSV = "path,domain,split,smiling,age\na/1.png,a,train,1,3.5\nb/2.png,b,train,-1,4\nc,b,val,0,\n"
JSONL = "".join(
    json.dumps(row) + "\n"
    for row in (
        {"path": "a/1.png", "domain": "a", "smiling": 1, "tags": ["x", {"y": None}]},
        {"path": "b/ü.png", "domain": "b", "smiling": -1, "note": "z"},
        {"path": "memory://x.png", "domain": "b"},
    )
)


def damage_lines(data, rng):
    """Damage the JSON of one line."""
    lines = data.split(b"\n")
    number = rng.randrange(len(lines) - 1)
    lines[number] = damage_json(lines[number], rng)
    return b"\n".join(lines)


@pytest.mark.parametrize(
    ("name", "original", "change"),
    [("m.csv", CSV, damage), ("m.jsonl", JSONL, damage), ("m.jsonl", JSONL, damage_lines)],
)
def test_manifest(tmp_path, name, original, change):
    def parse(data):
        (tmp_path / name).write_bytes(data)
        listing = split_listing(list_source(str(tmp_path / name)), 0.5, seed=0)
        build(str(tmp_path / name), str(tmp_path / "set"), skip_bad=True)
        assert listing

    def accept(data):
        """The images do not exist: a build that only says this has read the manifest."""
        try:
            parse(data)
        except UserError as error:
            if "no usable training image" not in str(error):
                raise

    check_parser(accept, [original.encode()], change, 100)


def test_list_of_validation_images(tmp_path):
    (tmp_path / "m.csv").write_text("path,domain\na/1.png,a\nb/2.png,b\na/3.png,a\n")

    def parse(data):
        (tmp_path / "val.txt").write_bytes(data)
        list_source(str(tmp_path / "m.csv"), str(tmp_path / "val.txt"))

    check_parser(parse, [b"a/1.png\r\nb/2.png\n"], damage, 100)


HOSTS = b"# machines\nnode0\nme@node1 slots=4 # four processes\n\n10.0.0.2 slots=1\n"


def test_hostfile(tmp_path):
    """Nothing is connected to: the remote shell is `false`."""
    (tmp_path / "launchers").mkdir()
    environment = os.environ | {"STARGAN_RSH": "false", "LC_ALL": "C.UTF-8"}

    def parse(data):
        (tmp_path / "hosts").write_bytes(data)
        result = subprocess.run(
            [ROOT / "launchers" / "multinode.sh", "hosts", "-m", "module"],
            cwd=tmp_path, env=environment, capture_output=True, timeout=60, check=False,
        )  # fmt: skip
        err = result.stderr.decode()
        assert {path.name for path in tmp_path.iterdir()} <= {
            "hosts",
            "launchers",
            "multinode-logs",
        }
        assert not [p for p in tmp_path.rglob("*.log") if len(p.relative_to(tmp_path).parts) != 3]
        if result.returncode == 2:
            raise UserError(err.rstrip("\n"))
        assert (result.returncode, is_one_line(err.rstrip("\n"))) == (1, True), err[:500]

    check_parser(parse, [HOSTS], damage, 6)
