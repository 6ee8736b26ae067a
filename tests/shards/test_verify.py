"""Tests of verify: damage done to a copy of a dataset must be reported, and nothing else."""

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
from stargan_dist.data.index import read_index, sample_table_name, write_index
from stargan_dist.errors import UserError
from stargan_dist.shards.verify import repeated_keys, verify
from stargan_dist.storage import reading

DOMAIN, NUMBER = "dog", 1  # the damaged shard, neither the first one nor the last
SAMPLE = 2  # the damaged sample


@pytest.fixture
def folder(shards, tmp_path):
    """A copy of the dataset."""
    return shutil.copytree(shards, tmp_path / "set")


@pytest.fixture
def name(shards):
    """The name of the damaged shard."""
    return read_index(shards).splits["train"][DOMAIN][NUMBER].name


# Kinds of damage.


def edit_index(folder, name, **changes):
    """Change the entry of a shard in the index."""
    index = read_index(str(folder))
    for domains in index.splits.values():
        for shards in domains.values():
            shards[:] = [replace(s, **changes) if s.name == name else s for s in shards]
    write_index(str(folder), index)


def sample_table(folder, name):
    """Return the offsets and the checksums of the samples of a shard."""
    table = json.loads((folder / sample_table_name(name)).read_text())
    return table["offsets"], table["crc32"]


def edit_sample_index(folder, name, **changes):
    """Change the sample table of a shard."""
    path = folder / sample_table_name(name)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def unpack(folder, name):
    """Return the members of each sample of a shard, as pairs of header and content."""
    samples = {}
    with tarfile.open(folder / name) as tar:
        for member in tar:
            content = tar.extractfile(member).read()
            samples.setdefault(member.name.rpartition(".")[0], []).append((member, content))
    return list(samples.values())


def repack(folder, name, samples):
    """Write a shard with these members, and matching checksums."""
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
    edit_sample_index(folder, name, offsets=offsets, crc32=crc32)
    edit_index(folder, name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def header(name, **changes):
    member = tarfile.TarInfo(name)
    for key, value in changes.items():
        setattr(member, key, value)
    return member


def png(width, height):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def edit_json(text, **changes):
    """Change values of a JSON object; None removes a key."""
    metadata = json.loads(text) | changes
    return json.dumps({k: v for k, v in metadata.items() if v is not None}).encode()


# Damage to the members of a sample (JSON, then PNG) with matching checksums, and its fault.
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
        "'/train/.*' points outside the tar",
    ),
    "upward name": (
        lambda j, p: [j, (header("../x.png"), p[1])],
        "'../x.png' points outside the tar",
    ),
    "no json": (lambda j, p: [p], "one image and its JSON are expected, not '.*png'$"),
    "no image": (lambda j, p: [j], "one image and its JSON are expected, not '.*json'$"),
    "two images": (
        lambda j, p: [j, p, (header(p[0].name[:-3] + "jpg"), p[1])],
        "one image and its JSON are expected, not '.*json', '.*png', '.*jpg'$",
    ),
    "two keys": (lambda j, p: [j, (header("other.png"), p[1])], "one image and its JSON"),
    "name without a suffix": (lambda j, p: [j, (header("other"), p[1])], "one image and its JSON"),
    "no member": (lambda j, p: [(header("x.json"), b"{}")], "one image and its JSON"),
    "broken json": (lambda j, p: [(j[0], j[1][:-1]), p], "the JSON cannot be parsed"),
    "json of something else": (
        lambda j, p: [(j[0], b"[1]"), p],
        "the JSON is invalid: Expected `object`",
    ),
    "json nested deep": (
        lambda j, p: [(j[0], b'{"a":' * 10**5 + b"1" + b"}" * 10**5), p],
        r"the JSON cannot be parsed \(maximum recursion depth",
    ),
    "json of other types": (
        lambda j, p: [(j[0], edit_json(j[1], domain=7)), p],
        r"the JSON is invalid: Expected `str`, got `int` - at `\$\.domain`$",
    ),
    "wrong domain": (
        lambda j, p: [(j[0], edit_json(j[1], domain="cat")), p],
        "the JSON's domain is 'cat', but 'dog' in the index$",
    ),
    "wrong label": (
        lambda j, p: [(j[0], edit_json(j[1], label=2)), p],
        "the JSON's label is 2, but 1 in the index$",
    ),
    "no path": (lambda j, p: [(j[0], edit_json(j[1], path=None)), p], "required field `path`$"),
    "truncated image": (
        lambda j, p: [j, (p[0], p[1][: len(p[1]) // 2])],
        r"the image cannot be decoded \(truncated",
    ),
    "no image at all": (lambda j, p: [j, (p[0], b"")], "the image cannot be decoded"),
    "another size": (
        lambda j, p: [j, (p[0], png(40, 41))],
        "the image has 40 × 41 pixels, but 40 to 40 × 40 to 40 in the index$",
    ),
}


def flip(folder, name, position):
    """Damage one byte of the sample. A negative position counts from its end."""
    offsets, _ = sample_table(folder, name)
    data = bytearray((folder / name).read_bytes())
    data[(offsets[SAMPLE] if position >= 0 else offsets[SAMPLE + 1]) + position] ^= 0xFF
    (folder / name).write_bytes(data)


def cut(folder, name, size):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:size])


