"""The command lines on a run, as a user types them. Most run in the process of the tests."""

import json
import os
import shutil
import statistics
import subprocess
import sys

import pytest
from PIL import Image

from stargan_dist.evaluation import report
from tests.conftest import here
from tests.helpers.runs import scalars


def command(module, *args, code=0, **env):
    result = subprocess.run(
        [sys.executable, "-m", f"stargan_dist.{module}", *map(str, args)],
        capture_output=True, text=True, check=False, env=os.environ | env,
    )  # fmt: skip
    assert result.returncode == code, result.stdout + result.stderr
    return result


@pytest.fixture(scope="module")
def evaluated(finished_run, tmp_path_factory):
    """Return a run with an evaluated checkpoint, and the result of the command."""
    run = tmp_path_factory.mktemp("evaluated") / "run"
    shutil.copytree(finished_run, run)
    options = ["--protocol", "demo", "--cache", run.parent / "cache", "--repeat", 2]
    return run, command("evaluate", "--run", run, *options)


def result(run, seed=0):
    file = run / "evaluation" / "demo" / f"step_00000006_seed_{seed}.json"
    return json.loads(file.read_text())


def test_an_evaluation_is_printed(evaluated):
    run, done = evaluated
    assert "step 6, protocol demo (small classifier of the set's domains), float32" in done.stdout
    assert "cat → dog" in done.stdout
    for name, mean in result(run)["means"].items():
        if mean is not None and "fid" in name:
            assert report.format_number(mean) in done.stdout
    assert "task 15/15  36/36" in done.stderr  # progress
    assert f"written to {run}/evaluation/demo/step_00000006_seed_0.json" in done.stdout


def test_a_repeated_evaluation_prints_mean_and_deviation(evaluated):
    run, done = evaluated
    first, second = (result(run, seed)["means"]["demo_fid_latent"] for seed in (0, 1))
    assert first != second
    deviation = statistics.stdev([first, second])
    assert f"2  {report.format_number((first + second) / 2)} ± {deviation:.2g} " in done.stdout


def test_an_evaluation_as_json_computes_nothing_again(evaluated):
    run, _ = evaluated
    cache = run.parent / "cache"
    again = here("evaluate", "--run", run, "--protocol", "demo", "--cache", cache, "--json")
    assert json.loads(again.stdout) == [result(run)]
    assert "sources" not in again.stderr


def test_evaluations_are_shown_in_tensorboard(evaluated, tmp_path):
    run, _ = evaluated
    shutil.copytree(run / "tensorboard" / "evaluation", tmp_path / "tensorboard")
    logged = scalars(tmp_path, ("demo",))
    assert logged["demo/demo_fid_latent"][0][0] == 6
    assert logged["demo_tasks/demo_lpips_latent_cat_to_dog"]


def test_evaluations_of_several_runs_are_compared(evaluated, tmp_path):
    run, _ = evaluated
    other = tmp_path / "other"
    shutil.copytree(run, other)
    for seed in (0, 1):
        better = result(run, seed) | {"step": 4, "score": 1.0}
        file = other / "evaluation" / "demo" / f"step_00000004_seed_{seed}.json"
        file.write_text(json.dumps(better))
    lines = here("evaluate", "--compare", run, other).stdout.splitlines()
    assert len([line for line in lines if "protocol" in line]) == 1
    rows = [line.split() for line in lines if str(tmp_path) in line or str(run) in line]
    assert [row[:4] for row in rows] == [
        ["*", str(run), "6", "2"],
        ["*", str(other), "4", "2"],
        [str(other), "6", "2", rows[2][3]],
    ]
    (group,) = json.loads(here("evaluate", "--compare", run, other, "--json").stdout)
    assert [row["best"] for row in group["rows"]] == [True, True, False]


def test_a_run_without_evaluations_cannot_be_compared(finished_run, tmp_path):
    shutil.copytree(finished_run / "checkpoints", tmp_path / "run" / "checkpoints")
    error = here("evaluate", "--compare", tmp_path / "run", code=2).stderr
    assert "has no complete evaluation" in error


def test_validation_images_are_translated(finished_run, tmp_path):
    out = command("sample", "--run", finished_run, "--out", tmp_path, "--count", 1).stdout
    for line in out.splitlines():
        assert Image.open(line).width > 64
    assert len(out.splitlines()) == 2


def test_given_images_are_translated(finished_run, tmp_path, animals):
    cat, dog = animals / "cat" / "000000.png", animals / "dog" / "000001.png"
    options = ["--sources", cat, "--references", f"dog={dog}", "--checkpoint", "4"]
    here("sample", "--run", finished_run, "--out", tmp_path, *options)
    reference = Image.open(tmp_path / "reference_step_00000004.png")
    assert reference.size == (2 * 66 + 2, 2 * 66 + 2 + 16)


@pytest.mark.parametrize(
    ("module", "args", "expected"),
    [
        ("sample", ["--references", "cow=x.png"], "DOMAIN=FILE with a domain of cat, dog, rabbit"),
        ("sample", ["--sources", "/nowhere.png"], "cannot read the image /nowhere.png"),
        ("sample", ["--checkpoint", "5"], "has no checkpoint 5"),
        ("evaluate", ["--checkpoint", "5"], "has no checkpoint 5"),
        ("evaluate", ["--inception-weights", "/no.pth"], "--alexnet-weights FILE"),
    ],
)
def test_a_user_error_is_one_line(finished_run, tmp_path, module, args, expected):
    error = here(module, "--run", finished_run, *args, code=2).stderr
    assert error.startswith("error: ")
    assert expected in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("module", "args"),
    [
        ("sample", ["--run", "r", "--seed"]),
        ("evaluate", ["--run", "r", "--seed"]),
        ("shards", ["build", "images", "out", "--seed"]),
        ("data.demo", ["out", "--seed"]),
        ("translate", ["model", "in", "out", "--domain", "cat", "--seeds"]),
        ("video", ["model", "out.webp", "--domain", "cat", "--seeds"]),
    ],
)
@pytest.mark.filterwarnings("ignore:.* found in sys.modules")
def test_seeds_are_not_negative(module, args):
    error = here(module, *args, -1, code=2).stderr
    assert f"{args[-1]}: -1 must be at least 0" in error.splitlines()[-1]


def test_a_run_without_checkpoints_cannot_be_evaluated(tmp_path):
    assert "train it first" in here("evaluate", "--run", tmp_path, code=2).stderr


@pytest.mark.filterwarnings("ignore:.* found in sys.modules")
@pytest.mark.parametrize(
    "module",
    [
        "train",
        "pairs",
        "evaluate",
        "sample",
        "export",
        "align",
        "app",
        "memory",
        "shards",
        "data.demo",
    ],
)
def test_help_prints_the_usage(module):
    assert "usage" in here(module, "--help").stdout
