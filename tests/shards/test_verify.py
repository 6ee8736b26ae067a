"""Each kind of damage is made on a copy of the set, and must be reported, and nothing else."""

import hashlib
import io
import json
import re
import shutil
import tarfile
import zlib
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from stargan_dist import storage
from stargan_dist.config import StorageConfig
from stargan_dist.data.index import read_index, read_sample_table, sample_table_name, write_index
from stargan_dist.errors import UserError
from stargan_dist.shards.verify import repeated_keys, verify
from stargan_dist.storage import reading

DOMAIN, NUMBER = "dog", 1  # the shard that is damaged: neither the first one nor the last
SAMPLE = 2  # and the sample


@pytest.fixture
def folder(shards, tmp_path):
    """A copy of the set."""
    return shutil.copytree(shards, tmp_path / "set")


@pytest.fixture
def name(shards):
    return read_index(shards).splits["train"][DOMAIN][NUMBER].name


# Ways to do damage.


def entry(folder, name, **changes):
    """Change what the index says of a shard."""
    index = read_index(str(folder))
    for domains in index.splits.values():
        for shards in domains.values():
            shards[:] = [replace(s, **changes) if s.name == name else s for s in shards]
    write_index(str(folder), index)


def beside(folder, name, **changes):
    """Change the file beside a shard."""
    path = folder / sample_table_name(name)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def unpack(folder, name):
    """The members of each sample of a shard, as pairs of header and content."""
    rows = {}
    with tarfile.open(folder / name) as tar:
        for member in tar:
            content = tar.extractfile(member).read()
            rows.setdefault(member.name.rpartition(".")[0], []).append((member, content))
    return list(rows.values())


