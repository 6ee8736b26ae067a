"""Training on shards that fail: real processes, real servers."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stargan_dist import storage
from stargan_dist.data.index import read_index
from stargan_dist.runs import checkpoint as checkpoints
from tests.conftest import ROOT, Trainer
from tests.helpers.runs import assert_same_bits, scalars

SKIP = ("--data.on_bad_shard", "skip")
# One try, as soon as it fails.
HASTY = ("--storage.tries", "1", "--storage.timeout_seconds", "4")


@pytest.fixture
def copy(shards, tmp_path):
    """A copy of the shards, to be damaged, and one of its shards."""
    shutil.copytree(shards, tmp_path / "set")
    bad = read_index(shards).splits["train"]["dog"][1].name
    return tmp_path / "set", bad


def truncate(path):
    path.write_bytes(path.read_bytes()[:700])


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_bad_shard_ends_all_ranks_and_is_told(copy, tmp_path, processes):
    """By each rank that met it, in a line; the others end too, long before any time-out."""
    folder, bad = copy
    truncate(folder / bad)
    began = time.monotonic()
    code = 2 if processes == 1 else 1
    done = Trainer(str(folder))(
        tmp_path / "run", "--data.workers", "1", processes=processes, code=code
    )
    assert time.monotonic() - began < 300
    told = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert 1 <= len(told) <= processes
    assert [line for line in told if bad in line and "--data.on_bad_shard skip" in line]
    assert "Original Traceback" not in done.stderr


def test_a_server_that_fails_ends_all_ranks(copy, tmp_path, http):
    """A server that lets every read of a shard hang: patience ends, and with it the run."""
    folder, bad = copy
    shutil.copytree(folder, http.folder, dirs_exist_ok=True)
    http.faults[bad] = ["stall"] * 1000
    began = time.monotonic()
    done = Trainer(http.url)(tmp_path / "run", *HASTY, processes=2, code=1)
    assert time.monotonic() - began < 300
    assert f"{bad}: no answer for 4.0 s" in done.stderr


def test_skipped_samples_are_told_shown_and_saved(copy, tmp_path):
    """Resumed with an unbroken run's bits."""
    folder, bad = copy
    truncate(folder / bad)
    train = Trainer(str(folder))
    done = train(tmp_path / "one", *SKIP)
    found = checkpoints.find(str(tmp_path / "one"))
    assert list(found.skipped) == [bad]
    assert "it is truncated" in found.skipped[bad]["reason"]
    samples = found.skipped[bad]["samples"]
    assert samples > 2
    shown = scalars(tmp_path / "one", ("data/skipped_samples",))["data/skipped_samples"]
    assert shown[-1] == (6, samples)
    assert f"replaced {samples} samples so far: {samples} of shard {bad}" in done.stdout

    train(tmp_path / "broken", *SKIP, "--steps", "4")
    train(tmp_path / "broken", *SKIP)
    assert checkpoints.find(str(tmp_path / "broken")).skipped == found.skipped
    assert_same_bits(tmp_path / "broken", tmp_path / "one")


@pytest.mark.slow
def test_two_processes_count_what_one_does(copy, tmp_path):
    folder, bad = copy
    truncate(folder / bad)
    counts = []
    for processes in (1, 2):
        run = tmp_path / str(processes)
        Trainer(str(folder))(run, *SKIP, processes=processes)
        counts.append(checkpoints.find(str(run)).skipped[bad]["samples"])
    assert counts[0] == counts[1]


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_skipping_is_bounded(copy, tmp_path, processes):
    folder, bad = copy
    truncate(folder / bad)
    train = Trainer(str(folder))
    few = (*SKIP, "--data.max_skipped", "1")
    code = 2 if processes == 1 else 1
    done = train(tmp_path / "run", *few, processes=processes, code=code)
    told = [line for line in done.stderr.splitlines() if "data.max_skipped = 1" in line]
    assert len(told) == 1, done.stderr
    assert bad in told[0]
    assert checkpoints.find(str(tmp_path / "run")) is None


def s3_options(address):
    return f'{{"s3": {{"endpoint_url": "{address}"}}}}'


def test_an_object_store_and_a_cache_end_with_the_bits_of_local_files(
    shards, s3, s3_address, run_of_two, tmp_path
):
    for path in Path(shards).rglob("*.*"):
        storage.write_bytes(f"{s3}/set/{path.relative_to(shards)}", path.read_bytes())
    cache = ("--data.cache", str(tmp_path / "cache"))
    far = Trainer(f"{s3}/set")
    far(tmp_path / "far", "--storage.options", s3_options(s3_address), *cache, processes=2)
    assert_same_bits(tmp_path / "far", run_of_two)
    assert list((tmp_path / "cache").iterdir())


@pytest.mark.slow
def test_the_demo_trains_from_an_object_store(train, animals, s3, s3_address, tmp_path):
    """Images, shards and training on `s3://` end with the bits of local files."""
    access = s3_options(s3_address)
    for path in animals.rglob("*.png"):
        storage.write_bytes(f"{s3}/images/{path.relative_to(animals)}", path.read_bytes())
    build = [
        *(sys.executable, "-m", "stargan_dist.shards", "build", f"{s3}/images", f"{s3}/set"),
        *("--val-fraction", "0.25", "--shard-images", "4", "--storage", access),
    ]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)

    def demo(name, shards, *options):
        few = ("--steps", "4", "--batch_size", "4")
        where = ("--run", str(tmp_path / name), "--data.shards", shards)
        train(name, "--config", "configs/demo.yaml", *few, *where, *options, processes=2)

    demo("near", train.shards, "--evaluation.every", "0")
    cache = ("--data.cache", str(tmp_path / "cache"))
    demo("far", f"{s3}/set", "--storage.options", access, *cache)
    assert_same_bits(tmp_path / "far", tmp_path / "near")
    assert list(Path(tmp_path / "cache").iterdir())
    # It was evaluated at its end, and what that found of real images lies beside the shards.
    assert (tmp_path / "far" / "evaluation" / "demo" / "step_00000004_seed_0.json").is_file()
    assert len(storage.list_names(f"{s3}/set/statistics")) == 14
    subprocess.run(
        [sys.executable, "-m", "stargan_dist.sample", "--run", str(tmp_path / "far")],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    assert len(list((tmp_path / "far" / "translations").glob("*.png"))) == 2