def cut_and_reindex(folder, name):
    """Remove the end of the tar and update its size and checksum in the index."""
    end = sample_table(folder, name)[0][-1] + 512
    cut(folder, name, end)
    data = (folder / name).read_bytes()
    edit_index(folder, name, bytes=end, sha256=hashlib.sha256(data).hexdigest())


def shift(folder, name, by):
    """Move the offset of a sample."""
    offsets, _ = sample_table(folder, name)
    offsets[SAMPLE] += by
    data = (folder / name).read_bytes()
    crc32 = [zlib.crc32(data[begin:end]) for begin, end in pairwise(offsets)]
    edit_sample_index(folder, name, offsets=offsets, crc32=crc32)


def forget(folder, name):
    """Remove the last sample from the sample table."""
    offsets, crc32 = sample_table(folder, name)
    edit_sample_index(folder, name, offsets=offsets[:-1], crc32=crc32[:-1])


# Damage to files, and its faults.
FILES = {
    "no shard": (lambda f, n: (f / n).unlink(), ["is missing$"]),
    "empty shard": (
        lambda f, n: cut(f, n, 0),
        [r"0 bytes, but \d+ in the index: the last 4 of 4 samples are cut off$"],
    ),
    "truncated shard": (
        lambda f, n: cut(f, n, 8000),
        [r"8000 bytes, but \d+ in the index: the last \d of 4 samples are cut off$"],
    ),
    "longer shard": (
        lambda f, n: (f / n).write_bytes((f / n).read_bytes() + b"x" * 512),
        [
            r"\d+ bytes, but \d+ in the index$",
            "the last sample is not followed by the end of a tar$",
        ],
    ),
    "no end": (cut_and_reindex, ["the last sample is not followed by the end of a tar$"]),
    "damaged header": (
        lambda f, n: flip(f, n, 10),
        [
            r"sample 2: the bytes differ .* \(CRC-32\); not made of whole tar members",
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
        lambda f, n: edit_index(f, n, sha256="0" * 64),
        [r"the bytes differ from their checksum in the index \(SHA-256\)$"],
    ),
    "wrong count": (
        lambda f, n: edit_index(f, n, samples=5),
        ["4 samples and 4 checksums of 5 samples$", "4 samples, but 5 in the index$"],
    ),
    "wrong checksum": (
        lambda f, n: edit_sample_index(f, n, crc32=[*sample_table(f, n)[1][:3], 7]),
        [r"sample 3 \(.*\): the bytes differ from their checksum \(CRC-32\)$"],
    ),
    "no sample table": (
        lambda f, n: (f / sample_table_name(n)).unlink(),
        [r"train/0001-dog-000001.json is missing$"],
    ),
    "empty sample table": (
        lambda f, n: (f / sample_table_name(n)).write_text(""),
        ["json is invalid: Input data was truncated$"],
    ),
    "no checksums": (
        lambda f, n: (f / sample_table_name(n)).write_text('{"offsets": [0]}'),
        ["json is invalid: Object missing required field `crc32`$"],
    ),
    "fewer offsets": (
        lambda f, n: edit_sample_index(f, n, offsets=[0, 512]),
        ["1 samples and 4 checksums of 4 samples$"],
    ),
    "decreasing offsets": (
        lambda f, n: edit_sample_index(f, n, offsets=[0, 512, 1024, 512, 2048]),
        ["the offsets do not ascend from 0$"],
    ),
    "offset beyond the end": (
        lambda f, n: edit_sample_index(f, n, offsets=[0, 512, 1024, 1536, 10**9]),
        [r"it ends at byte 1000000000 of \d+$"],
    ),
    "a sample begins earlier": (
        lambda f, n: shift(f, n, -512),
        ["sample 1: not made of whole tar members", "sample 2: not made of whole tar members"],
    ),
    "a sample begins later": (
        lambda f, n: shift(f, n, 512),
        ["sample 1: not made of whole tar members", "sample 2: not made of whole tar members"],
    ),
    "sample missing in the sample table": (
        forget,
        ["3 samples and 3 checksums of 4 samples$"],
    ),
}


def check(faults, name, patterns):
    """Check that each fault names the shard and matches its pattern."""
    assert len(faults) == len(patterns), faults
    for fault, pattern in zip(faults, patterns, strict=True):
        assert fault.startswith(f"{name}: "), fault
        assert re.search(pattern, fault), fault


def test_an_intact_dataset_has_no_faults(shards):
    assert verify(shards) == []


def test_samples_may_be_longer_than_a_block(shards, monkeypatch):
    monkeypatch.setattr(reading, "BLOCK_BYTES", 1000)
    assert verify(shards) == []


@pytest.mark.parametrize("damage", CONTENTS)
def test_damaged_samples_are_reported(folder, name, damage):
    change, pattern = CONTENTS[damage]
    samples = unpack(folder, name)
    samples[SAMPLE] = change(*samples[SAMPLE])
    repack(folder, name, samples)
    check(verify(str(folder)), name, [rf"^{name}: sample {SAMPLE}(?= |:).*{pattern}"])


@pytest.mark.parametrize("damage", FILES)
def test_damaged_files_are_reported(folder, name, damage):
    change, patterns = FILES[damage]
    change(folder, name)
    check(verify(str(folder)), name, patterns)


def test_samples_are_checked_without_a_sample_index(folder, name):
    samples = unpack(folder, name)
    (_, text), _ = samples[SAMPLE]
    samples[SAMPLE][0] = (samples[SAMPLE][0][0], edit_json(text, domain="cat"))
    repack(folder, name, samples)
    (folder / sample_table_name(name)).unlink()
    check(verify(str(folder)), name, ["json is missing$", r"sample 2 \(.*domain is 'cat'"])


def test_a_damaged_header_is_reported_without_a_sample_index(folder, name):
    flip(folder, name, 10)
    (folder / sample_table_name(name)).unlink()
    faults = verify(str(folder))
    assert all(fault.startswith(name) for fault in faults)
    assert any("samples, but 4 in the index" in fault for fault in faults)


def test_a_damaged_sample_does_not_hide_later_ones(folder, name):
    samples = unpack(folder, name)
    for sample in samples[1:]:
        sample[1] = (sample[1][0], b"no image")
    repack(folder, name, samples)
    patterns = [rf"sample {i} .*the image cannot be decoded" for i in (1, 2, 3)]
    check(verify(str(folder)), name, patterns)


def test_a_key_of_another_shard_is_reported(folder, name, shards):
    other = read_index(shards).splits["val"][DOMAIN][0].name
    samples = unpack(folder, name)
    twin = unpack(folder, other)[1]
    repack(folder, name, [*samples[:3], twin])
    (fault,) = verify(str(folder))
    assert fault == (
        f"{other}: repeats keys of {name} (1 in all), first: sample 1 has the key of sample 3 there"
    )


def test_repeated_keys_are_reported_for_each_pair_of_shards():
    keys = [[1, 2, 0], [], [3, 2, 1, 0], [3, 3]]
    faults = repeated_keys(["a", "b", "c", "d"], [np.array(k, np.uint64) for k in keys])
    assert faults == [
        "c: repeats keys of a (2 in all), first: sample 1 has the key of sample 1 there",
        "d: repeats keys of c (1 in all), first: sample 0 has the key of sample 0 there",
        "d: repeats keys of d (1 in all), first: sample 1 has the key of sample 0 there",
    ]
    assert repeated_keys([], []) == []


def test_stray_tars_are_reported(folder):
    (folder / "val" / "old.tar").touch()
    (folder / "train" / "notes.txt").touch()
    (folder / "train" / f"{storage.PARTIAL_PREFIX}x.tar").touch()
    assert verify(str(folder)) == ["val/old.tar: not in the index"]


def test_an_empty_dataset_has_no_faults(tmp_path, shards):
    write_index(str(tmp_path), replace(read_index(shards), splits={"train": {}}))
    assert verify(str(tmp_path)) == []


def test_a_missing_dataset_is_rejected(tmp_path):
    with pytest.raises(UserError, match=r"index\.json is missing"):
        verify(str(tmp_path))


def test_a_permanent_storage_failure_is_a_fault_of_the_shard(shards, name, monkeypatch):
    read_blocks = storage.read_blocks

    def broken(url, read):
        yield next(read_blocks(url, read))[:5000]
        raise RuntimeError("gone")

    monkeypatch.setattr(
        storage,
        "read_blocks",
        lambda url, read: (broken if url.endswith(name) else read_blocks)(url, read),
    )
    storage.configure(StorageConfig(tries=2, wait_seconds=0.01))
    assert verify(shards) == [f"{name}: cannot be read: RuntimeError: gone"]


def test_a_temporary_storage_failure_is_no_fault(shards, name, monkeypatch):
    read_blocks, failed = storage.read_blocks, []

    def fail_once(url, read):
        if url.endswith(name) and not failed:
            failed.append(url)
            raise OSError("try again")
        return read_blocks(url, read)

    monkeypatch.setattr(storage, "read_blocks", fail_once)
    storage.configure(StorageConfig(wait_seconds=0.01))
    assert verify(shards) == []
    assert failed


def test_the_number_of_processes_does_not_change_the_faults(folder):
    names = [shard.name for shard in read_index(str(folder)).shards() if shard.samples > SAMPLE]
    for name, damage in zip(names[1:], ("no shard", "damaged header", "wrong hash"), strict=False):
        FILES[damage][0](folder, name)
    (folder / "train" / "old.tar").touch()
    faults, parallel_faults = (verify(str(folder), processes) for processes in (1, 2))
    assert parallel_faults == faults
    assert [fault.split(":")[0] for fault in faults] == [
        names[1], names[2], names[2], names[3], "train/old.tar"
    ]  # fmt: skip
