"""Command line of landmark networks."""

import json

import fsspec
import numpy as np
import pytest
import torch

from stargan_dist.data.index import read_index
from stargan_dist.data.reader import ShardReader
from stargan_dist.data.split import load_split
from stargan_dist.faces.points import points_of
from stargan_dist.models import landmarks
from stargan_dist.models.landmarks import Description, SavedLandmarks
from stargan_dist.nets.fan import FAN
from stargan_dist.nets.masks import Move, Part
from tests.conftest import here
from tests.helpers.manifests import write_rows

TINY = ("--width", 16, "--input-size", 64, "--batch-size", 4, "--steps", 4, "--every", 2,
        "--workers", 0)  # fmt: skip


@pytest.fixture
def command(animals, shards, tmp_path):
    """Run `landmarks train` on the drawn animals."""
    (tmp_path / "parts").write_text('[{"landmarks": [0, 1], "moves": [{"power": 2}]}]')

    def run(*options, code=0, points=animals.parent / "landmarks.jsonl"):
        out = tmp_path / "n.safetensors"
        files = (shards, out, "--points", points, "--parts", tmp_path / "parts")
        return here("landmarks", "train", *files, *TINY, *options, code=code)

    return run


def test_train_writes_a_network_with_its_description(command, tmp_path):
    done = command()
    assert "px of 64" in done.stdout and f"written to {tmp_path}/n.safetensors" in done.stdout
    assert "fitting: mean error" in done.stderr and "steps/s  eta" in done.stderr
    saved = landmarks.read(str(tmp_path / "n.safetensors"))
    assert saved.description == Description(64, (Part((0, 1), (Move(0, 2),)),))
    network = saved.build()
    assert (network.l0.out_channels, network.m0.coordconv.conv.out_channels) == (8, 16)


def test_the_same_command_resumes_and_then_changes_nothing(command, tmp_path):
    command()
    out, checkpoint = tmp_path / "n.safetensors", tmp_path / "n.safetensors.checkpoint"
    files = [path.read_bytes() for path in (out, checkpoint)]
    out.unlink()
    command()
    assert [path.read_bytes() for path in (out, checkpoint)] == files
    error = command("--lr", 0.5, code=2).stderr
    assert error.count("\n") == 1 and "other settings (lr)" in error


def test_everything_may_be_at_urls(command, animals, shards, tmp_path):
    command()
    memory = fsspec.filesystem("memory")
    memory.put(shards, "/landmarks/set", recursive=True)
    memory.put(str(animals.parent / "landmarks.jsonl"), "/landmarks/points")
    memory.put(str(tmp_path / "parts"), "/landmarks/parts")
    out = "memory://landmarks/n.safetensors"
    files = ("--points", "memory://landmarks/points", "--parts", "memory://landmarks/parts")
    here("landmarks", "train", "memory://landmarks/set", out, *files, *TINY)
    assert memory.cat(out) == (tmp_path / "n.safetensors").read_bytes()


@pytest.mark.parametrize(("rows", "message"), [
    ([], "is empty"),
    ([("cat/000000.png", [[1, 1]])], "a part of the masks has the landmarks [0, 1]"),
    ([("cat/000000.png", [[1, 1], [2, 2]])], "has no landmarks of"),
    ([(f"{name}/{i:06d}.png", [[1, 1], [41, 2]]) for name in ("cat", "dog", "rabbit")
      for i in range(12)], "lie outside the image, which has 40 × 40 pixels"),
    ([("cat/000000.png", [[1, float("nan")], [2, 2]])], "not a number"),
])  # fmt: skip
def test_unusable_landmarks_are_one_line(command, tmp_path, rows, message):
    error = command(code=2, points=write_rows(tmp_path / "m", rows)).stderr
    (line,) = [line for line in error.splitlines() if not line.startswith("fitting")]
    assert line.startswith("error: ") and message in line


@pytest.mark.parametrize(("options", "message"), [
    (("--width", 20), "--width must be a multiple of 16"),
    (("--input-size", 100), "--input-size must be a multiple of 64"),
    (("--batch-size", 1), "--batch-size"),
    (("--lr", "nan"), "--lr and --sigma must be positive"),
    (("--steps", 0), "--steps"),
    (("--every", 0), "--every"),
])  # fmt: skip
def test_options_out_of_range_are_refused(command, options, message):
    (line,) = command(*options, code=2).stderr.splitlines()
    assert line.startswith("error: ") and message in line


def test_the_name_of_the_output_shows_what_it_is(shards, tmp_path):
    done = here("landmarks", "train", shards, tmp_path / "n.pt", "--points", "m", code=2)
    assert "the name of a network ends with .safetensors" in done.stderr


@pytest.fixture
def network(tmp_path):
    torch.manual_seed(0)
    network = FAN(3, 16, 64)
    parts = (Part((0, 2)),)
    saved = SavedLandmarks("", network.state_dict(), Description(64, parts))
    landmarks.write(str(tmp_path / "l.safetensors"), saved)
    return tmp_path / "l.safetensors", network.eval()


def test_the_mean_is_that_of_the_points_of_all_images(network, shards, tmp_path):
    path, module = network
    images = load_split(ShardReader(shards, read_index(shards), "val"), 64).images
    with torch.no_grad():
        points = points_of(module(images / 127.5 - 1), 256)
    options = ("--landmarks", path, "--split", "val", "--batch-size", 4)
    done = here("landmarks", "mean", shards, tmp_path / "m.npz", *options)
    assert "the mean of 3 landmarks" in done.stdout
    mean = np.load(tmp_path / "m.npz")["mean"]
    np.testing.assert_allclose(mean, points.double().mean(0), atol=1e-4)
    here("landmarks", "mean", shards, tmp_path / "m.json", *options)
    text = json.loads((tmp_path / "m.json").read_text())
    np.testing.assert_allclose(text["mean"], mean, atol=6e-4)


def test_the_mean_of_the_published_network_has_no_boundary(shards, tmp_path):
    saved = SavedLandmarks("", FAN(99, 16, 64).state_dict(), Description(64))
    landmarks.write(str(tmp_path / "l.safetensors"), saved)
    options = ("--landmarks", tmp_path / "l.safetensors", "--split", "val")
    here("landmarks", "mean", shards, tmp_path / "m.npz", *options)
    assert np.load(tmp_path / "m.npz")["mean"].shape == (98, 2)
