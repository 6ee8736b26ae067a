"""The command line of shards: `main` in this process, and once as a user starts it."""

import json
import subprocess
import sys
from dataclasses import replace

import fsspec
import numpy as np
import pytest
from PIL import Image

from stargan_dist.data.index import read_index
from stargan_dist.errors import run_command
from stargan_dist.shards.__main__ import facts, main, table
from tests.conftest import digest


@pytest.fixture
def call(capsys, monkeypatch):
    """Run a command in this process and check its exit code: what it wrote to stdout and stderr."""

    def run(*args, code=0):
        monkeypatch.setattr(sys, "argv", ["shards", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            run_command(main)
        out, err = capsys.readouterr()
        assert (ended.value.code or 0) == code, out + err
        return out, err

    return run


@pytest.fixture
def folder(tmp_path):
    """Two domains of three noise images each, 16 and 18 pixels wide."""
    source = tmp_path / "images"
    for domain in ("b c", "a"):
        (source / domain).mkdir(parents=True)
        for i in range(3):
            shape = (16, 18 if i == 2 else 16, 3)
            pixels = np.random.default_rng(i).integers(0, 255, shape, np.uint8)
            Image.fromarray(pixels).save(source / domain / f"{i}.png")
    return source


ONE = ("--processes", 1)


def test_as_a_user_starts_it(call, folder, tmp_path):
    args = ["build", str(folder), str(tmp_path / "x"), "--processes", "1"]
    command = [sys.executable, "-m", "stargan_dist.shards", *args]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "b c" in result.stdout
    assert "holds shards already" in call(*args, code=2)[1]


def test_build_and_inspect_print_the_same_table(call, folder, tmp_path):
    built, _ = call("build", folder, tmp_path / "x", "--val-fraction", 0.34, *ONE)
    inspected, _ = call("inspect", tmp_path / "x")
    assert built == inspected
    lines = built.splitlines()
    assert lines[0].split() == ["split", "domain", "images", "shards", "MiB", "pixels"]
    assert [line.split()[:4] for line in lines[1:6]] == [
        ["train", "a", "2", "1"],
        ["train", "b", "c", "2"],
        ["val", "a", "1", "1"],
        ["val", "b", "c", "1"],
        ["total", "6", "4", "0.0"],
    ]
    assert lines[5].endswith("16–18 × 16")
    assert lines[6:] == [
        "encoding: original bytes",
        f"fingerprint: {read_index(str(tmp_path / 'x')).fingerprint[:12]}",
    ]


def test_inspect_for_programs(call, shards):
    told = json.loads(call("inspect", shards, "--json")[0])
    index = read_index(shards)
    assert told["fingerprint"] == index.fingerprint
    assert (told["images"], told["shards"]) == (36, len(index.shards()))
    assert told["domains"] == ["cat", "dog", "rabbit"]
    assert told["splits"]["val"]["dog"] == {
        "images": 3,
        "shards": 1,
        "bytes": index.splits["val"]["dog"][0].bytes,
        "widths": [40, 40],
        "heights": [40, 40],
    }


def test_the_table_says_what_was_left_out_and_how_images_are_encoded(shards):
    index = read_index(shards)
    index = replace(
        index,
        splits={**index.splits, "test": {"cat": []}},
        encoding={"size": 256, "format": "png"},
        skipped=[f"{i}.png: damaged" for i in range(23)],
    )
    lines = table(facts(index)).splitlines()
    assert "test   cat          0       0  0.0" in lines
    assert "encoding: size 256, format png" in lines
    assert lines[-21:] == [*(f"left out: {i}.png: damaged" for i in range(20)), "… and 3 more"]


def test_options_of_build(call, folder, tmp_path):
    (tmp_path / "list").write_text("a/0.png\nb c/1.png\n")
    options = ["--val-list", tmp_path / "list", "--shard-images", 1, "--size", 8, *ONE]
    call("build", folder, tmp_path / "x", *options)
    index = read_index(str(tmp_path / "x"))
    assert index.encoding == {"size": 8, "crop": 0, "format": "jpeg", "quality": 92}
    assert index.counts("train") == ((1, 1), (1, 1))
    assert index.counts("val") == ((1,), (1,))
    options = ["--format", "webp", "--quality", 50, "--seed", 3, "--overwrite", *ONE]
    call("build", folder, tmp_path / "x", *options)
    index = read_index(str(tmp_path / "x"))
    assert index.encoding == {"size": 0, "crop": 0, "format": "webp", "quality": 50}
    (folder / "a" / "bad.png").touch()
    assert "1 faults" in call("build", folder, tmp_path / "y", *ONE, code=2)[1]
    assert "a/bad.png" in call("build", folder, tmp_path / "y", "--skip-bad", *ONE)[0]


def test_parts_are_merged_to_what_one_build_makes(call, folder, tmp_path):
    options = ["--shard-images", 1, *ONE]
    call("build", folder, tmp_path / "whole", *options)
    for number in (2, 1):
        out, _ = call("build", folder, tmp_path / "parts", *options, "--part", f"{number}/2")
        assert out.startswith(f"part {number} of 2: 3 images in 3 shards")
        assert f"merge {tmp_path / 'parts'}" in out
    out, _ = call("merge", tmp_path / "parts")
    assert out.splitlines()[-3].split()[:3] == ["total", "6", "6"]
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole")


def test_the_last_part_merges_if_it_is_asked_to(call, folder, tmp_path):
    options = ["--shard-images", 1, *ONE]
    call("build", folder, tmp_path / "whole", *options)
    for number in (2, 1):
        assert not (tmp_path / "parts" / "index.json").exists()
        part = ["--part", f"{number}/2", "--merge"]
        out, _ = call("build", folder, tmp_path / "parts", *options, *part)
        assert out.startswith(f"part {number} of 2")
    assert out.splitlines()[-3].split()[:3] == ["total", "6", "6"]
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole")


def test_verify(call, shards, tmp_path, folder):
    out, err = call("verify", shards, *ONE)
    assert out == f"36 images in {len(read_index(shards).shards())} shards: no faults\n"
    assert "verifying  36/36" in err
    told = json.loads(call("verify", shards, "--json", *ONE)[0])
    assert told == {"images": 36, "shards": len(read_index(shards).shards()), "faults": []}

    call("build", folder, tmp_path / "x", "--val-fraction", 0, *ONE)
    (tmp_path / "x" / "train" / "0000-a-000000.tar").unlink()
    (tmp_path / "x" / "train" / "old.tar").touch()
    faults = ["train/0000-a-000000.tar: is missing", "train/old.tar: not in the index"]
    out, _ = call("verify", tmp_path / "x", *ONE, code=1)
    assert out.splitlines() == [*faults, "6 images in 2 shards: 2 faults"]
    told = json.loads(call("verify", tmp_path / "x", "--json", *ONE, code=1)[0])
    assert told["faults"] == faults


def test_preview(call, shards, folder, tmp_path):
    out, _ = call("preview", shards, "--out", tmp_path / "a.png", "--split", "val", "--size", 32)
    assert out == f"{tmp_path / 'a.png'}\n"
    assert Image.open(tmp_path / "a.png").width < 300

    call("build", folder, tmp_path / "x", "--val-fraction", 0, *ONE)
    (tmp_path / "x" / "train" / "0000-a-000000.tar").unlink()
    _, err = call("preview", tmp_path / "x", "--out", tmp_path / "b.png", "--per-domain", 2)
    assert err.count("crossed out: cannot read sample") == 2
    assert Image.open(tmp_path / "b.png").width > 0


def test_options_of_file_systems(call):
    options = json.dumps({"s3": {"endpoint_url": "http://127.0.0.1:1"}})
    call("inspect", "memory://nothing", "--storage", options, code=2)
    assert fsspec.config.conf["s3"] == {"endpoint_url": "http://127.0.0.1:1"}


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ([], "arguments are required: COMMAND"),
        (["paint"], "invalid choice: 'paint'"),
        (["build", "x"], "arguments are required: DEST"),
        (["build", "x", "y", "--part", "0/4"], "0/4 must be like 2/4"),
        (["build", "x", "y", "--part", "5/4"], "5/4 must be like 2/4"),
        (["build", "x", "y", "--part", "x"], "x must be like 2/4"),
        (["build", "x", "y", "--part", "1/2", "--overwrite"], "remove y first"),
        (["build", "x", "y", "--shard-images", "0"], "0 must be at least 1"),
        (["build", "x", "y", "--shard-images", "many"], "invalid whole number value: 'many'"),
        (["build", "x", "y", "--quality", "101"], "at least 1 and at most 100"),
        (["build", "x", "y", "--val-fraction", "1"], "at least 0 and less than 1"),
        (["build", "x", "y", "--format", "gif"], "invalid choice: 'gif'"),
        (["build", "/nowhere", "/nowhere/y"], "/nowhere is not a folder"),
        (["merge", "/nowhere"], "holds no parts"),
        (["inspect", "/nowhere"], "no shards at /nowhere"),
        (["inspect", "x", "--storage", "{"], 'must be like {"s3"'),
        (["inspect", "x", "--storage", '{"s3": 1}'], 'must be like {"s3"'),
        (["verify", "/nowhere"], "no shards at /nowhere"),
        (["verify", "x", "--processes", "0"], "0 must be at least 1"),
        (["preview", "/nowhere"], "no shards at /nowhere"),
        (["preview", "x", "--out", "x.jpg"], "ends with .png"),
    ],
)
def test_mistakes_are_one_line(call, args, named):
    _, err = call(*args, code=2)
    assert err.startswith("error: ")
    assert named in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("command", ["build", "merge", "inspect", "verify", "preview"])
def test_help_has_an_example(call, command):
    out, _ = call(command, "--help")
    assert f"example:\n  python -m stargan_dist.shards {command} " in out
