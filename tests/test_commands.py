"""The command lines on a run, as a user types them."""

import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from stargan_dist import checkpoint as checkpoints


def command(module, *args, code=0, **env):
    result = subprocess.run(
        [sys.executable, "-m", f"stargan_dist.{module}", *map(str, args)],
        capture_output=True, text=True, check=False, env=os.environ | env,
    )  # fmt: skip
    assert result.returncode == code, result.stdout + result.stderr
    return result


@pytest.fixture(scope="module")
def evaluation(finished_run):
    stdout = command("evaluate", "--run", finished_run).stdout
    path = finished_run / "evaluation" / "step_00000006.json"
    return stdout, json.loads(path.read_text())


def test_evaluation_covers_every_task(evaluation):
    stdout, result = evaluation
    tasks = {(row["guide"], row["source"], row["target"]) for row in result["tasks"]}
    assert len(tasks) == len(result["tasks"]) == 2 * 3 * 2
    assert all(row["sources"] == 3 for row in result["tasks"])
    assert result["protocol"] == "thumbnails"
    assert "cat → dog" in stdout
    assert result["score"] == pytest.approx(
        sum(row["thumbnail_fd"] for row in result["tasks"]) / 12
    )


def test_real_images_are_nearer_than_those_of_an_untrained_generator(evaluation):
    _, result = evaluation
    assert max(result["real_thumbnail_fd"].values()) < result["score"]


def test_evaluation_is_reproducible_and_depends_on_its_seed(evaluation, finished_run):
    path = finished_run / "evaluation" / "step_00000006.json"
    command("evaluate", "--run", finished_run)
    assert json.loads(path.read_text()) == evaluation[1]
    command("evaluate", "--run", finished_run, "--seed", "1")
    assert json.loads(path.read_text())["score"] != evaluation[1]["score"]
    command("evaluate", "--run", finished_run)


def test_the_evaluated_checkpoint_is_the_best(evaluation, finished_run):
    assert checkpoints.find(str(finished_run), "best").step == 6


def test_samples_of_validation_images(finished_run, tmp_path):
    out = command("sample", "--run", finished_run, "--out", tmp_path, "--count", 1).stdout
    for line in out.splitlines():
        assert Image.open(line).width > 64
    assert len(out.splitlines()) == 2


def test_samples_of_own_images(finished_run, tmp_path, animals):
    cat, dog = animals / "cat" / "000000.png", animals / "dog" / "000001.png"
    options = ["--sources", cat, "--references", f"dog={dog}", "--checkpoint", "4"]
    command("sample", "--run", finished_run, "--out", tmp_path, *options)
    reference = Image.open(tmp_path / "reference_step_00000004.png")
    assert reference.size == (2 * 66 + 2, 2 * 66 + 2 + 16)


@pytest.mark.parametrize(
    ("module", "args", "named"),
    [
        ("sample", ["--references", "cow=x.png"], "DOMAIN=FILE with a domain of cat, dog, rabbit"),
        ("sample", ["--sources", "/nowhere.png"], "cannot read the image /nowhere.png"),
        ("sample", ["--checkpoint", "5"], "has no checkpoint 5"),
        ("evaluate", ["--checkpoint", "5"], "has no checkpoint 5"),
    ],
)
def test_mistakes_are_one_line(finished_run, tmp_path, module, args, named):
    error = command(module, "--run", finished_run, *args, code=2).stderr
    assert error.startswith("error: ")
    assert named in error
    assert len(error.splitlines()) == 1


def test_a_run_without_checkpoints(tmp_path):
    assert "train it first" in command("evaluate", "--run", tmp_path, code=2).stderr


def test_evaluation_in_several_processes_is_refused(finished_run):
    launched = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    error = command("evaluate", "--run", finished_run, code=2, **launched).stderr
    assert "one process" in error


@pytest.mark.parametrize("module", ["train", "evaluate", "sample", "shards", "data.demo"])
def test_help(module):
    assert "usage" in command(module, "--help").stdout
