"""Tests of the command line of shards: `main` in this process, and once in a new process."""

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
from stargan_dist.shards.__main__ import main
from stargan_dist.shards.summary import summarise, summary_table
from tests.conftest import digest


@pytest.fixture
def run(capsys, monkeypatch):
    """Run a command in this process, check its exit code and return (stdout, stderr)."""

    def run_and_check(*args, code=0):
        monkeypatch.setattr(sys, "argv", ["shards", *map(str, args)])
        with pytest.raises(SystemExit) as exited:
            run_command(main)
        out, err = capsys.readouterr()
        assert (exited.value.code or 0) == code, out + err
        return out, err

    return run_and_check


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


ONE_PROCESS = ("--processes", 1)


def test_the_module_runs_as_a_command(run, folder, tmp_path):
    args = ["build", str(folder), str(tmp_path / "x"), "--processes", "1"]
    command = [sys.executable, "-m", "stargan_dist.shards", *args]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "b c" in result.stdout
    assert "holds shards already" in run(*args, code=2)[1]


def test_build_and_inspect_print_the_same_table(run, folder, tmp_path):
    built, _ = run("build", folder, tmp_path / "x", "--val-fraction", 0.34, *ONE_PROCESS)
    inspected, _ = run("inspect", tmp_path / "x")
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


def test_inspect_prints_json_for_programs(run, shards):
    summary = json.loads(run("inspect", shards, "--json")[0])
    index = read_index(shards)
    assert summary["fingerprint"] == index.fingerprint
    assert (summary["images"], summary["shards"]) == (36, len(index.shards()))
    assert summary["domains"] == ["cat", "dog", "rabbit"]
    assert summary["splits"]["val"]["dog"] == {
        "images": 3,
        "shards": 1,
        "bytes": index.splits["val"]["dog"][0].bytes,
        "widths": [40, 40],
        "heights": [40, 40],
    }


def test_the_table_shows_left_out_images_and_the_encoding(shards):
    index = read_index(shards)
    index = replace(
        index,
        splits={**index.splits, "test": {"cat": []}},
        encoding={"size": 256, "format": "png"},
        skipped=[f"{i}.png: damaged" for i in range(23)],
    )
    lines = summary_table(summarise(index)).splitlines()
    assert "test   cat          0       0  0.0" in lines
    assert "encoding: size 256, format png" in lines
    assert lines[-21:] == [*(f"left out: {i}.png: damaged" for i in range(20)), "… and 3 more"]


def test_control_characters_of_names_are_escaped_in_the_table(shards):
    index = read_index(shards)
    index = replace(
        index,
        splits={"train": {"a\nb\x1b[2J": []}},
        encoding={"a\nb": "\r"},
        skipped=["c\nd: damaged"],
    )
    lines = summary_table(summarise(index)).splitlines()
    assert lines[1].split()[:3] == ["train", r"a\nb\x1b[2J", "0"]
    assert lines[-3] == r"encoding: a\nb \r"
    assert lines[-1] == r"left out: c\nd: damaged"


def test_build_applies_its_options(run, folder, tmp_path):
    (tmp_path / "list").write_text("a/0.png\nb c/1.png\n")
    options = ["--val-list", tmp_path / "list", "--shard-images", 1, "--size", 8, *ONE_PROCESS]
    run("build", folder, tmp_path / "x", *options)
    index = read_index(str(tmp_path / "x"))
    assert index.encoding == {"size": 8, "crop": 0, "format": "jpeg", "quality": 92}
    assert index.counts("train") == ((1, 1), (1, 1))
    assert index.counts("val") == ((1,), (1,))
    options = ["--format", "webp", "--quality", 50, "--seed", 3, "--overwrite", *ONE_PROCESS]
    run("build", folder, tmp_path / "x", *options)
    index = read_index(str(tmp_path / "x"))
    assert index.encoding == {"size": 0, "crop": 0, "format": "webp", "quality": 50}
    (folder / "a" / "bad.png").touch()
    assert "1 fault in" in run("build", folder, tmp_path / "y", *ONE_PROCESS, code=2)[1]
    assert "a/bad.png" in run("build", folder, tmp_path / "y", "--skip-bad", *ONE_PROCESS)[0]