def seal(folder, name, samples):
    """Write a shard with these members, so that all checksums agree."""
    buffer, offsets = io.BytesIO(), [0]
    with tarfile.open(fileobj=buffer, mode="w|") as tar:
        for sample in samples:
            for member, content in sample:
                member.size = len(content) if member.isreg() else 0
                tar.addfile(member, io.BytesIO(content))
            offsets.append(tar.offset)
    data = buffer.getvalue()
    (folder / name).write_bytes(data)
    crc32 = [zlib.crc32(data[begin:end]) for begin, end in pairwise(offsets)]
    beside(folder, name, offsets=offsets, crc32=crc32)
    entry(folder, name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def header(name, **changes):
    member = tarfile.TarInfo(name)
    for key, value in changes.items():
        setattr(member, key, value)
    return member


def png(width, height):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def facts_without(text, **changes):
    facts = json.loads(text) | changes
    return json.dumps({k: v for k, v in facts.items() if v is not None}).encode()


# What may happen to the members of a sample (json first, then png), all checksums agreeing.
CONTENTS = {
    "symbolic link": (
        lambda j, p: [j, (header(p[0].name, type=tarfile.SYMTYPE, linkname="/etc/passwd"), b"")],
        "png' is not a plain file",
    ),
    "hard link": (
        lambda j, p: [j, (header(p[0].name, type=tarfile.LNKTYPE, linkname=j[0].name), b"")],
        "png' is not a plain file",
    ),
    "folder": (
        lambda j, p: [j, p, (header("train", type=tarfile.DIRTYPE), b"")],
        "'train' is not a plain file",
    ),
    "absolute name": (
        lambda j, p: [j, (header("/" + p[0].name), p[1])],
        "'/train/.*' leads out of the tar",
    ),
    "upward name": (
        lambda j, p: [j, (header("../x.png"), p[1])],
        "'../x.png' leads out of the tar",
    ),
    "no json": (lambda j, p: [p], "one image and its json are expected, not '.*png'$"),
    "no image": (lambda j, p: [j], "one image and its json are expected, not '.*json'$"),
    "two images": (
        lambda j, p: [j, p, (header(p[0].name[:-3] + "jpg"), p[1])],
        "one image and its json are expected, not '.*json', '.*png', '.*jpg'$",
    ),
    "two keys": (lambda j, p: [j, (header("other.png"), p[1])], "one image and its json"),
    "name without a suffix": (lambda j, p: [j, (header("other"), p[1])], "one image and its json"),
    "no member": (lambda j, p: [(header("x.json"), b"{}")], "one image and its json"),
    "broken json": (lambda j, p: [(j[0], j[1][:-1]), p], "the json cannot be parsed"),
    "json of something else": (lambda j, p: [(j[0], b"[1]"), p], "the json is not an object$"),
    "wrong domain": (
        lambda j, p: [(j[0], facts_without(j[1], domain="cat")), p],
        "the json's domain is 'cat', in the index 'dog'$",
    ),
    "wrong label": (
        lambda j, p: [(j[0], facts_without(j[1], label=2)), p],
        "the json's label is 2, in the index 1$",
    ),
    "no path": (lambda j, p: [(j[0], facts_without(j[1], path=None)), p], "the json has no path$"),
    "truncated image": (
        lambda j, p: [j, (p[0], p[1][: len(p[1]) // 2])],
        r"the image cannot be decoded \(truncated",
    ),
    "no image at all": (lambda j, p: [j, (p[0], b"")], "the image cannot be decoded"),
    "another size": (
        lambda j, p: [j, (p[0], png(40, 41))],
        "the image has 40 × 41 pixels, in the index 40 to 40 × 40 to 40$",
    ),
}


def flip(folder, name, where):
    """Damage one byte. Negative: from the end of the sample."""
    offsets = read_sample_table(str(folder), name).offsets
    data = bytearray((folder / name).read_bytes())
    data[int(offsets[SAMPLE] if where >= 0 else offsets[SAMPLE + 1]) + where] ^= 0xFF
    (folder / name).write_bytes(data)


def cut(folder, name, size):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:size])


def cut_and_seal(folder, name):
    """Take the end of the tar away."""
    end = int(read_sample_table(str(folder), name).offsets[-1]) + 512
    cut(folder, name, end)
    data = (folder / name).read_bytes()
    entry(folder, name, bytes=end, sha256=hashlib.sha256(data).hexdigest())


def shift(folder, name, by):
    """Move where a sample begins."""
    offsets = read_sample_table(str(folder), name).offsets.tolist()
    offsets[SAMPLE] += by
    data = (folder / name).read_bytes()
    crc32 = [zlib.crc32(data[begin:end]) for begin, end in pairwise(offsets)]
    beside(folder, name, offsets=offsets, crc32=crc32)


def forget(folder, name):
    """Drop the last sample from the file beside the shard."""
    offsets, crc32 = (row.tolist() for row in read_sample_table(str(folder), name))
    beside(folder, name, offsets=offsets[:-1], crc32=crc32[:-1])


# What may happen to files, and what is said of it.
FILES = {
    "no shard": (lambda f, n: (f / n).unlink(), ["is missing$"]),
    "empty shard": (
        lambda f, n: cut(f, n, 0),
        [r"0 bytes, in the index \d+: the last 4 of 4 samples are cut off$"],
    ),
    "truncated shard": (
        lambda f, n: cut(f, n, 8000),
        [r"8000 bytes, in the index \d+: the last \d of 4 samples are cut off$"],
    ),
    "longer shard": (
        lambda f, n: (f / n).write_bytes((f / n).read_bytes() + b"x" * 512),
        [r"\d+ bytes, in the index \d+$", "the last sample is not followed by the end of a tar$"],
    ),
    "no end": (cut_and_seal, ["the last sample is not followed by the end of a tar$"]),
    "damaged header": (
        lambda f, n: flip(f, n, 10),
        [
            r"sample 2: the bytes differ .* \(CRC-32\); no whole members of a tar",
            r"the bytes differ from their checksum in the index \(SHA-256\)$",
        ],
    ),
    "damaged padding": (
        lambda f, n: flip(f, n, -1),
        [
            r"sample 2 \(train/0001-dog/\d+\): the bytes differ .* \(CRC-32\)$",
            r"the bytes differ from their checksum in the index \(SHA-256\)$",
        ],
    ),
    "wrong hash": (
        lambda f, n: entry(f, n, sha256="0" * 64),
        [r"the bytes differ from their checksum in the index \(SHA-256\)$"],
    ),
    "wrong count": (lambda f, n: entry(f, n, samples=5), ["4 samples, in the index 5$"]),
    "wrong checksum": (
        lambda f, n: beside(f, n, crc32=[*read_sample_table(str(f), n).crc32.tolist()[:3], 7]),
        [r"sample 3 \(.*\): the bytes differ from their checksum \(CRC-32\)$"],
    ),
    "no file beside": (
        lambda f, n: (f / sample_table_name(n)).unlink(),
        [r"train/0001-dog-000001.json is missing$"],
    ),
    "empty file beside": (
        lambda f, n: (f / sample_table_name(n)).write_text(""),
        ["json cannot be used: JSONDecodeError"],
    ),
    "no checksums beside": (
        lambda f, n: (f / sample_table_name(n)).write_text('{"offsets": [0]}'),
        ["json cannot be used: .*KeyError"],
    ),
    "fewer offsets": (lambda f, n: beside(f, n, offsets=[0, 512]), ["do not fit each other"]),
    "falling offsets": (
        lambda f, n: beside(f, n, offsets=[0, 512, 1024, 512, 2048]),
        ["do not fit each other"],
    ),
    "far offsets": (
        lambda f, n: beside(f, n, offsets=[0, 512, 1024, 1536, 10**9]),
        ["do not fit each other"],
    ),
    "a sample begins earlier": (
        lambda f, n: shift(f, n, -512),
        ["sample 1: no whole members", "sample 2: no whole members"],
    ),
    "a sample begins later": (
        lambda f, n: shift(f, n, 512),
        ["sample 1: no whole members", "sample 2: no whole members"],
    ),
    "a sample less": (
        forget,
        ["3 samples, in the index 4$", "the last sample is not followed by the end of a tar$"],
    ),
}


def check(faults, name, patterns):
    assert len(faults) == len(patterns), faults
    for fault, pattern in zip(faults, patterns, strict=True):
        assert fault.startswith(f"{name}: "), fault
        assert re.search(pattern, fault), fault


def test_an_intact_set_has_no_faults(shards):
    assert verify(shards) == []


def test_samples_may_be_longer_than_what_is_read_at_once(shards, monkeypatch):
    monkeypatch.setattr(reading, "BLOCK_BYTES", 1000)
    assert verify(shards) == []


@pytest.mark.parametrize("damage", CONTENTS)
def test_damaged_samples(folder, name, damage):
    change, pattern = CONTENTS[damage]
    samples = unpack(folder, name)
    samples[SAMPLE] = change(*samples[SAMPLE])
    seal(folder, name, samples)
    check(verify(str(folder)), name, [rf"^{name}: sample {SAMPLE}(?= |:).*{pattern}"])


@pytest.mark.parametrize("damage", FILES)
def test_damaged_files(folder, name, damage):
    change, patterns = FILES[damage]
    change(folder, name)
    check(verify(str(folder)), name, patterns)


def test_samples_are_checked_without_the_file_that_tells_where_they_are(folder, name):
    samples = unpack(folder, name)
    (_, text), _ = samples[SAMPLE]
    samples[SAMPLE][0] = (samples[SAMPLE][0][0], facts_without(text, domain="cat"))
    seal(folder, name, samples)
    (folder / sample_table_name(name)).unlink()
    check(verify(str(folder)), name, ["json is missing$", r"sample 2 \(.*domain is 'cat'"])


def test_a_damaged_header_without_that_file(folder, name):
    flip(folder, name, 10)
    (folder / sample_table_name(name)).unlink()
    faults = verify(str(folder))
    assert all(fault.startswith(name) for fault in faults)
    assert any("samples, in the index 4" in fault for fault in faults)


def test_later_samples_are_not_hidden(folder, name):
    samples = unpack(folder, name)
    for sample in samples[1:]:
        sample[1] = (sample[1][0], b"no image")
    seal(folder, name, samples)
    patterns = [rf"sample {i} .*the image cannot be decoded" for i in (1, 2, 3)]
    check(verify(str(folder)), name, patterns)


def test_a_key_of_another_shard(folder, name, shards):
    other = read_index(shards).splits["val"][DOMAIN][0].name
    samples = unpack(folder, name)
    twin = unpack(folder, other)[1]
    seal(folder, name, [*samples[:3], twin])
    (fault,) = verify(str(folder))
    assert fault == f"{other}: 1 of the keys of {name} again: sample 1 has that of sample 3 there"


def test_repeated_keys():
    keys = [[1, 2, 0], [], [3, 2, 1, 0], [3, 3]]
    faults = repeated_keys(["a", "b", "c", "d"], [np.array(k, np.uint64) for k in keys])
    assert faults == [
        "c: 2 of the keys of a again: sample 1 has that of sample 1 there, and so on",
        "d: 1 of the keys of c again: sample 0 has that of sample 0 there",
        "d: 1 of the keys of d again: sample 1 has that of sample 0 there",
    ]
    assert repeated_keys([], []) == []


def test_strays(folder):
    (folder / "val" / "old.tar").touch()
    (folder / "train" / "notes.txt").touch()
    (folder / "train" / f"{storage.PARTIAL_PREFIX}x.tar").touch()
    assert verify(str(folder)) == ["val/old.tar: not in the index"]


def test_an_empty_set(tmp_path, shards):
    write_index(str(tmp_path), replace(read_index(shards), splits={"train": {}}))
    assert verify(str(tmp_path)) == []


def test_no_set(tmp_path):
    with pytest.raises(UserError, match=r"index\.json is missing"):
        verify(str(tmp_path))


def test_a_fault_of_the_storage_is_one_of_that_shard(shards, name, monkeypatch):
    whole = storage.read_blocks

    def broken(url):
        yield next(whole(url))[:5000]
        raise RuntimeError("gone")

    monkeypatch.setattr(
        storage, "read_blocks", lambda url: (broken if url.endswith(name) else whole)(url)
    )
    storage.configure(StorageConfig(tries=2, wait_seconds=0.01))
    assert verify(shards) == [f"{name}: cannot be read: RuntimeError: gone"]


def test_a_fault_that_passes_is_none(shards, name, monkeypatch):
    whole, failed = storage.read_blocks, []

    def once(url):
        if url.endswith(name) and not failed:
            failed.append(url)
            raise OSError("try again")
        return whole(url)

    monkeypatch.setattr(storage, "read_blocks", once)
    storage.configure(StorageConfig(wait_seconds=0.01))
    assert verify(shards) == []
    assert failed


def test_processes_do_not_change_what_is_found(folder):
    names = [shard.name for shard in read_index(str(folder)).shards() if shard.samples > SAMPLE]
    for name, damage in zip(names[1:], ("no shard", "damaged header", "wrong hash"), strict=False):
        FILES[damage][0](folder, name)
    (folder / "train" / "old.tar").touch()
    alone, together = (verify(str(folder), processes) for processes in (1, 2))
    assert alone == together
    assert [fault.split(":")[0] for fault in alone] == [
        names[1], names[2], names[2], names[3], "train/old.tar"
    ]  # fmt: skip
