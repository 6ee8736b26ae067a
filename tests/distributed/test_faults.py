"""Training on damaged or unavailable shards, with real processes and servers."""

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
# A single try with a short time limit.
NO_RETRIES = ("--storage.tries", "1", "--storage.timeout_seconds", "4")


@pytest.fixture
def copy(shards, tmp_path):
    """Return a copy of the shards and the name of one of its shards, to be damaged."""
    shutil.copytree(shards, tmp_path / "set")
    bad = read_index(shards).splits["train"]["dog"][1].name
    return tmp_path / "set", bad


def truncate(path):
    path.write_bytes(path.read_bytes()[:700])


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_bad_shard_is_reported_and_ends_all_ranks(copy, tmp_path, processes):
    """Each rank that reads it reports it in one line. Other ranks end well before any timeout."""
    folder, bad = copy
    truncate(folder / bad)
    began = time.monotonic()
    code = 2 if processes == 1 else 1
    done = Trainer(str(folder))(
        tmp_path / "run", "--data.workers", "1", processes=processes, code=code
    )
    assert time.monotonic() - began < 300
    errors = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert 1 <= len(errors) <= processes
    assert [line for line in errors if bad in line and "--data.on_bad_shard skip" in line]
    assert "Original Traceback" not in done.stderr


@pytest.mark.slow
def test_a_server_that_does_not_answer_ends_all_ranks(copy, tmp_path, http):
    """Every read of a shard stalls until its time limit, which ends the run."""
    folder, bad = copy
    shutil.copytree(folder, http.folder, dirs_exist_ok=True)
    http.faults[bad] = ["stall"] * 1000
    began = time.monotonic()
    done = Trainer(http.url)(tmp_path / "run", *NO_RETRIES, processes=2, code=1)
    assert time.monotonic() - began < 300
    assert f"{bad}: no answer for 4.0 s" in done.stderr


def test_skipped_samples_are_printed_logged_and_saved(copy, tmp_path):
    """A resumed run has the same bits as an uninterrupted one."""
    folder, bad = copy
    truncate(folder / bad)
    train = Trainer(str(folder))
    done = train.here(tmp_path / "one", *SKIP)
    manifest = checkpoints.find(str(tmp_path / "one")).manifest
    assert list(manifest.skipped) == [bad]
    assert "it is truncated" in manifest.skipped[bad]["reason"]
    samples = manifest.skipped[bad]["samples"]
    assert samples > 2
    logged = scalars(tmp_path / "one", ("data/skipped_samples",))["data/skipped_samples"]
    assert logged[-1] == (6, samples)
    assert f"replaced {samples} samples so far: {samples} of shard {bad}" in done.stderr

    train.here(tmp_path / "resumed", *SKIP, "--steps", "4")
    train.here(tmp_path / "resumed", *SKIP)
    assert checkpoints.find(str(tmp_path / "resumed")).manifest.skipped == manifest.skipped
    assert_same_bits(tmp_path / "resumed", tmp_path / "one")


@pytest.mark.slow
def test_two_processes_count_the_same_skipped_samples_as_one(copy, tmp_path):
    folder, bad = copy
    truncate(folder / bad)
    counts = []
    for processes in (1, 2):
        run = tmp_path / str(processes)
        Trainer(str(folder))(run, *SKIP, processes=processes)
        counts.append(checkpoints.find(str(run)).manifest.skipped[bad]["samples"])
    assert counts[0] == counts[1]


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_number_of_skipped_samples_is_limited(copy, tmp_path, processes):
    folder, bad = copy
    truncate(folder / bad)
    train = Trainer(str(folder))
    options = (*SKIP, "--data.max_skipped", "1")
    code = 2 if processes == 1 else 1
    done = train(tmp_path / "run", *options, processes=processes, code=code)
    errors = [line for line in done.stderr.splitlines() if "data.max_skipped = 1" in line]
    assert len(errors) == 1, done.stderr
    assert bad in errors[0]
    assert checkpoints.find(str(tmp_path / "run")) is None


def s3_options(address):
    return f'{{"s3": {{"endpoint_url": "{address}"}}}}'


def test_a_run_on_an_object_store_with_a_cache_has_the_bits_of_local_files(
    shards, s3, s3_address, run_of_two, tmp_path
):
    for path in Path(shards).rglob("*.*"):
        storage.write_bytes(f"{s3}/set/{path.relative_to(shards)}", path.read_bytes())
    cache = ("--data.cache", str(tmp_path / "cache"))
    train = Trainer(f"{s3}/set")
    train(tmp_path / "remote", "--storage.options", s3_options(s3_address), *cache, processes=2)
    assert_same_bits(tmp_path / "remote", run_of_two)
    assert list((tmp_path / "cache").iterdir())


@pytest.mark.slow
def test_the_demo_trains_on_an_object_store(train, animals, s3, s3_address, tmp_path):
    """Images and shards on `s3://` result in the same bits as local files."""
    s3_option = s3_options(s3_address)
    for path in animals.rglob("*.png"):
        storage.write_bytes(f"{s3}/images/{path.relative_to(animals)}", path.read_bytes())
    build = [
        *(sys.executable, "-m", "stargan_dist.shards", "build", f"{s3}/images", f"{s3}/set"),
        *("--val-fraction", "0.25", "--shard-images", "4", "--storage", s3_option),
    ]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)

    def demo(name, shards, *options):
        short = ("--steps", "4", "--batch_size", "4")
        paths = ("--run", str(tmp_path / name), "--data.shards", shards)
        train(name, "--config", "configs/demo.yaml", *short, *paths, *options, processes=2)

    demo("local", train.shards, "--evaluation.every", "0")
    cache = ("--data.cache", str(tmp_path / "cache"))
    demo("remote", f"{s3}/set", "--storage.options", s3_option, *cache)
    assert_same_bits(tmp_path / "remote", tmp_path / "local")
    assert list(Path(tmp_path / "cache").iterdir())
    # The run was evaluated at its end. Statistics of real images are stored beside the shards.
    assert (tmp_path / "remote" / "evaluation" / "demo" / "step_00000004_seed_0.json").is_file()
    assert len(storage.list_names(f"{s3}/set/statistics")) == 14
    subprocess.run(
        [sys.executable, "-m", "stargan_dist.sample", "--run", str(tmp_path / "remote")],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    assert len(list((tmp_path / "remote" / "translations").glob("*.png"))) == 2