def test_merged_parts_equal_a_single_build(run, folder, tmp_path):
    options = ["--shard-images", 1, *ONE_PROCESS]
    run("build", folder, tmp_path / "whole", *options)
    for number in (2, 1):
        out, _ = run("build", folder, tmp_path / "parts", *options, "--part", f"{number}/2")
        assert out.startswith(f"part {number} of 2: 3 images in 3 shards")
        assert f"merge {tmp_path / 'parts'}" in out
    out, _ = run("merge", tmp_path / "parts")
    assert out.splitlines()[-3].split()[:3] == ["total", "6", "6"]
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole")


def test_the_last_part_merges_with_the_option_merge(run, folder, tmp_path):
    options = ["--shard-images", 1, *ONE_PROCESS]
    run("build", folder, tmp_path / "whole", *options)
    for number in (2, 1):
        assert not (tmp_path / "parts" / "index.json").exists()
        part = ["--part", f"{number}/2", "--merge"]
        out, _ = run("build", folder, tmp_path / "parts", *options, *part)
        assert out.startswith(f"part {number} of 2")
    assert out.splitlines()[-3].split()[:3] == ["total", "6", "6"]
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole")


def test_verify_prints_faults_and_sets_the_exit_code(run, shards, tmp_path, folder):
    out, err = run("verify", shards, *ONE_PROCESS)
    assert out == f"36 images in {len(read_index(shards).shards())} shards: no faults\n"
    assert "verifying  36/36" in err
    summary = json.loads(run("verify", shards, "--json", *ONE_PROCESS)[0])
    assert summary == {"images": 36, "shards": len(read_index(shards).shards()), "faults": []}

    run("build", folder, tmp_path / "x", "--val-fraction", 0, *ONE_PROCESS)
    (tmp_path / "x" / "train" / "0000-a-000000.tar").unlink()
    (tmp_path / "x" / "train" / "old.tar").touch()
    faults = ["train/0000-a-000000.tar: is missing", "train/old.tar: not in the index"]
    out, _ = run("verify", tmp_path / "x", *ONE_PROCESS, code=1)
    assert out.splitlines() == [*faults, "6 images in 2 shards: 2 faults"]
    summary = json.loads(run("verify", tmp_path / "x", "--json", *ONE_PROCESS, code=1)[0])
    assert summary["faults"] == faults


def test_preview_writes_a_png_and_reports_unreadable_images(run, shards, folder, tmp_path):
    out, _ = run("preview", shards, "--out", tmp_path / "a.png", "--split", "val", "--size", 32)
    assert out == f"{tmp_path / 'a.png'}\n"
    assert Image.open(tmp_path / "a.png").width < 300

    run("build", folder, tmp_path / "x", "--val-fraction", 0, *ONE_PROCESS)
    (tmp_path / "x" / "train" / "0000-a-000000.tar").unlink()
    _, err = run("preview", tmp_path / "x", "--out", tmp_path / "b.png", "--per-domain", 2)
    assert err.count("crossed out: cannot read sample") == 2
    assert Image.open(tmp_path / "b.png").width > 0


def test_storage_options_reach_fsspec(run):
    options = json.dumps({"s3": {"endpoint_url": "http://127.0.0.1:1"}})
    run("inspect", "memory://nothing", "--storage", options, code=2)
    assert fsspec.config.conf["s3"] == {"endpoint_url": "http://127.0.0.1:1"}


@pytest.mark.parametrize(
    ("args", "message"),
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
        (["inspect", "x", "--storage", "[" * 10**5], 'must be like {"s3"'),
        (["inspect", "x", "--storage", '{"s3": 1}'], 'must be like {"s3"'),
        (["verify", "/nowhere"], "no shards at /nowhere"),
        (["verify", "x", "--processes", "0"], "0 must be at least 1"),
        (["preview", "/nowhere"], "no shards at /nowhere"),
        (["preview", "x", "--out", "x.jpg"], "ends with .png"),
    ],
)
def test_mistakes_are_reported_on_one_line(run, args, message):
    _, err = run(*args, code=2)
    assert err.startswith("error: ")
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("command", ["build", "merge", "inspect", "verify", "preview"])
def test_help_has_an_example(run, command):
    out, _ = run(command, "--help")
    assert f"example:\n  python -m stargan_dist.shards {command} " in out
