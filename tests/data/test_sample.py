"""Samples of strangers: an image and its JSON in plain tar members, and nothing else."""

import gzip
import io
import json
import random
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from stargan_dist.data import sample as sample_module
from stargan_dist.data.index import read_index, read_sample_table
from stargan_dist.data.sample import BLOCK, CHECKSUM, USUAL_HEADER, parse_header, parse_sample
from stargan_dist.errors import UserError
from tests.helpers.mutations import damage

METADATA = {"domain": "dog", "label": 1, "path": "dog/1.png"}


def member(name, content=b"", form=tarfile.USTAR_FORMAT, **changes):
    """Return the bytes of a member: header, contents, padding."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in changes.items():
        setattr(info, key, value)
    return info.tobuf(form) + content + bytes(-len(content) % tarfile.BLOCKSIZE)


def sample(text=None, image=b"image"):
    text = json.dumps(METADATA).encode() if text is None else text
    return member("train/a/0.json", text) + member("train/a/0.png", image)


def resized(size):
    """Return a sample whose first header claims a size (a negative one in base 256)."""
    block = bytearray(sample())
    block[124:136] = size.to_bytes(12, "big", signed=True) if size < 0 else b"%011o\0" % size
    block[124] |= 0x80 if size < 0 else 0
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block[:512])
    return bytes(block)


SPARSE = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": f"{2**40},0",
          "GNU.sparse.size": str(2**40), "GNU.sparse.name": "train/a/0.png"}  # fmt: skip
DAMAGED = {
    "nothing": (b"", "one image and its JSON are expected, not $"),
    "no header": (b"x" * 1024, "not made of whole tar members"),
    "half a header": (sample()[:300], "not made of whole tar members"),
    "cut": (sample()[:-512], "not made of whole tar members"),
    "a claim of a large size": (resized(2**32), "not made of whole tar members"),
    "a negative size": (resized(-512), "not made of whole tar members"),
    "a compressed stream": (gzip.compress(bytes(2**26)), "not made of whole tar members"),
    "a sparse file": (
        member("train/a/0.png", b"", tarfile.PAX_FORMAT, pax_headers=SPARSE), "not a plain file",
    ),
    "headers of headers": (
        member("@PaxHeader", type=tarfile.XHDTYPE) * 2000, "'@PaxHeader' is not a plain file",
    ),
    "long digits in a header": (
        member("././@PaxHeader", b"1" * 10**6, type=tarfile.XHDTYPE), "is not a plain file",
    ),
    "three members": (sample() + member("train/a/0.jpg"), "one image and its JSON are expected"),
    "many members": (member("x.png") * 10**5, "one image and its JSON are expected"),
    "a list": (sample(b"[]"), "the JSON is invalid: Expected `object`, got `array`"),
    "no path": (sample(b'{"domain": "a"}'), "missing required field `path`"),
    "a number for a domain": (
        sample(json.dumps(METADATA | {"domain": 3}).encode()), r"Expected `str`, .* `\$\.domain`",
    ),
    "a list of attributes": (
        sample(json.dumps(METADATA | {"attributes": [1]}).encode()), r"`\$\.attributes`",
    ),
    "deep": (sample(b'{"domain":' + b"[" * 10**5), "cannot be parsed .maximum recursion depth"),
    "5000 digits": (sample(b"1" * 5000), r"cannot be parsed \(Exceeds the limit \(4300 digits\)"),
    "not UTF-8": (sample(b'{"domain": "\xff"}'), "the JSON cannot be parsed"),
}  # fmt: skip


def test_an_image_and_its_metadata_are_parsed():
    parsed = parse_sample(sample())
    assert (parsed.key, parsed.image) == ("train/a/0", b"image")
    assert (parsed.metadata.domain, parsed.metadata.path) == ("dog", "dog/1.png")
    assert (parsed.metadata.label, parsed.metadata.attributes) == (1, {})


def test_attributes_of_earlier_builds_may_be_nan_or_nested():
    text = b'{"domain": "a", "path": "b", "attributes": {"x": NaN, "y": [1, {"z": null}]}}'
    attributes = parse_sample(sample(text)).metadata.attributes
    assert attributes["x"] != attributes["x"] and attributes["y"] == [1, {"z": None}]


def test_control_characters_of_a_key_are_escaped():
    text = json.dumps(METADATA).encode()
    data = member("a\nb\x1b\udcff.json", text) + member("a\nb\x1b\udcff.png", b"")
    assert parse_sample(data).key == r"a\nb\x1b\udcff"


@pytest.mark.parametrize("damage", DAMAGED)
def test_anything_else_is_a_fault_of_the_sample_and_costs_no_memory(damage):
    data, message = DAMAGED[damage]
    tracemalloc.start()
    with pytest.raises(UserError, match=message) as caught:
        parse_sample(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(caught.value).isprintable()
    assert peak < 2**20 + 3 * len(data)


def test_links_and_names_outside_are_refused():
    for name, changes in (("/x.png", {}), ("../x.png", {}), ("x.png", {"type": tarfile.SYMTYPE})):
        with pytest.raises(UserError, match=r"points outside the tar|is not a plain file"):
            parse_sample(member(name, **changes))


def test_members_of_python_and_webdataset_are_plain():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in (("a.json", json.dumps(METADATA).encode()), ("a.jpg", b"y")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        end = tar.offset
    assert parse_sample(buffer.getvalue()[:end]).image == b"y"


def test_samples_of_the_builder_are_parsed_without_tarfile(shards, monkeypatch):
    shard = read_index(shards).splits["train"]["dog"][0]
    begin, end = read_sample_table(shards, shard).offsets[:2]
    data = Path(shards, shard.name).read_bytes()[begin:end]
    monkeypatch.setattr(tarfile.TarInfo, "frombuf", None)
    assert parse_sample(data).metadata.domain == "dog"


def outcome(block):
    try:
        return parse_header(block, 0)
    except UserError as error:
        return str(error)


def damaged_header(header, rng):
    """Damage a field or anything; half of the checksums are right nevertheless."""
    begin = rng.choice([0, 98, 124, 148, 156, 257, 345])
    field = rng.choice([rng.randbytes(2), b"\0", b"7", b"/", b"../", b" ", b"a" * 99])
    changed = header[:begin] + field + header[begin + len(field) :]
    block = bytearray(rng.choice([changed, damage(header, rng)])[:BLOCK])
    if rng.random() < 0.5 and len(block) == BLOCK:
        block[CHECKSUM] = b" " * 8
        block[CHECKSUM] = b"%06o\0 " % sum(block)
    return bytes(block)


def test_any_header_is_parsed_as_tarfile_does(monkeypatch):
    rng = random.Random(0)
    headers = [member("train/a/0.png", b"image"), member("a" * 99), member("x" * 100 + "/y")]
    blocks = [damaged_header(rng.choice(headers)[:BLOCK], rng) for _ in range(5000)]
    outcomes = [outcome(block) for block in [*headers, *blocks]]
    usual = [block for block in blocks if USUAL_HEADER.fullmatch(block)]
    assert len(usual) > 500 and len({*map(str, outcomes)}) > 100
    monkeypatch.setattr(sample_module, "_parse_usual_header", lambda block, offset: None)
    assert [outcome(block) for block in [*headers, *blocks]] == outcomes
